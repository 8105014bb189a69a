"""The KS_ functions: how an executor registers, holds, ends and takes over jobs."""

from typing import Any

import pytest
from tests.lua.jobs import LARGE, ONE, ROW, Hand, ok, staged
from tests.servers import wait_until

from keyside.executor.protocol import GROUP, Finished
from keyside.tensorstore import keys
from keyside.tensorstore.errors import OutOfMemory, RunFailed


@pytest.fixture
def ready(hand: Hand) -> Hand:
    """With a model that is ready, a tensor x for it, and an executor e1."""
    hand.store()
    hand.do("SET", "x", ROW)
    hand.beat("e1")
    return hand


def executors(hand: Hand) -> dict[bytes, int]:
    flat = hand.do("ZRANGE", hand.node.executors, 0, -1, "WITHSCORES")
    return dict(zip(flat[::2], map(int, flat[1::2]), strict=True))


def consumers(hand: Hand, device: str = "CPU") -> set[bytes]:
    found = hand.do("XINFO", "CONSUMERS", hand.node.jobs(device), GROUP)
    return {dict(zip(one[::2], one[1::2], strict=True))[b"name"] for one in found}


# --- registration


def test_a_heartbeat(hand: Hand) -> None:
    before = hand.now()
    time, tag, seal, used = hand.fcall("KS_BEAT", [], "e1", '{"pid": 1}', 5000, "CPU", "GPU:1")
    assert used == []
    assert before <= time <= hand.now()
    assert (tag, seal) == (b"0", b""), "entries are not signed unless somebody asks for it"
    assert executors(hand) == {b"e1": time}
    assert hand.do("GET", hand.node.executor("e1")) == b'{"pid": 1}'
    assert 4000 < hand.do("PTTL", hand.node.executor("e1")) <= 5000
    assert hand.claim(device="CPU") == hand.claim(device="GPU:1") == [], "its queues are there"


def test_a_heartbeat_makes_what_was_lost_and_spares_what_is_there(ready: Hand) -> None:
    ready.predict()
    (job,) = ready.claim()
    ready.beat("e1")
    assert ready.pending() == {job.id: (b"e1", 1)}
    ready.do("XGROUP", "DESTROY", ready.node.jobs("CPU"), GROUP)
    ready.beat("e1")
    assert [again.id for again in ready.claim()] == [job.id], "from the start: it has not ended"


def test_a_heartbeat_sees_that_queues_without_jobs_hold_no_bytes(ready: Hand) -> None:
    """A slot on the move, or a failover, may have taken a part of the account along."""
    account = ready.node.bytes("CPU")
    ready.do("SET", "x", LARGE)
    ready.execute(["x"], ["y"])
    held = int(ready.do("GET", account))
    assert held > 4096
    ready.do("INCRBY", account, 999)
    ready.beat()
    assert int(ready.do("GET", account)) == held + 999, "there is a job: what it holds is not known here"
    ready.complete("e1", [ok(job) for job in ready.claim()])
    assert int(ready.do("GET", account)) == 999
    ready.beat()
    assert ready.do("GET", account) is None
    for value in ("-7", "x"):
        ready.do("SET", account, value)
        ready.beat()
        assert ready.do("GET", account) is None
    ready.do("DEL", account)
    ready.do("RPUSH", account, "x")
    ready.beat()
    assert ready.do("LLEN", account) == 1
    ready.do("DEL", account)


def test_an_executor_that_leaves(ready: Hand) -> None:
    ready.claim("e1")
    assert ready.fcall("KS_LEAVE", [], "e1", "CPU", "NONE") == b"OK"
    assert executors(ready).keys() == {b"loader"}
    assert consumers(ready) == {b"loader"}
    assert not ready.do("EXISTS", ready.node.executor("e1"))


def test_an_executor_that_leaves_with_jobs(ready: Hand) -> None:
    ready.predict()
    (job,) = ready.claim("e1")
    ready.fcall("KS_LEAVE", [], "e1", "CPU")
    assert b"e1" in consumers(ready), "or its jobs would be lost"
    taken = ready.recover("e2")
    assert taken is not None
    assert taken[1].id == job.id


def test_traces_of_the_dead_are_cleared_away(ready: Hand) -> None:
    ready.predict()
    ready.claim("e1")
    for name in ("e1", "e3"):
        ready.do("ZADD", ready.node.executors, 1, name)
    ready.beat("e2")
    assert executors(ready).keys() == {b"e1", b"e2", b"loader"}, "the one with a job stays until that is taken over"
    assert ready.recover("e2") is not None
    ready.beat("e2")
    assert executors(ready).keys() == {b"e2", b"loader"}
    assert b"e1" not in consumers(ready)


