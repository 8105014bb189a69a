"""Events that executors have seen: who may fire them, what becomes of them, and how their runs end."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.lua.jobs import LARGE, ROW, Hand
from tests.lua.triggers import Ear, done, fire, info, lead, listening, onset, write
from tests.servers import Server, wait_until

from keyside.tensorstore import keys
from keyside.tensorstore.errors import BadArg, NoTrigger

VALUE = ("RUN", "m", "INPUTS", 1, "VALUE", "{payload}")
KEYED = ("RUN", "m", "INPUTS", 1, "KEY", "{k}")


@pytest.fixture
def ear(server: Server) -> Iterator[Ear]:
    with listening(server) as found:
        yield found


@pytest.fixture(autouse=True)
def model(hand: Hand) -> None:
    hand.store()


def publish(hand: Hand, *words: Any, name: str = "p", run: tuple[Any, ...] = VALUE) -> None:
    hand.fcall("AI_TRIGGERSET", [name], "ON", "PUBLISH", "news", *words, *run)
    lead(hand, name)


def stream(hand: Hand, *words: Any, name: str = "s", key: str = "st") -> None:
    hand.fcall("AI_TRIGGERSET", [name], "ON", "STREAM", key, *words, *KEYED)
    hand.do("XGROUP", "CREATE", key, f"ks{name}", "0", "MKSTREAM")
    hand.do("SET", "x", ROW)


def entry(hand: Hand, consumer: str = "e1", key: str = "st", group: str = "kss") -> bytes:
    """Add an entry, and read it."""
    added = bytes(hand.do("XADD", key, "*", "k", "x"))
    got = hand.do("XREADGROUP", "GROUP", group, consumer, "STREAMS", key, ">")
    assert got[0][1][-1][0] == added
    return added


def results(hand: Hand, key: str = "res") -> list[tuple[bytes, bytes, Any]]:
    """Source, run and result of the entries of a stream of results."""
    found = []
    for _, (_, source, _, run, _, text) in hand.do("XRANGE", key, "-", "+"):
        found.append((source, run, json.loads(text)))
    return found


# --- messages


def test_a_message_starts_a_run(hand: Hand, ear: Ear) -> None:
    publish(hand)
    status, run = fire(hand, "p", "msg", payload=ROW, channel="news")
    assert status == "FIRED"
    (job,) = hand.claim()
    assert run == "CPU/" + job.id.decode()
    assert (job.corr, job.inputs) == (b'["msg"]', [ROW])
    text = b'{"trigger":"p","outputs":{"y":{"dtype":"FLOAT","shape":[1],"values":[1.5]}}}'
    assert hand.complete("e1", [done(job, text=text)]) == b"1"
    assert ear.raw() == [text], "as the executor said it"
    assert info(hand, "p") | {"last_ms": 0} == {
        "fired": 1, "done": 1, "errors": 0, "dropped": 0, "coalesced": 0, "inflight": 0, "last_error": b"",
        "last_error_ms": 0, "last_ms": 0,
    }  # fmt: skip


def test_only_who_leads_fires(hand: Hand) -> None:
    publish(hand)
    assert fire(hand, "p", "1", "e2", payload=ROW)[0] == "LOST"
    hand.do("DEL", hand.node.lead("p"))
    assert fire(hand, "p", "1", payload=ROW)[0] == "LOST"
    assert hand.length() == 0
    with pytest.raises(NoTrigger):
        fire(hand, "none", "1")
    for args in (
        (),
        ("p", "e1", "s"),
        ("p", "e1", "s", 1),
        ("p", "e1", "s", 1, "a"),
        ("p", "e1", "s", 0, "a"),
        ("p", "e1", "s", -1),
    ):
        with pytest.raises(BadArg):
            hand.fcall("KS_FIRE", [], *args)


@pytest.mark.parametrize(
    ("run", "variables", "error"),
    [
        (VALUE, {"payload": b"junk"}, "BADNPY "),
        (VALUE, {"other": ROW}, "BADARG the event has no {payload}, which {payload} needs; it has other"),
        (VALUE, {}, "BADARG the event has no {payload}, which {payload} needs; it has "),
        (VALUE, {"payload": LARGE}, "TOOBIG "),
        (KEYED, {"k": "none"}, "NOTENSOR "),
        (KEYED, {"k": "list"}, "WRONGTYPE "),
        (KEYED, {"k": "ks:{0}:cap:1"}, "BADARG the event names 'ks:{0}:cap:1'"),
        ((*KEYED, "OUTPUTS", 1, "{o}"), {"k": "x", "o": "ks:{0}:catalog"}, "BADARG the event names 'ks:{0}:catalog'"),
        ((*KEYED, "OUTPUTS", 1, "{o}"), {"k": "x", "o": "list"}, "WRONGTYPE "),
        (("RUN", "{k}", "INPUTS", 1, "KEY", "x"), {"k": "other"}, "NOMODEL "),
        (("RUN", "m", "INPUTS", "{k}", "KEY", "x"), {"k": "many"}, "BADARG "),
    ],
)
def test_messages_that_make_no_sense(hand: Hand, ear: Ear, run: Any, variables: Any, error: str) -> None:
    hand.do("RPUSH", "list", 1)
    hand.do("SET", "x", ROW)
    publish(hand, run=run)
    status, text = fire(hand, "p", "msg", **variables)
    assert status == "ERROR"
    assert text.startswith(error)
    (result,) = ear.raw()
    assert json.loads(result) == {"trigger": "p", "run": "", "source": "msg", "target": run[1], "error": text}
    assert hand.length() == 0
    assert (info(hand, "p")["errors"], info(hand, "p")["fired"]) == (1, 0)


def test_a_full_queue_drops_messages(hand: Hand) -> None:
    publish(hand)
    hand.fcall("AI_LIMITSET", ["m"], "JOBS", 1)
    assert fire(hand, "p", "1", payload=ROW)[0] == "FIRED"
    assert fire(hand, "p", "2", payload=ROW) == ("DROPPED", "BUSY")
    assert info(hand, "p")["dropped"] == 1


def test_bounds(hand: Hand) -> None:
    publish(hand, "RATE", 1, "PER", 60_000)
    publish(hand, "INFLIGHT", 1, name="q")
    for name, why in (("p", "RATE"), ("q", "INFLIGHT")):
        assert fire(hand, name, "1", payload=ROW)[0] == "FIRED"
        assert fire(hand, name, "2", payload=ROW) == ("DROPPED", why)


def test_messages_of_a_channel_coalesce(hand: Hand) -> None:
    publish(hand, "COALESCE")
    for n in range(4):
        assert fire(hand, "p", str(n), payload=ROW)[0] == "FIRED"
    assert [job.corr for job in hand.claim()] == [b'["0"]', b'["3"]']


# --- streams


def test_an_entry_has_one_run_and_one_result(hand: Hand, ear: Ear) -> None:
    stream(hand, "RESULTS", "res")
    source = entry(hand)
    assert fire(hand, "s", source, "e2", k="x")[0] == "LOST"
    status, run = fire(hand, "s", source, k="x")
    assert status == "FIRED"
    assert fire(hand, "s", source, k="x") == ("DOUBLE", run)
    (job,) = hand.claim()
    # Its reader dies; the run goes on, and whoever takes the entry over learns of it.
    hand.do("XCLAIM", "st", "kss", "e2", 0, source)
    assert fire(hand, "s", source, k="x")[0] == "LOST"
    assert fire(hand, "s", source, "e2", k="x") == ("DOUBLE", run)
    assert hand.complete("e1", [done(job, text=b'{"a":1}')]) == b"1"
    assert results(hand) == [(source, run.encode(), {"a": 1})]
    assert ear.raw()[-1] == b'{"a":1}'
    assert hand.do("XPENDING", "st", "kss")[0] == 0
    assert fire(hand, "s", source, "e2", k="x")[0] == "LOST"
    assert not hand.do("EXISTS", keys.fired("st", "s"))


def test_an_entry_that_makes_no_sense_has_its_result_at_once(hand: Hand) -> None:
    stream(hand, "RESULTS", "res", "MAXLEN", 2)
    sources = [entry(hand) for _ in range(3)]
    for source in sources:
        assert fire(hand, "s", source, q="x")[0] == "ERROR"
    assert [found[0] for found in results(hand)] == sources[1:]
    assert all(found[2]["error"].startswith("BADARG ") for found in results(hand))
    assert hand.do("XPENDING", "st", "kss")[0] == 0


def test_entries_wait_where_messages_are_dropped(hand: Hand) -> None:
    stream(hand, "INFLIGHT", 1)
    stream(hand, "RATE", 1, "PER", 60_000, name="r")
    stream(hand, name="q")
    for name, at_least, at_most in (("s", 1, 1000), ("r", 59_000, 60_001), ("q", 1, 10_000)):
        first, second = (entry(hand, group=f"ks{name}") for _ in range(2))
        if name == "q":
            hand.fcall("AI_LIMITSET", ["m"], "JOBS", 1)
        assert fire(hand, name, first, k="x")[0] == "FIRED"
        status, text = fire(hand, name, second, k="x")
        assert status == "WAIT"
        assert at_least <= int(text) <= at_most
        assert info(hand, name)["dropped"] == 0
        if name == "s":
            hand.fcall("AI_TRIGGERPAUSE", ["s"], "ON")
            assert fire(hand, name, second, k="x") == ("WAIT", "1000")
            hand.fcall("AI_TRIGGERPAUSE", ["s"], "OFF")
            assert hand.complete("e1", [done(job) for job in hand.claim()]) == b"1"
            assert fire(hand, name, second, k="x")[0] == "FIRED"


def test_a_lost_job_does_not_lose_the_entry(hand: Hand) -> None:
    stream(hand, "RESULTS", "res")
    source = entry(hand)
    fire(hand, "s", source, k="x")
    (late,) = hand.claim()
    name = keys.fired("st", "s")
    mark = bytes(hand.do("HGET", name, source))
    run, _, deadline = mark.partition(b" ")
    assert (run, int(deadline)) == (b"CPU/" + late.id, late.deadline)
    # Its deadline, and the grace behind it, are over.
    hand.do("HSET", name, source, b"%b %d" % (run, hand.now() - 10_001))
    began = hand.now()
    wait_until(lambda: hand.now() > began, "the next run has another deadline")
    assert fire(hand, "s", source, k="x")[0] == "FIRED"
    (again,) = hand.claim()
    # Whatever of the first run turns up is not told.
    assert hand.complete("e1", [done(late, text=b'{"late":1}')]) == b"1"
    assert not hand.do("EXISTS", "res")
    assert hand.complete("e1", [done(again, text=b'{"again":1}')]) == b"1"
    assert [found[2] for found in results(hand)] == [{"again": 1}]


def test_a_stream_that_has_gone(hand: Hand) -> None:
    stream(hand, "RESULTS", "res")
    source = entry(hand)
    fire(hand, "s", source, k="x")
    other = entry(hand)
    hand.do("DEL", "st")
    assert fire(hand, "s", other, k="x")[0] == "LOST"
    assert hand.complete("e1", [done(job) for job in hand.claim()]) == b"1"
    assert len(results(hand)) == 1, "the result is one all the same"


def test_sources_that_are_no_entries(hand: Hand) -> None:
    stream(hand)
    for source in ("", "x", "-", "1-1-1"):
        with pytest.raises(BadArg):
            fire(hand, "s", source, k="x")
    assert fire(hand, "s", "1-1", k="x")[0] == "LOST"


# --- the ways in which runs end


def test_each_way_in_which_a_job_ends_is_told(hand: Hand, ear: Ear) -> None:
    stream(hand, "RESULTS", "res")
    ends: dict[bytes, str] = {}

    def run(*words: Any) -> Any:
        hand.fcall("AI_TRIGGERSET", ["s"], "ON", "STREAM", "st", "RESULTS", "res", *KEYED, *words)
        source = entry(hand)
        assert fire(hand, "s", source, k="x")[0] == "FIRED"
        return source

    ends[run()] = "RUNFAILED"
    (job,) = hand.claim()
    hand.complete("e1", [done(job, text=b"RUNFAILED no")])
    ends[run()] = "RUNFAILED"
    (job,) = hand.claim()
    hand.complete("e1", [done(job, text=b'{"outputs":{},"error":"RUNFAILED in JSON"}')])
    ends[run("TIMEOUT", 1)] = "TIMEDOUT"
    (job,) = hand.claim()
    wait_until(lambda: hand.now() > job.deadline, "the deadline passes")
    hand.complete("e1", [done(job)])
    ends[run("TIMEOUT", 1)] = "TIMEDOUT"
    (job,) = hand.claim()
    wait_until(lambda: hand.now() > job.deadline, "the deadline passes")
    hand.fcall("KS_EXPIRE", [], "CPU", job.id)
    ends[run()] = "DEADLETTER"
    (job,) = hand.claim()
    assert hand.recover("e2", limit=1) is None
    ends[run()] = "CANCELLED"
    (job,) = hand.claim()
    assert hand.fcall("AI_CANCEL", [], hand.node.event("s"), b"CPU/" + job.id) == 1
    assert hand.fcall("AI_CANCEL", [], hand.node.event("s"), b"CPU/" + job.id) == 0
    found = results(hand)
    assert {source: result["error"].partition(" ")[0] for source, _, result in found} == ends
    assert len(found) == len(ends)
    assert hand.do("XPENDING", "st", "kss")[0] == 0
    counters = info(hand, "s")
    assert (counters["errors"], counters["done"], counters["inflight"]) == (len(ends), 0, 0)
    assert [text.partition(" ")[0] for text in ear.errors()] == list(ends.values())
    assert not hand.do("EXISTS", hand.node.event("s"))


def test_a_dead_letter_of_an_event_runs_again_for_who_asks(hand: Hand, ear: Ear) -> None:
    publish(hand)
    fire(hand, "p", "msg", payload=ROW)
    hand.claim()
    hand.recover("e2", limit=1)
    (result,) = ear.errors()
    assert result.startswith("DEADLETTER ")
    _, (letter,) = hand.fcall("AI_DEADSCAN", [], "0")
    ticket = hand.fcall("AI_DEADRETRY", [], letter[1])
    (job,) = hand.claim()
    hand.complete("e1", [done(job, text=b"OK")])
    assert hand.reply(ticket) == b"OK"
    assert ear.heard() == []


@pytest.mark.parametrize("word", ["PUBLISH", "PAUSE", "DROP"])
def test_what_is_done_on_errors(hand: Hand, ear: Ear, word: str) -> None:
    publish(hand, "ONERROR", word, "RESULTS", "res")
    onset(hand, "t", "a:{x}", "ONERROR", word)
    for _ in range(2):
        fire(hand, "p", "1", payload=ROW)
    for _ in range(2):
        write(hand, "a:1")
    jobs = hand.claim()
    hand.complete("e1", [done(job, text=b"RUNFAILED no") for job in jobs])
    told = ear.raw()
    assert len(told) == {"PUBLISH": 4, "PAUSE": 4, "DROP": 0}[word]
    assert hand.do("EXISTS", "res") == (word != "DROP")
    for name in ("p", "t"):
        assert hand.do("HGET", name, "state") == (b"paused" if word == "PAUSE" else b"active")
        assert info(hand, name)["errors"] == 2
    write(hand, "a:1")
    assert hand.length() == (0 if word == "PAUSE" else 1)
    if word == "PAUSE":
        assert fire(hand, "p", "1", payload=ROW) == ("DROPPED", "PAUSED")
        hand.fcall("AI_TRIGGERPAUSE", ["p"], "OFF")
        assert fire(hand, "p", "1", payload=ROW)[0] == "FIRED"
    # What is wrong before it runs is an error too.
    assert fire(hand, "p", "1", payload="junk")[0] == "ERROR"
    assert hand.do("HGET", "p", "state") == (b"paused" if word == "PAUSE" else b"active")


def test_outputs_that_go_by_themselves(hand: Hand) -> None:
    publish(hand, "TTL", 5000, run=(*VALUE, "OUTPUTS", 1, "y"))
    hand.fcall("AI_TRIGGERSET", ["keep"], "ON", "PUBLISH", "news", *VALUE, "OUTPUTS", 1, "z")
    lead(hand, "keep")
    fire(hand, "p", "1", payload=ROW)
    fire(hand, "keep", "1", payload=ROW)
    one, other = hand.claim()
    assert hand.complete("e1", [done(one, (b"y", b"V", ROW)), done(other, (b"z", b"V", ROW))]) == b"11"
    assert 0 < hand.do("PTTL", "y") <= 5000
    assert hand.do("PTTL", "z") == -1


def test_results_that_cannot_be_kept_are_published_all_the_same(hand: Hand, ear: Ear) -> None:
    publish(hand, "RESULTS", "res")
    hand.do("RPUSH", "res", 1)
    fire(hand, "p", "1", payload=ROW)
    (job,) = hand.claim()
    assert hand.complete("e1", [done(job)]) == b"1"
    assert len(ear.heard()) == 1
    found = info(hand, "p")
    assert found["done"] == 1
    assert found["last_error"].startswith(b"results stream 'res': WRONGTYPE ")


def test_results_of_tensors_may_have_a_stream_for_each(hand: Hand) -> None:
    onset(hand, "t", "a:{x}", "RESULTS", "res:{x}")
    write(hand, "a:1")
    write(hand, "a:2")
    hand.complete("e1", [done(job) for job in hand.claim()])
    assert [results(hand, f"res:{n}")[0][0] for n in (1, 2)] == [b"a:1", b"a:2"]


def test_tickets_that_look_like_events_are_not_for_callers(hand: Hand) -> None:
    publish(hand)
    for ticket in (b"ks:{0}:ev:p", b"ks:{0}:ev:"):
        with pytest.raises(BadArg):
            hand.predict("TICKET", ticket, "[1]")


def test_what_is_said_in_bytes_that_are_no_text(hand: Hand, ear: Ear) -> None:
    publish(hand)
    fire(hand, "p", b"\xff\xc3\xa9\xed\xa0\x80\n", payload=ROW)
    (job,) = hand.claim()
    hand.complete("e1", [done(job, text=b"RUNFAILED \xc3(\x00/")])
    (result,) = ear.heard()
    assert result["error"] == "RUNFAILED \\xc3(\0/"
    assert result["source"].endswith("\n")
