"""`keyside cluster`, `status`, `doctor`, `install` and `info` on clusters, whole and broken."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import redis as redis_py
from click.testing import CliRunner, Result
from tests import models
from tests.executors import Executor
from tests.servers import Cluster, Kind, Server, find_binary, free_port, wait_until

from keyside.clients.cli.root import cli
from keyside.clients.cluster_dev import bus_port, running_cluster
from keyside.tensorstore import keys, library

KEYSIDE = [sys.executable, "-m", "keyside.clients.cli.main"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("KEYSIDE_", "REDIS_URL")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keyside(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(args), prog_name="keyside")
    assert result.exit_code == code, result.output
    return result


def read(*args: str, code: int = 0) -> Any:
    return json.loads(keyside(*args, "--json", code=code).stdout)


def address(node: Server) -> str:
    return f"127.0.0.1:{node.port}"


def problems(status: Any) -> set[tuple[str, str, str]]:
    """What is wrong by status, node and name."""
    return {(one["status"], one["node"], one["name"]) for one in status["problems"]}


def knows_replicas(cluster: Cluster, node: Server) -> bool:
    with node.client() as client:
        client.response_callbacks.clear()
        return bool(client.execute_command("CLUSTER", "NODES").count(b"slave ") == len(cluster.replicas))


@pytest.fixture(scope="module", params=get_args(Kind))
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    # A failover on a busy machine would be a fact like others, but not one that these tests expect.
    with Cluster(request.param, appendonly="yes", cluster_node_timeout=15_000) as cluster:
        for node in cluster.nodes:  # which of them are replicas is what they hear last
            wait_until(partial(knows_replicas, cluster, node), f"{node} knows the replicas", 40)
        yield cluster


@pytest.fixture
def installed(cluster: Cluster) -> Cluster:
    """The cluster with the library, its catalogs complete and empty."""
    cluster.load_library()
    for node in cluster.primaries:
        cluster.ask(node, "FLUSHALL")
        cluster.ask(node, "FCALL", "KS_MERGE", 0, "NEWER", 1)
    return cluster


@pytest.fixture
def executors(installed: Cluster) -> Iterator[list[Executor]]:
    """One beside each primary."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Executor(node)) for node in installed.primaries]


# --- install, info


def test_install_reaches_all_primaries_whichever_node_is_named(cluster: Cluster) -> None:
    replica = cluster.replicas[0]
    for url in (cluster.url, cluster.primaries[1].url_unix, replica.url_tcp, replica.url_unix):
        for node in cluster.primaries:
            cluster.ask(node, "FUNCTION", "FLUSH")
        assert "not loaded" in keyside("info", "--url", url).stdout
        result = read("install", "--url", url)
        assert [one["result"] for one in result["servers"]] == ["loaded"] * 3
        assert {one["server"] for one in result["servers"]} >= {
            address(node) for node in cluster.primaries if node.url_unix != url
        }
        for node in cluster.primaries:
            assert cluster.ask(node, "FCALL_RO", "KS_VERSION", 0)[0] == library.LIBRARY_VERSION


def test_info_of_one_node(installed: Cluster, executors: list[Executor]) -> None:
    shown = read("info", "--url", installed.primaries[0].url_tcp)
    assert [one["pid"] for one in shown["executors"]] == [executors[0].pid]
    assert shown["role"].startswith("primary in a cluster, of 5,461 slots, tag ")
    assert not shown["problems"]
    replica = read("info", "--url", installed.replicas[0].url_tcp)
    assert replica["role"].startswith(f"replica of {address(installed.primaries[0])}")
    assert not replica["problems"]


# --- status


