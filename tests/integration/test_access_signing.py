"""Signed entries: what was not made by the function library is not run, and nothing comes of it."""

import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import redis as redis_py
from tests import models
from tests.access import World, X, send, world
from tests.executors import Executor
from tests.raw import add, answer, execute, get, predict, state, store
from tests.servers import Kind, Server, free_port, wait_until

from keyside.clients import admin
from keyside.tensorstore import library, npy
from keyside.tensorstore.seals import Seal

STREAM = "ks:{0}:jobs:CPU"
VALUE = npy.to_bytes(X)
Y = (X * 2 + 1).tolist()


@pytest.fixture(scope="module")
def place(server_kind: Kind) -> Iterator[World]:
    with world(server_kind) as made:
        yield made


@pytest.fixture(scope="module")
def runner(place: World, lasting: set[int]) -> Iterator[Executor]:
    with place.executor(http_port=free_port()) as executor:
        lasting.add(executor.pid)
        place.fill()
        yield executor
        lasting.discard(executor.pid)


@pytest.fixture
def db(place: World, runner: Executor) -> Iterator[redis_py.Redis]:
    """A client of alice: she may XADD to the stream, as whoever submits."""
    place.admin.delete("bob:y", "alice:y", "ks:{0}:t:f:1", "ks:{0}:t:g:1")
    place.admin.set("bob:x", VALUE)
    with place.connect("alice") as db:
        yield db


def genuine(place: World, runner: Executor, *command: Any, by: str = "alice") -> list[bytes]:
    """The fields of an entry that the library makes of a command; the entry is taken away."""
    runner.pause()
    try:
        with place.connect(by) as db:
            send(db, *command)
        entry, fields = _newest(place)
        # The executor may have it already, to find when it wakes that it is no longer its own.
        place.admin.xack(STREAM, "ks", entry)
        place.admin.xdel(STREAM, entry)
    finally:
        runner.resume()
    return fields


def _newest(place: World) -> tuple[bytes, list[bytes]]:
    with place.server.client() as raw:
        raw.response_callbacks.clear()
        ((entry, fields),) = send(raw, "XREVRANGE", STREAM, "+", "-", "COUNT", 1)
    return entry, fields


def header_of(fields: list[bytes], **changes: Any) -> bytes:
    """The header of an entry, with parts of it changed."""
    header = msgpack.unpackb(fields[1], raw=True)
    for position, value in changes.items():
        header[{"op": 1, "key": 3, "deadline": 5, "ticket": 6, "inputs": 8, "outputs": 10}[position]] = value
    packed: bytes = msgpack.packb(header, use_bin_type=False)
    return packed


def others(place: World) -> dict[bytes, Any]:
    """All keys that are not the node's own, with what they hold."""
    names = [key for key in send(place.admin, "KEYS", "*") if not key.startswith(b"ks:{0}:")]
    return {key: send(place.admin, "DUMP", key) for key in names}


def is_dropped(place: World, runner: Executor, db: Any, fields: list[bytes]) -> None:
    """Add an entry by hand; it must go without a trace but for a line in the log."""
    before = runner.output.count("not made by the function library")
    state_before = others(place)
    entry = db.xadd(STREAM, dict(zip(fields[::2], fields[1::2], strict=True)))
    wait_until(lambda: not place.admin.xrange(STREAM, entry, entry), "it is dropped")
    wait_until(lambda: runner.output.count("not made by the function library") > before, "that is said")
    assert place.admin.xpending(STREAM, "ks")["pending"] == 0
    # Whatever came behind it has been answered: the executor was done with it.
    send(db, *predict("fraud", X, options=("TICKET", "ks:{0}:t:g:1")))
    assert answer(db, b"ks:{0}:t:g:1").outputs["y"].tolist() == Y
    assert others(place) == state_before
    assert not place.admin.exists("ks:{0}:t:f:1"), "no reply"


# --- what is genuine


