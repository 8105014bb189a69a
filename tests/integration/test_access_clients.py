"""The clients and the command line as users of a role: what they are made for works, end to end."""

import asyncio
import inspect
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests import models
from tests.access import World, X, send, world
from tests.clients import Connect, connector
from tests.clusters import until
from tests.executors import Executor
from tests.raw import store
from tests.servers import Cluster, Kind, Server, wait_until

from keyside import Key, errors
from keyside.clients import admin
from keyside.clients.cli.root import cli
from keyside.tensorstore import npy

Y = (X * 2 + 1).tolist()
LARGE = np.zeros((20_000, 4), np.float32)


@pytest.fixture(scope="module")
def place(server_kind: Kind) -> Iterator[World]:
    with world(server_kind) as made:
        yield made


@pytest.fixture(scope="module")
def runner(place: World, lasting: set[int]) -> Iterator[Executor]:
    with place.executor() as executor:
        lasting.add(executor.pid)
        place.fill()
        send(place.admin, "ACL", "LOG", "RESET")
        yield executor
        lasting.discard(executor.pid)


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest, place: World) -> AsyncIterator[Connect]:
    # What the client of the test before was refused, at its end too, is not of this one.
    send(place.admin, "ACL", "LOG", "RESET")
    async for made in connector(request.param):
        yield made


def denied(place: World, user: str) -> list[str]:
    """What a user was refused since somebody last asked."""
    found = [
        f"{entry['reason']} {entry['object']} in {entry['context']}"
        for entry in place.admin.acl_log()
        if entry["username"] == user
    ]
    send(place.admin, "ACL", "LOG", "RESET")
    return found


async def test_a_predictor(place: World, runner: Executor, connect: Connect) -> None:
    alice = connect(place.url("alice"), timeout=10)
    assert (await alice.predict("fraud", X)).tolist() == Y
    assert (await alice.predict("fraud", {"x": X})).tolist() == Y
    await alice.set("alice:in", X)
    assert (await alice.get("alice:in")).tolist() == X.tolist()
    assert (await alice.meta("alice:in")).shape == (2, 4)
    assert (await alice.predict("fraud", Key("shared:x"))).tolist() == Y
    await alice.execute("fraud", inputs=["alice:in"], outputs=["alice:out"])
    assert (await alice.get("alice:out")).tolist() == Y
    # More than rides along, both ways: temporaries, captures, staged outputs.
    assert (await alice.predict("fraud", LARGE)).shape == LARGE.shape
    await alice.set("alice:large", LARGE)
    await alice.execute("fraud", inputs=["alice:large"], outputs=["alice:out"])
    assert (await alice.get("alice:out"))[0, 0] == 1
    assert (await alice.model_info("fraud")).key == "fraud"
    assert "fraud" in [model.name async for model in alice.models()]
    assert denied(place, "alice") == []
    with pytest.raises(errors.NoPerm, match="may not use model 'other@1'"):
        await alice.predict("other", X)
    with pytest.raises(errors.NoPerm):
        await alice.get("bob:x")
    with pytest.raises(errors.NoPerm):
        await alice.set("shared:x", X)
    with pytest.raises(errors.NoPerm):
        await alice.store("fraud3", models.affine())
    with pytest.raises(errors.NoPerm):
        await alice.get_model("fraud")
    denied(place, "alice")


async def test_dags_of_a_predictor(place: World, runner: Executor, connect: Connect) -> None:
    client = connect(place.url("alice"), timeout=10)
    inner: Any = getattr(client, "inner", client)

    async def run(dag: Any) -> Any:
        found = dag.execute()
        return await found if inspect.isawaitable(found) else found

    found = await run(inner.dag().tensorset("x", X).modelexecute("fraud", "x", "y").tensorget("y"))
    assert found[2].tolist() == Y
    await client.set("alice:x", X)
    await run(inner.dag().load("alice:x").modelexecute("fraud", "alice:x", "alice:y").persist("alice:y"))
    assert (await client.get("alice:y")).tolist() == Y
    await run(inner.dag().tensorset("x", LARGE).tensorget("x"))
    assert denied(place, "alice") == []
    with pytest.raises(errors.NoPerm):
        await run(inner.dag().tensorset("x", X).modelexecute("other", "x", "y"))
    with pytest.raises(errors.NoPerm):
        await run(inner.dag().load("bob:x").tensorget("bob:x"))
    with pytest.raises(errors.NoPerm):
        await run(inner.dag().tensorset("shared:x", X).persist("shared:x"))


