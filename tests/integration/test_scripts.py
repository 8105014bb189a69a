"""Scripts and functions, from the client to the executor: what they give, what they cannot do, what ends them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import models
from tests.executors import Executor
from tests.faults import holders
from tests.integration.test_executor import fetch
from tests.integration.test_run_limit import begins_anew
from tests.servers import Server, free_port, wait_until

import keyside
from keyside.tensorstore.errors import BadArg, ModelFailed, NoModel, NoTensor, RunFailed, WrongType

SOURCE = """\
import torch
from typing import List
from torch import Tensor


def scaled(x: Tensor, by: float) -> Tensor:
    return torch.relu(x) * by


def scale(tensors: List[Tensor], keys: List[str], args: List[str]):
    print("metric", "rows", tensors[0].size(0))
    print("seen", keys)
    return scaled(tensors[0], float(args[0]))


def add(tensors: List[Tensor], keys: List[str], args: List[str]):
    total = tensors[0]
    total += tensors[1]
    return [total, torch.zeros([len(keys), len(args)])]


def never(tensors: List[Tensor], keys: List[str], args: List[str]):
    x = tensors[0]
    while bool(x.sum() < 1e30):
        x = x * 1
    return x


def grow(tensors: List[Tensor], keys: List[str], args: List[str]):
    kept = [torch.zeros([1 << 18])]
    while len(kept) > 0:
        kept.append(kept[-1] + 1)
    return kept