def test_jobs_and_loads_are_signed(place: World, runner: Executor, db: Any) -> None:
    seal = admin.read_seal(place.admin)
    assert seal is not None
    fields = genuine(place, runner, *predict("fraud", X, options=("TICKET", "ks:{0}:t:f:1")))
    assert fields[-2] == b"s"
    assert fields[-1] == seal.sign(fields[1:-2:2])
    assert add(place.admin, "fraud9", models.affine(3.0)) == 1
    assert state(place.admin, "fraud9") == "ready"
    for n, command in enumerate(
        [predict("fraud", X), execute("fraud", ["alice:x"], ["alice:y"]), predict("fraud", ("REF", "alice:x"))]
    ):
        ticket = b"ks:{0}:t:ok:%d" % n
        send(db, *command, "TICKET", ticket)
        answer(db, ticket)
    assert get(place.admin, "alice:y").tolist() == Y


@pytest.mark.parametrize("count", [0, 1, 2, 12])
def test_both_sides_sign_alike(server_kind: Kind, count: int) -> None:
    with Server(server_kind) as server, server.client() as client:
        seal = Seal.new(1)
        admin.ensure_library(client, seal=seal)
        send(client, "FCALL", "AI_MODELSTORE", 1, "m", "ONNX", "CPU", "BLOB", "x")
        if count:
            client.delete(STREAM)
            specs = [word for n in range(count) for word in ("VALUE", npy.to_bytes(np.full(n + 1, n)))]
            send(client, "FCALL", "AI_PREDICT", 0, "m", "INPUTS", count, *specs)
        client.response_callbacks.clear()
        ((_, fields),) = send(client, "XRANGE", STREAM, "-", "+")
        assert len(fields) == 4 + 2 * count
        assert fields[-1] == seal.sign(fields[1:-2:2])
        assert send(client, "FCALL", "KS_BEAT", 0, "e", "{}", 1000, "CPU")[2].decode() == seal.id


def test_signatures_bind_each_value() -> None:
    seal = Seal.new(1)
    lists = [
        [b"ab", b"c"],
        [b"a", b"bc"],
        [b"abc"],
        [b"ab", b"c", b""],
        [b"2:ab1:c"],
        [b"", b"ab", b"c"],
        [b"ab", b"1:c"],
    ]
    assert len({seal.sign(values) for values in lists}) == len(lists)
    assert Seal.new(1).sign(lists[0]) != seal.sign(lists[0])
    assert seal.secret not in repr(seal)


# --- what is not


def test_an_entry_by_hand(place: World, runner: Executor, db: Any) -> None:
    fields = genuine(place, runner, *predict("fraud", X, options=("TICKET", "ks:{0}:t:f:1")))
    is_dropped(place, runner, db, fields[:-2])
    is_dropped(place, runner, db, [*fields[:-2], b"s", b""])
    is_dropped(place, runner, db, [*fields[:-2], b"s", b"0" * 40])
    is_dropped(place, runner, db, [*fields[:2], b"s", fields[-1]])
    text = urllib.request.urlopen(f"http://127.0.0.1:{runner.settings['http_port']}/metrics").read().decode()
    found = re.search(r'keyside_executor_events_total\{event="entries_refused"\} (\d+)', text)
    assert found is not None
    assert int(found[1]) >= 4


def test_a_dead_letter_by_hand(place: World, runner: Executor, db: Any) -> None:
    fields = genuine(place, runner, *execute("fraud", ["alice:x"], ["alice:y"]))
    forged = [b"h", header_of(fields, inputs=[b"rbob:x"]), *fields[2:]]

    def letter(of: list[bytes]) -> bytes:
        added: bytes = send(place.admin, "XADD", "ks:{0}:dead", "*", "id", "CPU/1-1", "reason", "r", *of)
        return added

    try:
        for not_ours in (forged, fields[:-2]):
            with pytest.raises(redis_py.ResponseError, match=r"BADARG .* is no job that runs a model"):
                send(place.admin, "FCALL", "AI_DEADRETRY", 0, letter(not_ours))
        answer(place.admin, send(place.admin, "FCALL", "AI_DEADRETRY", 0, letter(fields)))
    finally:
        place.admin.delete("ks:{0}:dead")


