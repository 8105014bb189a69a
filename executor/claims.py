"""What to claim next: how many jobs, of which queues, and whose turn it is among the priorities of a device."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from keyside.executor.intake import Intake
from keyside.executor.lane import Lane
from keyside.executor.protocol import claim, device_of, rank_of
from keyside.tensorstore import keys
from keyside.tensorstore.resp import encode

__all__ = ["Claims", "Turns"]

BLOCK_MS = 5000
PARKED_MAX = 16
KEPT = 1024

ROTA = (0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2)
"""Whose turn it is while more wait than one claim takes: of 16 claims 12 are for HIGH, 3 for NORMAL, 1 for LOW."""


class Turns:
    """The priorities of one device: what waits in several of them is claimed by turns, in fixed shares.

    A queue is backlogged once a claim has brought as many of its jobs as it asked for, until one brings fewer.

    Args:
        words: for the queues, in the order of their ranks.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self._backlogged = dict.fromkeys(words, False)
        self._turn = -1

    def next(self) -> tuple[Sequence[str], bool]:
        """Return the queues of the next claim, and whether it may wait for jobs: it must not while others have some.

        A turn goes to the next queue below where nothing is known to wait; queues above come along if they are not
        backlogged: that costs nobody anything. Where nothing is known to wait from there on down, all are asked.
        """
        backlogged = self._backlogged
        if True not in backlogged.values():
            return self.words, True
        self._turn = (self._turn + 1) % len(ROTA)
        below = [word for word in self.words if rank_of(word) >= ROTA[self._turn]] or self.words[-1:]
        whose = next((word for word in below if backlogged[word]), None)
        if whose is None:
            return self.words, False
        above = self.words[: self.words.index(whose)]
        return [*(word for word in above if not backlogged[word]), whose], False

    def note(self, word: str, *, full: bool) -> None:
        """Take note of what a claim has brought of a queue."""
        self._backlogged[word] = full


class Claims:
    """Makes claims, as bytes: the same few are made over and over.

    Args:
        consumer: this executor in the job streams.
        lanes: by device queue.
        intake: knows how many jobs wait for a model to be loaded.
        most: jobs to claim at once.
        shared: tells which queues other executors serve as well.

    Attributes:
        streams: the queues to serve: the word for each, by the name of its stream.
        left_out: queues that had no room when the last claim was made.
        count: how many jobs of each queue that asked for.
        running: whether a lane was busy then.
        foreseen: whether the next claim can be worked out before this one has brought anything.
    """

    def __init__(
        self,
        consumer: bytes,
        lanes: Mapping[str, Lane],
        intake: Intake,
        most: int,
        shared: Callable[[], Collection[str]],
    ) -> None:
        self.streams: dict[bytes, str] = {}
        self.left_out: list[str] = []
        self.count = 0
        self.running = False
        self.foreseen = True
        self._consumer = consumer
        self._lanes = lanes
        self._intake = intake
        self._most = most
        self._shared = shared
        self._encoded: dict[tuple[object, ...], bytes] = {}
        self._node = keys.NodeKeys()
        self._devices: tuple[str, ...] = ()
        self._used: tuple[str, ...] = ()
        self._served: tuple[str, ...] = ()  # of those, what the last claim knew of, and the one before
        self._served_before: tuple[str, ...] = ()
        self._turns: list[Turns] = []
        self._asked: dict[str, int] = {}

    def serve(self, node: keys.NodeKeys, devices: Sequence[str]) -> None:
        """Serve the queues of these devices on a node, from the next claim on; for the thread that claims."""
        self._node, self._devices = node, tuple(devices)
        self._build(self._used)

    def use(self, words: Iterable[str]) -> None:
        """Serve these queues besides those of the devices themselves: they are in use; for any thread."""
        found = tuple(words)
        if found != self._used:
            self._used = found

    def refresh(self) -> None:
        """Serve now what `use` has named; for the thread that claims."""
        if self._used is not self._served:
            self._build(self._used)

    def _build(self, used: tuple[str, ...]) -> None:
        places = {device: place for place, device in enumerate(self._devices)}
        words = [*self._devices, *(word for word in used if device_of(word) in places)]
        words.sort(key=lambda word: (rank_of(word), places[device_of(word)]))
        self.streams = {self._node.queue(word): word for word in words}
        turns = [Turns([word for word in words if device_of(word) == device]) for device in self._devices]
        self._turns = turns if len(words) > len(self._devices) else []
        self._served = used
        self.foreseen = not self._turns

    def next(self, *, ahead: bool = False) -> bytes:
        """Return the next claim, encoded; empty if there is no room for more jobs.

        Args:
            ahead: one that does not block.
        """
        self._served_before = self._served
        self.refresh()
        chosen, may_wait = self._choose() if self._turns else (None, True)
        streams: list[bytes] = []
        left_out: list[str] = []
        count = 0
        running = False
        for stream, queue in self.streams.items():
            running = running or self._lanes[device_of(queue)].busy
            if chosen is not None and queue not in chosen:
                continue
            room = self._room(queue)
            if room > 0:
                streams.append(stream)
                count = max(count, room)
            else:
                left_out.append(queue)
        self.left_out, self.count, self.running = left_out, count, running
        if not streams:
            return b""
        if chosen is not None:
            self._asked = {self.streams[stream]: count for stream in streams}
        block_ms = None if ahead or not may_wait else BLOCK_MS
        what = (count, block_ms, *streams)
        encoded = self._encoded.get(what)
        if encoded is None:
            if len(self._encoded) >= KEPT:
                self._encoded.clear()
            encoded = self._encoded[what] = b"".join(encode(claim(self._consumer, streams, count, block_ms)))
        return encoded

    def _choose(self) -> tuple[set[str], bool]:
        chosen: set[str] = set()
        may_wait = True
        for turns in self._turns:
            # A device without room is asked nothing, and its turn is not over.
            words, waits = turns.next() if self._room(turns.words[0]) > 0 else (turns.words, True)
            chosen.update(words)
            may_wait = may_wait and waits
        return chosen, may_wait

    def note(self, reply: Sequence[Any] | None) -> None:
        """Take note of what the last claim has brought; needed where nothing is foreseen."""
        brought = {self.streams.get(bytes(stream)): len(entries) for stream, entries in reply or ()}
        for turns in self._turns:
            for word in turns.words:
                asked = self._asked.get(word)
                if asked:
                    turns.note(word, full=brought.get(word, 0) >= asked)
        self._asked = {}

    def has_room(self) -> bool:
        """Whether the next claim could bring more: of queues that had no room then, or were not known."""
        if self._used is not self._served or self._served is not self._served_before:
            return True
        return any(self._room(queue) > 0 for queue in self.left_out)

    def _room(self, queue: str) -> int:
        """Return how many jobs of a queue to claim now."""
        device = device_of(queue)
        # What waits for a load would keep others waiting if there were no other executor; where there is one, it may be
        # warm, and is left the rest.
        if self._intake.parked(device) >= PARKED_MAX and queue in self._shared():
            return 0
        return self._lanes[device].room(self._most)