def test_status_of_a_cluster_that_is_well(installed: Cluster, executors: list[Executor]) -> None:
    for url in (installed.url, installed.primaries[2].url_unix, installed.replicas[1].url_tcp):
        status = read("status", "--url", url)
        assert status["ok"]
        assert {one[0] for one in problems(status)} <= {"warn"}
        assert [one["role"] for one in status["nodes"]] == ["primary", "replica"] * 3
        assert [one["slot_count"] for one in status["nodes"]] == [5461, 0, 5461, 0, 5462, 0]
        for node, executor in zip(installed.primaries, executors, strict=True):
            found = next(one for one in status["nodes"] if one["address"] == address(node))
            assert found["tag"] == keys.slot_tag(found["slots"][0][0]).decode()
            assert (found["functions"], found["catalog"], found["library"]) == (
                "ok",
                "complete",
                library.LIBRARY_VERSION,
            )
            assert [one["pid"] for one in found["executors"]] == [executor.pid]
            assert [(queue["device"], queue["depth"]) for queue in found["queues"]] == [("CPU", 0)]
        replica = next(one for one in status["nodes"] if one["role"] == "replica")
        assert (replica["primary"], replica["link"], replica["standby"]) == (address(installed.primaries[0]), "up", 0)
        assert status["totals"]["executors"] == 3
    text = keyside("status", "--url", installed.url).stdout
    for node in installed.nodes:
        assert address(node) in text
    assert "state ok, 16384 of 16384 slots" in text
    assert "0/0 ready" in text
    # No executor of these tests stands by on the replicas.
    assert ("warn", address(installed.replicas[0]), "standby") in problems(status)


def test_status_names_what_is_missing(cluster: Cluster) -> None:
    for node in cluster.primaries:
        cluster.ask(node, "FLUSHALL")
        cluster.ask(node, "FUNCTION", "FLUSH")
    cluster.primaries[0].load_library()
    cluster.ask(cluster.primaries[0], "FCALL", "KS_MERGE", 0, "NEWER", 1)
    status = read("status", "--url", cluster.url, code=1)
    first, second = map(address, cluster.primaries[:2])
    assert {("fail", first, "executors"), ("fail", second, "executors"), ("fail", second, "library")} <= problems(
        status
    )
    assert ("fail", first, "library") not in problems(status)
    assert ("warn", second, "catalog") in problems(status)
    assert "0/0 (incomplete)" in keyside("status", "--url", cluster.url, code=1).stdout
    assert "no executor is alive: jobs wait" in keyside("status", "--url", cluster.url, code=1).stdout


def test_status_counts_jobs_of_all_priorities_and_those_that_came_with_a_slot(installed: Cluster) -> None:
    node = installed.primaries[0]
    own, other = (keys.NodeKeys(keys.slot_tag(slot)) for slot in (0, 17))
    with node.client() as db:
        for word in ("CPU", "CPU!H", "CPU!L"):
            db.xadd(own.queue(word), {"h": b"x"}, id="1-1")
        db.hset(other.catalog.decode(), "@", "1")
        db.xadd(other.jobs("CPU"), {"h": b"x"}, id="1-1")
        db.xadd(own.dead.decode(), {"reason": "DEADLETTER because"})
        db.hset(own.catalog.decode(), "m", json.dumps({"key": "m", "version": 1, "state": "ready", "device": "CPU"}))
    status = read("status", "--url", installed.url, code=1)
    found = status["nodes"][0]
    assert found["address"] == address(node)
    assert [(queue["device"], queue["depth"]) for queue in found["queues"]] == [("CPU", 3)]
    assert found["queues"][0]["oldest_ms"] > 1_000_000
    assert [(queue["tag"], queue["device"], queue["depth"]) for queue in found["moved"]] == [
        (other.tag.decode(), "CPU", 1)
    ]
    assert (status["totals"]["jobs"], status["totals"]["dead"]) == (4, 1)
    assert {("warn", address(node), "moved queue"), ("warn", address(node), "dead letters")} <= problems(status)


def test_status_shows_where_catalogs_differ(installed: Cluster) -> None:
    home = installed.owner("m")
    others = [node for node in installed.primaries if node is not home]
    installed.ask(home, "FCALL", "AI_MODELSTORE", 1, "m", "ONNX", "CPU", "BLOB", models.affine())
    status = read("status", "--url", installed.url, code=1)
    assert {(one["node"], one["what"]) for one in status["catalog_differences"]} == {
        (address(node), "missing") for node in others
    }
    assert {("warn", address(node), "catalog") for node in others} <= problems(status)
    assert f"lacks 'm' (home: {address(home)})" in keyside("status", "--url", installed.url, code=1).stdout
    model = installed.ask(home, "FCALL_RO", "KS_CATALOG", 0, 0, 100)[3][0]
    for node in others:
        name, rev, tag, records = model
        installed.ask(node, "FCALL", "KS_MERGE", 0, "NEWER", 1, name, rev, tag, len(records), *records)
    assert not read("status", "--url", installed.url, code=1)["catalog_differences"]
    installed.ask(home, "FCALL", "AI_MODELDEL", 1, "m")
    differences = read("status", "--url", installed.url, code=1)["catalog_differences"]
    assert {(one["node"], one["what"]) for one in differences} == {(address(node), "gone") for node in others}


