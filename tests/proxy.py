"""A relay between a server and its callers that delays, truncates, swallows, drips and breaks what they say."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from tests.servers import Server

__all__ = ["Direction", "Fault", "Proxy"]

Rule = Callable[[bytes], bool]
"""Whether something shall happen to a connection when these bytes have come."""

Direction = Literal["requests", "replies"]


def _always(_: bytes) -> bool:
    return True


@dataclass(eq=False)
class Fault:
    """What is done to what comes from one side.

    Attributes:
        direction: which side's bytes.
        rule: from which bytes on; each connection is looked at by itself.
        delay: seconds that each piece is held back.
        keep: so many bytes from those on are passed on, then the connection is reset; None: no limit.
        swallow: nothing is passed on, and the connection stays as it is: half open.
        hold: nothing is passed on until the fault is healed: a network that has fallen apart and comes together again.
        drip: bytes at a time, one portion each `delay` seconds; 0: all at once.
        once: only for the first connection for which the rule says so.
        happened: is set when it has taken hold.
    """

    direction: Direction
    rule: Rule = _always
    delay: float = 0.0
    keep: int | None = None
    swallow: bool = False
    hold: bool = False
    drip: int = 0
    once: bool = False
    happened: threading.Event = field(default_factory=threading.Event)
    healed: threading.Event = field(default_factory=threading.Event)


class _Pump:
    """One direction of one connection, and the faults that have taken hold of it."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.faults: list[Fault] = []
        self.left: int | None = None  # bytes until it is cut
        self.swallowed = False