def test_what_a_forger_would_want(place: World, runner: Executor, db: Any) -> None:
    fields = genuine(place, runner, *execute("fraud", ["alice:x"], ["alice:y"], "TICKET", "ks:{0}:t:f:1"))
    signature = fields[-2:]
    reads = [b"h", header_of(fields, inputs=[b"rbob:x"]), *signature]
    is_dropped(place, runner, db, reads)
    writes = [b"h", header_of(fields, outputs=[b"bob:y"]), *fields[2:]]
    is_dropped(place, runner, db, writes)
    assert not place.admin.exists("bob:y")
    other = [b"h", header_of(fields, key=b"other"), *fields[2:]]
    is_dropped(place, runner, db, other)
    later = [b"h", header_of(fields, deadline=2**52), *fields[2:]]
    is_dropped(place, runner, db, later)
    is_dropped(place, runner, db, [*fields[:2], b"0", npy.to_bytes(X + 1), *signature])
    is_dropped(place, runner, db, [*fields[:-2], b"1", VALUE, *signature])


@pytest.mark.parametrize("deadline", [1, 2**52])
def test_the_end_of_a_forged_entry_takes_nothing_away(place: World, runner: Executor, db: Any, deadline: int) -> None:
    """Neither its deadline, nor somebody who cancels it or takes it over, makes the functions act on what it says."""
    fields = genuine(place, runner, *predict("fraud", X, options=("TICKET", "ks:{0}:t:f:1")))
    forged = {"h": header_of(fields, deadline=deadline, inputs=[b"cbob:x"], ticket=b"bob:list"), "s": "0" * 40}
    with Server(place.server.kind) as server, server.client() as client:
        admin.ensure_library(client, seal=admin.read_seal(place.admin))
        client.set("bob:x", VALUE)
        send(client, "FCALL", "KS_BEAT", 0, "e1", "{}", 1000, "CPU")
        entry = client.xadd(STREAM, forged)
        assert send(client, "FCALL", "KS_EXPIRE", 0, "CPU", entry) == 0
        assert send(client, "FCALL", "AI_CANCEL", 0, "ks:{0}:t:f:1", b"CPU/" + entry) == 0
        client.xreadgroup("ks", "e1", {STREAM: ">"})
        assert send(client, "FCALL", "KS_RECOVER", 0, "CPU", "e2", 0, 1) == []
        assert client.get("bob:x") == VALUE
        assert not client.exists("bob:list", "ks:{0}:dead")


def test_captures_alone_are_taken_away(server_kind: Kind) -> None:
    """Also where nothing is signed."""
    with Server(server_kind) as server, server.client() as client, Executor(server) as runner:
        store(client, "m", models.affine())
        client.set("x", VALUE)
        runner.pause()
        send(client, *predict("m", X, options=("TICKET", "ks:{0}:t:f:1", "TIMEOUT", 1)))
        client.response_callbacks.clear()
        ((_, fields),) = send(client, "XRANGE", STREAM, "-", "+")
        for inputs in ([b"cx"], [b"cks:{0}:blob:x"], [b"cks:{}:cap:1"]):
            send(client, "XADD", STREAM, "*", "h", header_of(fields, inputs=inputs))
        runner.resume()
        wait_until(lambda: send(client, "XLEN", STREAM) == 0, "they have gone")
        assert send(client, "GET", "x") == VALUE


