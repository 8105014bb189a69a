"""Calls of AI_PREDICT on their way to the server without detours: what repeats is encoded once and remembered.

The bytes are those that the builders in `commands` and `plain` give; anything unusual is left to them.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from keyside.clients.inputs import KEYED, Key, bind, request
from keyside.clients.request import MARGIN_S, Identity, Request
from keyside.tensorstore import keys, npy
from keyside.tensorstore.command import Command, Name, encode_words, to_bytes
from keyside.tensorstore.commands import INLINE
from keyside.tensorstore.errors import KeysideError

__all__ = ["Packed", "Packer", "Packs"]

_CACHE_ENTRIES = 4096
_MODES = {mode: b"$%d\r\n%b\r\n" % (len(word), word) for mode, word in
          (("copy", b"KEY"), ("ref", b"REF"), ("own", b"OWN"))}  # fmt: skip


class Packed(Request):
    """A request that is encoded already, as it is sent for the first time.

    Attributes:
        data: the call, and for a client that blocks the wait for the reply behind it.
        patience: seconds that this wait takes at most.
    """

    __slots__ = ("_inputs", "data", "patience")

    def __init__(self, data: bytes, target: Name, inputs: object, tail: "_Tail", packer: "Packer", seq: int) -> None:
        self.data = data
        self.before = ()
        self.temporaries = ()
        self.timeout = tail.timeout
        self.patience = tail.patience
        self.identity = packer.identity
        self.seq = seq
        self.tag = packer.node
        self.target = target
        self._inputs = inputs

    def submit(self, seconds: float, ticket: bytes, corr: bytes = b"") -> Command[bytes]:
        """Return the call that submits it once more, to end within some seconds."""
        made = request(self.target, bind(self._inputs), (), self.timeout, self.identity, self.tag, self.seq)
        return made.submit(seconds, ticket, corr)


class Packs(Protocol):
    """Encodes calls; see `Packer.pack`."""

    def pack(self, target: Name, inputs: object, timeout: float) -> Packed | None:
        """Encode a call, if it is of the usual kind."""


class _Tail:
    """How a call ends: a template into which the number of the request goes, and the numbers that fit it."""

    __slots__ = ("first", "last", "patience", "template", "timeout")

    def __init__(self, digits: int, template: bytes, timeout: float, patience: float) -> None:
        self.first = 10 ** (digits - 1)
        self.last = 10**digits - 1
        self.template = template
        self.timeout = timeout
        self.patience = patience


class Packer:
    """Encodes the calls of one client.

    Args:
        identity: the client's.
        node: tag of the node.
        mailbox: the list for the replies to all requests; None: each gets a ticket of its own, and a BLPOP behind it.
        most: seconds that this waits at most.
    """

    def __init__(
        self, identity: Identity, node: bytes, mailbox: bytes | None = None, most: float = float("inf")
    ) -> None:
        self._most = most
        self.identity = identity
        self.node = node
        self._mailbox = mailbox
        self._number = identity.number
        self._frames: dict[tuple[Any, ...], tuple[bytes, bytes, bytes]] = {}
        self._tails: dict[float, _Tail] = {}

    def pack(self, target: Name, inputs: object, timeout: float) -> Packed | None:
        """Encode a call whose inputs are arrays that ride in it, keys, or what is gathered from keys.

        Returns:
            None if it is no such call: plain values, large ones, or something that is refused.
        """
        kind = type(inputs)
        names: tuple[Any, ...] = ()
        items: Any
        if kind is list or kind is tuple:
            items = inputs
        elif kind is dict:
            names = tuple(inputs)  # type: ignore[arg-type]
            items = inputs.values()  # type: ignore[attr-defined]
        else:
            items = (inputs,)
        more = 0
        used: list[bytes] = []
        words: list[bytes] = []
        for item in items:
            kind = type(item)
            if kind is np.ndarray:
                head = _HEADS.get((item.dtype, item.shape))
                if head is None:
                    head = _head(item)
                if not head:
                    return None
                words += (head, item.tobytes(), b"\r\n")
            elif kind is Key:
                name = item.name
                if isinstance(name, str):
                    name = name.encode("utf-8", "surrogateescape")
                word = b"$%d\r\n%b\r\n" % (len(name), name)
                used.append(word)
                words += (_MODES[item.mode], word)
            elif kind in KEYED:
                used += [b"$%d\r\n%b\r\n" % (len(name), name) for name in item.names]
                words.append(item.wire)
                more += len(item.words) - 2
            else:
                return None
        if len(used) > 1:
            used = list(dict.fromkeys(used))
        try:
            start, middle, named = self._frames[target, len(items), len(used), names, more]
            tail = self._tails[timeout]
        except (KeyError, TypeError):
            found = self._prepare(target, len(items), len(used), names, more, timeout)
            if found is None:
                return None
            (start, middle, named), tail = found
        seq = self._number()
        if not tail.first <= seq <= tail.last:
            tail = self._tails[timeout] = self._tail(timeout, seq)
        numbers = (seq, seq, seq) if self._mailbox is None else (seq, seq)
        data = b"".join((start, *used, middle, *words, named, tail.template % numbers))
        return Packed(data, target, inputs, tail, self, seq)

    def _prepare(
        self, target: Name, count: int, used: int, names: tuple[Any, ...], more: int, timeout: float
    ) -> tuple[tuple[bytes, bytes, bytes], _Tail] | None:
        """Encode what calls of this form have in common; None if such a call is refused.

        `more`: words of the inputs beyond two for each.
        """
        fit = isinstance(timeout, int | float) and 0.001 <= timeout <= 86_400
        if not count or not fit or not isinstance(target, str | bytes) or not all(type(name) is str for name in names):
            return None
        total = 6 + used + 2 * count + more + (2 + len(names) if names else 0) + (7 if self._mailbox is None else 8)
        start = b"*%d\r\n" % total + _words(b"FCALL", b"AI_PREDICT", b"%d" % used)
        middle = _words(to_bytes(target), b"INPUTS", b"%d" % count)
        named = b""
        if names:
            try:
                named = _words(b"NAMES", b"%d" % len(names), *(name.encode() for name in names))
            except UnicodeEncodeError:
                return None
        for cache in (self._frames, self._tails):
            if len(cache) >= _CACHE_ENTRIES:
                cache.clear()
        frame = self._frames[target, count, used, names, more] = (start, middle, named)
        tail = self._tails.get(timeout)
        if tail is None:
            tail = self._tails[timeout] = self._tail(timeout, 1)
        return frame, tail

    def _tail(self, timeout: float, seq: int) -> _Tail:
        """Encode the end of calls whose numbers have as many digits as this one."""
        digits = len(str(seq))
        ms, patience = max(1, round(timeout * 1000)), min(timeout + MARGIN_S, self._most)
        number = b"$%d\r\n%%d\r\n" % digits
        until = _escaped(b"TIMEOUT", b"%d" % ms, b"TICKET")
        client = _escaped(b"ID", self.identity.id)
        if self._mailbox is None:
            ticket = keys.client_ticket(self.node, self.identity.id, seq)
            place = b"$%d\r\n%b%%d\r\n" % (len(ticket), ticket[:-digits].replace(b"%", b"%%"))
            wait = b"*3\r\n" + _escaped(b"BLPOP") + place + _escaped(b"%.3f" % patience)
            template = until + place + client + number + wait
        else:
            template = until + _escaped(self._mailbox) + number + client + number
        return _Tail(digits, template, timeout, patience)


_HEADS: dict[tuple[np.dtype[Any], tuple[int, ...]], bytes] = {}
"""What stands before the elements of a value, by dtype and shape; empty if no such value can ride in a call."""


def _head(array: NDArray[Any]) -> bytes:
    head = b""
    if array.dtype.kind not in "UT":
        try:
            header = npy.encode_header(array.dtype, array.shape)
        except KeysideError:
            return b""
        size = len(header) + array.nbytes
        if size <= INLINE:
            head = b"%b$%d\r\n%b" % (_words(b"VALUE"), size, header)
    if len(_HEADS) >= _CACHE_ENTRIES:
        _HEADS.clear()
    _HEADS[array.dtype, array.shape] = head
    return head


def _escaped(*words: bytes) -> bytes:
    return _words(*words).replace(b"%", b"%%")


def _words(*words: bytes) -> bytes:
    return encode_words(words)