# --- completion


def test_a_batch(ready: Hand) -> None:
    tickets = [ready.execute(["x"], [f"y{i}"]) for i in range(5)]
    jobs = ready.claim()
    ended = [ok(job, (job.outputs[0], b"V", b"%s %d" % (ROW, i))) for i, job in enumerate(jobs[:3])]
    ended.append(Finished.failed(jobs[3], RunFailed("no")))
    assert ready.complete("e1", ended) == b"1111"
    assert ready.do("MGET", "y0", "y1", "y2", "y3") == [ROW + b" 0", ROW + b" 1", ROW + b" 2", None]
    assert [ready.reply(ticket) for ticket in tickets] == [b"OK", b"OK", b"OK", b"RUNFAILED no", None]
    assert ready.pending() == {jobs[4].id: (b"e1", 1)}
    assert ready.length() == 1


def test_jobs_of_others_among_those_of_a_batch(ready: Hand) -> None:
    tickets = [ready.predict() for _ in range(5)]
    jobs = [ready.claim(name, 1)[0] for name in ("e1", "e2", "e1", "e2", "e1")]
    assert ready.complete("e1", [ok(job) for job in jobs]) == b"10101"
    assert [ready.reply(ticket) for ticket in tickets] == [b"OK", None, b"OK", None, b"OK"]
    assert ready.complete("e2", [ok(jobs[1]), ok(jobs[3])]) == b"11"


def test_twice_is_once(ready: Hand) -> None:
    ticket = ready.execute(["x"], ["y"])
    (job,) = ready.claim()
    ended = [ok(job, (b"y", b"V", ROW))]
    assert ready.complete("e1", ended) == b"1"
    ready.do("DEL", "y")
    assert ready.complete("e1", ended) == b"0"
    assert not ready.do("EXISTS", "y")
    assert ready.do("LLEN", ticket) == 1


def test_an_unclaimed_job_is_not_ended(ready: Hand) -> None:
    ready.predict()
    (job,) = ready.claim()
    ready.do("XGROUP", "DESTROY", ready.node.jobs("CPU"), GROUP)
    assert ready.complete("e1", [ok(job)]) == b"0", "without a group"
    ready.beat("e1")
    assert ready.complete("e1", [ok(job)]) == b"0", "not delivered"
    ready.do("DEL", ready.node.jobs("CPU"))
    assert ready.complete("e1", [ok(job)]) == b"0", "without a queue"


def test_a_large_output_is_moved_into_place(ready: Hand) -> None:
    ready.do("SET", "y", ROW, "EX", 100)
    name = keys.output("y", "e1-1")
    ticket = ready.execute(["x"], ["y"])
    (job,) = ready.claim()
    assert ready.complete("e1", [staged(job, b"y", name, LARGE)]) == b"1"
    assert ready.do("GET", "y") == LARGE
    assert ready.do("TTL", "y") == -1
    assert not ready.do("EXISTS", name)
    assert ready.reply(ticket) == b"OK"


def test_an_output_that_could_not_be_stored(ready: Hand) -> None:
    ticket = ready.execute(["x"], ["y"])
    (job,) = ready.claim()
    inline = (b"z", b"V", ROW)
    assert ready.complete("e1", [ok(job, inline, (b"y", b"S", keys.output("y", "e1-1")))]) == b"3"
    assert (ready.reply(ticket) or b"").startswith(b"OOM ")
    assert ready.do("EXISTS", "y", "z") == 0, "never half"


@pytest.mark.parametrize("value", ["text", ""])
def test_an_output_key_that_somebody_else_used_meanwhile(ready: Hand, value: str) -> None:
    name = keys.output("y", "e1-1")
    ticket = ready.execute(["x"], ["y", "z"][:1])
    (job,) = ready.claim()
    ready.do("SET", "z", value)
    ended = staged(job, b"y", name, LARGE)
    ended.outputs.append((b"z", b"V", ROW))
    assert ready.complete("e1", [ended]) == b"3"
    assert (ready.reply(ticket) or b"").startswith(b"WRONGTYPE output key 'z'")
    assert ready.do("GET", "z") == value.encode()
    assert ready.do("EXISTS", "y", name) == 0


def test_a_job_that_ended_too_late(ready: Hand) -> None:
    ticket = ready.execute(["x"], ["y"], "TIMEOUT", 1)
    (job,) = ready.claim()
    wait_until(lambda: ready.now() > job.deadline, "the deadline passes")
    name = keys.output("y", "e1-1")
    assert ready.complete("e1", [staged(job, b"y", name, LARGE)]) == b"2"
    assert (ready.reply(ticket) or b"").startswith(b"TIMEDOUT ")
    assert ready.do("EXISTS", "y", name) == 0
    assert ready.length() == 0


