"""Dead letters, and what an executor gives back: their functions by hand."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.lua.jobs import LARGE, ROW, Hand, ok
from tests.servers import Server

from keyside.executor.protocol import Job
from keyside.tensorstore.errors import BadArg, Busy, ModelFailed, NoModel, NoPerm, WrongType


@pytest.fixture
def hand(server: Server, db: Any) -> Iterator[Hand]:
    with Hand(server.url_unix) as hand:
        yield hand


@pytest.fixture
def ready(hand: Hand) -> Hand:
    """With a model that is ready, a tensor, and two executors."""
    hand.store()
    hand.do("SET", "x", LARGE)
    for name in ("e1", "e2", "e3"):
        hand.beat(name)
    return hand


def facts(flat: Any) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def letters(hand: Hand, *options: Any) -> list[dict[bytes, Any]]:
    cursor, page = hand.fcall("AI_DEADSCAN", [], "0", *options)
    assert cursor == b"0"
    return [facts(one) for one in page]


def die(hand: Hand, *executors: str) -> Job:
    """Executors die one after the other with the job that waits; then it is given up. Gives the job."""
    (job,) = hand.claim(executors[0])
    for name in executors[1:]:
        assert hand.recover(name) is not None
    assert hand.recover("e9", limit=len(executors)) is None
    return job


# --- letters


def test_what_a_letter_says(ready: Hand) -> None:
    ticket = ready.execute(["x"], ["y"])
    job = die(ready, "e1", "e2", "e3")
    reply = ready.reply(ticket)
    (letter,) = letters(ready)
    assert reply is not None
    assert letter[b"reason"] == reply
    assert letter[b"job"] == b"CPU/" + job.id
    assert (letter[b"op"], letter[b"model"], letter[b"deliveries"]) == (b"run", b"m@1", 3)
    assert letter[b"executors"] == [b"e1", b"e2", b"e3"]
    assert abs(letter[b"when"] - ready.now()) < 5000
    whole = facts(ready.fcall("AI_DEADGET", [], letter[b"id"]))
    assert whole.items() > letter.items()
    ((how, capture, there),) = whole[b"inputs"]
    assert (how, there) == (b"CAPTURE", 1)
    assert whole[b"outputs"] == [b"y"]
    assert whole[b"deadline"] == job.deadline
    assert 3_500_000 < ready.do("PTTL", capture) <= 3_600_000, "kept for an hour"
    assert not ready.do("KEYS", "ks:{0}:died:*")


def test_what_was_given_back_is_no_death(ready: Hand) -> None:
    ready.predict()
    (job,) = ready.claim("e1")
    ready.fcall("KS_LEAVE", [], "e1", "CPU")
    assert ready.pending() == {job.id: (b"e1", 0)}
    for name, deliveries in (("e2", 1), ("e3", 2)):
        found = ready.recover(name, 10_000 if name == "e2" else 0)
        assert found is not None
        assert found[0] == deliveries
    assert ready.recover("e4", limit=2) is None
    assert letters(ready)[0][b"executors"] == [b"e2", b"e3"]


def test_pages_and_models(ready: Hand) -> None:
    ready.store("n")
    for n in range(5):
        ready.predict(target="m" if n % 2 else "n")
        die(ready, "e1")
    cursor, first = ready.fcall("AI_DEADSCAN", [], "0", "COUNT", 2)
    cursor, second = ready.fcall("AI_DEADSCAN", [], cursor, "COUNT", 2)
    cursor, third = ready.fcall("AI_DEADSCAN", [], cursor, "COUNT", 2)
    assert cursor == b"0"
    ids = [facts(one)[b"id"] for one in (*first, *second, *third)]
    assert ids == [one[b"id"] for one in letters(ready)]
    assert ids == sorted(ids, reverse=True)
    assert len(letters(ready, "MODEL", "m")) == 2
    assert len(letters(ready, "MODEL", "n@1")) == 3
    assert letters(ready, "MODEL", "n@2") == []


def test_drop(ready: Hand) -> None:
    ready.execute(["x"], ["y"])
    die(ready, "e1")
    ready.predict()
    die(ready, "e1")
    kept, dropped = (one[b"id"] for one in letters(ready))
    assert ready.fcall("AI_DEADDEL", [], dropped, "1-1") == 1
    assert [one[b"id"] for one in letters(ready)] == [kept]
    assert not ready.do("KEYS", "*:cap:*"), "what it had captured goes with it"
    assert ready.fcall("AI_DEADGET", [], dropped) is None


# --- again


@pytest.mark.parametrize("value", [ROW, LARGE])
def test_retry(ready: Hand, value: bytes) -> None:
    ready.do("SET", "x", value)
    first = ready.execute(["x"], ["y"], "TIMEOUT", 1000)
    before = die(ready, "e1")
    ready.do("SET", "x", ROW + b" ")
    (letter,) = letters(ready)
    ticket = ready.fcall("AI_DEADRETRY", [], letter[b"id"], "TIMEOUT", 60_000)
    assert letters(ready) == []
    (job,) = ready.claim("e1")
    assert ticket == ready.node.ticket(b"CPU/" + job.id) != first
    assert abs(job.deadline - ready.now() - 60_000) < 2000
    assert (job.model, job.key, job.version, job.outputs) == (before.model, b"m", 1, [b"y"])
    if value is ROW:
        assert job.inputs == [ROW]
    else:
        (capture,) = job.captures
        assert ready.do("GET", capture) == LARGE
        assert job.bytes == len(LARGE)
        assert ready.do("GET", ready.node.bytes("CPU")) == b"%d" % len(LARGE)
    assert ready.complete("e1", [ok(job, (b"y", b"V", ROW))]) == b"1"
    assert ready.reply(ticket) == b"OK"
    assert ready.do("GET", "y") == ROW
    assert not ready.do("KEYS", "*:cap:*")
    assert int(ready.do("GET", ready.node.bytes("CPU")) or 0) == 0


def test_retry_of_what_goes_before_others(ready: Hand) -> None:
    ready.predict()
    die(ready, "e1")
    ((id_, flat),) = ready.do("XRANGE", ready.node.dead, "-", "+")
    fields = facts(flat)
    fields[b"id"] = b"CPU!H/1-1"
    ready.do("XDEL", ready.node.dead, id_)
    letter = ready.do("XADD", ready.node.dead, "*", *[part for pair in fields.items() for part in pair])
    assert b":ticket:CPU!H/" in ready.fcall("AI_DEADRETRY", [], letter)
    assert ready.length("CPU!H") == 1


def test_retry_is_refused(ready: Hand) -> None:
    ready.execute(["x"], ["y"])
    die(ready, "e1")
    ready.store("n", signature=None)
    die(ready, "e1")
    load, run = (one[b"id"] for one in letters(ready))
    for arguments in ([], ["1-1"], ["x"], [load], [run, "TIMEOUT", 0], [run, "TICKET", "ks:{0}:t"], [run, "x"]):
        assert isinstance(ready.refused("AI_DEADRETRY", [], *arguments), BadArg)
    assert "store it again" in ready.refused("AI_DEADRETRY", [], load).text
    ready.do("SET", "y", "no tensor")
    assert isinstance(ready.refused("AI_DEADRETRY", [], run), WrongType)
    ready.do("DEL", "y")
    stream = ready.node.jobs("CPU")
    ready.wire.call_many([("XADD", stream, "*", "a", "b")] * 10_000)
    assert isinstance(ready.refused("AI_DEADRETRY", [], run), Busy)
    ready.do("DEL", stream)
    ready.fcall("AI_MODELDEL", ["m"])
    assert isinstance(ready.refused("AI_DEADRETRY", [], run), NoModel)
    ready.store("m", signature=None)
    ready.publish("m", 1, None, "broken")
    assert isinstance(ready.refused("AI_DEADRETRY", [], run), NoModel), "another model of that name"
    ready.do("HSET", ready.node.catalog, "m@1", b'{"key":"m","uid":"%b","version":1,"state":"failed","device":"CPU",'
             b'"signature":null,"reason":"r"}' % uid_of(ready, run))  # fmt: skip
    assert isinstance(ready.refused("AI_DEADRETRY", [], run), ModelFailed)


def uid_of(hand: Hand, letter: bytes) -> bytes:
    import msgpack

    ((_, flat),) = hand.do("XRANGE", hand.node.dead, letter, letter)
    model: bytes = msgpack.unpackb(facts(flat)[b"h"], raw=True)[2]
    return model.rpartition(b"-")[0]


def test_a_forged_letter_gets_at_nothing(ready: Hand, server: Server) -> None:
    """Whoever may write to the stream could name any key, which an executor would read, and delete as a capture."""
    import msgpack

    ready.do("SET", "secret", LARGE)
    ready.execute(["x"], ["y"])
    die(ready, "e1")
    ((_, flat),) = ready.do("XRANGE", ready.node.dead, "-", "+")
    header = msgpack.unpackb(facts(flat)[b"h"], raw=True)
    ready.do("ACL", "SETUSER", "some", "on", ">p", "+@all", "~ks:{0}:*", "~m", "~y", "resetchannels")
    try:
        for inputs in ([b"csecret"], [b"rsecret"]):
            header[8] = inputs
            letter = ready.do(
                "XADD", ready.node.dead, "*", "id", "CPU/1-1", "h", msgpack.packb(header, use_bin_type=False)
            )
            with Hand(server.url_unix) as other:
                other.do("AUTH", "some", "p")
                with pytest.raises(NoPerm):
                    other.fcall("AI_DEADRETRY", [], letter)
                other.fcall("AI_DEADDEL", [], letter)
            header[8] = [b"csecret"]
            letter = ready.do(
                "XADD", ready.node.dead, "*", "id", "CPU/1-1", "h", msgpack.packb(header, use_bin_type=False)
            )
            with pytest.raises(NoPerm):
                ready.fcall("AI_DEADRETRY", [], letter)
            ready.fcall("AI_DEADDEL", [], letter)
        assert ready.do("EXISTS", "secret") == 1
    finally:
        ready.do("ACL", "DELUSER", "some")


# --- given back


def test_what_an_executor_gives_back_is_free_at_once(ready: Hand) -> None:
    for _ in range(3):
        ready.predict()
    jobs = ready.claim("e1")
    ready.predict()
    (other,) = ready.claim("e2")
    assert ready.recover("e3", 10_000) is None, "the leases hold"
    ready.fcall("KS_LEAVE", [], "e1", "CPU", "!", b"CPU/" + jobs[0].id)
    assert ready.pending() == {
        jobs[0].id: (b"e1", 1),
        jobs[1].id: (b"e1", 0),
        jobs[2].id: (b"e1", 0),
        other.id: (b"e2", 1),
    }
    assert ready.complete("e1", [ok(jobs[2])]) == b"1", "it may still end it while nobody else has it"
    found = ready.recover("e3", 3_600_000)
    assert found is not None
    assert (found[0], found[1].id) == (1, jobs[1].id), "before the one that was run"
    found = ready.recover("e3", 3_600_000)
    assert found is not None
    assert (found[0], found[1].id) == (2, jobs[0].id)
    assert ready.recover("e3", 10_000) is None
    assert ready.complete("e1", [ok(jobs[1])]) == b"0"


def test_only_what_was_given_back(ready: Hand) -> None:
    ready.predict()
    ready.predict()
    died, back = ready.claim("e1", 1) + ready.claim("e2", 1)
    ready.fcall("KS_LEAVE", [], "e2", "CPU")
    found = ready.fcall("KS_RECOVER", [], "CPU", "e3", 0, 3, "BACK")
    assert (found[0], found[1][0]) == (1, back.id)
    ready.complete("e3", [ok(back)])
    assert ready.fcall("KS_RECOVER", [], "CPU", "e3", 0, 3, "BACK") == []
    assert ready.pending() == {died.id: (b"e1", 1)}


def test_many_are_given_back(ready: Hand) -> None:
    for _ in range(2500):
        ready.predict()
    assert len(ready.claim("e1", 2500)) == 2500
    ready.fcall("KS_LEAVE", [], "e1", "CPU")
    assert set(ready.pending().values()) == {(b"e1", 0)}


@pytest.mark.parametrize("queue", ["CPU!H", "CPU!L"])
def test_other_queues_of_a_device(ready: Hand, queue: str) -> None:
    ready.beat("e1", "CPU", queue.replace("!", "-"))  # a heartbeat makes the queues of devices
    stream = ready.node.jobs(queue)
    ticket = ready.predict()
    ((entry, fields),) = ready.do("XRANGE", ready.node.jobs("CPU"), "-", "+")
    ready.do("XADD", stream, entry, *fields)
    ready.do("XDEL", ready.node.jobs("CPU"), entry)
    ready.do("XGROUP", "CREATE", stream, "ks", "0")
    (job,) = ready.claim("e1", device=queue)
    ready.fcall("KS_LEAVE", [], "e1", "CPU", queue)
    assert ready.pending(queue) == {job.id: (b"e1", 0)}
    assert ready.recover("e2", 10_000, device=queue) is not None
    assert ready.recover("e3", limit=1, device=queue) is None
    (letter,) = letters(ready)
    assert letter[b"job"] == b"%b/%b" % (queue.encode(), job.id)
    assert letter[b"executors"] == [b"e2"]
    assert ready.reply(ready.node.ticket(letter[b"job"])) == letter[b"reason"]
    assert ready.reply(ticket) is None
    assert ready.fcall("AI_DEADRETRY", [], letter[b"id"]).startswith(ready.node.ticket(queue + "/"))
    assert ready.length(queue) == 1
