"""Triggers ON SET: what a write starts, in the same call, and what follows where it cannot."""

from collections.abc import Iterator

import numpy as np
import pytest
from tests.lua.jobs import LARGE, ROW, Hand, ok, staged
from tests.lua.triggers import RUN, Ear, done, fire, info, lead, listening, onset, write
from tests.servers import Server

from keyside.tensorstore import keys, library, npy
from keyside.tensorstore.errors import Busy, KeysideError

CHAIN = ("RUN", "m", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1)


@pytest.fixture
def ear(server: Server) -> Iterator[Ear]:
    with listening(server) as found:
        yield found


@pytest.fixture(autouse=True)
def model(hand: Hand) -> None:
    hand.store()


def runs(hand: Hand) -> list[tuple[bytes, bytes]]:
    """Trigger and source of the jobs that wait."""
    return [(job.extra[b"e"][0], job.extra[b"e"][1]) for job in hand.claim() if job.extra]


def test_a_write_starts_a_run_on_what_was_written(hand: Hand) -> None:
    onset(hand, "t", "frame:{cam}", run=(*CHAIN, "boxes:{cam}"))
    write(hand, "frame:{7}")
    write(hand, "frame:")
    write(hand, "other")
    (job,) = hand.claim()
    assert (job.key, job.outputs) == (b"m", [b"boxes:{7}"])
    assert (job.ticket, job.corr) == (hand.node.event("t"), b'["frame:{7}"]')
    assert job.extra == {b"e": [b"t", b"frame:{7}"]}
    job.decode()
    np.testing.assert_array_equal(job.arrays[0], [[1, 2, 3, 4]])
    assert info(hand, "t")["fired"] == 1
    assert info(hand, "t")["inflight"] == 1


def test_each_write_has_its_run(hand: Hand) -> None:
    onset(hand, "t", "a:{x}")
    onset(hand, "u", "a:{x}")
    for _ in range(3):
        write(hand, "a:1")
    assert sorted(runs(hand)) == [(b"t", b"a:1")] * 3 + [(b"u", b"a:1")] * 3


def test_who_sets_by_other_means_says_so(hand: Hand) -> None:
    onset(hand, "t", "a:{x}")
    hand.do("MULTI")
    hand.do("SET", "a:1", LARGE)
    hand.do("FCALL", "AI_TENSORCHANGED", 1, "a:1")
    assert hand.do("EXEC") == [b"OK", 1]
    assert hand.fcall("AI_TENSORCHANGED", ["b"]) == 0
    (job,) = hand.claim()
    assert job.captures == [job.inputs[0][0]]
    hand.complete("e1", [done(job)])


def test_tensors_of_other_sizes_are_errors_of_the_trigger(hand: Hand, ear: Ear) -> None:
    onset(hand, "t", "a:{x}")
    assert hand.fcall("AI_TENSORSET", ["a:1"], "FLOAT", 1, 3) == b"OK"
    (result,) = ear.heard()
    assert result == {
        "trigger": "t", "run": "", "source": "a:1", "target": "m",
        "error": "BADSHAPE input 'x' of 'm@1' takes shape [-1,4] (-1: any), got [1,3]",
    }  # fmt: skip
    found = info(hand, "t")
    assert (found["fired"], found["errors"], found["inflight"]) == (0, 1, 0)
    assert found["last_error"].startswith(b"BADSHAPE ")
    assert found["last_error_ms"] > 0
    hand.fcall("AI_MODELDEL", ["m"])
    write(hand, "a:1")
    assert [text[:8] for text in ear.errors()] == ["NOMODEL "]


def test_keys_that_are_not_text(hand: Hand, ear: Ear) -> None:
    onset(hand, "t", "a:{x}")
    hand.fcall("AI_TENSORSET", [b'a:\xff\0\n"/\xe2\x82\xac'], "FLOAT", 1, 3)
    hand.fcall("AI_TENSORSET", ["a:\u20ac\U0001f600\u00e9"], "FLOAT", 1, 3)
    first, second = ear.heard()
    assert second["source"] == "a:\u20ac\U0001f600\u00e9"
    assert first["source"] == 'a:\\xff\0\n"/\\xe2\\x82\\xac'
    write(hand, b'a:\xff\0\n"/')
    (job,) = hand.claim()
    hand.complete("e1", [done(job, text=b"RUNFAILED no")])
    assert ear.heard()[0]["error"] == "RUNFAILED no"


def test_private_keys_fire_nothing(hand: Hand) -> None:
    onset(hand, "t", "{x}")
    write(hand, "ks:{0}:tmp:a:1:0")
    assert hand.length() == 0


