"""Every key that Keyside keeps, and the hash tags that put it in the right slot.

This is the only module that formats a key. What it makes begins with ``ks:{``: docs/protocol.md, section 2.
"""

from binascii import crc_hqx
from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "PREFIX",
    "SLOTS",
    "STANDALONE_TAG",
    "Key",
    "NodeKeys",
    "blob_chunk",
    "capture",
    "client_ticket",
    "crc16",
    "fired",
    "gone",
    "mailbox",
    "output",
    "private",
    "results",
    "slot",
    "slot_channel",
    "slot_tag",
    "slot_tags",
    "tag",
    "temporary",
    "upload_chunk",
]

Key = bytes | str
Part = bytes | str | int

PREFIX = b"ks:"
SLOTS = 16384
STANDALONE_TAG = b"0"
"""The node tag of a server without cluster mode."""

_ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-"


def crc16(data: bytes) -> int:
    """Compute the CRC-16/XMODEM that Redis Cluster uses.

    Args:
        data: Any bytes.

    Returns:
        0 .. 65535.
    """
    return crc_hqx(data, 0)


def slot(key: Key) -> int:
    """Compute the slot of a key, with regard to its hash tag.

    Args:
        key: Any key.

    Returns:
        0 .. 16383.
    """
    data = _bytes(key)
    return crc_hqx(_own_tag(data) or data, 0) & (SLOTS - 1)


@lru_cache(maxsize=4096)
def slot_tag(slot: int) -> bytes:
    """Find the short hash tag that stands for a slot.

    Args:
        slot: 0 .. 16383.

    Returns:
        The first three-letter word, in the order of the protocol's alphabet, that hashes to the slot.

    Raises:
        ValueError: There is no such slot.
    """
    if not 0 <= slot < SLOTS:
        raise ValueError(f"no slot {slot}; slots are 0 .. {SLOTS - 1}")
    # The CRC starts at 0, so it is linear: that of "abc" is the xor of those of its letters in their places.
    for first in _ALPHABET:
        for second in _ALPHABET:
            missing = slot ^ (crc_hqx(bytes((first, second, 0)), 0) & (SLOTS - 1))
            third = _LAST_LETTER.get(missing)
            if third is not None:
                return bytes((first, second, third))
    raise AssertionError(f"no word hashes to slot {slot}")  # all 16384 are reached: the tests try each


_LAST_LETTER = {crc_hqx(bytes((letter,)), 0) & (SLOTS - 1): letter for letter in reversed(_ALPHABET)}


@lru_cache(maxsize=1)
def slot_tags() -> tuple[bytes, ...]:
    """Return the word of every slot, as `slot_tag` finds it, at a tenth of the cost of asking for each."""
    found: dict[int, bytes] = {}
    for first in _ALPHABET:
        for second in _ALPHABET:
            base = crc_hqx(bytes((first, second, 0)), 0)
            for number, third in _LAST_LETTER.items():
                found.setdefault((base & (SLOTS - 1)) ^ number, bytes((first, second, third)))
    return tuple(found[number] for number in range(SLOTS))


def tag(key: Key) -> bytes:
    """Find text that, between braces, hashes to the slot of a key.

    Args:
        key: Any key.

    Returns:
        The key's own hash tag; else the key, if it can stand between braces; else a word for its slot.
    """
    data = _bytes(key)
    own = _own_tag(data)
    if own:
        return own
    if data and b"}" not in data:
        return data
    return slot_tag(crc_hqx(data, 0) & (SLOTS - 1))


def private(key: Key, kind: Part, *parts: Part) -> bytes:
    """Name a key of Keyside's own in the slot of another key.

    Args:
        key: The key whose slot it shall have.
        kind: What it is, such as ``cap``.
        *parts: What tells it from others of its kind.

    Returns:
        ``ks:{T}:kind:part...``.
    """
    return b":".join((b"ks:{%b}" % tag(key), _bytes(kind), *map(_bytes, parts)))


def capture(key: Key, unique: Part) -> bytes:
    """Name the private copy of an input, in the slot of the input."""
    return private(key, b"cap", unique)


def output(key: Key | None, unique: Part, node: bytes = STANDALONE_TAG) -> bytes:
    """Name an output on its way.

    Args:
        key: The key that it is for; None if its name goes to the caller in the reply.
        unique: An id never used before.
        node: The node tag, in whose slot it lies if there is no key.

    Returns:
        ``ks:{T}:out:<unique>``.
    """
    if key is None:
        return b"ks:{%b}:out:%b" % (node, _bytes(unique))
    return private(key, b"out", unique)


def upload_chunk(model: Key, upload_id: Part, index: int) -> bytes:
    """Name chunk ``index`` of a model being uploaded, in the slot of the model."""
    return private(model, b"up", upload_id, index)


def blob_chunk(model: Key, uid: Part, sha256: Part, index: int) -> bytes:
    """Name chunk ``index`` of a model's blob, in the slot of the model."""
    return private(model, b"blob", uid, sha256, index)


def gone(model: Key, uid: Part) -> bytes:
    """Name what is kept of a deleted model for jobs that were queued before."""
    return private(model, b"gone", uid)


def fired(stream: Key, trigger: Part) -> bytes:
    """Name the hash, entry -> job, of the entries of a stream for which a trigger has runs under way."""
    return private(stream, b"fired", trigger)


