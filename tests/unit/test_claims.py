"""Whose turn it is to be claimed: executor/claims.py, against queues that are played by counters."""

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.executor.claims import ROTA, Claims, Turns
from keyside.tensorstore import keys

NODE = keys.NodeKeys()
QUEUES = ("CPU!H", "CPU", "CPU!L")
LOTS = 10**9


class Lane:
    """A lane with room for so many jobs."""

    def __init__(self, left: int = 8) -> None:
        self.left = left
        self.busy = False

    def room(self, claim: int) -> int:
        return min(claim, self.left)


def made(devices: Sequence[str] = ("CPU",), used: Sequence[str] = ("CPU!H", "CPU!L"), room: int = 8) -> Claims:
    """Claims of an executor that serves these devices."""
    lanes: Any = {device: Lane(room) for device in devices}
    intake: Any = SimpleNamespace(parked=lambda device: 0)
    claims = Claims(b"me", lanes, intake, 64, lambda: ())
    claims.serve(NODE, devices)
    claims.use(used)
    return claims


def asked(claim: bytes) -> tuple[list[str], bool]:
    """The queues that a claim names, and whether it waits."""
    words = claim.split(b"\r\n")[2::2]
    streams = words[words.index(b"STREAMS") + 1 :]
    return [name.decode().rpartition(":")[2] for name in streams[: len(streams) // 2]], b"BLOCK" in words


def step(claims: Claims, waiting: dict[str, int], brought: Counter[str]) -> tuple[list[str], bool]:
    """Make a claim, and take from the queues what it brings."""
    queues, waits = asked(claims.next())
    reply = []
    for queue in queues:
        count = min(waiting.get(queue, 0), claims.count)
        if count:
            waiting[queue] -= count
            brought[queue] += count
            reply.append([NODE.queue(queue), [b""] * count])
    if not claims.foreseen:
        claims.note(reply or None)
    return queues, waits


def test_without_priorities_all_is_foreseen() -> None:
    claims = made(used=())
    assert asked(claims.next()) == (["CPU"], True)
    assert claims.foreseen
    assert not claims.has_room()


def test_queues_come_in_the_order_of_their_ranks() -> None:
    claims = made(("CPU", "GPU"), ("CPU!L", "GPU!H", "CPU!H", "FPGA!H"))
    assert asked(claims.next()) == (["CPU!H", "GPU!H", "CPU", "GPU", "CPU!L"], True)
    assert not claims.foreseen


def test_a_queue_that_is_new_is_worth_another_claim() -> None:
    claims = made(used=())
    claims.next()
    claims.use(["CPU!H"])
    assert claims.has_room(), "the claim under way does not know it"
    assert asked(claims.next())[0] == ["CPU!H", "CPU"]
    assert claims.has_room(), "it may have been worked out while the one before was under way"
    claims.next()
    assert not claims.has_room()
    claims.use(("CPU!H",))
    assert not claims.has_room()
    claims.use(())
    assert asked(claims.next()) == (["CPU"], True)
    assert claims.foreseen


def test_what_waits_everywhere_is_shared() -> None:
    claims, waiting, brought = made(), dict.fromkeys(QUEUES, LOTS), Counter[str]()
    step(claims, waiting, Counter())
    for _ in range(10 * len(ROTA)):
        _, waits = step(claims, waiting, brought)
        assert not waits
    assert brought == {"CPU!H": 10 * 12 * 8, "CPU": 10 * 3 * 8, "CPU!L": 10 * 8}


@pytest.mark.parametrize(
    ("busy", "shares"),
    [
        (("CPU", "CPU!L"), {"CPU": 15, "CPU!L": 1}),
        (("CPU!H", "CPU"), {"CPU!H": 13, "CPU": 4}),
        (("CPU!H", "CPU!L"), {"CPU!H": 12, "CPU!L": 4}),
    ],
)
def test_the_share_of_a_queue_without_jobs_goes_to_the_next(busy: Sequence[str], shares: dict[str, int]) -> None:
    claims, waiting, brought = made(), dict.fromkeys(busy, LOTS), Counter[str]()
    step(claims, waiting, Counter())
    for _ in range(len(ROTA)):
        step(claims, waiting, brought)
    assert brought == {queue: 8 * share for queue, share in shares.items()}


def test_what_comes_above_a_backlog_is_in_the_very_next_claim() -> None:
    claims, waiting = made(), {"CPU": LOTS, "CPU!L": LOTS}
    for _ in range(2 * len(ROTA)):
        waiting["CPU!H"] = 1
        brought: Counter[str] = Counter()
        step(claims, waiting, brought)
        assert brought["CPU!H"] == 1


def test_what_comes_below_a_backlog_is_there_after_a_turn_of_all() -> None:
    for late in ("CPU", "CPU!L"):
        claims, waiting, brought = made(), {"CPU!H": LOTS}, Counter[str]()
        for _ in range(5):
            step(claims, waiting, brought)
        waiting[late] = 1
        for _ in range(len(ROTA)):
            step(claims, waiting, brought)
        assert waiting[late] == 0


def test_once_nothing_waits_a_claim_waits_for_all() -> None:
    claims, waiting, brought = made(), {"CPU!H": 8, "CPU": 3}, Counter[str]()
    step(claims, waiting, brought)
    assert waiting == {"CPU!H": 0, "CPU": 0}
    for _ in range(len(ROTA)):
        queues, waits = step(claims, waiting, brought)
        if waits:
            break
    assert (queues, waits) == (list(QUEUES), True)


def test_a_backlog_of_one_device_does_not_keep_another_from_its_jobs() -> None:
    claims, waiting = made(("CPU", "GPU"), ("CPU!H",)), {"CPU!H": LOTS, "CPU": LOTS}
    for _ in range(2 * len(ROTA)):
        waiting["GPU"] = 1
        step(claims, waiting, Counter())
        assert waiting["GPU"] == 0


def test_a_device_without_room_is_left_out() -> None:
    claims = made(("CPU", "GPU"), ("CPU!H",))
    lanes: Any = claims._lanes
    lanes["CPU"].left = 0
    assert asked(claims.next())[0] == ["GPU"]
    assert claims.left_out == ["CPU!H", "CPU"]
    lanes["CPU"].left = 4
    assert claims.has_room()


@given(st.lists(st.tuples(st.sampled_from(QUEUES), st.integers(1, 30)), max_size=40), st.integers(1, 9))
def test_everything_is_claimed_and_no_claim_waits_while_something_does(
    arrivals: list[tuple[str, int]], room: int
) -> None:
    claims, waiting, brought = made(room=room), dict.fromkeys(QUEUES, 0), Counter[str]()
    total: Counter[str] = Counter()
    for queue, count in arrivals:
        waiting[queue] += count
        total[queue] += count
        queues, waits = step(claims, waiting, brought)
        assert not waits or set(queues) == set(QUEUES)
    for _ in range(10_000):
        queues, waits = step(claims, waiting, brought)
        if waits and brought.total() == total.total():
            break
    assert (set(queues), waits) == (set(QUEUES), True)
    assert brought == total


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_each_queue_is_asked_within_a_turn_of_all(full: list[bool]) -> None:
    turns = Turns(QUEUES)
    for queue, is_full in zip(QUEUES, full, strict=True):
        turns.note(queue, full=is_full)
    found = {queue for _ in ROTA for queue in turns.next()[0]}
    assert found == set(QUEUES)
