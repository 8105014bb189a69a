"""What each role may do and what not, tried out as a user of that role: every function, and the plain commands."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis as redis_py
from tests.access import ROLES_OF, World, X, send, world
from tests.executors import Executor
from tests.raw import answer, execute, modelstore, predict
from tests.servers import wait_until

from keyside.clients import acl
from keyside.tensorstore import library, npy
from keyside.tensorstore.errors import BadArg

VALUE = npy.to_bytes(X)
ALICE, READER, MANAGER, EXEC, ROOT = "alice", "ruth", "mary", "exec", "root"
ALL = frozenset(ROLES_OF)


@pytest.fixture(scope="module")
def place(server_kind: Any) -> Iterator[World]:
    with world(server_kind) as made:
        yield made


@pytest.fixture(scope="module")
def runner(place: World, lasting: set[int]) -> Iterator[Executor]:
    with place.executor(functions="tests.functions") as executor:
        lasting.add(executor.pid)
        yield executor
        lasting.discard(executor.pid)


def is_ready(db: Any, name: str) -> bool:
    return bool(db.hget(name, "1:state") == b"ready")


@pytest.fixture
def here(place: World, runner: Executor) -> World:
    if not place.admin.exists("fraud"):
        place.fill()
        for name in ("fraud:s", "other:s"):
            place.admin.fcall("AI_SCRIPTSTORE", 1, name, "CPU", "ENTRY_POINTS", 1, "tokens", "FUNCTIONS")
            wait_until(partial(is_ready, place.admin, name), f"{name} is ready")
    return place


def refused(db: redis_py.Redis, *command: Any) -> str:
    """The text with which a command is refused for want of rights; empty if it is not."""
    try:
        send(db, *command)
    except redis_py.exceptions.NoPermissionError as error:
        return str(error) or "NOPERM"
    except redis_py.ResponseError as error:
        # What is wrong otherwise shows that the call was allowed.
        return str(error) if str(error).startswith("NOPERM") else ""
    return ""


def gather(*spec: Any) -> tuple[Any, ...]:
    """A prediction on what is gathered."""
    key = spec[3] if isinstance(spec[2], int) and spec[0] != "ROWS" else spec[1 if spec[0] == "ROWS" else 2]
    return ("FCALL", "AI_PREDICT", 1, key, "fraud", "INPUTS", 1, *spec)


def trigger(name: str) -> tuple[Any, ...]:
    """The command that sets a trigger."""
    on = ("ON", "SET", "alice:frame:{n}", "RUN", "fraud", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "alice:boxes:{n}")
    return ("FCALL", "AI_TRIGGERSET", 1, name, *on)


def dag(function: str, key: str, target: str, *outputs: str) -> tuple[Any, ...]:
    """A DAG of one model on one key."""
    persist = ("PERSIST", len(outputs), *outputs) if outputs else ()
    run = ("MODELEXECUTE", target, "INPUTS", 1, key, "OUTPUTS", 1, *(outputs or ("y",)))
    return ("FCALL", function, 1 + len(outputs), key, *outputs, "LOAD", 1, key, *persist, "|>", *run)


# What to do, and who may. Each function stands in at least one line.
FUNCTIONS: list[tuple[tuple[Any, ...], set[str]]] = [
    (("FCALL", "AI_TENSORSET", 1, "alice:t", "FLOAT", 1), {ALICE, ROOT}),
    (("FCALL", "AI_TENSORSET", 1, "shared:t", "FLOAT", 1), {ROOT}),
    (("FCALL", "AI_TENSORSET", 1, "bob:t", "FLOAT", 1), {"bob", ROOT}),
    (("FCALL", "AI_TENSORSET", 1, "ks:{0}:cap:1", "FLOAT", 1), {ROOT}),
    (("FCALL_RO", "AI_TENSORGET", 1, "alice:x"), {ALICE, READER, EXEC, ROOT}),
    (("FCALL_RO", "AI_TENSORGET", 1, "shared:x"), {ALICE, READER, EXEC, ROOT}),
    (("FCALL_RO", "AI_TENSORGET", 1, "bob:x"), {"bob", EXEC, ROOT}),
    (predict("fraud", X, options=("TICKET", "ks:{0}:t:a:1")), {ALICE, ROOT}),
    (predict("fraud", ("KEY", "alice:x")), {ALICE, ROOT}),
    (predict("fraud", ("KEY", "shared:x")), {ALICE, ROOT}),
    (predict("fraud", ("REF", "shared:x")), {ALICE, ROOT}),
    (predict("fraud", ("KEY", "bob:x")), {ROOT}),
    (predict("fraud", ("REF", "bob:x")), {ROOT}),
    (predict("fraud", ("OWN", "shared:own")), {ROOT}),
    (predict("fraud", X, outputs=["alice:y"]), {ALICE, ROOT}),
    (predict("fraud", X, outputs=["shared:y"]), {ROOT}),
    (predict("fraud", X, outputs=["bob:y"]), {ROOT}),
    (gather("HASH", "FLOAT", 1, "alice:h", 1, "f", "DEFAULT", 0), {ALICE, ROOT}),
    (gather("LIST", "FLOAT", "shared:l", 0, -1), {ALICE, ROOT}),
    (gather("ZSET", "FLOAT", "alice:z", 0, -1, "SCORES"), {ALICE, ROOT}),
    (gather("NUMBERS", "FLOAT", 1, "shared:n"), {ALICE, ROOT}),
    (gather("ROWS", "shared:x", 1, 0), {ALICE, ROOT}),
    (gather("HASH", "FLOAT", 1, "bob:h", 1, "f", "DEFAULT", 0), {ROOT}),
    (gather("ZSET", "FLOAT", "bob:z", 0, -1, "SCORES"), {ROOT}),
    (gather("ROWS", "bob:x", 1, 0), {ROOT}),
    (gather("LIST", "FLOAT", "ks:{0}:t:a:1", 0, -1), {ROOT}),
    (predict("other", X), {"bob", ROOT}),
    (predict("fraud", X, options=("USER", "alice")), {ALICE, ROOT}),
    (predict("fraud", X, options=("USER", "bob")), {ROOT}),
    (execute("fraud", ["alice:x"], ["alice:y"]), {ALICE, ROOT}),
    (execute("fraud", ["shared:x"], ["alice:y"], "USER", "alice"), {ALICE, ROOT}),
    (execute("fraud", ["alice:x"], ["alice:y"], "USER", "bob"), {ROOT}),
    (execute("fraud", ["bob:x"], ["alice:y"]), {ROOT}),
    (execute("other", ["bob:x"], ["bob:y"]), {"bob", ROOT}),
    (dag("AI_DAGEXECUTE", "alice:x", "fraud", "alice:y"), {ALICE, ROOT}),
    (dag("AI_DAGEXECUTE", "alice:x", "fraud", "shared:y"), {ROOT}),
    (dag("AI_DAGEXECUTE", "alice:x", "other", "alice:y"), {ROOT}),
    (dag("AI_DAGEXECUTE", "bob:x", "other", "bob:y"), {"bob", ROOT}),
    (dag("AI_DAGEXECUTE_RO", "alice:x", "fraud"), {ALICE, ROOT}),
    (dag("AI_DAGEXECUTE_RO", "bob:x", "fraud"), {ROOT}),
    (("FCALL", "AI_CANCEL", 0, "ks:{0}:t:a:1", "CPU/1-1"), {ALICE, "bob", EXEC, ROOT}),
    (modelstore("fraud2", b"junk"), {MANAGER, ROOT}),
    (modelstore("other2", b"junk"), {ROOT}),
    (("FCALL", "AI_MODELDEL", 1, "fraud2"), {MANAGER, ROOT}),
    (("FCALL", "AI_MODELDEL", 1, "other2"), {ROOT}),
    (("FCALL_RO", "AI_MODELGET", 1, "fraud", "META"), {READER, MANAGER, EXEC, ROOT}),
    (("FCALL_RO", "AI_MODELGET", 1, "other", "META"), {EXEC, ROOT}),
    (("FCALL_RO", "AI_MODELGET", 1, "fraud", "BLOB"), {EXEC, ROOT}),
    (("FCALL", "AI_SCRIPTSTORE", 1, "fraud3", "CPU", "ENTRY_POINTS", 1, "f", "FUNCTIONS"), {MANAGER, ROOT}),
    (("FCALL", "AI_SCRIPTSTORE", 1, "other3", "CPU", "ENTRY_POINTS", 1, "f", "FUNCTIONS"), {ROOT}),
    (("FCALL_RO", "AI_SCRIPTGET", 1, "fraud:s", "META"), {READER, MANAGER, EXEC, ROOT}),
    (("FCALL_RO", "AI_SCRIPTGET", 1, "other:s", "META"), {EXEC, ROOT}),
    (("FCALL_RO", "AI_SCRIPTSCAN", 0, "0"), set(ALL)),
    (("FCALL", "AI_SCRIPTEXECUTE", 1, "alice:x", "fraud:s", "tokens", "INPUTS", 1, "alice:x"), {ALICE, ROOT}),
    (("FCALL", "AI_SCRIPTEXECUTE", 0, "other:s", "tokens", "INPUTS", 0), {"bob", ROOT}),
    (("FCALL", "AI_SCRIPTEXECUTE", 1, "bob:x", "fraud:s", "tokens", "INPUTS", 1, "bob:x"), {ROOT}),
    (("FCALL", "AI_SCRIPTEXECUTE", 1, "bob:y", "fraud:s", "tokens", "INPUTS", 0, "OUTPUTS", 1, "bob:y"), {ROOT}),
    (("FCALL", "AI_SCRIPTDEL", 1, "fraud3"), {MANAGER, ROOT}),
    (("FCALL", "AI_SCRIPTDEL", 1, "other3"), {ROOT}),
    (("FCALL", "AI_DAGEXECUTE", 1, "alice:x", "LOAD", 1, "alice:x", "|>", "TENSORGET", "alice:x"), {ALICE, ROOT}),
    (("FCALL", "AI_DAGEXECUTE_RO", 1, "alice:x", "LOAD", 1, "alice:x", "|>", "TENSORGET", "alice:x"), {ALICE, ROOT}),
    (("FCALL", "AI_DAGEXECUTE", 1, "bob:x", "LOAD", 1, "bob:x", "|>", "TENSORGET", "bob:x"), {"bob", ROOT}),
    (("FCALL_RO", "AI_MODELSCAN", 0), set(ALL)),
    (("FCALL_RO", "AI_MODELSCAN", 0, "0"), set(ALL)),
    (("FCALL", "AI_INFO", 1, "fraud"), {ALICE, READER, MANAGER, ROOT}),
    (("FCALL", "AI_INFO", 1, "other"), {"bob", ROOT}),
    (("FCALL", "AI_INFO", 1, "fraud", "RESETSTAT"), {MANAGER, ROOT}),
    (("FCALL_RO", "AI_DEADSCAN", 0, "0"), {EXEC, ROOT}),
    (("FCALL_RO", "AI_DEADGET", 0, "1-1"), {EXEC, ROOT}),
    (("FCALL", "AI_DEADDEL", 0, "1-1"), {ROOT}),
    (("FCALL", "AI_DEADRETRY", 0, "1-1"), {ROOT}),
    (("FCALL_RO", "AI_LIMITGET", 1, "fraud"), {ALICE, READER, MANAGER, EXEC, ROOT}),
    (("FCALL_RO", "AI_LIMITGET", 1, "other"), {"bob", EXEC, ROOT}),
    (("FCALL_RO", "AI_LIMITGET", 0, "NODE"), set(ALL)),
    (("FCALL", "AI_LIMITSET", 1, "fraud", "JOBS", 0), {MANAGER, ROOT}),
    (("FCALL", "AI_LIMITSET", 1, "other", "JOBS", 0), {ROOT}),
    (("FCALL", "AI_LIMITSET", 0, "NODE", "JOBS", 10000), {ROOT}),
    (("FCALL", "AI_TENSORCHANGED", 1, "alice:t"), {ALICE, ROOT}),
    (("FCALL", "AI_TENSORCHANGED", 1, "shared:t"), {ROOT}),
    (trigger("fraud:t"), {ROOT}),
    (("FCALL", "AI_TRIGGERPAUSE", 1, "fraud:t", "ON"), {ROOT}),
    (("FCALL", "AI_TRIGGERDEL", 1, "fraud:t"), {ROOT}),
    (("FCALL_RO", "AI_TRIGGERGET", 1, "fraud:t"), {ALICE, READER, EXEC, ROOT}),
    (("FCALL_RO", "AI_TRIGGERGET", 1, "other:t"), {"bob", EXEC, ROOT}),
    (("FCALL", "AI_TRIGGERINFO", 1, "fraud:t"), {ALICE, READER, ROOT}),
    (("FCALL", "AI_TRIGGERINFO", 1, "other:t"), {"bob", ROOT}),
    (("FCALL_RO", "AI_TRIGGERSCAN", 0, "0"), {ALICE, "bob", READER, EXEC, ROOT}),
    (predict("fraud", X, options=("PRIORITY", "HIGH")), {ALICE, ROOT}),
    (("FCALL_RO", "AI_NODE", 0), set(ALL)),
    (("FCALL_RO", "KS_VERSION", 0), set(ALL)),
]

PRIVATE = sorted(name for name in library.functions() if name.startswith("KS_") and name != "KS_VERSION")

PLAIN: list[tuple[tuple[Any, ...], set[str]]] = [
    (("GET", "alice:x"), {ALICE, READER, EXEC, ROOT}),
    (("GET", "shared:x"), {ALICE, READER, EXEC, ROOT}),
    (("GET", "bob:x"), {"bob", EXEC, ROOT}),
    (("GETRANGE", "alice:x", 0, 10), {ALICE, READER, EXEC, ROOT}),
    (("SET", "alice:x", VALUE), {ALICE, EXEC, ROOT}),
    (("SET", "shared:x", VALUE), {EXEC, ROOT}),
    (("SET", "bob:x", VALUE), {"bob", EXEC, ROOT}),
    (("COPY", "shared:x", "alice:copy", "REPLACE"), {ALICE, EXEC, ROOT}),
    (("COPY", "alice:x", "shared:copy", "REPLACE"), {EXEC, ROOT}),
    (("COPY", "bob:x", "alice:copy", "REPLACE"), {EXEC, ROOT}),
    (("COPY", "ks:{0}:cap:1", "alice:copy", "REPLACE"), {EXEC, ROOT}),
    (("COPY", "alice:x", "alice:copy", "REPLACE"), {ALICE, EXEC, ROOT}),
    (("RENAME", "alice:copy", "alice:moved"), {ALICE, EXEC, ROOT}),
    (("EXPIRE", "alice:x", 1000), {ALICE, ROOT}),
    (("SET", "ks:{0}:tmp:c:1:0", VALUE, "PX", 1000), {ALICE, "bob", EXEC, ROOT}),
    (("SET", "ks:{0}:cap:1", VALUE, "PX", 1000), {EXEC, ROOT}),
    (("GET", "ks:{0}:cap:1"), {EXEC, ROOT}),
    (("HGETALL", "fraud"), {ALICE, READER, MANAGER, EXEC, ROOT}),
    (("HGETALL", "other"), {"bob", EXEC, ROOT}),
    (("HSET", "fraud", "x", 1), {MANAGER, EXEC, ROOT}),
    (("HSET", "ks:{0}:catalog", "fraud@9", "{}"), {MANAGER, EXEC, ROOT}),
    (("HGET", "ks:{0}:catalog", "fraud"), set(ALL)),
    (("ZRANGE", "ks:{0}:executors", 0, -1), set(ALL)),
    (("XLEN", "ks:{0}:jobs:CPU"), set(ALL)),
    (("XRANGE", "ks:{0}:jobs:CPU", "-", "+"), {EXEC, ROOT}),
    (("XREVRANGE", "ks:{0}:jobs:CPU", "+", "-"), {EXEC, ROOT}),
    (("XREAD", "STREAMS", "ks:{0}:jobs:CPU", 0), {EXEC, ROOT}),
    (("XPENDING", "ks:{0}:jobs:CPU", "ks"), {EXEC, ROOT}),
    (("XINFO", "STREAM", "ks:{0}:jobs:CPU"), {EXEC, ROOT}),
    (("BLPOP", "ks:{0}:t:a:1", 0.01), {ALICE, "bob", ROOT}),
    (("LPOP", "ks:{0}:mb:a"), {ALICE, "bob", ROOT}),
    (("BLPOP", "ks:{0}:ticket:CPU/1-1", 0.01), {ROOT}),  # whose name others can guess
    (("GET", "ks:user:alice"), {ALICE, EXEC, ROOT}),
    (("GET", "ks:user:bob"), {"bob", EXEC, ROOT}),
    (("FUNCTION", "LIST", "WITHCODE"), {EXEC, ROOT}),
    (("FUNCTION", "DUMP"), {ROOT}),
    (("CLUSTER", "INFO"), set(ALL)),
    (("PING",), set(ALL)),
    (("TIME",), set(ALL)),
    (("PUBLISH", "ks:catalog", "x"), {MANAGER, EXEC, ROOT}),
    (("KEYS", "*"), {ROOT}),
    (("SCAN", 0), {ROOT}),
    (("RANDOMKEY",), {ROOT}),
    (("DBSIZE",), {ROOT}),
    (("CONFIG", "GET", "port"), {ROOT}),
    (("CLIENT", "LIST"), {ROOT}),
    (("SLOWLOG", "GET"), {ROOT}),
    (("ACL", "LIST"), {ROOT}),
    (("ACL", "WHOAMI"), set(ALL)),
    (("EVAL", "return 1", 0), {ROOT}),
    (("DUMP", "alice:x"), {ROOT}),
    (("OBJECT", "ENCODING", "alice:x"), {ROOT}),
    (("INFO",), {EXEC, ROOT}),
]

ONLY_ASKED: list[tuple[tuple[Any, ...], set[str]]] = [
    (("MONITOR",), {ROOT}),
    (("FLUSHALL",), {ROOT}),
    (("SHUTDOWN",), {ROOT}),
    (("DEBUG", "SLEEP", 0), {ROOT}),
    (("REPLICAOF", "NO", "ONE"), {ROOT}),
    (("MIGRATE", "h", 1, "alice:x", 0, 1), {ROOT}),
    (("FUNCTION", "LOAD", "x"), {EXEC, ROOT}),
    (("FUNCTION", "FLUSH"), {ROOT}),
    (("ACL", "SETUSER", "x"), {ROOT}),
    (("SUBSCRIBE", "ks:catalog"), {EXEC, ROOT}),
    (("PSUBSCRIBE", "*"), {EXEC, ROOT}),  # triggers listen on channels
    (("XREADGROUP", "GROUP", "ks", "c", "STREAMS", "ks:{0}:jobs:CPU", ">"), {EXEC, ROOT}),
    (("XADD", "ks:{0}:jobs:CPU", "*", "a", "b"), {ALICE, "bob", MANAGER, EXEC, ROOT}),  # hence signatures
    (("UNLINK", "ks:{0}:jobs:CPU"), {EXEC, ROOT}),
]


def shown(command: tuple[Any, ...]) -> str:
    return " ".join(str(word)[:20] if not isinstance(word, bytes) else "..." for word in command)[:90]


def test_the_table_has_all_functions() -> None:
    assert {command[1] for command, _ in FUNCTIONS} | set(PRIVATE) == set(library.functions())


@pytest.mark.parametrize(("command", "allowed"), FUNCTIONS + PLAIN, ids=[shown(one) for one, _ in FUNCTIONS + PLAIN])
def test_who_may(here: World, command: tuple[Any, ...], allowed: set[str]) -> None:
    here.admin.set("shared:own", VALUE)
    may = set()
    for user in ROLES_OF:
        here.admin.copy("alice:x", "alice:copy", replace=True)
        with here.connect(user) as db:
            why = refused(db, *command)
        if why:
            assert len(why) > 20
        else:
            may.add(user)
    assert may == allowed


@pytest.mark.parametrize("name", PRIVATE)
def test_what_executors_call_is_for_executors(here: World, name: str) -> None:
    for user in ROLES_OF:
        with here.connect(user) as db:
            call = "FCALL_RO" if library.functions()[name].readonly else "FCALL"
            assert bool(refused(db, call, name, 0)) == (user not in (EXEC, ROOT)), user


@pytest.mark.parametrize(("command", "allowed"), ONLY_ASKED, ids=[shown(one) for one, _ in ONLY_ASKED])
def test_who_might(here: World, command: tuple[Any, ...], allowed: set[str]) -> None:
    reply = {user: send(here.admin, "ACL", "DRYRUN", user, *command) for user in ROLES_OF}
    assert {user for user, said in reply.items() if said == b"OK"} == allowed, reply


# --- what is said


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (predict("other", X), "this user may not use model 'other@1'"),
        (predict("fraud", X, outputs=["shared:y"]), "this user may not SET output key 'shared:y'"),
        (predict("fraud", ("OWN", "shared:x")), "this user may not take input key 'shared:x' away"),
        (predict("fraud", X, options=("USER", "bob")), "the caller is not user 'bob': its ACL lacks %R~ks:user:bob"),
    ],
)
def test_a_refusal_names_what_is_refused(here: World, command: tuple[Any, ...], says: str) -> None:
    with here.connect(ALICE) as db:
        assert refused(db, *command).startswith(says)


def test_an_input_that_may_not_be_read(here: World) -> None:
    """Also where FCALL itself would let the key pass."""
    here.make_user("wide", "predictor", models=["fraud"])
    send(here.admin, "ACL", "SETUSER", "wide", "(+fcall|ai_predict ~*)")
    with here.connect("wide") as db:
        for mode in ("KEY", "REF", "OWN"):
            says = "this user may not read input key 'bob:x'"
            assert refused(db, *predict("fraud", (mode, "bob:x"))) == says
        assert refused(db, *predict("fraud", ("REF", "ks:{0}:jobs:CPU"))).startswith("this user may not read")
    send(here.admin, "ACL", "DELUSER", "wide")


def test_who_is_refused_is_told_on_the_ticket_too(here: World) -> None:
    """A client that sends FCALL and BLPOP in one write waits there."""
    with here.connect(ALICE) as db:
        for n, options in enumerate((("USER", "bob"), ())):
            ticket = f"ks:{{0}}:t:refused:{n}"
            target = "fraud" if options else "other"
            assert refused(db, *predict(target, X, options=("TICKET", ticket, *options)))
            (text,) = db.lpop(ticket, 1)
            assert text.startswith(b"NOPERM ")


def test_user_is_a_name(here: World) -> None:
    for name in ("", "x" * 65, "a b", "ks*", "é"):
        with pytest.raises(redis_py.ResponseError, match="BADARG USER takes the name"):
            send(here.admin, *predict("fraud", X, options=("USER", name)))


def test_the_one_who_owns_may_have_it_taken_away(here: World) -> None:
    here.admin.set("alice:own", VALUE)
    with here.connect(ALICE) as db:
        ticket = ("TICKET", "ks:{0}:t:own:1")
        send(db, *predict("fraud", ("OWN", "alice:own"), options=ticket))
        assert answer(db, b"ks:{0}:t:own:1").outputs["y"].tolist() == (X * 2 + 1).tolist()
    assert not here.admin.exists("alice:own")


def test_tickets_of_the_server_are_for_whom_they_are_given(here: World) -> None:
    here.make_user("ann", "predictor", models=["fraud"], any_ticket=True)
    with here.connect("ann") as db:
        ticket = send(db, *predict("fraud", X))
        assert answer(db, ticket).target == "fraud@1"
    send(here.admin, "ACL", "DELUSER", "ann")


def test_blobs_for_those_who_are_given_them(here: World) -> None:
    for role in ("reader", "predictor", "model-manager"):
        here.make_user("blobs", role, models=["fraud"], blobs=True)
        with here.connect("blobs") as db:
            blob = send(db, "FCALL_RO", "AI_MODELGET", 1, "fraud", "BLOB")
            assert blob.startswith(b"\x08"), role
            assert refused(db, "FCALL_RO", "AI_MODELGET", 1, "other", "BLOB")
    send(here.admin, "ACL", "DELUSER", "blobs")


# --- the age of queues and cancelling, for those who may not read entries


def test_cancelling_without_reading(here: World, runner: Executor) -> None:
    large = "alice:large"
    here.admin.set(large, npy.to_bytes(X.repeat(2000, axis=0)))
    runner.pause()
    try:
        with here.connect(ALICE) as db:
            specs: list[Any] = [X, ("KEY", large), X]
            ids = [
                send(db, *predict("fraud", spec, options=("TICKET", f"ks:{{0}}:t:c:{n}")))
                for n, spec in enumerate(specs)
            ]
            assert int(here.admin.get("ks:{0}:bytes:CPU") or 0) > 60_000
            cancel = [("FCALL", "AI_CANCEL", 0, f"ks:{{0}}:t:c:{n}", job) for n, job in enumerate(ids)]
            assert [send(db, *one) for one in cancel[:2]] == [1, 1]
            assert [send(db, *one) for one in cancel[:2]] == [0, 0]
            assert int(here.admin.get("ks:{0}:bytes:CPU") or 0) == 0, "what it counted is given back"
            assert not list(here.admin.scan_iter("ks:{0}:held:*"))
            asked = send(db, "FCALL_RO", "AI_NODE", 0)
            assert dict(zip(asked[::2], asked[1::2], strict=True))[b"devices"][0][0] == b"CPU"
    finally:
        runner.resume()
    with here.connect(ALICE) as db:
        assert answer(db, b"ks:{0}:t:c:2").target == "fraud@1"
        assert db.lpop("ks:{0}:t:c:0") is None


def test_a_catalog_by_hand_does_not_give_another_model(here: World) -> None:
    """A model manager may write catalogs; that must not let him, or others, run what they may not use."""
    for name in ("other", "fraud"):
        send(here.admin, *predict(name, X, options=("TICKET", f"ks:{{0}}:t:warm:{name}")))
        answer(here.admin, f"ks:{{0}}:t:warm:{name}".encode())
    record = json.loads(here.admin.hget("ks:{0}:catalog", "other") or "")
    with here.connect(MANAGER) as mary, here.connect(ALICE) as alice:
        for n, uid in enumerate((record["uid"], "5f5e100abcdef")):
            mary.hset("ks:{0}:catalog", "fraud-forged", json.dumps({**record, "key": "fraud-forged", "uid": uid}))
            ticket = f"ks:{{0}}:t:forged:{n}"
            send(alice, *predict("fraud-forged", X, options=("TICKET", ticket)))
            found = alice.blpop([ticket], 10)
            assert found is not None
            assert found[1].startswith(b"NOMODEL ")
        mary.hdel("ks:{0}:catalog", "fraud-forged")


# --- the rules themselves


@pytest.mark.parametrize(
    "pattern", ["ks:*", "k*", "*x", "?s:y", "[k]s:*", "", "a b", "x)", "ks:{0}:jobs:CPU", "ks\\:*"]
)
def test_patterns_that_reach_into_keysides_keys_are_refused(pattern: str) -> None:
    with pytest.raises(BadArg, match="pattern"):
        acl.rules("predictor", user="u", keys=[pattern], models=["m"])


def test_a_star_is_all_keys_but_keysides_own(here: World) -> None:
    here.make_user("star", "predictor", keys=["*"], models=["*"])
    with here.connect("star") as db:
        for key in ("a", "k", "ks", "kx", "ksx", "ks;", "\xff", "K", "alice:x", "bob:x", "{ks:}"):
            assert not refused(db, "GET", key), key
        for key in ("ks:", "ks:{0}:jobs:CPU", "ks:user:bob", "ks:{0}:cap:x"):
            assert refused(db, "GET", key), key
        assert not refused(db, *predict("other", X, options=("TICKET", "ks:{0}:t:star:1")))
        db.blpop(["ks:{0}:t:star:1"], 5)
    send(here.admin, "ACL", "DELUSER", "star")


@pytest.mark.parametrize("role", ["predictor", "model-manager", "reader"])
def test_a_role_without_patterns_is_refused(role: str) -> None:
    with pytest.raises(BadArg, match="needs --models"):
        acl.rules(role, user="u")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a*", "é"])
def test_a_user_has_a_name(name: str) -> None:
    with pytest.raises(BadArg, match="1 to 64 letters"):
        acl.rules("admin", user=name)


def test_a_function_whose_commands_no_rule_has_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules come from the functions: one that calls more cannot be forgotten here."""
    specs = dict(library.functions())
    from dataclasses import replace

    for call, says in (("GEOADD", "does not know what it works on"), ("SADD", "no rule of")):
        specs["AI_PREDICT"] = replace(specs["AI_PREDICT"], calls=(*library.functions()["AI_PREDICT"].calls, call))
        monkeypatch.setattr(library, "functions", lambda: specs)
        with pytest.raises(library.LibraryError, match=says):
            acl.rules("predictor", user="u", models=["m"])
        monkeypatch.undo()


def test_nothing_was_refused_to_the_executor(here: World) -> None:
    """Whatever it did for the tests before this one."""
    wait_until(lambda: here.admin.xlen("ks:{0}:jobs:CPU") == 0, "all jobs have run")
    send(here.admin, "ACL", "LOG", "RESET")
    with here.connect(ALICE) as db:
        send(db, *predict("fraud", X, options=("TICKET", "ks:{0}:t:log:1")))
        answer(db, b"ks:{0}:t:log:1")
    assert [entry for entry in here.admin.acl_log() if entry["username"] in ("exec", b"exec")] == []