async def test_a_predictor_waits_for_its_own_keys(place: World, connect: Connect) -> None:
    client = connect(place.url("alice"), timeout=10)
    before = place.admin.config_get("notify-keyspace-events")["notify-keyspace-events"] or ""
    try:
        place.admin.config_set("notify-keyspace-events", "")
        with pytest.raises(errors.NoPerm, match="somebody who may has to run CONFIG SET"):
            await client.wait_for_key("alice:comes", timeout=5)
        place.admin.config_set("notify-keyspace-events", "KA")
        waiting = asyncio.ensure_future(client.wait_for_key("alice:comes", timeout=10))
        watched = "__keyspace@0__:alice:comes"
        await until(lambda: place.admin.pubsub_numsub(watched)[0][1])
        await client.set("alice:comes", X)
        await waiting
        with pytest.raises(errors.NoPerm):
            await client.wait_for_key("bob:comes", timeout=5)
    finally:
        place.admin.config_set("notify-keyspace-events", before)
        place.admin.delete("alice:comes")


async def test_a_predictor_takes_a_job_back(place: World, runner: Executor, connect: Connect) -> None:
    alice = connect(place.url("alice"), timeout=10)
    await alice.predict("fraud", X)
    runner.pause()
    try:
        handle = await alice.submit("fraud", X)
        assert await handle.cancel()
        large = await alice.submit("fraud", LARGE)
        assert await large.cancel()
    finally:
        runner.resume()
    assert (await alice.predict("fraud", X)).tolist() == Y
    assert denied(place, "alice") == []


async def test_a_model_manager(place: World, runner: Executor, connect: Connect) -> None:
    mary = connect(place.url("mary"), timeout=20)
    await mary.store("fraud4", models.affine(5.0))
    big = models.affine(6.0) + b""
    assert (await mary.model_info("fraud4")).versions[1].state == "ready"
    await mary.store("fraud4", big)
    assert sorted((await mary.model_info("fraud4")).versions) == [1, 2]
    await mary.model_stats("fraud4")
    await mary.reset_stats("fraud4")
    await mary.delete_model("fraud4@1")
    await mary.delete_model("fraud4")
    assert denied(place, "mary") == []
    with pytest.raises(errors.NoPerm):
        await mary.store("other", models.affine())
    with pytest.raises(errors.NoPerm):
        await mary.delete_model("other")
    with pytest.raises(errors.NoPerm):
        await mary.predict("fraud", X)
    denied(place, "mary")


async def test_a_reader(place: World, runner: Executor, connect: Connect) -> None:
    ruth = connect(place.url("ruth"), timeout=10)
    assert (await ruth.get("alice:x")).tolist() == X.tolist()
    assert (await ruth.meta("shared:x")).shape == (2, 4)
    assert (await ruth.model_info("fraud")).key == "fraud"
    assert (await ruth.version("fraud")).signature is not None
    await ruth.model_stats("fraud")
    assert denied(place, "ruth") == []
    for call in (ruth.set("alice:x", X), ruth.delete("alice:x"), ruth.predict("fraud", X), ruth.get("bob:x")):
        with pytest.raises(errors.NoPerm):
            await call
    denied(place, "ruth")


def test_nothing_was_refused_to_the_executor(place: World, runner: Executor) -> None:
    """A life of it, from its start to its end, with a load and a job."""
    send(place.admin, "ACL", "LOG", "RESET")
    with place.executor(name="second") as second:
        wait_until(second.registered, "it is there")
    assert denied(place, "exec") == []


# --- keyside acl


def run(url: str, *args: str, code: int = 0, data: str | None = None) -> Result:
    result = CliRunner().invoke(cli, ["--url", url, "acl", *args], prog_name="keyside", input=data)
    assert result.exit_code == code, result.output
    return result


