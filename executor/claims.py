"""What to claim next: how many jobs, of which queues."""

from collections.abc import Callable, Collection, Mapping

from keyside.executor.intake import Intake
from keyside.executor.lane import Lane
from keyside.executor.protocol import claim, device_of
from keyside.tensorstore.resp import encode

__all__ = ["Claims"]

BLOCK_MS = 5000
PARKED_MAX = 16
KEPT = 1024


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
        self._consumer = consumer
        self._lanes = lanes
        self._intake = intake
        self._most = most
        self._shared = shared
        self._encoded: dict[tuple[object, ...], bytes] = {}

    def next(self, *, ahead: bool = False) -> bytes:
        """Return the next claim, encoded; empty if there is no room for more jobs.

        Args:
            ahead: one that does not block.
        """
        streams: list[bytes] = []
        left_out: list[str] = []
        count = 0
        running = False
        for stream, queue in self.streams.items():
            running = running or self._lanes[device_of(queue)].busy
            room = self._room(queue)
            if room > 0:
                streams.append(stream)
                count = max(count, room)
            else:
                left_out.append(queue)
        self.left_out, self.count, self.running = left_out, count, running
        if not streams:
            return b""
        block_ms = None if ahead else BLOCK_MS
        what = (count, block_ms, *streams)
        encoded = self._encoded.get(what)
        if encoded is None:
            if len(self._encoded) >= KEPT:
                self._encoded.clear()
            encoded = self._encoded[what] = b"".join(encode(claim(self._consumer, streams, count, block_ms)))
        return encoded

    def has_room(self) -> bool:
        """Whether a queue that the last claim left out could be claimed from now."""
        return any(self._room(queue) > 0 for queue in self.left_out)

    def _room(self, queue: str) -> int:
        """Return how many jobs of a queue to claim now."""
        device = device_of(queue)
        # What waits for a load would keep others waiting if there were no other executor; where there is one, it may be
        # warm, and is left the rest.
        if self._intake.parked(device) >= PARKED_MAX and queue in self._shared():
            return 0
        return self._lanes[device].room(self._most)