# --- what cannot start now


def test_a_full_queue_is_said_to_the_caller(hand: Hand, ear: Ear) -> None:
    onset(hand, "t", "a:{x}")
    onset(hand, "u", "a:{x}")
    hand.fcall("AI_LIMITSET", ["m"], "JOBS", 3)
    for n in range(1, 3):
        if n == 2:
            with pytest.raises(
                Busy, match=r"'a:2' is written, but trigger '[tu]' .*send the call again: .*; retry in \d+ ms$"
            ):
                write(hand, "a:2")
        else:
            write(hand, "a:1")
    assert hand.do("EXISTS", "a:2") == 1
    assert hand.length() == 2, "none of the second call is left: it is to be sent again"
    assert [source for _, source in runs(hand)] == [b"a:1"] * 2
    assert sum(info(hand, name)["fired"] for name in "tu") == 2
    assert sum(info(hand, name)["inflight"] for name in "tu") == 2
    assert ear.heard() == []
    jobs = hand.claim(start="0")
    assert hand.complete("e1", [done(job) for job in jobs]) == b"11"
    write(hand, "a:2")
    assert [source for _, source in runs(hand)] == [b"a:2"] * 2
    hand.fcall("AI_LIMITSET", ["m"], "JOBS", 0)


def test_what_was_taken_back_uses_up_no_rate_and_replaces_nothing(hand: Hand) -> None:
    for name in "tu":
        onset(hand, name, "a:{x}", "RATE", 4, "PER", 60_000, "COALESCE")
    hand.fcall("AI_LIMITSET", ["m"], "JOBS", 5)
    write(hand, "a:1")
    write(hand, "a:1")
    before = {key: hand.do("DUMP", key) for key in hand.do("KEYS", "*") if b":t:" not in key}
    for _ in range(3):
        with pytest.raises(Busy):
            write(hand, "a:1")
    after = {key: hand.do("DUMP", key) for key in hand.do("KEYS", "*") if b":t:" not in key}
    assert {key for key in {*before, *after} if before.get(key) != after.get(key)} <= {
        b"ks:{0}:jobs:CPU",  # the stream knows which id it gave last
        b"ks:{0}:stats",  # what was refused is counted
    }
    hand.fcall("AI_LIMITSET", ["m"], "JOBS", 0)
    for _ in range(3):
        write(hand, "a:1")
    for name in "tu":
        found = info(hand, name)
        assert (found["fired"], found["dropped"], found["coalesced"], found["inflight"]) == (4, 1, 2, 2)


def test_a_large_tensor_leaves_no_copy_where_its_run_was_taken_back(hand: Hand) -> None:
    onset(hand, "t", "a:{x}")
    onset(hand, "u", "a:{x}")
    hand.fcall("AI_LIMITSET", ["m"], "JOBS", 1)
    hand.do("SET", "a:1", LARGE)
    before = set(hand.do("KEYS", "*"))
    with pytest.raises(Busy):
        hand.fcall("AI_TENSORCHANGED", ["a:1"])
    assert set(hand.do("KEYS", "*")) <= before | {hand.node.bytes("CPU")}
    assert hand.do("GET", hand.node.bytes("CPU")) in (None, b"0")


# --- bounds of triggers


def test_coalesce_runs_the_latest_and_never_starves(hand: Hand, ear: Ear) -> None:
    onset(hand, "t", "a:{x}", "COALESCE")
    for n in range(5):
        hand.fcall("AI_TENSORSET", ["a:1"], "FLOAT", 1, 4, "VALUES", *[n] * 4)
    write(hand, "a:2")
    first, last, other = hand.claim()
    values = []
    for job in (first, last, other):
        job.decode()
        values.append(float(job.arrays[0][0, 0]))
    assert values == [0, 4, 1]
    found = info(hand, "t")
    assert (found["fired"], found["coalesced"], found["inflight"]) == (6, 3, 3)
    # The newer one has been claimed, and is taken back all the same.
    hand.fcall("AI_TENSORSET", ["a:1"], "FLOAT", 1, 4, "VALUES", *[9] * 4)
    assert hand.complete("e1", [done(first), done(last), done(other)]) == b"101"
    (job,) = hand.claim()
    job.decode()
    assert job.arrays[0][0, 0] == 9
    assert hand.complete("e1", [done(job)]) == b"1"
    assert len(ear.heard()) == 3
    assert not hand.do("EXISTS", b"ks:{0}:latest:t", hand.node.inflight("t"))