def test_an_output_that_the_reply_names_stays(ready: Hand) -> None:
    ready.predict()
    (job,) = ready.claim()
    name = keys.output(None, "e1-1")
    ended = staged(job, b"", name, LARGE)
    ended.outputs[0] = (b"", b"K", name)
    assert ready.complete("e1", [ended]) == b"1"
    assert ready.do("PTTL", name) > 50_000


def test_a_ticket_that_holds_something_else(ready: Hand) -> None:
    ready.do("SET", "ks:{0}:t", "mine", "EX", 100)
    ready.predict("TICKET", "ks:{0}:t")
    (job,) = ready.claim()
    assert ready.complete("e1", [ok(job)]) == b"1"
    assert ready.do("GET", "ks:{0}:t") == b"mine"
    assert ready.length() == 0


def test_bytes_are_given_back_job_by_job(ready: Hand) -> None:
    for value in (ROW, LARGE, LARGE):
        ready.do("SET", "x", value)
        ready.execute(["x"], ["y"])
    jobs = ready.claim()
    assert [job.bytes for job in jobs] == [0, len(LARGE), len(LARGE)]
    assert ready.do("GET", ready.node.bytes("CPU")) == b"%d" % (2 * len(LARGE))
    assert ready.complete("e1", [ok(job) for job in jobs[:2]]) == b"11"
    assert ready.do("GET", ready.node.bytes("CPU")) == b"%d" % len(LARGE)


def test_bytes_of_a_job_that_was_taken_over_are_given_back_once(ready: Hand) -> None:
    ready.do("SET", "x", LARGE)
    for _ in range(2):
        ready.execute(["x"], ["y"])
    jobs = ready.claim("e1")
    taken = ready.recover("e2")
    assert taken is not None
    assert ready.complete("e1", [ok(job) for job in jobs]) == b"01"
    assert ready.do("GET", ready.node.bytes("CPU")) == b"%d" % len(LARGE)
    assert ready.complete("e2", [ok(taken[1])]) == b"1"
    assert ready.do("GET", ready.node.bytes("CPU")) == b"0"


def test_counters_that_were_spoilt_do_no_harm(ready: Hand) -> None:
    ticket = ready.predict()
    (job,) = ready.claim()
    ready.do("SET", ready.node.stats("u-1"), "text")
    ready.do("SET", ready.node.bytes("CPU"), "text")
    assert ready.complete("e1", [ok(job)], model=b"u-1") == b"1"
    assert ready.reply(ticket) == b"OK"


def test_counters_of_a_deleted_version_go(ready: Hand) -> None:
    uid = ready.do("HGET", "m", "uid").decode()
    stats, model = ready.node.stats(f"{uid}-1"), f"{uid}-1".encode()
    for _ in range(4):
        ready.predict()
    jobs = ready.claim()
    assert ready.complete("e1", [ok(jobs[0])], model=model) == b"1"
    assert ready.do("TTL", stats) == -1
    ready.fcall("AI_INFO", ["m"], "RESETSTAT")
    assert ready.complete("e1", [ok(jobs[1])], model=model) == b"1"
    assert ready.do("TTL", stats) == -1
    ready.fcall("AI_MODELDEL", ["m"])
    for job in jobs[2:]:
        assert ready.complete("e1", [ok(job)], model=model) == b"1"
        assert 0 < ready.do("PTTL", stats) <= 600_000
    assert ready.do("HGET", stats, "calls") == b"2"


def test_counters_are_not_those_of_a_model_of_the_same_name(ready: Hand) -> None:
    model = ready.do("HGET", "m", "uid") + b"-1"
    ready.predict()
    jobs = ready.claim()
    ready.fcall("AI_MODELDEL", ["m"])
    ready.store()
    assert ready.complete("e1", [ok(jobs[0])], model=model) == b"1"
    assert ready.do("PTTL", ready.node.stats(model)) > 0


# --- deadlines