def test_a_replay_after_the_end(place: World, runner: Executor, db: Any) -> None:
    """Somebody who can read entries, as executors, copies one: after its deadline nothing is written."""
    command = execute("fraud", ["alice:x"], ["alice:y"], "TICKET", "ks:{0}:t:f:1", "TIMEOUT", 300)
    fields = genuine(place, runner, *command)
    deadline = msgpack.unpackb(fields[1], raw=True)[5]

    def over() -> bool:
        seconds, micros = place.admin.time()
        return bool(seconds * 1000 + micros // 1000 > deadline)

    wait_until(over, "its deadline passes")
    place.admin.xadd(STREAM, dict(zip(fields[::2], fields[1::2], strict=True)))
    assert answer_text(db, "ks:{0}:t:f:1").startswith(b"TIMEDOUT")
    assert not place.admin.exists("alice:y")


def answer_text(db: Any, ticket: str) -> bytes:
    found = db.blpop([ticket], 10)
    assert found is not None
    return bytes(found[1])


# --- the secret


def test_the_digest_does_not_tell_of_the_secret() -> None:
    assert library.digest() in library.source(Seal.new(1))
    assert library.seal_of(library.source()) is None
    seal = Seal.new(5)
    assert library.seal_of(library.source(seal)) == seal


def test_it_is_kept_through_upgrades_and_losses(server_kind: Kind) -> None:
    with Server(server_kind) as server, server.client() as client:
        seal = admin.new_seal(client)
        older = re.sub(r"number = '\d+'", "number = '1'", library.source(seal))
        client.function_load(older)
        assert admin.ensure_library(client) == "upgraded"
        assert admin.read_seal(client) == seal
        client.function_load(older, replace=True)
        quick = {"lease_ms": 400, "beat_ms": 100}  # what one has claimed as it was paused the other takes over
        with Executor(server, **quick) as first, Executor(server, **quick) as second:
            assert admin.read_seal(client) == seal, "the executor has kept it as well"
            store(client, "m", models.affine())
            client.function_flush()
            wait_until(
                lambda: admin.read_seal(client) == seal, "an executor that knows it has loaded the library again"
            )
            for paused in (first, second):
                paused.pause()
                send(client, *predict("m", X, options=("TICKET", "ks:{0}:t:c:1")))
                assert answer(client, b"ks:{0}:t:c:1").outputs["y"].tolist() == Y
                paused.resume()
            for one in (first, second):
                assert "not made by" not in one.output
                assert seal.secret not in one.output
            assert admin.ensure_library(client, force=True) == "replaced"
            assert admin.read_seal(client) == seal


def test_it_may_be_turned_on_and_changed_while_jobs_wait(server_kind: Kind) -> None:
    with Server(server_kind) as server, server.client() as client, Executor(server) as runner:
        store(client, "m", models.affine())
        runner.pause()
        for n in range(3):
            send(client, *predict("m", X, options=("TICKET", f"ks:{{0}}:t:c:{n}")))
            wait_ms(client)
            assert admin.ensure_library(client, seal=admin.new_seal(client)) in ("replaced", "upgraded")
        send(client, *predict("m", X, options=("TICKET", "ks:{0}:t:c:3")))
        runner.resume()
        for n in range(4):
            assert answer(client, b"ks:{0}:t:c:%d" % n).outputs["y"].tolist() == Y
        wait_until(lambda: "entries are signed from now on" in runner.output, "the executor has noticed")
        entry = client.xadd(STREAM, {"h": "x"})
        wait_until(lambda: not client.xrange(STREAM, entry, entry), "what is not signed is dropped from then on")


def wait_ms(client: redis_py.Redis) -> None:
    """Let the server's clock go on to the next millisecond: ids of entries have no finer ones."""
    start = client.time()
    wait_until(lambda: client.time()[1] // 1000 != start[1] // 1000, "a millisecond passes")


def test_an_executor_that_may_not_read_the_library_serves_all_the_same(place: World, runner: Executor, db: Any) -> None:
    place.make_user("blind", "executor")
    send(place.admin, "ACL", "SETUSER", "blind", "-function|list", "-function|load")
    blind = Executor(place.server, lease_ms=400, beat_ms=100)  # it takes over what the other has claimed
    blind.url = place.url("blind")
    with blind:
        runner.pause()
        try:
            send(db, *predict("fraud", X, options=("TICKET", "ks:{0}:t:f:1")))
            assert answer(db, b"ks:{0}:t:f:1").outputs["y"].tolist() == Y
        finally:
            runner.resume()
        assert "this user may not see by what" in blind.output
    send(place.admin, "ACL", "DELUSER", "blind")
