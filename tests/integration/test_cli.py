"""The command line against real servers with a real executor."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from click.testing import CliRunner, Result
from tests import models
from tests.executors import Executor
from tests.servers import Cluster, Server, wait_until

from keyside.clients.cli.root import cli
from keyside.tensorstore import library, npy

Keyside = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("KEYSIDE_", "REDIS_URL")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def keyside(here: Path, url: str, db: redis_py.Redis) -> Keyside:
    """Runs a command on the server, and checks how it ends."""

    def run(*args: str, code: int = 0, data: bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, ["--url", url, *args], prog_name="keyside", input=data)
        assert result.exit_code == code, result.output
        return result

    return run


def read(result: Result) -> Any:
    return json.loads(result.stdout)


@pytest.fixture
def affine(here: Path) -> str:
    (here / "affine.onnx").write_bytes(models.affine())
    return "affine.onnx"


# --- tensors


def test_set_and_get(keyside: Keyside, db: redis_py.Redis, here: Path) -> None:
    result = keyside("tensor", "set", "x", "5.1", "-3.5", "1.4", "0.2", "--shape", "1,4")
    assert (result.stdout, result.stderr) == ("", "x: FLOAT [1, 4], 16 B\n")
    array = np.array([[5.1, -3.5, 1.4, 0.2]], "f4")
    raw = db.get("x")
    assert isinstance(raw, bytes)
    np.testing.assert_array_equal(npy.decode(raw), array)
    assert keyside("tensor", "get", "x").stdout_bytes == raw
    assert read(keyside("tensor", "get", "x", "--json")) == {
        "key": "x",
        "dtype": "FLOAT",
        "shape": [1, 4],
        "values": [[5.1, -3.5, 1.4, 0.2]],
    }
    assert keyside("tensor", "get", "x", "--format", "csv").stdout == "5.1,-3.5,1.4,0.2\n"
    assert keyside("tensor", "get", "x", "--format", "text").stdout.startswith("FLOAT [1, 4]\n[[")
    keyside("tensor", "get", "x", "-o", "x.npy")
    np.testing.assert_array_equal(np.load(here / "x.npy"), array)


def test_set_from_files_and_stdin(keyside: Keyside, db: redis_py.Redis, here: Path) -> None:
    array = np.arange(6, dtype="i4").reshape(2, 3)
    np.save(here / "a.npy", array)
    keyside("tensor", "set", "npy", "@a.npy")
    keyside("tensor", "set", "stdin", "@-", data=(here / "a.npy").read_bytes())
    keyside("tensor", "set", "csv", "@-", "--dtype", "INT32", data=b"0,1,2\n3,4,5\n")
    keyside("tensor", "set", "json", "@-", "--dtype", "INT32", data=b"[[0,1,2],[3,4,5]]")
    for key in ("npy", "stdin", "csv", "json"):
        raw = db.get(key)
        assert isinstance(raw, bytes)
        assert npy.decode(raw).dtype == np.int32
        np.testing.assert_array_equal(npy.decode(raw), array)


def test_time_to_live_and_show(keyside: Keyside, db: redis_py.Redis) -> None:
    keyside("tensor", "set", "x", "1", "nan", "inf", "3", "--ex", "100")
    assert 95_000 < int(db.pttl("x")) <= 100_000
    shown = read(keyside("tensor", "show", "x", "--json"))
    assert 95_000 < shown.pop("ttl_ms") <= 100_000
    assert shown == {
        "key": "x", "dtype": "FLOAT", "shape": [4], "bytes": 16, "first": [1, "nan", "inf", 3],
        "min": 1, "max": 3, "mean": 2, "nan": 1, "inf": 1,
    }  # fmt: skip
    assert "ttl      none" in keyside("tensor", "show", keyside("tensor", "set", "s", "a") and "s").stdout


def test_list_and_remove(keyside: Keyside, db: redis_py.Redis) -> None:
    assert keyside("tensor", "ls").stderr == "no tensors\n"
    for key in ("a:2", "a:1", "b"):
        keyside("tensor", "set", key, "1")
    db.set("text", "no tensor")
    assert keyside("tensor", "ls").stdout == "a:1\na:2\nb\n"
    assert keyside("tensor", "ls", "a:").stdout == "a:1\na:2\n"
    assert read(keyside("tensor", "ls", "-l", "--json", "b")) == [
        {"key": "b", "dtype": "INT64", "shape": [1], "bytes": 8}
    ]
    assert "WRONGTYPE" in keyside("tensor", "rm", "b", "text", code=1).stderr
    assert "NOTENSOR" in keyside("tensor", "rm", "b", "none", code=1).stderr
    assert db.exists("b", "text") == 2
    assert read(keyside("tensor", "rm", "a:1", "b", "--json")) == {"removed": 2}
    assert keyside("tensor", "ls").stdout == "a:2\n"


# --- models


def test_a_model_from_file_to_result(keyside: Keyside, executor: Executor, affine: str, here: Path) -> None:
    stored = read(keyside("model", "put", "m", affine, "--tag", "first", "--batch-size", "8", "--json"))
    assert (stored["target"], stored["state"], stored["tag"], stored["batchsize"]) == ("m@1", "ready", "first", 8)
    assert keyside("model", "put", "m", affine, "--tag", "first", "--batch-size", "8").stdout.startswith("m@1: ready")
    assert keyside("model", "put", "m", affine).stdout.startswith("m@2: ready")
    expected = [[3.0, 5.0, 7.0, 9.0]]
    keyside("tensor", "set", "x", "1", "2", "3", "4", "--shape", "1,4", "--dtype", "FLOAT")
    (here / "x.csv").write_text("1,2,3,4\n")
    for given in ("[[1, 2, 3, 4]]", "x=[[1, 2, 3, 4]]", "@x.csv", "x=@x.csv", "key:x", "x=key:x"):
        for target in ("m", "m@1"):
            result = read(keyside("run", target, "--input", given, "--json"))
            assert result == {
                "target": target,
                "outputs": {"y": {"dtype": "FLOAT", "shape": [1, 4], "values": expected}},
            }
    keyside("run", "m", "-i", "key:x", "-o", "out")
    assert read(keyside("tensor", "get", "out", "--json"))["values"] == expected
    keyside("run", "m", "-i", "@x.csv", "-o", "key:out2")
    assert read(keyside("tensor", "get", "out2", "--json"))["values"] == expected
    keyside("run", "m", "-i", "key:x", "-o", "@y.npy")
    np.testing.assert_array_equal(np.load(here / "y.npy"), np.array(expected, "f4"))
    assert keyside("run", "m", "-i", "key:x").stdout == "y: FLOAT [1, 4]\n[[3. 5. 7. 9.]]\n"

    listed = read(keyside("model", "ls", "--json"))
    assert [(one["name"], one["default"], len(one["versions"])) for one in listed] == [("m", 2, 2)]
    shown = read(keyside("model", "show", "m", "--json"))
    assert shown["versions"][0]["stats"]["calls"] == 6
    assert "input  x  FLOAT  [?, 4]" in keyside("model", "show", "m").stdout
    assert "6 calls" in keyside("model", "show", "m@1").stdout
    keyside("model", "rm", "m@1")
    assert [one["version"] for one in read(keyside("model", "show", "m", "--json"))["versions"]] == [2]
    keyside("model", "rm", "m")
    assert "NOMODEL" in keyside("model", "show", "m", code=1).stderr
    assert keyside("model", "ls").stderr.startswith("no models")


def test_a_model_with_several_inputs(keyside: Keyside, executor: Executor, here: Path) -> None:
    (here / "two.onnx").write_bytes(models.two_outputs())
    keyside("model", "put", "two", "two.onnx")
    keyside("tensor", "set", "b", "3", "4", "--shape", "1,2", "--dtype", "FLOAT")
    result = read(keyside("run", "two", "-i", "b=key:b", "-i", "a=[[1,2]]", "--json"))
    assert result["outputs"]["difference"]["values"] == [[-2, -2]]
    keyside("run", "two", "-i", "[[1,2]]", "-i", "key:b", "-o", "s", "-o", "d")
    assert read(keyside("tensor", "get", "d", "--json"))["values"] == [[-2, -2]]
    keyside("run", "two", "-i", "[[1,2]]", "-i", "key:b", "-o", "@s.json", "-o", "@d.csv")
    assert (here / "d.csv").read_text() == "-2.0,-2.0\n"
    assert "BADINPUT" in keyside("run", "two", "-i", "[[1,2]]", code=1).stderr
    assert "BADINPUT" in keyside("run", "two", "-i", "a=[[1,2]]", "-i", "c=[[1,2]]", code=1).stderr


def test_what_goes_wrong_with_models(keyside: Keyside, executor: Executor, affine: str, here: Path) -> None:
    (here / "bad.onnx").write_bytes(models.garbage())
    result = keyside("model", "put", "bad", "bad.onnx", code=1)
    assert result.stderr.startswith("MODELFAILED bad@1: BADMODEL")
    assert not result.stdout
    assert "bad@1: failed" in keyside("model", "show", "bad").stdout
    assert "MODELFAILED" in keyside("run", "bad", "-i", "1", code=1).stderr
    assert "NOMODEL" in keyside("run", "none", "-i", "1", code=1).stderr
    keyside("model", "put", "m", affine)
    assert "BADSHAPE" in keyside("run", "m", "-i", "[1, 2]", code=1).stderr
    assert "BADVALUE" in keyside("run", "m", "-i", '[["a"]]', code=1).stderr
    assert "NOTENSOR" in keyside("run", "m", "-i", "key:none", code=1).stderr
    assert "not a JSON object" in keyside("model", "put", "m", affine, "--options", "[]", code=2).stderr


def test_without_an_executor_the_wait_is_explained(keyside: Keyside, db: redis_py.Redis, affine: str) -> None:
    result = keyside("model", "put", "m", affine, "--device", "NONE", "--timeout", "0.2", code=1)
    assert "none does now (keyside executor)" in result.stderr
    assert "TIMEDOUT" in result.stderr
    assert read(keyside("model", "put", "m", affine, "--device", "NONE", "--no-wait", "--json"))["state"] == "loading"
    checks = {check["name"]: check for check in read(keyside("doctor", "--json", code=1))["checks"]}
    assert checks["queue NONE"]["status"] == "fail"
    assert "--devices NONE" in checks["queue NONE"]["fix"]
    db.flushall()  # nobody will ever take that load job


def test_limits(keyside: Keyside, executor: Executor, affine: str) -> None:
    keyside("model", "put", "m", affine)
    assert "rate any" in keyside("model", "limits", "m").stdout
    keyside("model", "limits", "m", "--jobs", "5", "--rate", "100/0.5", "--user-rate", "3")
    shown = read(keyside("model", "limits", "m", "--json"))
    assert (shown["jobs"], shown["rate"], shown["user_rate"]) == (5, [100, 0.5], [3, 1.0])
    assert "rate 100 in 0.5 s" in keyside("model", "limits", "m").stdout
    keyside("model", "limits", "m", "--jobs", "0")
    assert read(keyside("model", "limits", "m", "--json"))["rate"] is None
    assert read(keyside("model", "limits", "--json"))["jobs"] == 10_000
    keyside("model", "limits", "--jobs", "7")
    assert read(keyside("model", "limits", "--json"))["jobs"] == 7
    keyside("model", "limits", "m", "--rate", "many", code=2)
    assert "NOMODEL" in keyside("model", "limits", "none", code=1).stderr


# --- servers


def test_install(keyside: Keyside, db: redis_py.Redis) -> None:
    db.function_flush()
    assert "NOLIBRARY" in keyside("model", "ls", code=1).stderr
    result = read(keyside("install", "--json"))
    assert (result["version"], result["servers"][0]["result"]) == (library.LIBRARY_VERSION, "loaded")
    assert read(keyside("install", "--json"))["servers"][0]["result"] == "present"
    assert read(keyside("install", "--force", "--json"))["servers"][0]["result"] == "replaced"
    newer = library.source().replace(f"number = '{library.LIBRARY_VERSION}'", "number = '999'")
    db.function_load(newer, replace=True)
    assert read(keyside("info", "--json"))["library"]["version"] == 999
    assert read(keyside("install", "--json"))["servers"][0]["result"] == "newer"
    keyside("install", "--force")
    assert read(keyside("info", "--json"))["library"]["version"] == library.LIBRARY_VERSION


def test_info_and_doctor(keyside: Keyside, executor: Executor, server: Server, db: redis_py.Redis) -> None:
    info = read(keyside("info", "--json"))
    assert info["server"]["kind"] == server.kind
    assert [one["pid"] for one in info["executors"]] == [executor.pid]
    assert info["queues"][0] == {
        "device": "CPU", "depth": 0, "claimed": 0, "bytes": 0, "oldest_ms": None, "executors": 1,
    }  # fmt: skip
    assert not info["problems"]
    assert "EXECUTOR" in keyside("info").stdout
    doctor = read(keyside("doctor", "--json"))
    assert doctor["ok"]
    found = {check["name"]: check["status"] for check in doctor["checks"]}
    assert found.pop("persistence") == "warn"  # the tests' servers keep nothing on disk
    assert set(found.values()) == {"ok"}
    assert "warn  persistence" in keyside("doctor").stdout


def test_the_doctor_sees_what_is_set_wrong(keyside: Keyside, executor: Executor, db: redis_py.Redis) -> None:
    db.config_set("maxmemory", "100gb")
    db.config_set("maxmemory-policy", "allkeys-lru")
    db.config_set("hz", "1")
    db.xadd("ks:{0}:dead", {"reason": "DEADLETTER because"})
    try:
        found = {check["name"]: check for check in read(keyside("doctor", "--json", code=1))["checks"]}
    finally:
        db.config_set("maxmemory", "0")
        db.config_set("maxmemory-policy", "noeviction")
        db.config_set("hz", "10")
    assert found["eviction"]["status"] == "fail"
    assert found["hz"]["status"] == "warn"
    assert "DEADLETTER because" in found["dead letters"]["text"]


def test_a_user_without_rights(keyside: Keyside, server: Server, db: redis_py.Redis) -> None:
    db.acl_setuser("weak", enabled=True, passwords=["+pw"], keys=["*"], commands=["+ping", "+info", "+client"])
    url = f"redis://weak:pw@127.0.0.1:{server.port}"
    try:
        result = keyside("doctor", "--json", "--url", url, code=1)
        wrong = keyside("doctor", "--json", "--url", url.replace(":pw@", ":no@"), code=1)
        assert "NOPERM" in keyside("model", "ls", "--url", url, code=1).stderr
    finally:
        db.acl_deluser("weak")
    assert ":pw@" not in result.output
    found = {check["name"]: check for check in read(result)["checks"]}
    assert found["library"]["status"] == "fail"
    assert "NOPERM" in found["library"]["text"]
    assert found["executors"]["status"] == "warn"
    assert read(wrong)["checks"][0]["status"] == "fail"
    assert "redis://user:password@host" in read(wrong)["checks"][0]["fix"]


@pytest.mark.slow
def test_install_reaches_every_primary_of_a_cluster(here: Path) -> None:
    with Cluster("redis", primaries=3, replicas=0) as cluster:
        result = CliRunner().invoke(cli, ["install", "--json", "--url", cluster.url])
        assert result.exit_code == 0, result.output
        assert [one["result"] for one in read(result)["servers"]] == ["loaded"] * 3
        for node in cluster.primaries:
            assert cluster.ask(node, "FCALL_RO", "KS_VERSION", 0)[0] == library.LIBRARY_VERSION
        doctor = CliRunner().invoke(cli, ["doctor", "--json", "--url", cluster.url])
        assert {check["name"] for check in read(doctor)["checks"]} >= {"slots", "library", "executors"}


# --- as a process


def test_the_executor_command_serves_and_stops(keyside: Keyside, server: Server, affine: str) -> None:
    command = [sys.executable, "-m", "keyside.clients.cli.main", "executor", "--name", "mine", "--devices", "TEST"]
    env = os.environ | {"REDIS_URL": server.url_tcp}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:

        def serving() -> bool:
            assert process.poll() is None
            return "mine" in [one["name"] for one in read(keyside("info", "--json"))["executors"]]

        wait_until(serving, "the executor is listed")
        keyside("model", "put", "m", affine, "--device", "TEST")
        assert "y: FLOAT" in keyside("run", "m", "-i", "[[1,2,3,4]]").stdout
        process.terminate()
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (0, b"")


def test_the_upload_shows_its_progress_on_a_terminal(url: str, executor: Executor, affine: str, here: Path) -> None:
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "keyside.clients.cli.main", "--url", url, "model", "put", "m", affine, "--json"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, timeout=60)
        said = os.read(main, 65_536).decode()
    finally:
        os.close(main)
        os.close(terminal)
    assert done.returncode == 0, said
    assert json.loads(done.stdout)["target"] == "m@1"
    size = (here / affine).stat().st_size
    assert f"{size}/{size} bytes" in said


def test_output_that_nobody_reads(keyside: Keyside, url: str, here: Path) -> None:
    for number in range(200):
        keyside("tensor", "set", f"key-with-a-long-name-{number:04}", "1")
    code = f"{sys.executable} -m keyside.clients.cli.main tensor ls --url {url} | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {code}"], capture_output=True, text=True, timeout=30)
    assert done.stdout == "key-with-a-long-name-0000\n"
    assert "Traceback" not in done.stderr
