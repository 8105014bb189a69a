"""Many requests of a blocking client to all nodes of a cluster at a time, each on its own way."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Protocol

from keyside.clients.request import Request
from keyside.clients.rounds import as_reply
from keyside.clients.way import Way
from keyside.tensorstore.errors import Busy

__all__ = ["Spread"]

_PER_NODE, _MOST = 8, 32


class _Cluster(Protocol):
    def node_count(self) -> int: ...
    def way(self, request: Request) -> Way: ...
    def go(self, way: Way) -> bytes: ...
    def call_off(self, ways: Iterable[Way]) -> None: ...


class Spread:
    """One run of many requests, on a few threads.

    Args:
        cluster: runs each of them.
        window: how many may be in flight.
    """

    def __init__(self, cluster: _Cluster, window: int) -> None:
        self._cluster = cluster
        self._count = max(1, min(window, _PER_NODE * cluster.node_count(), _MOST))
        self._lock = threading.Lock()
        self._ended: queue.Queue[tuple[int, bytes | BaseException] | None] = queue.Queue(2 * self._count)
        self._ways: dict[int, Way] = {}
        self._over = False
        self._threads: list[threading.Thread] = []

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, bytes]]:
        """Run the requests and give their replies as they come, each with the number of its request.

        Raises:
            KeysideError: one of them was refused, failed, or was not answered.
        """
        numbered = enumerate(requests)
        self._threads = [
            threading.Thread(target=self._work, args=(numbered,), name="keyside-many", daemon=True)
            for _ in range(self._count)
        ]
        for thread in self._threads:
            thread.start()
        working = self._count
        while working:
            item = self._ended.get()
            if item is None:
                working -= 1
            elif isinstance(item[1], BaseException):
                raise item[1]
            else:
                yield item[0], item[1]

    def _work(self, numbered: Iterator[tuple[int, Request]]) -> None:
        try:
            while True:
                with self._lock:
                    item = None if self._over else next(numbered, None)
                if item is None:
                    break
                index, request = item
                way = self._cluster.way(request)
                with self._lock:
                    self._ways[index] = way
                try:
                    self._put((index, self._cluster.go(way)))
                except Busy as error:
                    self._put((index, as_reply(error)))
                finally:
                    with self._lock:
                        del self._ways[index]
        except BaseException as error:  # noqa: BLE001  # it is raised where the results are asked for
            self._put((-1, error))
        self._put(None)

    def _put(self, item: tuple[int, bytes | BaseException] | None) -> None:
        while not self._over:
            try:
                self._ended.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def end(self) -> None:
        """Cancel what is still in flight."""
        with self._lock:
            self._over = True
            ways = list(self._ways.values())
        if ways:
            self._cluster.call_off(ways)
        for thread in self._threads:
            thread.join(1.0)