def test_status_of_a_single_server(executor: Executor, url: str) -> None:
    status = read("status", "--url", url)
    assert status["ok"]
    assert not status["clustered"]
    assert not status["problems"]
    (node,) = status["nodes"]
    assert [one["pid"] for one in node["executors"]] == [executor.pid]
    assert "all is well" in keyside("status", "--url", url).stdout


def test_watch_shows_it_again_and_again(url: str, executor: Executor) -> None:
    command = [*KEYSIDE, "status", "--watch", "0.2", "--json", "--url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            seen = [json.loads(process.stdout.readline()) for _ in range(3)]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert [one["ok"] for one in seen] == [True] * 3
    assert seen[0]["time"] < seen[1]["time"] < seen[2]["time"]


def test_a_server_that_does_not_answer() -> None:
    result = keyside("status", "--url", "redis://127.0.0.1:1", code=1)
    assert result.stderr.startswith("UNREACHABLE")


# --- broken clusters


@pytest.mark.parametrize("kind", get_args(Kind))
def test_with_a_node_down_the_others_are_shown(kind: Kind) -> None:
    with Cluster(kind, primaries=3, replicas=1) as cluster:
        cluster.load_library()
        lost, kept = cluster.primaries[1], cluster.primaries[0]
        lost.pause()  # first it hangs, then it is down: the cluster notices both late
        status = read("status", "--url", kept.url_tcp, code=1)
        found = {one["address"]: one for one in status["nodes"]}
        assert [found[address(node)]["reachable"] for node in cluster.primaries] == [True, False, True]
        assert ("fail", address(lost), "node") in problems(status)
        lost.resume()
        lost.kill()
        wait_until(
            lambda: ("fail", "", "slots") in problems(read("status", "--url", kept.url_tcp, code=1)), "slots are lost"
        )
        text = keyside("status", "--url", kept.url_tcp, code=1).stdout
        assert "primary, down" in text
        assert "5,461 slots belong to nodes that are down (5461-10921)" in text
        doctor = read("doctor", "--url", kept.url_tcp, code=1)
        checked = {(check["status"], check["node"], check["name"]) for check in doctor["checks"]}
        assert {("fail", "", "slots"), ("fail", address(lost), "node"), ("ok", address(kept), "server")} <= checked
        # The others get the library; that one does not is an error.
        for node in (kept, cluster.primaries[2]):
            cluster.ask(node, "FUNCTION", "FLUSH")
        failed = keyside("install", "--url", kept.url_tcp, code=1)
        assert failed.stderr.splitlines()[-1].startswith("UNREACHABLE")
        assert str(lost.port) in failed.stderr.splitlines()[-1]
        for node in (kept, cluster.primaries[2]):
            assert cluster.ask(node, "FCALL_RO", "KS_VERSION", 0)[0] == library.LIBRARY_VERSION


def test_a_node_that_was_replaced_is_no_primary(here: Path) -> None:
    with Cluster("redis", primaries=3, replicas=1) as cluster:
        cluster.load_library()
        lost, stand_in = cluster.primaries[0], cluster.replicas[0]
        lost.kill()
        url = stand_in.url_tcp

        def promoted() -> bool:
            status = read("status", "--url", url, code=1)
            return bool(
                status["state"] == "ok" and status["totals"]["primaries"] == 3 and status["totals"]["replicas"] == 0
            )

        wait_until(promoted, "the replica is promoted", 30)
        status = read("status", "--url", url, code=1)
        assert ("warn", address(lost), "node") in problems(status)
        assert ("fail", "", "slots") not in problems(status)
        assert (
            "cluster of 3 primaries, 0 replicas and 1 node without slots"
            in keyside("status", "--url", url, code=1).stdout
        )
        assert ("warn", address(stand_in), "replicas") in problems(status)


CROSS_SLOT = """#!lua name=bad
redis.register_function{function_name = 'bad', flags = {'allow-cross-slot-keys'}, callback = function(_, args)
  return redis.pcall('COPY', args[1], args[2])
end}"""


def test_a_node_whose_functions_are_broken() -> None:
    with Cluster("valkey", primaries=3, replicas=0) as cluster:
        cluster.load_library()
        broken, well = cluster.primaries[0], cluster.primaries[1]
        one, two = (f"{{{keys.slot_tag(slot).decode()}}}" for slot in (5, 6))
        with broken.client() as db:
            db.function_load(CROSS_SLOT)
            with pytest.raises(redis_py.ResponseError):
                db.execute_command("FCALL", "bad", 0, one, two)
        status = read("status", "--url", cluster.url, code=1)
        assert ("fail", address(broken), "functions") in problems(status)
        assert ("fail", address(well), "functions") not in problems(status)
        assert [node["functions"] for node in status["nodes"]] == ["broken", "ok", "ok"]
        doctor = read("doctor", "--url", well.url_tcp, code=1)
        (found,) = [check for check in doctor["checks"] if check["name"] == "functions"]
        assert (found["node"], found["status"]) == (address(broken), "fail")
        assert "restart this server" in found["fix"]
        broken.restart()  # nothing was kept on disk: it has lost the library, and is well
        well_again = read("status", "--url", well.url_tcp, code=1)
        assert ("fail", address(broken), "functions") not in problems(well_again)


# --- doctor


def test_the_doctor_looks_at_every_node(installed: Cluster, executors: list[Executor]) -> None:
    doctor = read("doctor", "--url", installed.url)
    assert doctor["ok"]
    assert {check["node"] for check in doctor["checks"]} == {"", *map(address, installed.nodes)}
    wrong = {(check["name"], check["node"]) for check in doctor["checks"] if check["status"] != "ok"}
    assert wrong == {("standby", address(node)) for node in installed.replicas}
    text = keyside("doctor", "--url", installed.url).stdout
    assert "cluster of 3 primaries, 3 replicas" in text
    assert "executor " not in "".join(line for line in text.splitlines() if line.startswith("ok"))
    assert len(keyside("doctor", "--all", "--url", installed.url).stdout) > len(text)


def test_the_doctor_finds_the_node_that_evicts(installed: Cluster) -> None:
    node = installed.replicas[0]
    installed.ask(node, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        doctor = read("doctor", "--url", installed.url, code=1)
    finally:
        installed.ask(node, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    found = {check["node"]: check for check in doctor["checks"] if check["name"] == "eviction"}
    assert found[address(node)]["status"] == "fail"
    assert "models" in found[address(node)]["text"]
    assert "noeviction" in found[address(node)]["fix"]
    assert {check["status"] for at, check in found.items() if at != address(node)} == {"ok"}


def test_the_doctor_on_what_a_failure_would_cost(installed: Cluster) -> None:
    checks = {check["name"]: check for check in read("doctor", "--url", installed.url, code=1)["checks"]}
    assert checks["coverage"]["status"] == "ok"
    assert "min-replicas-to-write is 0" in checks["durability"]["text"]
    with Cluster("redis", primaries=3, replicas=0) as bare:
        found = read("doctor", "--url", bare.url, code=1)["checks"]
    assert [(check["status"], check["name"]) for check in found if check["name"] == "coverage"] == [
        ("warn", "coverage")
    ]
    assert sum(check["name"] == "replicas" for check in found) == 3
    assert sum(check["name"] == "persistence" and check["status"] == "warn" for check in found) == 3


# --- keyside cluster


def free_base(count: int) -> int:
    """The first of that many ports in a row that are free now, and so are those of the bus."""
    while True:
        base = free_port()
        if bus_port(base + count) >= 32_000:  # those are given to outgoing connections
            continue
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            for port in range(base, base + count):
                for one in (port, bus_port(port)):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", one))
            return base


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Dev:
    """A `keyside cluster` in a folder; a context manager."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.log = folder / "cluster.log"
        env = {name: text for name, text in os.environ.items() if not name.startswith(("KEYSIDE_", "REDIS_URL"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*KEYSIDE, "cluster", "--json", *args], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log
            )
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> "Dev":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.communicate()

    def ready(self) -> "Dev":
        """Wait until it says that it is up."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.said()
        self.facts = json.loads(line)
        return self

    def said(self) -> str:
        return self.log.read_text()

    def pids(self) -> list[int]:
        """Of all that it started."""
        return [pid for node in self.facts["nodes"] for pid in (node["pid"], *node["executor_pids"])]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop and wait for its end."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        for pid in self.pids():
            wait_until(lambda pid=pid: not alive(pid), f"the end of {pid}")  # type: ignore[misc]
        return code


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_cluster_in_one_command_and_again_after_a_restart(kind: Kind, tmp_path: Path) -> None:
    base = free_base(6)
    binary = str(find_binary(kind, tmp_path))
    with Dev(tmp_path, "--port-base", str(base), "--server-bin", binary) as dev:
        facts = dev.ready().facts
        assert [node["role"] for node in facts["nodes"]] == ["primary"] * 3 + ["replica"] * 3
        assert facts["url"] == f"redis://127.0.0.1:{base}"
        # In its folder the other commands find it by themselves.
        status = read("status")
        assert (status["state"], status["totals"]["executors"]) == ("ok", 3)
        assert [one["library"] for one in status["nodes"]] == [library.LIBRARY_VERSION] * 6
        ids = {one["address"]: one["id"] for one in status["nodes"]}
        with redis_py.RedisCluster.from_url(facts["url"]) as db:
            db.set("kept", "1")
        assert dev.stop() == 0
    assert running_cluster(tmp_path / "keyside-cluster") == ""
    # What it was is known: nothing has to be said again.
    with Dev(tmp_path, "--server-bin", binary) as dev:
        facts = dev.ready().facts
        assert {one["address"]: one["id"] for one in read("status")["nodes"]} == ids
        with redis_py.RedisCluster.from_url(facts["url"]) as db:
            assert db.get("kept") == b"1"
        assert dev.stop(signal.SIGINT) == 0
    assert "Traceback" not in dev.said()
    assert dev.said().count("joining 3 primaries and 3 replicas") == 1


def test_what_dies_is_started_again(tmp_path: Path) -> None:
    with Dev(tmp_path, "--port-base", str(free_base(3)), "--replicas", "0", "--executors", "2") as dev:
        nodes = dev.ready().facts["nodes"]
        assert [len(node["executor_pids"]) for node in nodes] == [2, 2, 2]
        os.kill(nodes[0]["executor_pids"][0], signal.SIGKILL)
        os.kill(nodes[1]["pid"], signal.SIGKILL)
        wait_until(lambda: "ended with signal SIGKILL; it is started again (log:" in dev.said(), "the server is missed")

        def whole() -> bool:
            result = CliRunner().invoke(cli, ["status", "--json"])
            status: Any = json.loads(result.stdout) if result.stdout else {"ok": False}
            pids = {one["pid"] for node in status.get("nodes", ()) for one in node["executors"]}
            return bool(status["ok"] and len(pids) == 6 and nodes[0]["executor_pids"][0] not in pids)

        wait_until(whole, "all is well again", 40)
        assert f"executor {nodes[0]['url_tcp'].rpartition(':')[2]}-1 ended with signal SIGKILL" in dev.said()
        dev.process.send_signal(signal.SIGTERM)
        assert dev.process.wait(60) == 0


def test_data_of_another_cluster_and_ports_that_are_taken(tmp_path: Path) -> None:
    base = free_base(4)
    args = ("--primaries", "1", "--replicas", "0", "--executors", "0", "--port-base")
    with Dev(tmp_path, *args, str(base)) as dev:
        assert dev.ready().facts["nodes"][0]["executor_pids"] == []
        with Dev(tmp_path, *args, str(base)) as second:
            assert second.process.wait(30) == 1
        assert "INUSE" in second.said()
        with Dev(tmp_path, *args, str(base), "--data-dir", "other") as third:
            assert third.process.wait(30) == 1
        assert f"NOSERVER port {base} of 127.0.0.1 is in use: choose others with --port-base" in third.said()
        assert dev.stop() == 0
    with Dev(tmp_path, "--primaries", "3") as other:
        assert other.process.wait(30) == 1
    assert "holds a cluster of 1 primaries and 0 replicas from port" in other.said()


def test_options_that_each_executor_would_need_for_itself(tmp_path: Path) -> None:
    assert "each executor of a cluster needs another" in keyside("cluster", "--name", "x", code=2).stderr
    assert keyside("cluster", "--port-base", "80", code=2).exit_code == 2
