"""The embedded server, and `keyside up` as a process: starting, serving, dying in all ways, stopping."""

import json
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import redis as redis_py
from click.testing import CliRunner
from tests import models
from tests.servers import Server, find_binary, free_port, wait_until

from keyside.clients.child import Child
from keyside.clients.cli.root import cli
from keyside.clients.server import DataInUse, EmbeddedServer, NoServer, running

KEYSIDE = [sys.executable, "-m", "keyside.clients.cli.main"]


@pytest.fixture(params=["redis", "valkey"])
def server_bin(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return find_binary(request.param, tmp_path)


def environment(**more: str) -> dict[str, str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("KEYSIDE_", "REDIS_URL"))}
    return clean | more


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def keyside(folder: Path, *args: str) -> Any:
    """Run a command on the `keyside up` of a folder."""
    variables = {"KEYSIDE_URL": None, "REDIS_URL": None, "KEYSIDE_DATA_DIR": str(folder / "keyside-data")}
    result = CliRunner(env=variables).invoke(cli, [*args, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class Up:
    """A `keyside up`.

    Args:
        folder: it runs in.
        args: further arguments.
        env: further variables.
    """

    def __init__(self, folder: Path, *args: str, **env: str) -> None:
        self.folder = folder
        self.log = folder / "up.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*KEYSIDE, "up", "--json", *args],
                cwd=folder, env=environment(**env), stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        finally:
            self.process.kill()
            self.process.communicate()

    def ready(self) -> Self:
        """Wait until it says that it is up."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(40), self.said()
        line = self.process.stdout.readline()
        assert line, self.said()
        self.facts = json.loads(line)
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop and wait for its end."""
        self.process.send_signal(number)
        code = self.process.wait(40)
        assert not alive(self.facts["executor_pid"])
        assert not alive(self.facts.get("server_pid", 0))
        return code

    def said(self) -> str:
        return self.log.read_text()

    @property
    def db(self) -> redis_py.Redis:
        return redis_py.Redis.from_url(self.facts["url"], socket_timeout=20)

    def executor_pids(self) -> list[int]:
        return [one["pid"] for one in keyside(self.folder, "info")["executors"]]


def test_from_nothing_to_a_prediction_and_again_after_a_restart(tmp_path: Path, server_bin: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(models.affine())
    port = free_port()
    args = ("--server-bin", str(server_bin), "--port", str(port), "--maxmemory", "200mb")
    with Up(tmp_path, *args) as up:
        facts = up.ready().facts
        assert facts["url_tcp"] == f"redis://127.0.0.1:{port}"
        with redis_py.Redis(port=port) as tcp:
            settings = {
                name: tcp.config_get(name)[name]
                for name in ("appendonly", "maxmemory-policy", "maxmemory", "save", "bind")
            }
        assert settings == {
            "appendonly": "yes", "maxmemory-policy": "noeviction", "maxmemory": "209715200", "save": "",
            "bind": "127.0.0.1",
        }  # fmt: skip
        path = Path(facts["url"].removeprefix("unix://"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "keyside-data").stat().st_mode) == 0o700
        keyside(tmp_path, "model", "put", "m", str(tmp_path / "m.onnx"))
        keyside(tmp_path, "tensor", "set", "x", "1", "2", "3", "4", "--shape", "1,4", "--dtype", "FLOAT")
        # In its folder the other commands find it by themselves.
        subprocess.run([*KEYSIDE, "doctor"], cwd=tmp_path, env=environment(), timeout=60, check=True)
        assert up.stop() == 0
    assert not path.exists()
    assert running(tmp_path / "keyside-data") == ""
    with Up(tmp_path, *args) as up:
        up.ready()
        outputs = keyside(tmp_path, "run", "m", "-i", "key:x")["outputs"]
        assert outputs["y"]["values"] == [[3, 5, 7, 9]]
        assert up.stop(signal.SIGINT) == 0
    assert "Traceback" not in up.said()


def test_it_tells_how_to_connect(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [*KEYSIDE, "up", "--port", str(port)],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    text = ""
    try:
        for line in process.stdout:
            text += line
            if "Ctrl-C" in line:
                break
        process.terminate()
        process.wait(40)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert f"redis-cli -p {port}" in text
    assert f"redis-cli -s {tmp_path}/keyside-data/run/keyside.sock" in text
    assert f"keyside.Client('redis://127.0.0.1:{port}')" in text


def test_it_survives_the_death_of_its_executor_and_of_its_server(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(models.affine())
    with Up(tmp_path, "--port", "0") as up:
        facts = up.ready().facts
        assert facts["url_tcp"] == ""
        keyside(tmp_path, "model", "put", "m", str(tmp_path / "m.onnx"))
        os.kill(facts["executor_pid"], signal.SIGKILL)

        def another() -> bool:
            return bool(set(up.executor_pids()) - {facts["executor_pid"]})

        wait_until(another, "another executor serves", 30)
        assert "y" in keyside(tmp_path, "run", "m", "-i", "[[1,2,3,4]]")["outputs"]
        with up.db as db:
            db.set("kept", "1")
        os.kill(facts["server_pid"], signal.SIGKILL)
        wait_until(lambda: "the server ended with signal SIGKILL" in up.said(), "the death of the server is noticed")

        def back() -> bool:
            try:
                with up.db as db:
                    return bool(db.ping())
            except redis_py.ConnectionError:
                return False

        wait_until(back, "the server is back")
        with up.db as db:
            assert db.get("kept") == b"1"
        assert "y" in keyside(tmp_path, "run", "m", "-i", "[[1,2,3,4]]")["outputs"]
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(40) == 0
    assert "the executor ended with signal SIGKILL; it is started again in 0.5 s" in up.said()


def test_what_it_started_dies_with_it(tmp_path: Path) -> None:
    with Up(tmp_path, "--port", "0") as up:
        facts = up.ready().facts
        up.process.kill()
        # The directory is in use until the server has gone, and the next one waits for that.
        with Up(tmp_path, "--port", "0") as second:
            assert second.ready().stop() == 0
        for name in ("server_pid", "executor_pid"):
            wait_until(lambda pid=facts[name]: not alive(pid), f"the end of {name}", 40)  # type: ignore[misc]


def test_two_on_one_directory(tmp_path: Path) -> None:
    with Up(tmp_path, "--port", "0") as up:
        up.ready()
        with Up(tmp_path, "--port", "0") as second:
            assert second.process.wait(30) == 1
        assert f"INUSE data directory {tmp_path}/keyside-data is in use by process {up.process.pid}" in up.said()
        assert up.stop() == 0


def test_a_server_that_was_named_is_used(tmp_path: Path, redis: Server) -> None:
    for env, args in (({"REDIS_URL": redis.url_unix}, ()), ({}, ("--url", redis.url_tcp, "--port", "1"))):
        with Up(tmp_path, *args, **env) as up:
            facts = up.ready().facts
            assert "server" not in facts
            assert facts["url"] in (redis.url_unix, redis.url_tcp)
            assert up.stop() == 0
    with redis.client() as db:
        assert db.ping()  # not ours to stop
    assert "none is started" in up.said()
    assert "(--port: no effect)" in up.said()
    assert not (tmp_path / "keyside-data").exists()


def test_a_server_that_was_named_and_does_not_answer(tmp_path: Path) -> None:
    with Up(tmp_path, "--url", "redis://127.0.0.1:1") as up:
        assert up.process.wait(20) == 1
    assert up.said().splitlines()[-1].startswith("UNREACHABLE")


def test_a_second_request_to_stop_does_not_wait_for_the_executor(tmp_path: Path) -> None:
    with Up(tmp_path, "--port", "0") as up:
        os.kill(up.ready().facts["executor_pid"], signal.SIGSTOP)
        up.process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping" in up.said(), "it begins to stop")
        assert up.stop(signal.SIGINT) == 0
    assert "not waiting for the executor" in up.said()


def test_stopping_while_it_starts(tmp_path: Path) -> None:
    with Up(tmp_path, "--port", "0") as up:
        wait_until(lambda: "starting" in up.said(), "it starts")
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(40) == 0
    assert running(tmp_path / "keyside-data") == ""


def test_an_executor_that_cannot_start(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with Up(tmp_path, "--port", "0", "--http-port", str(taken.getsockname()[1])) as up:
            assert up.process.wait(60) == 1
    assert up.said().rstrip().endswith("NOSTART the executor does not start: what it says is above")
    assert up.said().count("before it was ready") == 3
    assert running(tmp_path / "keyside-data") == ""


# --- the server by itself


def test_embedded_server(tmp_path: Path, server_bin: Path) -> None:
    with EmbeddedServer(tmp_path / "d", server_bin=server_bin, port=None) as server:
        assert running(tmp_path / "d") == server.url
        assert server.poll() is None
        with redis_py.Redis.from_url(server.url_tcp) as db, server.client() as same:
            db.set("x", "1")
            assert same.get("x") == b"1"
            assert isinstance(same.execute_command("FCALL_RO", "KS_VERSION", 0), list)
        pid = server.pid
    assert not alive(pid)
    with EmbeddedServer(tmp_path / "d", server_bin=server_bin) as server, server.client() as db:
        assert server.url_tcp == ""
        assert db.get("x") == b"1"
        assert db.config_get("port") == {"port": "0"}


def test_without_a_file_nothing_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        with EmbeddedServer(tmp_path, appendonly=False) as server, server.client() as db:
            assert db.get("x") is None
            db.set("x", "1")


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 25)
    with EmbeddedServer(folder) as server:
        path = server.socket_path
        assert len(os.fsencode(path)) < 104
        assert running(folder) == server.url
        with server.client() as db:
            assert db.ping()
    assert not path.parent.exists()
    with pytest.raises(NoServer, match="at most 103 bytes"):
        EmbeddedServer(tmp_path, socket_path=folder / "s").start()


def test_a_socket_of_ones_choice(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "d", socket_path=tmp_path / "s") as server, server.client() as db:
        assert server.url == f"unix://{tmp_path}/s"
        assert db.ping()


def test_why_a_server_does_not_start(tmp_path: Path, server_bin: Path) -> None:
    with EmbeddedServer(tmp_path / "a", port=None) as server:
        with pytest.raises(NoServer, match=f"port {server.port} of 127.0.0.1 is in use"):
            EmbeddedServer(tmp_path / "b", server_bin=server_bin, port=server.port).start()
        with pytest.raises(DataInUse, match=f"in use by process {os.getpid()}"):
            EmbeddedServer(tmp_path / "a", server_bin=server_bin).start()
    with pytest.raises(NoServer, match="nonsense"):
        EmbeddedServer(tmp_path / "b", server_bin=server_bin, config={"nonsense": 1}).start()
    (tmp_path / "file").write_text("")
    with pytest.raises(NoServer, match="File exists"):
        EmbeddedServer(tmp_path / "file", server_bin=server_bin).start()
    with EmbeddedServer(tmp_path / "b", server_bin=server_bin) as server:
        assert server.poll() is None


def test_data_of_a_newer_server(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "d", server_bin=find_binary("valkey", tmp_path)) as server, server.client() as db:
        db.set("x", "1")
        db.execute_command("BGREWRITEAOF")
        wait_until(lambda: db.info("persistence")["aof_rewrite_in_progress"] == 0, "the file is rewritten")
    with pytest.raises(NoServer, match=r"written by valkey 9\.\d+\.\d+: use that, with --server-bin"):
        EmbeddedServer(tmp_path / "d", server_bin=find_binary("redis", tmp_path)).start()


def test_an_unknown_locale_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_bin: Path) -> None:
    monkeypatch.setenv("LANG", "tlh_KLI.UTF-8")
    monkeypatch.setenv("LC_ALL", "tlh_KLI.UTF-8")
    with EmbeddedServer(tmp_path, server_bin=server_bin) as server:
        assert server.poll() is None


@pytest.fixture
def sleeper() -> Iterator[Child]:
    child = Child(["sleep", "60"])
    yield child
    child.kill()


def test_a_child_is_in_a_session_of_its_own(sleeper: Child) -> None:
    assert os.getsid(sleeper.pid) == sleeper.pid
    assert sleeper.poll() is None
    assert sleeper.wait(0.01) is None
    sleeper.signal(signal.SIGTERM)
    assert sleeper.wait(5) == -signal.SIGTERM


def test_a_child_outlives_the_thread_that_started_it_and_not_the_process(tmp_path: Path) -> None:
    code = (
        "import threading, sys, time\n"
        "from keyside.clients.child import Child\n"
        "children = []\n"
        "thread = threading.Thread(target=lambda: children.append(Child(['sleep', '60'])))\n"
        "thread.start(); thread.join(); time.sleep(0.2)\n"
        "print(children[0].pid, children[0].poll(), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, polled = process.stdout.readline().split()
        process.kill()
    assert polled == "None"
    wait_until(lambda: not alive(int(pid)), "the end of the child", 10)
