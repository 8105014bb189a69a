"""AI_MODELEXECUTE, AI_PREDICT and AI_CANCEL, without an executor: what is queued, and how."""

from typing import Any

import numpy as np
import pytest
from tests.lua.jobs import LARGE, ONE, ROW, TWO, Hand, ok

from keyside.tensorstore import keys, npy
from keyside.tensorstore.errors import Busy, KeysideError

PAIR = npy.to_bytes(np.ones((1, 2), np.float32))
COUNT = npy.to_bytes(np.ones(1, np.int64))
HUGE = 64 * (1 << 20) + 1

EXECUTE = ("m", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
PREDICT = ("m", "INPUTS", 1, "VALUE", ROW)
VALUE = ("VALUE", ROW)


@pytest.fixture
def ready(hand: Hand) -> Hand:
    """With a model m of one input and one output, which is ready, and a tensor x for it."""
    hand.store()
    hand.do("SET", "x", ROW)
    return hand


# --- what is queued


def test_keys(ready: Hand) -> None:
    before = ready.now()
    ticket = ready.execute(["x"], ["y"])
    assert ticket.startswith(b"ks:{0}:ticket:CPU/")
    ready.do("SET", "x", LARGE)
    (job,) = ready.claim()
    assert ticket == ready.node.ticket(b"CPU/" + job.id)
    assert (job.op, job.key, job.version, job.ticket, job.corr) == (b"run", b"m", 1, b"", b"")
    assert job.inputs == [ROW], "as it was when the job was submitted"
    assert (job.outputs, job.names, job.bytes) == ([b"y"], [], 0)
    assert before + 30_000 <= job.deadline <= ready.now() + 30_000
    assert ready.complete("e1", [ok(job, (b"y", b"V", ROW))]) == b"1"
    assert ready.do("PTTL", ticket) > 35_000
    assert ready.reply(ticket) == b"OK"
    assert ready.do("GET", "y") == ROW
    assert ready.length() == 0


def test_values_in_hand(ready: Hand) -> None:
    ticket = ready.fcall("ai_predict", [], "m@1", "inputs", 1, "value", ROW, "timeout", 5000)
    (job,) = ready.claim()
    assert job.inputs == [ROW]
    assert job.outputs == []
    assert abs(job.deadline - ready.now() - 5000) < 1000
    assert ready.complete("e1", [ok(job)]) == b"1"
    assert ready.reply(ticket) == b"OK"


def test_a_large_input_is_copied(ready: Hand) -> None:
    ready.do("SET", "{a}x", LARGE)
    ready.execute(["{a}x"], ["{a}y"])
    ready.do("SET", "{a}x", ROW)
    (job,) = ready.claim()
    ((capture, mine),) = job.inputs
    assert mine
    assert capture.startswith(b"ks:{a}:cap:")
    assert ready.do("GET", capture) == LARGE
    assert abs(ready.do("PTTL", capture) - 40_000) < 1000
    assert ready.do("GET", ready.node.bytes("CPU")) == b"%d" % len(LARGE)
    assert ready.complete("e1", [ok(job)]) == b"1"
    assert not ready.do("EXISTS", capture)
    assert ready.do("GET", ready.node.bytes("CPU")) == b"0"


def test_an_input_that_is_given_away_is_moved(ready: Hand) -> None:
    for key, value in (("small", ROW), ("large", LARGE)):
        ready.do("SET", key, value, "PX", 5000)
    ready.fcall("AI_MODELEXECUTE", ["small", "y"], "m", "INPUTS", 1, "OWN", "small", "OUTPUTS", 1, "y")
    ready.fcall("AI_PREDICT", ["large"], "m", "INPUTS", 1, "OWN", "large", "TIMEOUT", 60_000)
    assert ready.do("EXISTS", "small", "large") == 0
    small, large = ready.claim()
    assert small.inputs == [ROW]
    assert ready.do("GET", large.captures[0]) == LARGE
    assert abs(ready.do("PTTL", large.captures[0]) - 70_000) < 1000, "not the TTL that the key had"


def test_an_input_that_is_referred_to_is_left_alone(ready: Hand) -> None:
    ready.do("SET", "large", LARGE)
    before = ready.everything()
    ready.fcall("AI_MODELEXECUTE", ["x", "y"], "m", "INPUTS", 1, "ref", "x", "OUTPUTS", 1, "y")
    ready.fcall("AI_PREDICT", ["large"], "m", "INPUTS", 1, "REF", "large")
    first, second = ready.claim()
    assert (first.inputs, second.inputs) == ([(b"x", False)], [(b"large", False)])
    after = ready.everything()
    assert {key: after[key] for key in before if key[:3] != b"ks:"} == {
        key: before[key] for key in before if key[:3] != b"ks:"
    }


def test_keys_that_are_called_like_words(ready: Hand) -> None:
    for word in ("OWN", "REF", "INPUTS", "OUTPUTS", "TIMEOUT"):
        ready.do("SET", word, ROW)
        ready.execute([word], [word])
        (job,) = ready.claim()
        assert (job.inputs, job.outputs) == ([ROW], [word.encode()])


def test_values_and_keys_together(hand: Hand) -> None:
    hand.store(signature=TWO)
    hand.do("SET", "b", COUNT)
    args = ("m", "INPUTS", 2, "VALUE", PAIR, "KEY", "b", "OUTPUTS", 2, "p", "q")
    hand.fcall("AI_PREDICT", ["b", "p", "q"], *args)
    (job,) = hand.claim()
    assert (job.inputs, job.outputs) == ([PAIR, COUNT], [b"p", b"q"])


def test_inputs_by_name(hand: Hand) -> None:
    hand.store(signature=TWO)
    args = ("m", "INPUTS", 2, "VALUE", COUNT, "VALUE", PAIR, "NAMES", 2, "b", "a")
    hand.fcall("AI_PREDICT", [], *args)
    (job,) = hand.claim()
    assert (job.inputs, job.names) == ([PAIR, COUNT], [])
    for names in (("a", "a"), ("b", "c"), ("A", "B")):
        error = hand.refused("AI_PREDICT", [], *args[:-2], *names)
        assert error.code == "BADINPUT"
        for fact in ("'a' FLOAT[-1,2]", "'b' INT64[-1]", f"'{names[0]}', '{names[1]}'"):
            assert fact in error.text


def test_a_model_that_still_loads(hand: Hand) -> None:
    hand.store(signature=None)
    hand.fcall("AI_PREDICT", [], "m", "INPUTS", 2, "VALUE", COUNT, "VALUE", PAIR, "NAMES", 2, "b", "a")
    hand.beat()
    load, job = hand.claim()
    assert load.op == b"load"
    assert (job.inputs, job.names) == ([COUNT, PAIR], [b"b", b"a"]), "bound by the executor, which knows the names"
    error = hand.refused("AI_PREDICT", [], "m", "INPUTS", 1, "VALUE", b"junk")
    assert error.code == "BADNPY", "what can be checked is"


def test_a_thousand_inputs_and_outputs(hand: Hand) -> None:
    names = [f"k{i}" for i in range(1000)]
    hand.do("MSET", *(part for name in names for part in (name, ROW)))
    hand.store(signature=None)
    hand.beat()
    assert len(hand.claim()) == 1
    hand.execute(names, names)
    (job,) = hand.claim()
    assert job.inputs == [ROW] * 1000
    assert hand.complete("e1", [ok(job, *((name.encode(), b"V", LARGE) for name in names))]) == b"1"
    assert hand.do("STRLEN", "k999") == len(LARGE)
    assert hand.refused("AI_MODELEXECUTE", names, "m", "INPUTS", 1001, *names, "x").code == "BADARG"


def test_in_a_transaction(ready: Hand) -> None:
    ready.do("MULTI")
    ready.do("SET", "x", ROW)
    ready.execute(["x"], ["y"])
    (_, ticket) = ready.do("EXEC")
    (job,) = ready.claim()
    assert ticket == ready.node.ticket(b"CPU/" + job.id)


# --- tickets that the caller chose


def test_a_ticket_of_the_callers(ready: Hand) -> None:
    job_id = ready.predict("TICKET", "ks:{0}:t:1")
    (job,) = ready.claim()
    assert job_id == b"CPU/" + job.id
    assert (job.ticket, job.corr) == (b"ks:{0}:t:1", b"")
    ready.complete("e1", [ok(job)])
    assert ready.do("LRANGE", "ks:{0}:t:1", 0, -1) == [b"OK"]


@pytest.mark.parametrize("name", ["ks:{0}:t", "ks:{0}:mb:c", "ks:{abc}:mb", "ks:{0}:ticket:x", b"ks:{a:b}:t:\xff{}"])
def test_names_of_tickets(ready: Hand, name: str | bytes) -> None:
    ready.predict("TICKET", name)
    (job,) = ready.claim()
    ready.complete("e1", [ok(job)])
    assert ready.reply(name) == b"OK"


def test_many_jobs_share_a_list(ready: Hand) -> None:
    ready.predict("TICKET", "ks:{0}:t", "one", "TIMEOUT", 60_000)
    ready.predict("TIMEOUT", 1_000, "TICKET", "ks:{0}:t", "two=2")
    first, second = ready.claim()
    assert [first.corr, second.corr] == [b"one", b"two=2"]
    assert ready.complete("e1", [ok(first)]) == b"1"
    assert abs(ready.do("PTTL", "ks:{0}:t") - 70_000) < 1000
    assert ready.complete("e1", [ok(second)]) == b"1"
    assert abs(ready.do("PTTL", "ks:{0}:t") - 70_000) < 1000, "no reply goes before its time because of another"
    assert ready.do("LRANGE", "ks:{0}:t", 0, -1) == [b"one OK", b"two=2 OK"]


def test_a_refusal_reaches_the_ticket_too(ready: Hand) -> None:
    with pytest.raises(KeysideError, match="NOMODEL") as caught:
        ready.predict("TICKET", "ks:{0}:t", "c1", target="other")
    assert ready.reply("ks:{0}:t") == f"c1 {caught.value}".encode()
    with pytest.raises(KeysideError, match="BADARG"):
        ready.fcall("AI_MODELEXECUTE", ["x"], *EXECUTE, "TICKET", "ks:{0}:t")
    assert 0 < ready.do("PTTL", "ks:{0}:t") <= 10_000
    assert (ready.reply("ks:{0}:t") or b"").startswith(b"BADARG ")


# --- numbered requests


def test_a_number_is_used_once(ready: Hand) -> None:
    options = ("TICKET", "ks:{0}:t", "ID", "client1", 7)
    first = ready.predict(*options)
    assert first.startswith(b"CPU/")
    before = ready.everything()
    assert ready.predict(*options) == b""
    assert ready.everything() == before
    (job,) = ready.claim()
    ready.complete("e1", [ok(job)])
    assert ready.predict(*options) == b"", "after it has ended, too"
    assert ready.length() == 0


def test_numbers_that_are_not_the_same(ready: Hand) -> None:
    for client, number in (("a", 0), ("a", 1), ("b", 0), ("a", 8191), ("a", 8192), ("a", 2**53 - 1), ("a", 2**53 - 2)):
        assert ready.predict("TICKET", "ks:{0}:t", "ID", client, number) != b"", (client, number)
        assert ready.predict("TICKET", "ks:{0}:t", "ID", client, number) == b"", (client, number)
    for key in ready.do("KEYS", "*:seen:*"):
        assert ready.do("STRLEN", key) <= 1024
        assert ready.do("PTTL", key) > 60_000


def test_a_number_is_known_at_least_until_its_reply_has_gone(ready: Hand) -> None:
    ready.predict("TICKET", "ks:{0}:t", "ID", "a", 1, "TIMEOUT", 200_000)
    (key,) = ready.do("KEYS", "*:seen:*")
    assert ready.do("PTTL", key) > 210_000


def test_a_repeated_request_is_recognised_whatever_happened_since(ready: Hand) -> None:
    ready.do("SET", "tmp", LARGE)
    args = (["tmp"], "m", "INPUTS", 1, "OWN", "tmp", "TICKET", "ks:{0}:t", "ID", "a", 1)
    assert ready.fcall("AI_PREDICT", *args) != b""
    assert ready.fcall("AI_PREDICT", *args) == b"", "its key was moved by the first"
    ready.fcall("AI_MODELDEL", ["m"])
    assert ready.fcall("AI_PREDICT", *args) == b""
    assert not ready.do("EXISTS", "ks:{0}:t"), "and no error beside the answer to the first"


def test_a_request_that_was_refused_may_be_sent_again(ready: Hand) -> None:
    options = ("TICKET", "ks:{0}:t", "ID", "a", 1)
    with pytest.raises(KeysideError, match="NOTENSOR"):
        ready.execute(["tmp"], ["y"], *options)
    ready.do("SET", "tmp", ROW)
    assert ready.execute(["tmp"], ["y"], *options) != b""


def test_a_numbered_request_needs_a_ticket_of_its_own(ready: Hand) -> None:
    for function, names, args in (("AI_PREDICT", [], PREDICT), ("AI_MODELEXECUTE", ["x", "y"], EXECUTE)):
        for more in ((), ("TIMEOUT", 1000)):
            error = ready.refused(function, names, *args, "ID", "a", 1, *more)
            assert error.code == "BADARG"
            assert "TICKET" in error.text
    assert ready.predict("ID", "a", 1, "TICKET", "ks:{0}:t") != b"", "in any order"


# --- bounds


def test_a_queue_is_bounded_in_jobs(ready: Hand) -> None:
    stream = ready.node.jobs("CPU")
    for _ in range(10):
        ready.wire.call_many([("XADD", stream, "*", "h", "x")] * 1000)
    error = ready.refused("AI_PREDICT", [], *PREDICT)
    assert isinstance(error, Busy)
    assert "10000" in error.text
    assert ready.refused("AI_MODELEXECUTE", ["x", "y"], *EXECUTE).code == "BUSY"
    ready.do("XTRIM", stream, "MAXLEN", 9999)
    ready.predict()
    assert ready.refused("AI_PREDICT", [], *PREDICT).code == "BUSY"


def test_a_queue_is_bounded_in_bytes(ready: Hand) -> None:
    ready.do("SET", "large", LARGE)
    ready.fcall("AI_PREDICT", ["large"], "m", "INPUTS", 1, "KEY", "large")
    ready.do("SET", ready.node.bytes("CPU"), (1 << 30) - len(LARGE) + 1)
    error = ready.refused("AI_PREDICT", ["large"], "m", "INPUTS", 1, "KEY", "large")
    assert error.code == "BUSY"
    assert "1073741824" in error.text
    ready.predict()  # small jobs are bounded by their number alone
    ready.do("SET", ready.node.bytes("CPU"), (1 << 30) - len(LARGE))
    ready.fcall("AI_PREDICT", ["large"], "m", "INPUTS", 1, "KEY", "large")


def test_bytes_of_jobs_that_are_gone_do_not_count(ready: Hand) -> None:
    ready.do("SET", "large", LARGE)
    for left in (b"1073741824", b"nonsense"):
        ready.do("SET", ready.node.bytes("CPU"), left)
        if left.isdigit():
            ready.fcall("AI_PREDICT", ["large"], "m", "INPUTS", 1, "KEY", "large")
            assert ready.do("GET", ready.node.bytes("CPU")) == b"%d" % len(LARGE)


# --- cancel


def test_a_queued_job_is_cancelled(ready: Hand) -> None:
    ready.do("SET", "large", LARGE)
    ticket = ready.execute(["large"], ["y"])
    (capture,) = ready.do("KEYS", "*:cap:*")
    assert ready.fcall("AI_CANCEL", [], ticket) == 1
    assert ready.length() == 0
    assert not ready.do("EXISTS", capture)
    assert ready.do("GET", ready.node.bytes("CPU")) == b"0"
    assert ready.fcall("AI_CANCEL", [], ticket) == 0
    assert ready.claim() == []


def test_a_running_job_is_cancelled(ready: Hand) -> None:
    ticket = ready.execute(["x"], ["y"])
    (job,) = ready.claim()
    assert ready.fcall("AI_CANCEL", [], ticket) == 1
    assert ready.complete("e1", [ok(job, (b"y", b"V", ROW))]) == b"0"
    assert not ready.do("EXISTS", "y")
    assert ready.reply(ticket) is None
    assert ready.pending() == {}


def test_a_job_that_has_ended_is_not_cancelled(ready: Hand) -> None:
    ticket = ready.execute(["x"], ["y"])
    (job,) = ready.claim()
    ready.complete("e1", [ok(job, (b"y", b"V", ROW))])
    assert ready.fcall("AI_CANCEL", [], ticket) == 0
    assert not ready.do("EXISTS", ticket), "the reply that nobody read is dropped"
    assert ready.do("EXISTS", "y")


def test_a_job_with_a_ticket_of_the_callers_is_cancelled(ready: Hand) -> None:
    ready.do("RPUSH", "ks:{0}:t", "of another job")
    job_id = ready.predict("TICKET", "ks:{0}:t", "c")
    assert ready.fcall("AI_CANCEL", [], "ks:{0}:other", job_id) == 0, "only whoever knows its ticket"
    assert ready.fcall("AI_CANCEL", [], "ks:{0}:t", job_id) == 1
    assert ready.fcall("AI_CANCEL", [], "ks:{0}:t", job_id) == 0
    assert ready.do("LRANGE", "ks:{0}:t", 0, -1) == [b"of another job"]


def test_a_load_cannot_be_cancelled(ready: Hand) -> None:
    ready.store("n", signature=None)
    ((entry, _),) = ready.do("XRANGE", ready.node.jobs("CPU"), "-", "+")
    assert ready.fcall("AI_CANCEL", [], ready.node.ticket(b"CPU/" + entry)) == 0
    assert ready.publish("n", 1, ONE) == 1


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("",),
        ("x",),
        ("ks:{0}:t",),
        ("ks:{0}:t", ""),
        ("ks:{0}:t", "CPU"),
        ("ks:{0}:t", "CPU/1"),
        ("ks:{0}:t", "cpu/1-1"),
        ("ks:{0}:ticket:CPU/1-1", "CPU/1-1", "more"),
    ],
)
def test_cancellations_that_are_refused(ready: Hand, args: tuple[Any, ...]) -> None:
    assert ready.refused("AI_CANCEL", [], *args).code == "BADARG"


def test_tickets_of_no_job(ready: Hand) -> None:
    for job_id in ("CPU/1-1", "NONE/1-1", f"CPU/{2**70}-1", f"CPU/{2**63}-{2**63}"):
        assert ready.fcall("AI_CANCEL", [], keys.NodeKeys().ticket(job_id)) == 0
