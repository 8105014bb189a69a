"""What Redis and Valkey really do with functions, streams and slots, and that our functions bear it.

One test or more for each hazard that was measured: each is named for it. Those of slots are in test_slot_hazards.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.lua.jobs import LARGE, ONE, ROW, Hand, ok, staged
from tests.servers import Server

from keyside.executor.protocol import GROUP
from keyside.tensorstore import keys, library, npy
from keyside.tensorstore.errors import KeysideError

Call = Callable[[], Any]


def library_again(hand: Hand) -> None:
    """Load the library again: it forgets what it kept."""
    hand.do("FUNCTION", "LOAD", "REPLACE", library.source())


def test_a_function_that_fails_midway_keeps_what_it_wrote(hand: Hand) -> None:
    """So everything is looked at first: with the last of many inputs or outputs bad, nothing has happened."""
    hand.store("m", signature=None)
    names = [f"k{i}" for i in range(20)]
    for name in names:
        hand.do("SET", name, LARGE)
    hand.do("RPUSH", "list", 1)
    words = [part for name in names for part in ("OWN", name)]
    for inputs, outputs in (([*words, "list"], ["y"]), (words, ["list"]), (words, ["y", "text"]), (words, ["none"])):
        hand.do("SET", "text", "hello")
        given = [*names, "list", "y", "text"]
        args = ("INPUTS", 20 + ("list" in inputs), *inputs, "OUTPUTS", len(outputs), *outputs)
        hand.refused("AI_MODELEXECUTE", given, "m", *args)


# --- streams


def test_xack_is_no_fence_and_complete_is_one(hand: Hand) -> None:
    hand.store()
    hand.do("SET", "x", ROW)
    ticket = hand.execute(["x"], ["y"])
    (job,) = hand.claim("e1")
    found = hand.recover("e2")
    assert found is not None
    assert hand.complete("e1", [ok(job, (b"y", b"V", b"zombie"))]) == b"0"
    assert not hand.do("EXISTS", "y", ticket)
    assert hand.pending() == {job.id: (b"e2", 2)}
    assert hand.complete("e2", [ok(found[1], (b"y", b"V", ROW))]) == b"1"
    assert hand.do("GET", "y") == ROW
    assert hand.do("LRANGE", ticket, 0, -1) == [b"OK"]


def test_a_zombie_does_not_steal_its_entry_back(hand: Hand) -> None:
    hand.store()
    hand.predict()
    (job,) = hand.claim("e1")
    assert hand.recover("e2") is not None
    assert hand.fcall("KS_EXTEND", [], "CPU", "e1", job.id) == []
    assert hand.pending() == {job.id: (b"e2", 2)}


def test_a_killer_raises_the_count_of_its_batch_but_only_it_is_given_up(hand: Hand) -> None:
    hand.store()
    tickets = [hand.predict() for _ in range(4)]
    jobs = hand.claim("e0")  # all of them at once, and it dies
    killer = jobs[0].id
    answered = 0
    for life in range(1, 12):
        while (found := hand.recover(f"e{life}")) is not None and found[1].id != killer:
            answered += hand.complete(f"e{life}", [ok(found[1])]).count(b"1")
        if found is None:
            break
    replies = [hand.reply(ticket) or b"" for ticket in tickets]
    assert replies[0].startswith(b"DEADLETTER ")
    assert replies[1:] == [b"OK"] * 3
    assert (answered, hand.length()) == (3, 0)


def test_ended_jobs_leave_no_entries_though_xdel_loses_the_lag(hand: Hand) -> None:
    hand.store()
    for _ in range(10):
        hand.predict()
    jobs = hand.claim()
    assert hand.complete("e1", [ok(job) for job in jobs[5:]]) == b"1" * 5
    assert hand.length() == 5, "XLEN is the depth, also behind a slow head"
    assert hand.complete("e1", [ok(job) for job in jobs[:5]]) == b"1" * 5
    assert hand.length() == 0


def test_a_stream_that_flushall_left_without_a_group(hand: Hand) -> None:
    hand.store()
    hand.do("FLUSHALL")
    hand.do("HSET", hand.node.catalog, "m", catalog_record())
    hand.predict()
    assert hand.recover("e1") is None
    hand.beat("e1")
    assert len(hand.claim("e1")) == 1, "the group begins at 0: jobs that came before it are jobs too"


def catalog_record() -> str:
    about = {"key": "m", "uid": "u", "version": 1, "state": "ready", "device": "CPU", "reason": ""}
    return json.dumps({**about, "signature": json.loads(ONE.to_json())})


def test_blpop_in_a_transaction_does_not_wait_but_submits_in_one_are_fine(hand: Hand) -> None:
    hand.store()
    hand.do("MULTI")
    hand.predict("TICKET", "ks:{0}:t")
    hand.do("BLPOP", "ks:{0}:t", 5)
    job_id, popped = hand.do("EXEC")
    assert popped is None
    (job,) = hand.claim()
    assert job_id == b"CPU/" + job.id
    hand.complete("e1", [ok(job)])
    assert hand.do("BLPOP", "ks:{0}:t", 5) == [b"ks:{0}:t", b"OK"]


# --- memory


def test_at_maxmemory_functions_do_what_their_flags_say(hand: Hand) -> None:
    hand.store()
    with full(hand):
        for name, spec in library.functions().items():
            with pytest.raises(KeysideError) as caught:
                hand.fcall(name, ["none"] if spec.keys else [], "junk", "junk", "junk", "junk")
            allowed = {"allow-oom", "no-writes"} & set(spec.flags)
            assert (caught.value.code == "OOM") == (not allowed), (name, caught.value)


def test_at_maxmemory_jobs_end_and_none_begin(hand: Hand) -> None:
    hand.store()
    hand.do("SET", "x", ROW)
    tickets = [hand.execute(["x"], [f"y{i}"]) for i in range(5)]
    hand.store("n", signature=None)
    load, *jobs = sorted(hand.claim("e1"), key=lambda job: job.op)
    with full(hand):
        calls: list[Call] = [
            lambda: hand.execute(["x"], ["y"]),
            hand.predict,
            lambda: hand.fcall("AI_MODELSTORE", ["o"], "ONNX", "CPU", "BLOB", "x"),
            lambda: hand.fcall("AI_TENSORSET", ["t"], "FLOAT", 1),
        ]
        for call in calls:
            with pytest.raises(KeysideError) as caught:
                call()
            assert caught.value.code == "OOM"
        assert hand.beat("e1")
        assert hand.fcall("KS_EXTEND", [], "CPU", "e1", jobs[0].id) == [jobs[0].id]
        assert hand.complete("e1", [ok(jobs[0], (b"y0", b"V", ROW))]) == b"1"
        large = hand.wire.call_many([("SET", keys.output("y1", 1), LARGE, "PX", 60_000)])
        assert "OOM" in str(large[0])
        assert hand.complete("e1", [ok(jobs[1], (b"y1", b"S", keys.output("y1", 1)))]) == b"3"
        assert hand.recover("e2") is not None
        assert hand.recover("e3", limit=1) is None
        assert hand.fcall("AI_CANCEL", [], hand.node.ticket("CPU/1-1")) == 0
        uid = load.model.rpartition(b"-")[0]
        assert hand.recover("e2", limit=100) is None
        end = (load.id, uid, 1, "ready", "0" * 64, ONE.to_json(), "")
        assert hand.fcall("KS_PUBLISH", ["n"], "CPU", "e1", *end) == 0
        assert hand.fcall("KS_LEAVE", [], "e1", "CPU") == b"OK"
        assert hand.fcall("AI_INFO", ["m"], "RESETSTAT") == b"OK"
        assert hand.fcall("AI_MODELDEL", ["m"]) == b"OK"
    replies = [(hand.reply(ticket) or b"").split(b" ")[0] for ticket in tickets]
    assert replies == [b"OK", b"OOM", *[b"DEADLETTER"] * 3]


class full:  # noqa: N801  # reads as what it is: with full(hand)
    """The server is at maxmemory for the length of a `with`."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand
        self._limit = hand.do("CONFIG", "GET", "maxmemory")[1]

    def __enter__(self) -> None:
        self._hand.do("CONFIG", "SET", "maxmemory", 1)

    def __exit__(self, *_: object) -> None:
        self._hand.do("CONFIG", "SET", "maxmemory", self._limit)