def test_expired_jobs_are_answered_wherever_they_are(ready: Hand) -> None:
    ready.do("SET", "x", LARGE)
    tickets = [ready.execute(["x"], ["y"], "TIMEOUT", 1) for _ in range(2)]
    later = ready.execute(["x"], ["y"])
    (claimed,) = ready.claim(count=1)
    ids = [ticket.rpartition(b"/")[2] for ticket in (*tickets, later)]
    wait_until(lambda: ready.now() > claimed.deadline + 5, "the deadline passes")
    ready.store("n", signature=None)
    ((load, _),) = ready.do("XRANGE", ready.node.jobs("CPU"), b"(" + ids[2], "+")
    assert ready.fcall("KS_EXPIRE", [], "CPU", *ids, load, "1-1", "junk", f"{2**70}-1") == 2
    for ticket in tickets:
        reply = ready.reply(ticket)
        assert reply is not None
        assert reply.startswith(b"TIMEDOUT ")
        assert b"m@1" in reply
    assert ready.reply(later) is None
    assert ready.length() == 2
    assert len(ready.do("KEYS", "*:cap:*")) == 1
    assert ready.do("GET", ready.node.bytes("CPU")) == b"%d" % len(LARGE)
    assert ready.fcall("KS_EXPIRE", [], "CPU", *ids) == 0


# --- leases


def test_leases_are_extended(ready: Hand) -> None:
    for _ in range(2):
        ready.predict()
    jobs = ready.claim()
    ids = [job.id for job in jobs]
    ready.do("XCLAIM", ready.node.jobs("CPU"), GROUP, "e1", 0, *ids, "IDLE", 60_000, "JUSTID")  # as if a minute passed
    assert ready.fcall("KS_EXTEND", [], "CPU", "e1", jobs[1].id, "1-1", "junk") == [jobs[1].id]
    found = ready.recover("e2", 30_000)
    assert found is not None
    assert found[1].id == jobs[0].id
    assert ready.recover("e2", 30_000) is None
    assert ready.pending()[jobs[1].id] == (b"e1", 1), "extending is no delivery"


def test_nothing_is_extended_where_there_is_nothing(ready: Hand) -> None:
    ready.do("DEL", ready.node.jobs("CPU"))
    assert ready.fcall("KS_EXTEND", [], "CPU", "e1", "1-1") == []
    assert ready.recover("e1") is None


# --- taking over


def test_one_job_at_a_time_is_taken_over(ready: Hand) -> None:
    for _ in range(3):
        ready.predict()
    jobs = ready.claim("e1")
    for job in jobs[:2]:
        found = ready.recover("e2", 0)
        assert found is not None
        assert (found[0], found[1].id, found[1].inputs) == (2, job.id, [ROW])
        ready.complete("e2", [ok(job)])
    assert ready.pending() == {jobs[2].id: (b"e1", 1)}
    assert ready.recover("e2", 60_000) is None


def test_a_job_that_is_given_up(ready: Hand) -> None:
    ready.do("SET", "x", LARGE)
    ticket = ready.execute(["x"], ["y"])
    other = ready.execute(["x"], ["z"])
    jobs = ready.claim("e1")
    assert ready.recover("e2", 0, 2) is not None
    found = ready.recover("e3", 0, 2)
    assert found is not None
    assert found[1].id == jobs[1].id, "the next one"
    reply = ready.reply(ticket)
    assert reply is not None
    assert reply.startswith(b"DEADLETTER ")
    assert b"2 executors" in reply
    assert ready.reply(other) is None
    ((_, fields),) = ready.do("XRANGE", ready.node.dead, "-", "+")
    dead = dict(zip(fields[::2], fields[1::2], strict=True))
    assert (dead[b"id"], dead[b"reason"]) == (b"CPU/" + jobs[0].id, reply)
    assert b"h" in dead
    assert ready.length() == 1
    assert len(ready.do("KEYS", "*:cap:*")) == 2, "the letter keeps what it was to run on"
    assert ready.do("GET", ready.node.bytes("CPU")) == b"%d" % len(LARGE)


def test_a_load_that_is_given_up(hand: Hand) -> None:
    hand.store(signature=None)
    hand.beat("e1")
    hand.claim("e1")
    assert hand.recover("e2", 0, 1) is None
    state, reason = hand.do("HMGET", "m", "1:state", "1:reason")
    assert state == b"failed"
    assert b"died or stalled" in reason
    assert hand.length() == 0
    assert hand.do("XLEN", hand.node.dead) == 1
    assert hand.refused("AI_PREDICT", [], "m", "INPUTS", 1, "VALUE", ROW).code == "MODELFAILED"


# --- the end of a load


