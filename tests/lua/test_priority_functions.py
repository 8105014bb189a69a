"""PRIORITY: which queue a job goes to, and how executors learn of it."""

from typing import Any

import pytest
from tests.lua.jobs import ROW, Hand, ok
from tests.servers import wait_until


@pytest.fixture
def ready(hand: Hand) -> Hand:
    """With a model that serves."""
    hand.beat("e1")
    hand.store()
    return hand


def used(hand: Hand) -> list[bytes]:
    """What a heartbeat says of queues in use."""
    found: list[bytes] = hand.fcall("KS_BEAT", [], "e1", "{}", 2000, "CPU", "GPU")[3]
    return found


def ops(hand: Hand, queue: str) -> list[bytes]:
    """What is claimed from a queue."""
    return [job.op for job in hand.claim(device=queue)]


@pytest.mark.parametrize(("word", "queue"), [("HIGH", "CPU!H"), ("low", "CPU!L"), ("NORMAL", "CPU")])
def test_a_job_goes_to_the_queue_of_its_priority(ready: Hand, word: str, queue: str) -> None:
    ticket = ready.predict("PRIORITY", word)
    ready.do("SET", "x", ROW)
    job = ready.execute(["x"], ["y"], "PRIORITY", word, "TICKET", "ks:{0}:t:c")
    assert ticket.startswith(f"ks:{{0}}:ticket:{queue}/".encode())
    assert job.startswith(f"{queue}/".encode())
    ready.beat("e1")
    first, second = ready.claim(device=queue)
    assert ready.complete("e1", [ok(first), ok(second)], device=queue) == b"11"
    assert ready.reply(ticket) == b"OK"
    assert ready.reply("ks:{0}:t:c") == b"OK"
    assert ready.length(queue) == 0


@pytest.mark.parametrize("words", [("PRIORITY",), ("PRIORITY", "URGENT"), ("PRIORITY", ""), ("PRIORITY", "!H")])
def test_priorities_that_are_refused(ready: Hand, words: tuple[Any, ...]) -> None:
    assert ready.refused("AI_PREDICT", [], "m", "INPUTS", 1, "VALUE", ROW, *words).code == "BADARG"


def test_executors_are_told_of_a_queue_once(ready: Hand) -> None:
    assert used(ready) == []
    ready.predict()
    ready.predict("PRIORITY", "NORMAL")
    assert ops(ready, "CPU") == [b"run", b"run"]
    assert used(ready) == []
    for _ in range(3):
        ready.predict("PRIORITY", "HIGH")
    assert ops(ready, "CPU") == [b"look"], "whoever waits there shall look"
    assert used(ready) == [b"CPU!H"]
    assert ops(ready, "CPU!H") == [b"run"] * 3, "from the beginning, though the group is younger"
    ready.predict("PRIORITY", "LOW")
    assert ops(ready, "CPU") == [b"look"]
    assert used(ready) == [b"CPU!H", b"CPU!L"]
    ready.complete("e1", [ok(job) for job in ready.claim(device="CPU!H", start="0")], device="CPU!H")
    ready.predict("PRIORITY", "HIGH")
    assert ops(ready, "CPU") == [], "an empty queue is known all the same"
    assert used(ready) == [b"CPU!H", b"CPU!L"]
    ready.do("DEL", ready.node.jobs("CPU!H"))
    assert used(ready) == [b"CPU!L"]
    ready.predict("PRIORITY", "HIGH")
    assert ops(ready, "CPU") == [b"look"]


def test_a_look_that_nobody_has_taken_is_not_a_job(ready: Hand) -> None:
    ready.predict("PRIORITY", "HIGH")
    assert ops(ready, "CPU") == [b"look"]
    assert ready.recover("e2") is None, "executors look by themselves"
    assert ready.length("CPU") == 0
    assert ready.do("XLEN", ready.node.dead) == 0


def test_takeover_dead_letter_and_retry_of_an_urgent_job(ready: Hand) -> None:
    ticket = ready.predict("PRIORITY", "HIGH")
    ready.claim()
    used(ready)
    (job,) = ready.claim(device="CPU!H")
    found = ready.recover("e2", device="CPU!H")
    assert found is not None
    assert (found[0], found[1].id) == (2, job.id)
    assert ready.fcall("KS_EXTEND", [], "CPU!H", "e2", job.id) == [job.id]
    assert ready.fcall("KS_EXTEND", [], "CPU!H", "e1", job.id) == []
    assert ready.recover("e3", limit=2, device="CPU!H") is None
    assert (ready.reply(ticket) or b"").startswith(b"DEADLETTER ")
    letter = ready.fcall("AI_DEADSCAN", [], "0")[1][0]
    assert letter[3].startswith(b"CPU!H/")
    again = ready.fcall("AI_DEADRETRY", [], letter[1])
    assert again.startswith(b"ks:{0}:ticket:CPU!H/")
    assert len(ready.claim(device="CPU!H")) == 1


def test_deadline_and_cancellation_of_a_low_job(ready: Hand) -> None:
    ticket = ready.predict("PRIORITY", "LOW", "TIMEOUT", 20)
    entry = ticket.rpartition(b"/")[2]
    other = ready.predict("PRIORITY", "LOW")
    began = ready.now()
    wait_until(lambda: ready.now() > began + 25, "the deadline passes")
    assert ready.fcall("KS_EXPIRE", [], "CPU!L", entry) == 1
    assert (ready.reply(ticket) or b"").startswith(b"TIMEDOUT ")
    assert ready.fcall("AI_CANCEL", [], other) == 1
    assert ready.length("CPU!L") == 0


def test_an_executor_that_leaves_gives_back_what_is_urgent(ready: Hand) -> None:
    ready.predict("PRIORITY", "HIGH")
    ready.claim()
    used(ready)
    assert len(ready.claim(device="CPU!H")) == 1
    ready.fcall("KS_LEAVE", [], "e1", "CPU", "CPU!H")
    found = ready.recover("e2", lease=10_000, device="CPU!H")
    assert found is not None
    assert found[0] == 1


def test_the_dead_are_forgotten_in_all_queues(ready: Hand) -> None:
    ready.predict("PRIORITY", "HIGH")
    ready.fcall("KS_BEAT", [], "gone", "{}", 1, "CPU")
    ready.claim("gone", device="CPU!H")
    began = ready.now()
    wait_until(lambda: ready.now() > began + 10, "time passes")
    ready.fcall("KS_BEAT", [], "e2", "{}", 1, "CPU")
    names = ready.do("ZRANGE", ready.node.executors, 0, -1)
    assert b"gone" in names, "it holds a job that nobody has taken over yet"
    found = ready.recover("e2", device="CPU!H")
    assert found is not None
    ready.fcall("KS_BEAT", [], "e2", "{}", 1, "CPU")
    assert b"gone" not in ready.do("ZRANGE", ready.node.executors, 0, -1)


def test_a_node_tells_all_its_jobs(ready: Hand) -> None:
    for word in ("HIGH", "NORMAL", "LOW", "LOW"):
        ready.predict("PRIORITY", word)
    ready.do("SET", ready.node.executor("e1"), '{"devices":["CPU"]}')
    flat = ready.fcall("AI_NODE", [])
    found = dict(zip(flat[::2], flat[1::2], strict=True))
    ((device, live, queued, _),) = found[b"devices"]
    looks = 2
    assert (device, live, queued) == (b"CPU", 1, 4 + looks)