def test_rename_carries_the_ttl_and_nothing_that_should_stay_has_one(hand: Hand) -> None:
    hand.do("SET", keys.upload_chunk("m", "u", 0), "x", "PX", 5000)
    hand.fcall("AI_MODELSTORE", ["m"], "ONNX", "CPU", "UPLOAD", "u", 1, 1, "DIGEST", "0" * 64)
    assert hand.publish("m", 1, ONE) == 1
    (chunk,) = hand.fcall("AI_MODELGET", ["m"], "CHUNKS")
    assert hand.do("TTL", chunk) == -1
    hand.do("SET", "x", LARGE)
    hand.do("SET", "y", ROW, "PX", 5000)
    hand.execute(["x"], ["y"])
    (job,) = hand.claim()
    assert hand.complete("e1", [staged(job, b"y", keys.output("y", 1), LARGE)]) == b"1"
    assert hand.do("TTL", "y") == -1


# --- Lua itself


def test_unpack_takes_fewer_values_than_a_batch_may_have(hand: Hand) -> None:
    hand.store()
    count = 9000
    hand.wire.call_many([("FCALL", "AI_PREDICT", 0, "m", "INPUTS", 1, "VALUE", ROW)] * count)
    jobs = hand.claim(count=count)
    assert len(jobs) == count
    ids = [job.id for job in jobs]
    assert hand.fcall("KS_EXTEND", [], "CPU", "e1", *ids) == ids
    assert hand.fcall("KS_EXPIRE", [], "CPU", *ids) == 0
    assert hand.complete("e1", [ok(job) for job in jobs], held=count) == b"1" * count
    assert hand.length() == 0
    values = [str(i) for i in range(10_000)]
    hand.fcall("AI_TENSORSET", ["t"], "INT32", 10_000, "VALUES", *values)
    assert len(hand.fcall("AI_TENSORGET", ["t"], "VALUES")) == 10_000
    assert hand.fcall("AI_MODELSTORE", ["n"], "ONNX", "CPU", "BLOB", *values) == b"OK"
    assert hand.fcall("AI_MODELGET", ["n"], "BLOB") == "".join(values).encode()


