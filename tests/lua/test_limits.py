"""AI_LIMITSET and what it does: bounds of queues and of models, and how a refusal says when to come again."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.lua.jobs import LARGE, ROW, Hand, ok
from tests.servers import Server, wait_until

from keyside.executor.protocol import Finished, Job
from keyside.tensorstore import npy
from keyside.tensorstore.errors import Busy, KeysideError, RunFailed

BIG = npy.to_bytes(np.zeros((500, 4), np.float32))
"""More than 4 KiB, so that it counts in its queue, and small enough to ride in the entry."""


@pytest.fixture
def ready(hand: Hand) -> Hand:
    """With a model that serves, and an executor's queue."""
    hand.beat("e1")
    hand.store()
    return hand


def bound(hand: Hand, *words: Any, model: str | None = "m") -> None:
    """Set limits."""
    names, args = ([model], words) if model else ([], ("NODE", *words))
    assert hand.fcall("AI_LIMITSET", names, *args) == b"OK"


def limits(hand: Hand, model: str | None = "m") -> dict[str, Any]:
    """Read limits."""
    flat = hand.fcall("AI_LIMITGET", [model] if model else [], *(() if model else ("NODE",)))
    return {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


def counter(hand: Hand, model: str = "m", device: str = "CPU") -> dict[bytes, bytes]:
    """What counts for a model."""
    name = b"ks:{0}:queued:%b:%b" % (hand.do("HGET", model, "uid"), device.encode())
    flat = hand.do("HGETALL", name)
    if flat:
        assert hand.do("PTTL", name) > 0, "it would stay for ever"
    return dict(zip(flat[::2], flat[1::2], strict=True))


def busy(hand: Hand, *args: Any, **kwargs: Any) -> Busy:
    """Submit; it must be refused, with a hint."""
    with pytest.raises(Busy) as caught:
        hand.predict(*args, **kwargs)
    assert re.search(r"; retry in \d+ ms$", caught.value.text), caught.value
    assert caught.value.retry_after is not None
    return caught.value


# --- what is set


def test_limits_of_a_model_are_kept_and_cleared(ready: Hand) -> None:
    nothing = {"jobs": 0, "bytes": 0, "rate": [0, 0], "userrate": [0, 0], "queued": 0, "held": 0}
    assert limits(ready) == nothing
    bound(ready, "JOBS", 5, "bytes", 9007199254740991, "RATE", 3, "PER", 86400000, "USERRATE", 1, "per", 1)
    assert limits(ready) == nothing | {
        "jobs": 5, "bytes": 9007199254740991, "rate": [3, 86400000], "userrate": [1, 1],
    }  # fmt: skip
    bound(ready, "RATE", 2, "PER", 1000)
    assert limits(ready) == nothing | {"rate": [2, 1000]}, "what is not named is not bounded any more"
    bound(ready, "RATE", 0)
    assert limits(ready) == nothing
    assert not ready.do("HEXISTS", "m", "limits")


def test_limits_of_the_node_are_kept_and_cleared(ready: Hand) -> None:
    start = {"jobs": 10000, "bytes": 1 << 30, "rate": [0, 0], "userrate": [0, 0]}
    assert limits(ready, None) == start
    bound(ready, "JOBS", 0, "RATE", 2, "PER", 1000, model=None)
    assert limits(ready, None) == start | {"jobs": 0, "rate": [2, 1000]}
    bound(ready, "RATE", 0, model=None)
    assert limits(ready, None) == start
    assert not ready.do("EXISTS", "ks:{0}:limits")


@pytest.mark.parametrize(
    ("names", "args"),
    [
        ([], ()),
        ([], ("JOBS", 1)),
        ([], ("NODE",)),
        ([], ("NODE", "JOBS")),
        (["m", "m"], ("JOBS", 1)),
        (["m"], ()),
        (["m"], ("NODE", "JOBS", 1)),
        (["m"], ("JOBS", -1)),
        (["m"], ("JOBS", "1.5")),
        (["m"], ("JOBS", "0x10")),
        (["m"], ("JOBS", 9007199254740992)),
        (["m"], ("JOBS", 1, "JOBS", 2)),
        (["m"], ("BYTES",)),
        (["m"], ("RATE", 1)),
        (["m"], ("RATE", 1, "PER")),
        (["m"], ("RATE", 1, "PER", 0)),
        (["m"], ("RATE", 1, "PER", 86400001)),
        (["m"], ("RATE", 0, "PER", 0)),
        (["m"], ("RATE", 1, "IN", 1000)),
        (["m"], ("USERRATE", 1, 1000)),
        (["m"], ("PER", 1000)),
        (["m"], ("JOBS", 1, "")),
    ],
)
def test_limits_that_are_refused(ready: Hand, names: list[str], args: tuple[Any, ...]) -> None:
    assert ready.refused("AI_LIMITSET", names, *args).code == "BADARG"


def test_limits_of_what_is_no_model(ready: Hand) -> None:
    ready.do("SET", "text", "text")
    for name, code in (("none", "NOMODEL"), ("text", "WRONGTYPE")):
        assert ready.refused("AI_LIMITSET", [name], "JOBS", 1).code == code
        assert ready.refused("AI_LIMITGET", [name]).code == code
    for args in ((), ("MODEL",), ("NODE", "x")):
        assert ready.refused("AI_LIMITGET", [], *args).code == "BADARG"
    assert ready.refused("AI_LIMITGET", ["m"], "x").code == "BADARG"


def test_limits_hold_for_all_versions_and_go_with_the_model(ready: Hand) -> None:
    ready.store()
    bound(ready, "JOBS", 1)
    ready.store()
    for target in ("m", "m@1", "m@2", "m@3"):
        assert b'"limits":{"jobs":1}' in ready.do("HGET", ready.node.catalog, target), target
    ready.predict(target="m@1")
    busy(ready, target="m@2")
    ready.fcall("AI_MODELDEL", ["m"])
    ready.store()
    ready.predict()
    ready.predict()


def test_a_node_takes_limits_over_from_the_home_of_the_model(ready: Hand) -> None:
    bound(ready, "JOBS", 1, "RATE", 5, "PER", 1000)
    record = ready.do("HGET", ready.node.catalog, "m@1")
    revision = ready.do("ZSCORE", ready.node.revs, "m")
    _, _, _, ((name, rev, _, flat),) = ready.fcall("KS_CATALOG", [], 0, 10)
    assert (name, rev) == (b"m", revision)
    assert record in flat
    before = int(float(revision))
    bound(ready, "JOBS", 2)
    assert int(float(ready.do("ZSCORE", ready.node.revs, "m"))) > before, "others are told"


def test_limits_that_somebody_has_spoilt_are_none(ready: Hand) -> None:
    for text in ("", "junk", "[]", '{"jobs":-1}', '{"rate":[0,1]}', '{"rate":5}', '{"jobs":1e300}', '{"jobs":"1"}'):
        ready.do("SET", "ks:{0}:limits", text)
        ready.do("HSET", "m", "limits", text)
        bound(ready, "JOBS", 3, model="m")
        ready.do("HSET", "m", "limits", text)
        ready.store()
        assert limits(ready)["jobs"] == 0
        assert limits(ready, None)["jobs"] == 10000
        ready.predict()
    ready.do("DEL", "ks:{0}:limits")
    ready.do("RPUSH", "ks:{0}:limits", "1")
    assert limits(ready, None)["jobs"] == 10000


# --- bounds of the node


def test_a_queue_has_room_for_so_many_jobs(ready: Hand) -> None:
    bound(ready, "JOBS", 2, model=None)
    ready.predict()
    ready.predict()
    error = busy(ready)
    assert "queue CPU holds 2 jobs" in error.text
    (first, second) = ready.claim()
    busy(ready)  # they run: they are still there
    assert ready.complete("e1", [ok(first)]) == b"1"
    ready.predict()
    busy(ready)
    ready.predict("PRIORITY", "HIGH")  # a queue of its own
    bound(ready, "JOBS", 0, model=None)
    ready.predict()
    ready.complete("e1", [ok(second)])


def test_a_refusal_is_on_the_ticket_too(ready: Hand) -> None:
    bound(ready, "JOBS", 1, model=None)
    ready.predict()
    error = busy(ready, "TICKET", "ks:{0}:t:c:1")
    assert ready.reply("ks:{0}:t:c:1") == str(error).encode()


def test_a_queue_has_room_for_so_many_bytes(ready: Hand) -> None:
    bound(ready, "BYTES", 2 * len(BIG), model=None)
    ready.predict(value=BIG)
    ready.predict(value=BIG)
    assert "bytes" in busy(ready, value=BIG).text
    ready.predict(value=ROW)  # too small to be counted
    ready.do("SET", "x", LARGE)
    with pytest.raises(KeysideError) as caught:
        ready.execute(["x"], ["y"])
    assert caught.value.code == "TOOBIG", "that will never fit"
    jobs = ready.claim()
    ready.complete("e1", [ok(jobs[0])])
    ready.predict(value=BIG)


# --- bounds of a model


def end_complete(hand: Hand, job: Job) -> None:
    assert hand.complete("e1", [ok(job)], model=job.model, device=job.queue) == b"1"


def end_failed(hand: Hand, job: Job) -> None:
    assert hand.complete("e1", [Finished.failed(job, RunFailed("no"))], device=job.queue) == b"1"


def end_expired(hand: Hand, job: Job) -> None:
    wait_until(lambda: hand.now() > job.deadline, "the deadline passes")
    assert hand.fcall("KS_EXPIRE", [], job.queue, job.id) == 1


def end_late(hand: Hand, job: Job) -> None:
    wait_until(lambda: hand.now() > job.deadline, "the deadline passes")
    assert hand.complete("e1", [ok(job)], model=job.model, device=job.queue) == b"2"


def end_cancelled(hand: Hand, job: Job) -> None:
    assert hand.fcall("AI_CANCEL", [], hand.node.ticket(f"{job.queue}/{job.id.decode()}")) == 1


def end_dead(hand: Hand, job: Job) -> None:
    assert hand.recover("e2", limit=1, device=job.queue) is None
    assert hand.do("XLEN", hand.node.dead) == 1


def end_moved(hand: Hand, job: Job) -> None:
    assert hand.fcall("KS_DROP", [], job.queue, "e1", job.id) == 1


ENDS = [end_complete, end_failed, end_expired, end_late, end_cancelled, end_dead, end_moved]


@pytest.mark.parametrize("queue", ["CPU", "CPU!L"])
@pytest.mark.parametrize("end", ENDS)
def test_a_job_counts_until_it_ends_in_whatever_way(ready: Hand, end: Callable[[Hand, Job], None], queue: str) -> None:
    bound(ready, "JOBS", 2, "BYTES", 1000000)
    ready.predict("PRIORITY", "HIGH")
    soon = end in (end_expired, end_late)
    ready.predict("TIMEOUT", 60 if soon else 20000, "PRIORITY", "LOW" if queue == "CPU!L" else "NORMAL")
    assert counter(ready) == {b"jobs": b"2", b"bytes": b"%d" % (2 * len(ROW))}
    assert (limits(ready)["queued"], limits(ready)["held"]) == (2, 2 * len(ROW))
    assert "'m@1' has 2 jobs" in busy(ready).text
    ready.beat("e1")
    (job,) = (job for job in ready.claim(device=queue) if job.op == b"run")
    assert job.mark == len(ROW)
    end(ready, job)
    assert counter(ready) == {b"jobs": b"1", b"bytes": b"%d" % len(ROW)}
    ready.predict()
    busy(ready)


def test_the_counter_goes_with_the_last_job(ready: Hand) -> None:
    bound(ready, "JOBS", 3)
    for _ in range(3):
        ready.predict()
    jobs = ready.claim()
    assert ready.complete("e1", [ok(job) for job in jobs], model=jobs[0].model) == b"111"
    assert counter(ready) == {}
    assert not ready.do("KEYS", "ks:{0}:queued:*")


def test_a_job_that_is_no_longer_ones_own_is_not_counted_down_twice(ready: Hand) -> None:
    bound(ready, "JOBS", 3)
    for _ in range(3):
        ready.predict()
    first, *_ = ready.claim()
    for _ in range(2):
        ready.complete("e1", [ok(first), ok(first)], model=first.model)
    assert counter(ready) == {b"jobs": b"2"}


def test_jobs_of_other_models_and_from_before_do_not_count(ready: Hand) -> None:
    ready.store("other")
    ready.predict()
    bound(ready, "JOBS", 1)
    ready.predict()
    ready.predict(target="other")
    ready.predict(target="other")
    busy(ready)
    jobs = ready.claim()
    assert [job.mark for job in jobs] == [None, 0, None, None]
    assert ready.complete("e1", [ok(jobs[0]), ok(jobs[2])]) == b"11"
    assert counter(ready) == {b"jobs": b"1"}
    assert ready.complete("e1", [ok(jobs[1]), ok(jobs[3])]) == b"11", "jobs of several models"
    assert counter(ready) == {}
    bound(ready, "JOBS", 0)
    ready.predict()
    assert counter(ready) == {}, "without a bound nothing is counted"


def test_bytes_of_a_model(ready: Hand) -> None:
    bound(ready, "BYTES", 2 * len(ROW) + 10)
    ready.predict()
    ready.predict()
    assert "bytes" in busy(ready).text
    with pytest.raises(KeysideError) as caught:
        ready.predict(value=BIG)
    assert caught.value.code == "TOOBIG"
    (first, *_) = ready.claim()
    ready.complete("e1", [ok(first)])
    ready.predict()


def test_a_counter_that_is_wrong_is_set_right_when_nothing_is_queued(ready: Hand) -> None:
    bound(ready, "JOBS", 2)
    ready.predict()
    ready.predict()
    busy(ready)
    ready.do("XTRIM", ready.node.jobs("CPU"), "MAXLEN", 0)  # somebody's hand
    ready.predict()
    assert counter(ready) == {b"jobs": b"1"}


def test_a_counter_that_is_wrong_goes_by_itself(ready: Hand) -> None:
    bound(ready, "JOBS", 1)
    ready.predict("TIMEOUT", 5000)
    name = b"ks:{0}:queued:%b:CPU" % ready.do("HGET", "m", "uid")
    assert 10_000 < ready.do("PTTL", name) <= 15_000
    bound(ready, "JOBS", 2)
    ready.predict("TIMEOUT", 60_000)
    assert ready.do("PTTL", name) > 60_000
    bound(ready, "JOBS", 3)
    ready.predict("TIMEOUT", 1000)
    assert ready.do("PTTL", name) > 60_000, "it outlives the last of its jobs"


def test_a_caller_who_may_not_read_entries_cancels_what_counts(ready: Hand, server: Server) -> None:
    bound(ready, "JOBS", 1, "BYTES", 100000)
    ready.do("ACL", "SETUSER", "blind", "on", ">pw", "+@all", "-xrange", "~*")
    caller = Hand(server.url_unix)
    try:
        caller.do("AUTH", "blind", "pw")
        for value in (ROW, BIG):
            job = caller.predict("TICKET", "ks:{0}:t:c:1", value=value)
            assert counter(ready) == {b"jobs": b"1", b"bytes": b"%d" % len(value)}
            assert caller.fcall("AI_CANCEL", [], "ks:{0}:t:c:1", job) == 1
            assert counter(ready) == {}
            assert not ready.do("KEYS", "ks:{0}:held:*")
        assert ready.do("GET", ready.node.bytes("CPU")) == b"0"
    finally:
        caller.wire.close()
        ready.do("ACL", "DELUSER", "blind")


def test_a_dead_letter_that_is_sent_again_counts_again(ready: Hand) -> None:
    bound(ready, "JOBS", 1)
    ready.predict()
    ready.claim()
    assert ready.recover("e2", limit=1) is None
    assert counter(ready) == {}
    letter = ready.fcall("AI_DEADSCAN", [], "0")[1][0][1]
    ready.predict()
    assert ready.refused("AI_DEADRETRY", [], letter).code == "BUSY"
    (job,) = ready.claim()
    ready.complete("e1", [ok(job)])
    ready.fcall("AI_DEADRETRY", [], letter)
    assert counter(ready) == {b"jobs": b"1"}


# --- the hint


def test_the_hint_follows_the_pace_of_the_queue(ready: Hand) -> None:
    bound(ready, "JOBS", 32, model=None)
    for _ in range(32):
        ready.predict()
    assert busy(ready).retry_after == 1.0, "nothing has ended yet: nobody knows"
    jobs = ready.claim()
    began = ready.now()
    ready.complete("e1", [ok(job) for job in jobs[:8]])
    wait_until(lambda: ready.now() >= began + 400, "time passes")
    ready.complete("e1", [ok(job) for job in jobs[8:16]])
    for _ in range(16):
        ready.predict()
    # Of 16 jobs in half a second: two, a sixteenth of the bound, take a sixteenth of a second.
    hint = busy(ready).retry_after
    assert hint is not None
    span = (ready.now() - began) / 1000
    assert 0.4 * 2 / 16 <= hint <= span * 2 / 16 + 0.002


# --- what it costs


def calls(hand: Hand) -> dict[str, int]:
    """How often each command was called, by clients and functions."""
    found = hand.do("INFO", "commandstats").decode()
    return {name: int(count) for name, count in re.findall(r"cmdstat_(\S+):calls=(\d+)", found)}


def test_who_uses_none_of_it_pays_nothing(ready: Hand) -> None:
    ready.predict()
    ready.complete("e1", [ok(job) for job in ready.claim()])
    ready.do("CONFIG", "RESETSTAT")
    for _ in range(20):
        ready.predict()
    found = calls(ready)
    looks = found.pop("get", 0)
    assert looks <= 1 + 20 * 0.1, "the node's limits are looked at once a second"
    found.pop("config|resetstat", None)
    assert found == {"fcall": 20, "hget": 20, "time": 20, "xlen": 20, "xadd": 20}
    jobs = ready.claim()
    ready.do("CONFIG", "RESETSTAT")
    ready.complete("e1", [ok(job) for job in jobs])
    found = calls(ready)
    found.pop("config|resetstat", None)
    assert found == {"fcall": 1, "xpending": 1, "time": 1, "rpush": 20, "pexpireat": 20, "xack": 1, "xdel": 1}