class Proxy:
    """Relays TCP connections to a server's unix socket.

    A rule sees what was just received from one side. Where one of the three that are attributes says so, the connection
    is reset: before the bytes are passed on (`before`, `replies`: they never arrive) or after (`after`: they do, and
    nothing comes back). Everything else is a `Fault`, until it is healed.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: dict[tuple[socket.socket, socket.socket], tuple[_Pump, _Pump]] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._deaf = threading.Event()
        self.before: Rule | None = None
        self.after: Rule | None = None
        self.replies: Rule | None = None
        self.accepted = 0
        self.ended = 0  # connections that have broken by themselves, or as a rule or a fault would have it

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.heal()
        self.cut()

    # --- connections that break

    def once(self, moment: str, rule: Rule) -> threading.Event:
        """Break one connection, the first for which the rule says so.

        Args:
            moment: "before" or "after" the bytes of a client are passed on, or "replies": instead of the server's.
            rule: which bytes.

        Returns:
            Is set when it has happened.
        """
        done = threading.Event()

        def first(data: bytes) -> bool:
            if done.is_set() or not rule(data):
                return False
            done.set()
            return True

        setattr(self, moment, first)
        return done

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            pairs, self._pairs = list(self._pairs), {}
        for pair in pairs:
            _reset(pair)

    def refuse(self) -> None:
        """Break all connections and close every new one at once."""
        self._deaf.set()
        self.cut()

    def serve(self) -> None:
        """Take connections again."""
        self._deaf.clear()

    # --- connections that stay, and do not work

    def add(self, fault: Fault) -> Fault:
        """Do this from now on, until `heal`."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def delay(self, seconds: float, direction: Direction = "replies", rule: Rule = _always) -> Fault:
        """Hold each piece back."""
        return self.add(Fault(direction, rule, delay=seconds))

    def truncate(self, keep: int, direction: Direction = "replies", rule: Rule = _always) -> Fault:
        """Cut one connection, the first for which the rule says so, so many bytes further on."""
        return self.add(Fault(direction, rule, keep=keep, once=True))

    def drip(self, count: int, seconds: float, direction: Direction = "replies", rule: Rule = _always) -> Fault:
        """Pass on a few bytes at a time."""
        return self.add(Fault(direction, rule, drip=count, delay=seconds))

    def swallow(self, direction: Direction = "replies", rule: Rule = _always, *, once: bool = False) -> Fault:
        """Pass on nothing any more, from where a rule says so; the other direction works."""
        return self.add(Fault(direction, rule, swallow=True, once=once))

    def blackhole(self) -> None:
        """Swallow both directions of all connections, those that are made meanwhile as well."""
        self.swallow("requests")
        self.swallow("replies")

    def partition(self) -> None:
        """Hold both directions: once it is healed, all that was said arrives, as TCP has it."""
        self.add(Fault("requests", hold=True))
        self.add(Fault("replies", hold=True))

    def heal(self, *, reset: bool = True) -> None:
        """Do nothing any more. Connections of which something was swallowed are of no use, and are reset."""
        with self._lock:
            faults, self._faults = self._faults, []
            for fault in faults:
                fault.healed.set()
            broken = [pair for pair, pumps in self._pairs.items() if reset and any(pump.swallowed for pump in pumps)]
            for pair in broken:
                del self._pairs[pair]
        for pair in broken:
            _reset(pair)

    @contextlib.contextmanager
    def blackholed(self) -> Iterator[None]:
        """A blackhole for the length of a `with`."""
        self.blackhole()
        try:
            yield
        finally:
            self.heal()

    @contextlib.contextmanager
    def partitioned(self) -> Iterator[None]:
        """A partition for the length of a `with`."""
        self.partition()
        try:
            yield
        finally:
            self.heal()

    # --- the relay

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            server = socket.socket(socket.AF_UNIX)
            try:
                if self._deaf.is_set():
                    raise ConnectionRefusedError
                server.connect(str(self._server.socket))
            except OSError:
                client.close()
                server.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, server)
            requests, replies = _Pump("requests"), _Pump("replies")
            with self._lock:
                self._pairs[pair] = (requests, replies)
            for source, sink, pump in ((client, server, requests), (server, client, replies)):
                threading.Thread(target=self._pump, args=(source, sink, pair, pump), daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket], pump: _Pump
    ) -> None:
        from_client = pump.direction == "requests"
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                before = self.before if from_client else self.replies
                if before is not None and before(data):
                    break
                last = from_client and self.after is not None and self.after(data)
                if last:
                    # First: or the answer might still reach the client.
                    _reset((source,))
                if not self._pass_on(data, sink, pump) or last:
                    break
        _reset(pair)
        with self._lock:
            self.ended += self._pairs.pop(pair, None) is not None

    def _pass_on(self, data: bytes, sink: socket.socket, pump: _Pump) -> bool:
        """Send on what has come, as far as the faults let it; False: the connection is to be reset."""
        self._take_hold(data, pump)
        delay, drip = 0.0, 0
        for fault in pump.faults:
            if fault.hold:
                fault.healed.wait()
            elif not fault.healed.is_set():
                delay, drip = max(delay, fault.delay), fault.drip or drip
                pump.swallowed |= fault.swallow
        if pump.swallowed:
            return True
        if pump.left is not None:
            data = data[: pump.left]
            pump.left -= len(data)
        step = drip or max(len(data), 1)
        for at in range(0, len(data), step):
            _rest(delay, pump.faults)
            sink.sendall(data[at : at + step])
        return pump.left is None or pump.left > 0

    def _take_hold(self, data: bytes, pump: _Pump) -> None:
        with self._lock:
            for fault in self._faults:
                if fault.direction != pump.direction or fault in pump.faults:
                    continue
                if (fault.once and fault.happened.is_set()) or not fault.rule(data):
                    continue
                pump.faults.append(fault)
                if fault.keep is not None:
                    pump.left = fault.keep
                fault.happened.set()
            pump.faults = [fault for fault in pump.faults if not fault.healed.is_set()]


def _rest(seconds: float, faults: Sequence[Fault]) -> None:
    """Let some time pass, or less if all is healed."""
    if not seconds:
        return
    ends = time.monotonic() + seconds
    for fault in faults:
        if fault.delay:
            fault.healed.wait(max(ends - time.monotonic(), 0))


def _reset(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