def test_time_stands_still_in_a_transaction_and_ids_differ_nevertheless(hand: Hand) -> None:
    hand.store()
    hand.do("SET", "x", LARGE)
    count = 1500
    call = ("FCALL", "AI_MODELEXECUTE", 2, "x", "y", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
    hand.wire.call_many([("MULTI",), *[call] * count, ("EXEC",)])
    jobs = hand.claim(count=count)
    captures = {capture for job in jobs for capture in job.captures}
    assert len(captures) == len(jobs) == count
    assert hand.do("EXISTS", *captures) == count


def test_numbers_beyond_a_double_are_exact(hand: Hand) -> None:
    values = [2**63 - 1, -(2**63), 2**53 + 1, -1]
    hand.fcall("AI_TENSORSET", ["t"], "INT64", 4, "VALUES", *values)
    assert npy.decode(hand.do("GET", "t")).tolist() == values
    assert [int(value) for value in hand.fcall("AI_TENSORGET", ["t"], "VALUES")] == values
    hand.fcall("AI_TENSORSET", ["u"], "UINT64", 1, "VALUES", 2**64 - 1)
    assert npy.decode(hand.do("GET", "u")).dtype == np.uint64
    assert npy.decode(hand.do("GET", "u")).tolist() == [2**64 - 1]


@pytest.mark.parametrize("number", ["0x10", "1e3", " 5 ", "nan", "inf", "5.0", "+5", "", "٣"])
def test_what_tonumber_takes_is_no_number(hand: Hand, number: str) -> None:
    hand.store()
    hand.do("SET", "x", ROW)
    for name, names, args in (
        ("AI_MODELEXECUTE", ["x"], ("m", "INPUTS", number, "x", "OUTPUTS", 1, "x")),
        ("AI_PREDICT", [], ("m", "INPUTS", 1, "VALUE", ROW, "TIMEOUT", number)),
        ("AI_PREDICT", [], ("m", "INPUTS", 1, "VALUE", ROW, "ID", "c", number)),
        ("AI_MODELSTORE", ["m"], ("ONNX", "CPU", "BATCHSIZE", number, "BLOB", "x")),
        ("AI_MODELSCAN", [], ("0", "COUNT", number)),
        ("AI_TENSORSET", ["t"], ("FLOAT", number)),
        ("KS_BEAT", [], ("e1", "{}", number, "CPU")),
        ("KS_RECOVER", [], ("CPU", "e1", number, "3")),
        ("KS_COMPLETE", [], ("CPU", "e1", "1", "", "0", "0", "0", "0", number)),
    ):
        assert hand.refused(name, names, *args).code == "BADARG", name


def test_nothing_durable_is_lost_when_the_library_is_replaced_under_load(hand: Hand, server: Server) -> None:
    hand.store()
    replies: list[Any] = []
    enough = threading.Event()

    def submit() -> None:
        call = ("FCALL", "AI_PREDICT", 0, "m", "INPUTS", 1, "VALUE", ROW)
        with Hand(server.url_unix) as other:
            while not enough.is_set():
                replies.extend(other.wire.call_many([call] * 100))

    thread = threading.Thread(target=submit)
    thread.start()
    ended = loads = 0
    while thread.is_alive() or ended < len(replies):
        library_again(hand)
        loads += 1
        jobs = hand.claim()
        ended += hand.complete("e1", [ok(job) for job in jobs]).count(b"1") if jobs else 0
        if loads >= 20 and len(replies) >= 1000:
            enough.set()
    thread.join()
    assert ended == len(set(replies)) == len(replies)
    assert hand.wire.call_many([("LLEN", ticket) for ticket in replies]) == [1] * len(replies)


def test_ids_do_not_come_from_a_generator_that_repeats_itself() -> None:
    assert "math.random" not in library.source()


def test_functions_survive_flushall(hand: Hand) -> None:
    hand.do("FLUSHALL")
    assert hand.fcall("KS_VERSION", []) == [library.LIBRARY_VERSION, library.digest().encode()]


# --- access


def test_a_function_has_the_rights_of_its_caller(hand: Hand, server: Server) -> None:
    hand.store("m")
    hand.store("n")
    for key in ("x", "y"):
        hand.do("SET", key, ROW)
    hand.do("ACL", "SETUSER", "bob", "on", "nopass", "+@all", "~x", "~ks:*", "~m")
    hand.do("ACL", "SETUSER", "eve", "on", "nopass", "+@all", "-xadd", "~*")
    hand.do("ACL", "SETUSER", "kim", "on", "nopass", "+@all", "~x", "~y", "~m", "%R~ks:*")
    try:
        with Hand(f"unix://bob:@{server.socket}") as bob:
            assert bob.predict()
            assert bob.execute(["x"], ["x"])
            before = hand.everything()
            calls: list[Call] = [
                lambda: bob.execute(["x"], ["y"]),
                lambda: bob.execute(["y"], ["x"]),
                lambda: bob.predict(target="n"),
                lambda: bob.fcall("AI_MODELGET", ["n"]),
                lambda: bob.fcall("AI_MODELDEL", ["n"]),
            ]
            for call in calls:
                with pytest.raises(KeysideError, match=r"^NOPERM "):
                    call()
        for user in ("eve", "kim"):
            with Hand(f"unix://{user}:@{server.socket}") as other, pytest.raises(KeysideError, match=r"^NOPERM "):
                other.execute(["x"], ["x"])
        assert hand.everything() == before
    finally:
        hand.do("ACL", "DELUSER", "bob", "eve", "kim")


def test_what_is_in_a_stream_is_not_trusted(hand: Hand) -> None:
    hand.do("XADD", hand.node.jobs("CPU"), "*", "h", "junk", "x", "y")
    hand.beat("e1")
    hand.do("XREADGROUP", "GROUP", GROUP, "e1", "STREAMS", hand.node.jobs("CPU"), ">")
    assert hand.recover("e2") is None
    assert hand.length() == 0