def test_rate_and_inflight(hand: Hand) -> None:
    onset(hand, "rate", "a:{x}", "RATE", 2, "PER", 60_000)
    onset(hand, "few", "a:{x}", "INFLIGHT", 1)
    onset(hand, "both", "a:{x}", "INFLIGHT", 2, "COALESCE")
    for _ in range(4):
        write(hand, "a:1")
    assert {name: (info(hand, name)["fired"], info(hand, name)["dropped"]) for name in ("rate", "few", "both")} == {
        "rate": (2, 2), "few": (1, 3), "both": (4, 0),
    }  # fmt: skip
    jobs = hand.claim()
    hand.complete("e1", [done(job) for job in jobs])
    write(hand, "a:1")
    assert (info(hand, "rate")["fired"], info(hand, "few")["fired"]) == (2, 2)


def test_runs_that_were_lost_are_under_way_no_longer_than_they_may(hand: Hand) -> None:
    onset(hand, "t", "a:{x}", "INFLIGHT", 1, run=(*RUN, "TIMEOUT", 1))
    write(hand, "a:1")
    hand.do("DEL", hand.node.jobs("CPU"))
    write(hand, "a:1")
    assert info(hand, "t")["dropped"] == 1
    (member,) = hand.do("ZRANGE", hand.node.inflight("t"), 0, -1)
    hand.do("ZADD", hand.node.inflight("t"), hand.now() - 1, member)
    write(hand, "a:1")
    assert info(hand, "t")["fired"] == 2


# --- chains


def test_outputs_start_what_waits_for_them(hand: Hand, ear: Ear) -> None:
    onset(hand, "one", "a:{x}", run=(*CHAIN, "b:{x}"))
    onset(hand, "two", "b:{x}", run=(*CHAIN, "c:{x}"))
    onset(hand, "three", "c:{x}")
    write(hand, "a:1")
    runs_of: list[str] = []
    for name, key, chain in (("one", b"b:1", []), ("two", b"c:1", [b"one"]), ("three", b"", [b"one", b"two"])):
        (job,) = hand.claim()
        assert (job.trigger or ())[2:] == chain
        runs_of.append(job.id.decode())
        if name == "two":
            assert hand.complete("e1", [staged(job, key, keys.output(key, "s-1"), LARGE)]) == b"1"
        else:
            assert hand.complete("e1", [done(job, *([(key, b"V", ROW)] if key else []))]) == b"1"
    assert ear.heard()[1] == {
        "trigger": "two",
        "run": "CPU/" + runs_of[1],
        "source": "b:1",
        "target": "m",
        "outputs": {},
    }
    assert hand.claim() == []


def test_outputs_of_plain_jobs_start_them_too(hand: Hand) -> None:
    onset(hand, "t", "y{n}")
    hand.do("SET", "x", ROW)
    hand.execute(["x"], ["y1"])
    hand.execute(["x"], ["z"])
    hand.predict("TICKET", "ks:{0}:mb:a", "[1]")
    a, b, c = hand.claim()
    assert hand.complete("e1", [ok(a, (b"y1", b"V", ROW)), ok(b, (b"z", b"V", ROW)), ok(c)]) == b"111"
    assert hand.reply("ks:{0}:mb:a") == b"[1] OK", "a corr that looks like that of an event"
    (job,) = hand.claim()
    assert (job.extra, job.corr) == ({b"e": [b"t", b"y1"]}, b'["y1"]')


def test_a_failed_run_starts_nothing(hand: Hand, ear: Ear) -> None:
    onset(hand, "one", "a:{x}", run=(*CHAIN, "b:{x}"))
    onset(hand, "two", "b:{x}")
    write(hand, "a:1")
    (job,) = hand.claim()
    hand.complete("e1", [done(job, text=b"RUNFAILED no")])
    assert hand.claim() == []
    write(hand, "a:1")
    (job,) = hand.claim()
    hand.do("RPUSH", "b:1", 1)
    assert hand.complete("e1", [done(job, (b"b:1", b"V", ROW))]) == b"3"
    assert hand.claim() == []
    assert [text.partition(" ")[0] for text in ear.errors()] == ["RUNFAILED", "WRONGTYPE"]


def test_a_loop_of_two_is_stopped(hand: Hand, ear: Ear) -> None:
    onset(hand, "one", "a:{x}", run=(*CHAIN, "b:{x}"))
    onset(hand, "two", "b:{x}", run=(*CHAIN, "a:{x}"))
    write(hand, "a:1")
    for key in (b"b:1", b"a:1"):
        (job,) = hand.claim()
        assert hand.complete("e1", [done(job, (key, b"V", ROW))]) == b"1"
    assert hand.claim() == []
    (error,) = [result["error"] for result in ear.heard() if "error" in result]
    assert error == "LOOP the trigger would start itself again: one -> two -> one"
    assert info(hand, "one")["errors"] == 1