def test_print_and_apply_say_the_same(place: World, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("secret\nmore\n")
    rights = ("--user", "carol", "--keys", "carol:*", "--models", "fraud*")
    printed = json.loads(
        run("redis://nowhere", "print", "predictor", *rights, "--password-file", str(file), "--json").stdout
    )
    text = run("redis://nowhere", "print", "predictor", *rights, "--password-file", "-", data="secret\n").stdout
    assert text.startswith("ACL SETUSER carol reset on '#")
    assert "secret" not in text
    send(place.admin, *printed)
    mine = send(place.admin, "ACL", "GETUSER", "carol")
    send(place.admin, "ACL", "DELUSER", "carol")
    said = run(place.server.url_unix, "apply", "predictor", *rights, "--password-file", str(file))
    assert "user carol is a predictor" in said.stderr
    assert "no ACL file" in said.stderr
    assert send(place.admin, "ACL", "GETUSER", "carol") == mine
    # Other rights, the same password.
    run(place.server.url_unix, "apply", "reader", "--user", "carol", "--keys", "carol:*")
    with place.server.client(username="carol", password="secret") as db:
        assert db.get("carol:x") is None
        with pytest.raises(Exception, match="permission"):
            db.set("carol:x", "1")
    send(place.admin, "ACL", "DELUSER", "carol")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("print", "predictor"), 1, "BADARG a predictor needs --models PATTERN"),
        (("print", "reader", "--keys", "ks:*"), 1, "BADARG the pattern 'ks:*' may match keys that begin with ks:"),
        (("print", "reader", "--keys", "a", "--nopass", "--password-file", "x"), 2, "exclude each other"),
        (("print", "nobody"), 2, "'nobody' is not one of"),
        (("print", "reader", "--keys", "a", "--password-file", "/nowhere/at/all"), 1, "No such file"),
        (("print", "admin", "--password-file", "-"), 1, "BADARG there is no password in the first line of stdin"),
        (("print", "admin", "--user", "a b"), 1, "BADARG the name 'a b' is not 1 to 64"),
        (("check", "nobody"), 1, "BADARG the server has no user 'nobody'"),
    ],
)
def test_what_is_refused(place: World, args: tuple[str, ...], code: int, says: str) -> None:
    assert says in run(place.server.url_unix, *args, code=code, data="").output


def test_check(place: World, runner: Executor) -> None:
    args = ("check", "alice", "--key", "alice:x", "--key", "shared:x", "--model", "fraud", "--model", "other", "--json")
    found = json.loads(run(place.server.url_unix, *args).stdout)
    assert found["AI_PREDICT"]
    assert not found["AI_MODELSTORE"]
    assert found["USER alice"]
    assert (found["read alice:x"], found["write alice:x"]) == (True, True)
    assert (found["read shared:x"], found["write shared:x"]) == (True, False)
    assert (found["use model fraud"], found["use model other"], found["store model fraud"]) == (True, False, False)
    assert not any(
        found[what] for what in ("be an executor", "read queues", "read the library", "list keys", "administer")
    )
    assert re.search(r"^AI_PREDICT +yes$", run(place.server.url_unix, *args[:2]).stdout, re.MULTILINE)


def test_an_acl_file_is_saved(server_kind: Kind, tmp_path: Path) -> None:
    file = tmp_path / "users.acl"
    file.write_text("")
    with Server(server_kind, aclfile=str(file)) as server:
        run(server.url_unix, "apply", "predictor", "--user", "dora", "--models", "fraud*", "--nopass")
        assert "user dora " in file.read_text()
        server.restart()
        with server.client(username="dora", password="") as db:
            assert db.ping()


def test_on_a_cluster_every_node_knows_the_user(server_kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("pw")
    with Cluster(server_kind, primaries=3, replicas=1) as cluster:

        def all_known() -> bool:
            return sum(len(row) - 2 for row in cluster.ask(cluster.primaries[0], "CLUSTER SLOTS")) == 4

        wait_until(all_known, "the replica has got about")
        rights = ("--user", "alice", "--keys", "{alice}*", "--models", "m*", "--password-file", str(tmp_path / "pw"))
        said = run(cluster.url, "apply", "predictor", *rights, "--json")
        assert len(json.loads(said.stdout)["servers"]) == 4
        seals = set()
        for node in cluster.nodes:
            with node.client(username="alice", password="pw") as db:
                assert db.ping()
        for node in cluster.primaries:
            with node.client() as client:
                seals.add(admin.read_seal(client))
        assert None not in seals
        assert len(seals) == 1, "jobs move from node to node with their slots"
        # Submitting works as on one server: FCALL at the owner of the keys' slot.
        owner = cluster.owner("{alice}x")
        with owner.client() as client:
            made = Executor(owner)
            with made:
                name = next(f"m{n}" for n in range(1000) if cluster.owner(f"m{n}") is owner)
                store(client, name, models.affine())
                client.set("{alice}x", npy.to_bytes(X))
                with owner.client(username="alice", password="pw") as db:
                    tag = "alice"
                    ticket = f"ks:{{{tag}}}:t:c:1"
                    command = (
                        "FCALL", "AI_MODELEXECUTE", 2, "{alice}x", "{alice}y", name, "INPUTS", 1, "{alice}x",
                        "OUTPUTS", 1, "{alice}y", "TICKET", ticket, "ID", "c", 1, "USER", "alice",
                    )  # fmt: skip
                    job = send(db, *command)
                    assert db.blpop([ticket], 10) is not None
                    assert npy.decode(db.get("{alice}y")).tolist() == Y
                    assert send(db, "FCALL", "AI_CANCEL", 0, ticket, job) == 0
                    assert b"cluster" in send(db, "FCALL_RO", "AI_NODE", 0)