"""
POINTS = ("scale", "add", "never", "grow")
X = np.array([[-1, 2], [3, -4]], np.float32)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def process(redis: Server, port: int, lasting: set[int]) -> Iterator[Executor]:
    with redis.client() as db:
        db.flushall()
    with Executor(redis, functions="tests.functions", http_port=port, run_memory="512mb") as executor:
        lasting.add(executor.pid)
        yield executor
        lasting.discard(executor.pid)


@pytest.fixture
def client(redis: Server, process: Executor) -> Iterator[keyside.Client]:
    del process
    with keyside.Client(redis.url_unix) as client:
        client.store_script("s", SOURCE, entry_points=POINTS)
        client.store_script("f", entry_points=["tokens", "text.length", "boom", "allocate"], functions=True)
        yield client
        for listed in list(client.scripts()):
            client.delete_script(listed.name)
        for model in list(client.models()):
            client.delete_model(model.name)


def test_values_in_and_out(client: keyside.Client) -> None:
    np.testing.assert_allclose(client.run_script("s", "scale", X, args=["2.5"]), np.maximum(X, 0) * 2.5)
    total, sizes = client.run_script("s@1", "add", [X, X], keys=["k", b"\xff"], args=["a"])
    np.testing.assert_allclose(total, X * 2)
    assert sizes.shape == (2, 1)
    large = np.ones((300, 400), np.float32)
    np.testing.assert_allclose(client.run_script("s", "scale", large, args=["2"]), large * 2)


def test_keys_in_and_out(client: keyside.Client) -> None:
    client.set("x", X)
    client.set("y", X + 1)
    assert client.run_script("s", "add", ["x", "y"], outputs=["sum", "sizes"]) is None
    np.testing.assert_allclose(client.get("sum"), 2 * X + 1)
    np.testing.assert_allclose(client.get("x"), X, err_msg="the script wrote to a copy of its own")
    np.testing.assert_allclose(client.run_script("s", "scale", keyside.Key("x"), args=["1"]), np.maximum(X, 0))
    client.run_script("s", "scale", keyside.Key("y", "own"), args=["1"])
    with pytest.raises(NoTensor):
        client.get("y")
    for name in ("x", "sum", "sizes"):
        client.delete(name)


def test_functions_of_the_operator(client: keyside.Client, port: int) -> None:
    words, counts = client.run_script("f", "tokens", ["a bc d", "ef"])
    assert words.tolist() == [b"a", b"bc", b"d", b"ef"]
    assert counts.tolist() == [3, 1]
    assert client.run_script("f", "text.length", keys=["abc"], args=["\xe9"]).tolist() == [3, 1]
    text = fetch(port, "/metrics")[1]
    assert 'keyside_custom_metric_count{name="words",script="f"} 1.0' in text
    assert 'keyside_custom_metric_sum{name="words",script="f"} 4.0' in text


def test_what_a_script_prints(client: keyside.Client, port: int, process: Executor) -> None:
    said = "script s: seen [there]"
    before = process.output.count(said)
    client.run_script("s", "scale", X, keys=["there"], args=["1"])
    assert 'keyside_custom_metric_sum{name="rows",script="s"}' in fetch(port, "/metrics")[1]
    assert process.output.count(said) == before + 1


def test_errors_have_the_line(client: keyside.Client) -> None:
    with pytest.raises(RunFailed, match=r"^RUNFAILED function 'scale' of 's@1': line 13, in scale \(return scaled"):
        client.run_script("s", "scale", X, args=["a lot"])
    with pytest.raises(RunFailed, match=r"line 18, in add .*list index out of range"):
        client.run_script("s", "add", X)
    with pytest.raises(RunFailed, match=r"function 'boom' of 'f@1': functions\.py line 36, in boom .*KeyError: 'x'"):
        client.run_script("f", "boom", args=["x"])
    with pytest.raises(RunFailed, match="TorchScript has no tensors of text"):
        client.run_script("s", "scale", "text", args=["1"])


def test_what_cannot_be_called(client: keyside.Client) -> None:
    client.store("m", models.affine())
    with pytest.raises(BadArg, match="Function scaled does not exist in the given script"):
        client.run_script("s", "scaled", X)
    with pytest.raises(BadArg, match="'m@1' is no script"):
        client.run_script("m", "scale", X)
    with pytest.raises(BadArg, match="'s@1' is a script: call it with AI_SCRIPTEXECUTE"):
        client.predict("s", X)
    with pytest.raises(NoModel):
        client.run_script("none", "f", X)
    with pytest.raises(BadArg, match="inputs of a script have no names"):
        client.run_script("s", "scale", {"x": X})


@pytest.mark.parametrize(
    ("source", "points", "text"),
    [
        ("def f(x: Tensor):\n    return x\n", ["f"], "Wrong number of inputs in function f. Expected 3 but was 1"),
        ("def f(a: Tensor, b: Tensor, c: Tensor):\n    return a\n", ["f"], "Wrong inputs type in function f."),
        (SOURCE, ["missing"], "Function missing does not exist in the given script."),
        (SOURCE + "oops(", ["add"], "the script does not compile: line 34: '(' was never closed"),
        (SOURCE.replace("torch.relu", "torch.oops"), ["add"], "line 7 (return torch.oops(x) * by): "),
        (SOURCE.replace("torch.relu(x)", "redis.execute('GET')"), ["add"], "runs beside the server, not in it"),
        (SOURCE.replace("import torch\n", "import os\n"), ["add"], "line 1: a script cannot import 'os'"),
    ],
)
def test_scripts_that_fail_to_load(client: keyside.Client, source: str, points: list[str], text: str) -> None:
    with pytest.raises(ModelFailed) as caught:
        client.store_script("bad", source, entry_points=points)
    assert text in str(caught.value)
    assert client.script("bad").state == "failed"
    with pytest.raises(ModelFailed):
        client.run_script("bad", points[0], X)
    client.delete_script("bad")


def test_a_function_that_the_executor_lacks(client: keyside.Client) -> None:
    with pytest.raises(ModelFailed, match=r"no function 'detect': start it with --functions MODULE") as caught:
        client.store_script("g", entry_points="detect", functions=True)
    assert "tokens" in str(caught.value)


def test_what_is_told_of_scripts(client: keyside.Client) -> None:
    assert client.store_script("s", SOURCE, entry_points=POINTS).version == 1, "it is there already"
    found = client.script("s")
    assert (found.target, found.state, found.entry_points, found.source) == ("s@1", "ready", POINTS, SOURCE)
    assert client.script("f@1").source is None
    assert sorted(listed.name for listed in client.scripts()) == ["f", "s"]
    assert [listed.name for listed in client.models()] == []
    with pytest.raises(WrongType, match="that is for AI_SCRIPTDEL"):
        client.delete_model("s")
    client.run_script("f", "text.length", args=["x"])
    assert client.model_stats("f").samples == -1
    with pytest.raises(BadArg, match="one of the two"):
        client.store_script("s", SOURCE, entry_points=POINTS, functions=True)


def test_a_script_that_never_ends(client: keyside.Client, redis: Server, process: Executor) -> None:
    with redis.client() as db:
        target = client.store_script("s", SOURCE, entry_points=POINTS, run_limit_ms=300).target
        with begins_anew(db, process.pid), pytest.raises(RunFailed, match=r"ran longer than its limit, 0\.3 s"):
            client.run_script(target, "never", X)
        np.testing.assert_allclose(client.run_script(target, "scale", X, args=["1"]), np.maximum(X, 0))
        assert holders(db) == {}


@pytest.mark.parametrize(("target", "function"), [("s", "grow"), ("f", "allocate")])
def test_memory_without_end(
    client: keyside.Client, redis: Server, process: Executor, target: str, function: str
) -> None:
    said = "a run takes too much memory: this executor begins anew"
    before = process.output.count(said)
    with redis.client() as db:
        with begins_anew(db, process.pid), pytest.raises(RunFailed, match=r"of memory in one run.*KEYSIDE_RUN_MEMORY"):
            client.run_script(target, function, np.zeros(1, np.float32))
        assert process.output.count(said) == before + 1
        assert client.run_script("f", "allocate", args=["50"]) == 50, "within bounds"
        assert holders(db) == {}


def test_over_redis_cli(client: keyside.Client, redis: Server) -> None:
    with redis.client() as db:
        stored = ("FCALL", "AI_SCRIPTSTORE", 1, "c", "CPU", "ENTRY_POINTS", 1, "scale", "SOURCE", SOURCE)
        assert db.execute_command(*stored) == b"OK"
        db.execute_command("FCALL", "AI_TENSORSET", 1, "x", "FLOAT", 1, 2, "VALUES", 3, -4)
        call = ("FCALL", "AI_SCRIPTEXECUTE", 2, "x", "y", "c", "scale", "INPUTS", 1, "x", "ARGS", 1, "2")
        ticket = db.execute_command(*call, "OUTPUTS", 1, "y")
        reply = db.blpop(ticket, 20)
        assert reply is not None
        assert reply[1] == b"OK"
        assert db.execute_command("FCALL_RO", "AI_TENSORGET", 1, "y", "VALUES") == [b"6", b"0"]
        wait_until(lambda: client.script("c").state == "ready", "it is ready")
        db.delete("x", "y")


async def test_the_asyncio_client(client: keyside.Client, redis: Server) -> None:
    del client
    async with keyside.AsyncClient(redis.url_unix) as other:
        np.testing.assert_allclose(await other.run_script("s", "scale", X, args=["2"]), np.maximum(X, 0) * 2)
        assert (await other.script("s")).entry_points == POINTS
        assert sorted([listed.name async for listed in other.scripts()]) == ["f", "s"]


def test_a_module_that_cannot_be_imported(redis: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyside.executor"],
        env={**os.environ, "KEYSIDE_URL": redis.url_unix, "KEYSIDE_FUNCTIONS": "no.such.module"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "functions (KEYSIDE_FUNCTIONS): module 'no.such.module' cannot be imported: ModuleNotFound" in done.stderr


def test_the_command_line(client: keyside.Client, redis: Server, tmp_path: Path) -> None:
    del client
    file = tmp_path / "prep.py"
    file.write_text(SOURCE)

    def cli(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "keyside.clients.cli.main", "--url", redis.url_unix, "script", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert "prep@1: ready, TorchScript on CPU" in cli("put", "prep", str(file))
    listed = cli("ls")
    assert "prep" in listed
    assert "scale, add, never, grow" in listed
    assert "def scaled(" in cli("show", "prep")
    assert "6" in cli("run", "prep", "scale", "-i", "[[-1.0, 2.0], [3.0, -4.0]]", "-a", "2")
    assert "[1 3]" in cli("run", "f", "text.length", "-a", "abc", "-k", "a")
    assert "RUNFAILED" in cli("run", "prep", "scale", "-i", "[1.0]", code=1)
    assert "texts@1: ready, functions on CPU" in cli("put", "texts", "--functions", "-e", "tokens")
    cli("put", "texts", "--functions", code=2)
    assert "removed" in cli("rm", "prep", "texts")
    assert "NOMODEL" in cli("show", "prep", code=1)