def test_a_chain_has_an_end(hand: Hand, ear: Ear) -> None:
    for n in range(10):
        onset(hand, f"t{n}", f"k{n}:{{x}}", run=(*CHAIN, f"k{n + 1}:{{x}}"))
    write(hand, "k0:a")
    links = 0
    while jobs := hand.claim():
        (job,) = jobs
        links += 1
        assert hand.complete("e1", [done(job, (b"k%d:a" % links, b"V", ROW))]) == b"1"
    assert links == 8
    assert [result["error"][:37] for result in ear.heard() if "error" in result] == [
        "LOOP a chain of more than 8 triggers:"
    ]


def test_what_spoilt_records_do_is_not_the_batchs_fault(hand: Hand) -> None:
    """A completion ends its jobs whatever is wrong with triggers."""
    onset(hand, "t", "a:{x}")
    onset(hand, "u", "y{n}")
    write(hand, "a:1")
    hand.do("SET", "x", ROW)
    hand.execute(["x"], ["y1"])
    one, other = hand.claim()
    for name in (hand.node.tstats("t"), hand.node.inflight("t"), hand.node.inflight("u"), hand.node.tstats("u")):
        hand.do("DEL", name)
        hand.do("RPUSH", name, 1)
    assert hand.complete("e1", [done(one), ok(other, (b"y1", b"V", ROW))]) == b"11"
    assert hand.do("XPENDING", hand.node.jobs("CPU"), "ks")[0] == 0


# --- notifications


def test_a_notification_of_a_write_that_has_started_its_run_starts_none(hand: Hand) -> None:
    onset(hand, "t", "a:{x}", "NOTIFY")
    lead(hand, "t")
    write(hand, "a:1")
    write(hand, "a:1")
    assert fire(hand, "t", "a:1", key="a:1") == ("DOUBLE", "")
    assert fire(hand, "t", "a:1", key="a:1") == ("DOUBLE", "")
    assert fire(hand, "t", "a:1", key="a:1")[0] == "FIRED", "that was another client"
    assert not hand.do("KEYS", "ks:{a:1}:own:*")
    for _ in range(3):
        write(hand, "a:1")
    assert fire(hand, "t", "a:1", key="a:1", events=2) == ("DOUBLE", "")
    assert fire(hand, "t", "a:1", key="a:1", events=2)[0] == "FIRED", "one of two was another client's"
    assert fire(hand, "t", "b", key="b") == ("DROPPED", "PATTERN")
    assert fire(hand, "t", "a:1", "e2", key="a:1")[0] == "LOST"
    jobs = hand.claim()
    assert len(jobs) == 7
    assert {job.corr for job in jobs} == {b'["a:1"]'}


def test_outputs_are_writes_that_have_started_theirs(hand: Hand) -> None:
    onset(hand, "t", "y{n}", "NOTIFY")
    lead(hand, "t")
    hand.do("SET", "x", ROW)
    hand.execute(["x"], ["y1"])
    (job,) = hand.claim()
    hand.complete("e1", [ok(job, (b"y1", b"V", ROW))])
    assert fire(hand, "t", "y1", key="y1") == ("DOUBLE", "")
    assert hand.length() == 1


def test_which_triggers_there_are_is_looked_at_before_anything_is_written(hand: Hand) -> None:
    hand.do("SET", hand.node.onset, "junk")
    with pytest.raises(KeysideError) as caught:
        hand.fcall("AI_TENSORSET", ["a"], "FLOAT", 1)
    assert caught.value.code in ("WRONGTYPE", "ERR")
    assert not hand.do("EXISTS", "a")


def test_large_tensors_by_value(hand: Hand) -> None:
    onset(hand, "t", "a:{x}")
    data = np.zeros((4096, 4), np.float32)
    hand.fcall("AI_TENSORSET", ["a:1"], "FLOAT", 4096, 4, "BLOB", data.tobytes())
    (job,) = hand.claim()
    assert hand.do("GET", job.captures[0]) == npy.to_bytes(data)
    hand.complete("e1", [done(job)])


def test_the_library_may_be_loaded_again(hand: Hand) -> None:
    onset(hand, "t", "a:{x}")
    write(hand, "a:1")
    hand.do("FUNCTION", "LOAD", "REPLACE", library.source())
    write(hand, "a:2")
    hand.do("DEL", hand.node.onset)  # as FLUSHALL does
    write(hand, "a:3")
    assert runs(hand) == [(b"t", b"a:1"), (b"t", b"a:2")]
