"""Queues of other node tags whose slots have moved to this node: drained here, since nobody else can.

A queue lies under the tag of the node that took its jobs. When the slot of that tag moves, all that belongs to the
node's queues moves with it, and the executors of the node that owns the slot now serve them, until they are empty.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import hiredis

from keyside.executor.peers import on_the_move
from keyside.executor.protocol import GROUP, claim, device_of
from keyside.executor.wire import Wire
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, Unreachable

if TYPE_CHECKING:
    from keyside.executor.worker import Worker

__all__ = ["Strays", "find"]

PRIORITIES = ("", "!H", "!L")
LOOK = 2000
BLOCK_MS = 200
PAUSE_S = 0.1


def find(wire: Wire, slots: Iterable[int], own_tag: bytes, devices: Sequence[str]) -> tuple[list[str], list[bytes]]:
    """Look for what other nodes have left in slots of this one.

    Args:
        wire: to the node.
        slots: to look at.
        own_tag: of the node itself.
        devices: whose queues to look for.

    Returns:
        The words for the queues, and the tags under which there is a catalog.

    Raises:
        Unreachable: the server is gone.
    """
    tags = [tag for tag in map(keys.slot_tags().__getitem__, slots) if tag != own_tag]
    queues = [f"{device}{priority}" for device in devices for priority in PRIORITIES]
    some: list[bytes] = []
    for start in range(0, len(tags), LOOK):
        part = tags[start : start + LOOK]
        replies = wire.call_many([(b"EXISTS", *_names(tag, queues)) for tag in part])  # one slot each
        some += [tag for tag, count in zip(part, replies, strict=True) if isinstance(count, int) and count]
    words: list[str] = []
    catalogs: list[bytes] = []
    for tag in some:
        *there, catalog, revs = wire.call_many([(b"EXISTS", name) for name in _names(tag, queues)])
        words += [f"{queue}@{tag.decode()}" for queue, one in zip(queues, there, strict=True) if one == 1]
        if 1 in (catalog, revs):
            catalogs.append(tag)
    return words, catalogs


def _names(tag: bytes, queues: Sequence[str]) -> list[bytes]:
    names = keys.NodeKeys(tag)
    return [*map(names.jobs, queues), names.catalog, names.revs]


class Strays(threading.Thread):
    """Claims from queues of other tags, on a thread of its own that sleeps as long as there are none.

    Attributes:
        words: for those queues.
    """

    def __init__(self, worker: "Worker") -> None:
        super().__init__(name="strays", daemon=True)
        self.words: tuple[str, ...] = ()
        self._worker = worker
        self._wire = worker.new_wire("strays")
        self._lock = threading.Condition()
        self._over = False

    def serve(self, words: Iterable[str]) -> None:
        """Serve further queues."""
        with self._lock:
            fresh = [word for word in words if word not in self.words]
            if fresh:
                self._worker.log.info("queues have moved to this node", queues=fresh)
            self.words += tuple(fresh)
            self._lock.notify()

    def leave(self, word: str = "") -> None:
        """Serve a queue no more; without a word: none."""
        with self._lock:
            self.words = tuple(one for one in self.words if word and one != word)

    def stop(self) -> None:
        """End the thread."""
        with self._lock:
            self._over = True
            self._lock.notify()

    def run(self) -> None:
        """Claim until stopped."""
        while True:
            with self._lock:
                while not self.words and not self._over:
                    self._wire.close()
                    self._lock.wait()
                if self._over:
                    break
            try:
                if not self._wire.connected:
                    self._wire.connect()
                came = [self._turn(word) for word in self.words]
                if not any(came):
                    time.sleep(PAUSE_S)
            except KeysideError as error:
                self._worker.log.warning("moved queues not served", error=str(error))
                self._wire.close()
                time.sleep(PAUSE_S)
        self._wire.close()

    def _turn(self, word: str) -> bool:
        """Take jobs of a queue; return whether there were any."""
        worker = self._worker
        room = worker.room(device_of(word))
        if room <= 0 or worker.stopping.is_set() or word not in self.words:
            return False
        stream = worker.node.queue(word)
        block = BLOCK_MS if len(self.words) == 1 else None
        (reply,) = self._wire.call_many((claim(worker.consumer, (stream,), room, block),))
        if isinstance(reply, hiredis.ReplyError):
            self._refused(word, stream, reply)
            return False
        if reply:
            worker.takeover.take_in(self._wire, word, reply[0][1])
            return True
        if self._remove_if_empty(word):
            worker.log.info("moved queue is empty", queue=word)
            self.leave(word)
        return False

    def _refused(self, word: str, stream: bytes, reply: Exception) -> None:
        if str(reply).startswith("NOGROUP"):
            there, _ = self._wire.call_many(
                ((b"EXISTS", stream), (b"XGROUP", b"CREATE", stream, GROUP, b"0"))
            )  # from 0: what came before the group are jobs too
            if there == 0:
                self.leave(word)
        elif str(reply).startswith("MOVED"):
            self.leave(word)  # somebody else's now
        elif not on_the_move(reply):
            raise Unreachable(str(reply))

    def _remove_if_empty(self, word: str) -> bool:
        """Take a queue away that has no entries, whoever may be about to add one, and its account of bytes."""
        node = self._worker.node
        stream, account = node.queue(word), node.account(word)
        _, length = self._wire.call_many(((b"WATCH", stream), (b"XLEN", stream)))
        if length != 0:
            self._wire.call_many(((b"UNWATCH",),))
            return False
        *_, done = self._wire.call_many(((b"MULTI",), (b"UNLINK", stream, account), (b"EXEC",)))
        return isinstance(done, list)
