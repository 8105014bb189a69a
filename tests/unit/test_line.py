"""The claim thread's connection: executor/line.py, executor/claims.py and the spinning of executor/wire.py."""

import itertools
import socket
import time
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from keyside.executor.claims import PARKED_MAX, Claims
from keyside.executor.delivery import Parcel
from keyside.executor.line import Line
from keyside.executor.wire import LUCK_MAX, Wire
from keyside.tensorstore import keys
from keyside.tensorstore.errors import Unreachable


class FakeWire:
    """Answers in order: parcels with their own commands, a claim with what is `waiting`."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.replies: deque[Any] = deque()
        self.waiting: deque[Any] = deque()
        self.broken = False

    def send(self, commands: Sequence[Any], claim: bytes = b"") -> None:
        if self.broken:
            raise Unreachable("gone")
        for command in commands:
            self.said.append(command[0])
            self.replies.append(command[0])
        if claim:
            self.said.append(claim.decode())
            self.replies.append(self.waiting.popleft() if self.waiting else None)

    def read_small(self) -> Any:
        return self.replies.popleft()

    def call_many(self, commands: Sequence[Any]) -> list[Any]:
        assert not self.replies, "replies to other commands are outstanding"
        return [command[0] for command in commands]


class FakeDelivery:
    """Takes every parcel but those in `refused`, and remembers what the server said to them."""

    def __init__(self) -> None:
        self.settled: list[tuple[str, Any]] = []
        self.refused: set[str] = set()

    def settle(self, parcel: Parcel, replies: Sequence[Any]) -> bool:
        self.settled.append((parcel.queue, *replies))
        return parcel.queue not in self.refused


def parcel(name: str) -> Parcel:
    return Parcel(name, [[name]], [], None)


@pytest.fixture
def line() -> Any:
    wire, delivery = FakeWire(), FakeDelivery()
    made = Line(wire, delivery)  # type: ignore[arg-type]
    return SimpleNamespace(line=made, wire=wire, delivery=delivery)


def test_each_reply_goes_to_what_it_answers(line: Any) -> None:
    line.wire.waiting.extend(["batch 2"])
    line.line.outbox = [parcel("one")]
    line.line.claim_ahead(b"CLAIM")
    line.line.outbox = [parcel("two"), parcel("three")]
    assert line.line.ahead
    assert line.line.take_ahead() == "batch 2"
    assert line.wire.said == ["one", "CLAIM", "two", "three"]
    assert line.delivery.settled == [("one", "one")], "what went out later is not waited for"
    assert not line.line.ahead
    line.line.settle()
    assert line.delivery.settled == [("one", "one"), ("two", "two"), ("three", "three")]


def test_other_commands_come_after_all_replies_and_keep_the_claim(line: Any) -> None:
    line.wire.waiting.extend(["batch"])
    line.line.claim_ahead(b"CLAIM")
    line.line.outbox = [parcel("one")]
    line.line.send()
    assert line.line.call_many([["GET", "x"]]) == ["GET"]
    assert line.line.ahead, "its reply was read, and is still to be taken"
    assert line.line.take_ahead() == "batch"
    assert not line.line.ahead


def test_a_claim_ahead_that_brought_nothing(line: Any) -> None:
    line.line.claim_ahead(b"CLAIM")
    assert line.line.take_ahead() is None
    assert not line.line.ahead


def test_what_the_server_cannot_take_now_is_sent_again(line: Any) -> None:
    line.delivery.refused.add("one")
    line.line.outbox = [parcel("one"), parcel("two")]
    line.line.send()
    line.line.settle()
    assert [one.queue for one in line.line.outbox] == ["one"]


def test_a_lost_connection_loses_no_parcel(line: Any) -> None:
    line.line.outbox = [parcel("one")]
    line.line.claim_ahead(b"CLAIM")
    line.line.outbox = [parcel("two")]
    line.line.send()
    line.line.outbox = [parcel("three")]
    line.wire.broken = True
    with pytest.raises(Unreachable):
        line.line.send()
    line.line.lost()
    assert [one.queue for one in line.line.outbox] == ["one", "two", "three"]
    assert not line.line.ahead, "what the claim brought is pending, and read again"


class FakeLane:
    """A lane with room for so many jobs."""

    def __init__(self, room: int, *, busy: bool = False) -> None:
        self.left = room
        self.busy = busy

    def room(self, claim: int) -> int:
        return min(claim, self.left)


def claims(lanes: dict[str, FakeLane], parked: int = 0, shared: Sequence[str] = ()) -> Claims:
    intake = SimpleNamespace(parked=lambda device: parked)
    made = Claims(b"me", lanes, intake, 64, lambda: shared)  # type: ignore[arg-type]
    made.serve(keys.NodeKeys(), list(lanes))
    return made


def test_a_claim_names_the_queues_that_have_room() -> None:
    lanes = {"CPU": FakeLane(64), "GPU": FakeLane(0, busy=True)}
    made = claims(lanes)
    claim = made.next()
    assert b"\r\nks:{0}:jobs:CPU\r\n" in claim
    assert b"GPU" not in claim
    assert b"BLOCK" in claim
    assert (made.count, made.left_out, made.running) == (64, ["GPU"], True)
    assert b"BLOCK" not in made.next(ahead=True), "it would hold up what is sent behind it"
    assert not made.has_room()
    lanes["GPU"].left = 3
    assert made.has_room()


def test_no_room_no_claim() -> None:
    assert claims({"CPU": FakeLane(0)}).next() == b""


@pytest.mark.parametrize(("shared", "made"), [((), True), (("CPU",), False)])
def test_jobs_that_would_wait_for_a_load_are_left_to_others(shared: Sequence[str], made: bool) -> None:
    assert bool(claims({"CPU": FakeLane(64)}, PARKED_MAX, shared).next()) == made


@pytest.fixture
def pair() -> Any:
    ours, theirs = socket.socketpair()
    wire = Wire("unix:///nowhere", name="test")
    wire._socket = ours
    yield SimpleNamespace(wire=wire, theirs=theirs)
    wire._socket = None
    ours.close()
    theirs.close()


@pytest.mark.parametrize("spin_s", [0.0, 0.05])
def test_what_is_there_is_read_with_and_without_spinning(pair: Any, spin_s: float) -> None:
    pair.wire.spin_s = spin_s
    for n in range(20):
        pair.theirs.sendall(b":%d\r\n" % n)
        assert pair.wire.read_small() == n
    assert pair.wire._luck == (LUCK_MAX if spin_s else 0)


def test_luck_runs_out_where_nothing_comes_in_time(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.wire.spin_s = 0.001
    pair.wire._luck = 3

    def read_late(n: int, look: int) -> Any:
        """Read a number that comes as the clock is looked at for that time; a second passes between two looks."""
        looks = itertools.count()

        def clock() -> float:
            at = next(looks)
            if at == look:
                pair.theirs.sendall(b":%d\r\n" % n)
            return float(at)

        with monkeypatch.context() as patch:
            patch.setattr(time, "perf_counter", clock)
            return pair.wire.read_small()

    for n in range(2):
        assert read_late(n, 1) == n
    assert pair.wire._luck == -1, "from now on it sleeps at once"
    assert read_late(7, 0) == 7
    assert pair.wire._luck == -1


@pytest.mark.parametrize("spin_s", [0.0, 0.05])
def test_a_closed_connection_is_noticed(pair: Any, spin_s: float) -> None:
    pair.wire.spin_s = spin_s
    pair.wire._luck = 1
    pair.theirs.close()
    with pytest.raises(Unreachable):
        pair.wire.read_small()


def test_tls_is_never_asked_for_what_it_has_not(pair: Any) -> None:
    pair.wire.spin_s, pair.wire._luck, pair.wire._plain = 0.05, LUCK_MAX, False
    pair.theirs.sendall(b":1\r\n")
    assert pair.wire.read_small() == 1
    assert pair.wire._luck == LUCK_MAX, "it did not spin"