def results(trigger: Part) -> bytes:
    """Name the channel for the results of a trigger that names no other."""
    return b"ks:results:" + _bytes(trigger)


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """The keys of one node.

    Attributes:
        tag: The node tag: ``STANDALONE_TAG``, or on a cluster the ``slot_tag`` of the node's lowest slot.
    """

    tag: bytes = STANDALONE_TAG

    def _key(self, *parts: Part) -> bytes:
        return b":".join((b"ks:{%b}" % self.tag, *map(_bytes, parts)))

    @property
    def dead(self) -> bytes:
        """Stream of the jobs given up, with the reason."""
        return self._key(b"dead")

    @property
    def catalog(self) -> bytes:
        """Hash, target -> record: what the functions read when a job is submitted."""
        return self._key(b"catalog")

    @property
    def models(self) -> bytes:
        """Hash, model -> tag of its default version: the index of the models."""
        return self._key(b"models")

    @property
    def revs(self) -> bytes:
        """Sorted set, model -> revision of what the catalog says of it; models that have gone are listed for a day."""
        return self._key(b"revs")

    @property
    def dropped(self) -> bytes:
        """Sorted set, model that has gone -> its last revision."""
        return self._key(b"dropped")

    @property
    def executors(self) -> bytes:
        """Sorted set, executor -> server time of its last heartbeat, in ms."""
        return self._key(b"executors")

    @property
    def replicator(self) -> bytes:
        """String: the executor that keeps the node's catalog equal to those of other nodes."""
        return self._key(b"replicator")

    def jobs(self, device: Part) -> bytes:
        """Stream of the jobs that wait or run on a device queue."""
        return self._key(b"jobs", device)

    def queue(self, word: str) -> bytes:
        """Stream of the queue that a word means: ``CPU``, ``CPU!H``, or with the tag of another node ``CPU@0aB``."""
        node, device = self._node_of(word)
        return node.jobs(device)

    def account(self, word: str) -> bytes:
        """String: the bytes held by the larger jobs of the queue that a word means; see `bytes`."""
        node, device = self._node_of(word)
        return node.bytes(device)

    def _node_of(self, word: str) -> tuple["NodeKeys", str]:
        device, _, other = word.partition("@")
        return (NodeKeys(other.encode()) if other else self), device

    def stats(self, model_id: Part) -> bytes:
        """Hash of the counters of one version (``uid-version``) on this node."""
        return self._key(b"stats", model_id)

    def executor(self, name: Part) -> bytes:
        """String: JSON that describes a live executor."""
        return self._key(b"executor", name)

    def seen(self, client: Part, timeout_class: Part, block: Part) -> bytes:
        """String: bitmap of request numbers already accepted from a client."""
        return self._key(b"seen", client, timeout_class, block)

    def ticket(self, job_id: Part) -> bytes:
        """List: a ticket that the server chose."""
        return self._key(b"ticket", job_id)

    @property
    def triggers(self) -> bytes:
        """Hash, trigger -> record: the triggers of the cluster as this node knows them."""
        return self._key(b"triggers")

    @property
    def onset(self) -> bytes:
        """Hash, trigger -> record: those that fire when a key is set; `@` -> what changes with every change of it."""
        return self._key(b"onset")

    def tstats(self, trigger: Part) -> bytes:
        """Hash of the counters of a trigger on this node."""
        return self._key(b"tstats", trigger)

    def event(self, trigger: Part) -> bytes:
        """The ticket of runs that a trigger has started: never a key, it says where results go."""
        return self._key(b"ev", trigger)

    def inflight(self, trigger: Part) -> bytes:
        """Sorted set, job of a trigger that has not ended -> when it will have, in ms."""
        return self._key(b"inflight", trigger)

    def lead(self, trigger: Part) -> bytes:
        """String: the executor that serves a trigger on this node."""
        return self._key(b"lead", trigger)

    def due(self, trigger: Part) -> bytes:
        """String: when a trigger on a schedule is due again, server time in ms."""
        return self._key(b"due", trigger)

    # Last in the class: from here on `bytes` means this method.
    def bytes(self, device: Part) -> bytes:
        """String: the bytes held by queued jobs larger than 4 KiB."""
        return self._key(b"bytes", device)


def _bytes(part: Part) -> bytes:
    if isinstance(part, bytes):
        return part
    return str(part).encode()


def _own_tag(key: bytes) -> bytes:
    """Return what stands between the first ``{`` and the next ``}``, or nothing."""
    start = key.find(b"{")
    if start < 0:
        return b""
    end = key.find(b"}", start + 1)
    return key[start + 1 : end] if end > 0 else b""


def client_ticket(node: bytes, client: Part, seq: int) -> bytes:
    """Name the list on which a client waits for the reply to its request ``seq``, on the node with this tag."""
    return b"ks:{%b}:t:%b:%d" % (node, _bytes(client), seq)


def seen(slot_tag: bytes, client: Part, seq: int) -> bytes:
    """Name what says on a cluster that a client's request with keys in the slot of a tag was accepted."""
    return b"ks:{%b}:seen:%b:%d" % (slot_tag, _bytes(client), seq)


def mailbox(node: bytes, client: Part) -> bytes:
    """Name the list on which a client waits for the replies to many requests, on the node with this tag."""
    return b"ks:{%b}:mb:%b" % (node, _bytes(client))


def temporary(slot_tag: bytes, client: Part, seq: int, index: int) -> bytes:
    """Name input ``index`` of a client's request ``seq``, too large to ride in the call, in the slot of a tag."""
    return b"ks:{%b}:tmp:%b:%d:%d" % (slot_tag, _bytes(client), seq, index)


def slot_channel(key: Key) -> bytes:
    """Name the channel in the slot of a key on which nothing is said but, by the server, that the slot has moved."""
    return b"ks:{%b}:moved" % tag(key)