def test_a_load_ends_once(hand: Hand) -> None:
    hand.store(signature=None)
    hand.beat("e1")
    (job,) = hand.claim("e1")
    uid = job.model.rpartition(b"-")[0]
    end = ("CPU", "e1", job.id, uid, 1, "ready", "0" * 64, ONE.to_json(), "")
    assert hand.fcall("KS_PUBLISH", ["m"], "CPU", "e2", *end[2:]) == 0, "not its own"
    assert hand.recover("e2") is not None
    assert hand.fcall("KS_PUBLISH", ["m"], *end) == 0, "taken over"
    assert hand.fcall("KS_PUBLISH", ["m"], "CPU", "e2", *end[2:]) == 1
    assert hand.fcall("KS_PUBLISH", ["m"], "CPU", "e2", *end[2:]) == 0
    assert hand.do("HGET", "m", "default") == b"1"


def test_a_load_for_what_is_another_key_now(hand: Hand) -> None:
    for other in (("DEL", "m"), ("SET", "m", "text"), ("HSET", "m", "uid", "u2"), ("HSET", "m", "1:state", "failed")):
        hand.do("FLUSHALL")
        hand.store(signature=None)
        hand.beat("e1")
        (job,) = hand.claim("e1")
        uid = job.model.rpartition(b"-")[0]
        hand.do(*other)
        before = hand.everything()
        end: tuple[Any, ...] = ("CPU", "e1", job.id, uid, 1, "ready", "0" * 64, ONE.to_json(), "")
        assert hand.fcall("KS_PUBLISH", ["m"], *end) == 0
        after = hand.everything()
        stream = hand.node.jobs("CPU")
        assert {key: after[key] for key in after if key != stream} == {
            key: before[key] for key in before if key != stream
        }
        assert hand.length() == 0


@pytest.mark.parametrize("signature", ["", "{}", "[]", '{"inputs":1}', '{"inputs":[{}],"outputs":null}', "{"])
def test_a_signature_that_is_none(hand: Hand, signature: str) -> None:
    hand.store(signature=None)
    hand.beat("e1")
    (job,) = hand.claim("e1")
    uid = job.model.rpartition(b"-")[0]
    end = ("CPU", "e1", job.id, uid, 1, "ready", "0" * 64, signature, "")
    assert hand.refused("KS_PUBLISH", ["m"], *end).code == "BADARG"


# --- entries that no function of ours has made


def test_entries_that_somebody_else_wrote(ready: Hand) -> None:
    stream = ready.node.jobs("CPU")
    entries = [
        ready.do("XADD", stream, "*", *fields)
        for fields in (
            ("a", "b"),
            ("h", ""),
            ("h", "junk"),
            ("h", b"\x93\x01\xa3run\xc0"),
            ("h", b"\x9c\x01\xa4load\xa3u-1\xa1k\xc0\x00\xa0\xa0\x90\x90\x90\x00"),
            ("h", b"\x9c\x01\xa3run\xa3u-1\xa1k\x01\xcb\x7f\xf8\0\0\0\0\0\0\xa0\xa0\x90\x90\x90\x00"),
            ("h", b"\x9c\x01\xa3run\xa3u-1\xa1k\x01\xcf" + b"\xff" * 8 + b"\xa0\xa0\x90\x90\x90\x00"),
        )
    ]
    ticket = ready.predict()
    assert ready.do("XREADGROUP", "GROUP", GROUP, "e1", "STREAMS", stream, ">")
    assert ready.fcall("KS_EXPIRE", [], "CPU", *entries) == 0
    assert ready.fcall("AI_CANCEL", [], ready.node.ticket(b"CPU/" + entries[0])) == 0
    found = ready.recover("e2")
    assert found is not None
    assert ready.node.ticket(b"CPU/" + found[1].id) == ticket
    assert ready.length() == 1, "what nobody can read is cleared away"


def test_an_entry_with_thousands_of_fields(ready: Hand) -> None:
    ready.predict()
    ((_, fields),) = ready.do("XRANGE", ready.node.jobs("CPU"), "-", "+")
    more = [part for i in range(20_000) for part in (f"f{i}", "x")]
    ready.do("XADD", ready.node.jobs("CPU"), "*", *fields, *more)
    ready.claim("e1")
    for _ in range(2):
        assert ready.recover("e2", 0, 1) is None
    assert ready.length() == 0
    assert ready.do("XLEN", ready.node.dead) == 2


def test_memory_is_told_apart_from_other_refusals(hand: Hand) -> None:
    limit = hand.do("CONFIG", "GET", "maxmemory")[1]
    hand.store()
    try:
        hand.do("CONFIG", "SET", "maxmemory", 1)
        assert isinstance(hand.refused("AI_PREDICT", [], "m", "INPUTS", 1, "VALUE", ROW), OutOfMemory)
    finally:
        hand.do("CONFIG", "SET", "maxmemory", limit)
