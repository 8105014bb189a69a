"""`keyside graph` against real servers with a real executor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests import models
from tests.executors import Executor

import keyside
from keyside.clients.cli.root import cli

PROGRAM = {
    "inputs": [{"name": "x", "dtype": "FLOAT", "shape": [-1, 4]}],
    "outputs": ["y"],
    "steps": [{"run": "affine", "inputs": ["x"], "outputs": ["y"]}],
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Executor) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    with keyside.Client(executor.url) as client:
        client.store("affine", models.affine())
    Path("g.json").write_text(json.dumps(PROGRAM))
    Path("bad.json").write_text('{"inputs":["x"],"outputs":["a"],"steps":[{"let":"a","from":"a"}]}')

    def call(*args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, ["--url", executor.url, *args], prog_name="keyside")
        assert result.exit_code == code, result.output
        return result

    return call


def read(result: Result) -> Any:
    return json.loads(result.stdout)


def test_a_graph_from_file_to_result(run: Callable[..., Result]) -> None:
    assert run("graph", "ls").stderr.startswith("no graphs")
    assert run("graph", "check", "g.json").stdout == "  input  x  FLOAT  [?, 4]\n  output y\n  runs   affine\n"
    assert read(run("graph", "put", "g", "g.json", "--tag", "t", "--json"))["target"] == "g@1"
    assert run("graph", "put", "g", "g.json", "--tag", "t").stdout.startswith("g@1: ready, GRAPH on CPU")
    assert read(run("graph", "ls", "--json")) == [
        {"name": "g", "version": 1, "state": "ready", "device": "CPU", "uses": ["affine"], "tag": "t"}
    ]
    assert "affine" in run("graph", "ls").stdout
    assert read(run("graph", "show", "g", "--json"))["program"] == PROGRAM
    assert '"run": "affine"' in run("graph", "show", "g@1").stdout
    found = read(run("run", "g", "--input", "[[1, 2, 3, 4]]", "--json"))
    assert found["outputs"]["y"]["values"] == [[3, 5, 7, 9]]
    assert read(run("graph", "rm", "g", "--json")) == {"removed": ["g"]}
    assert "NOMODEL" in run("graph", "show", "g", code=1).stderr


def test_what_goes_wrong(run: Callable[..., Result]) -> None:
    assert "BADMODEL a cycle: a -> a" in run("graph", "check", "bad.json", code=1).stderr
    assert "BADMODEL a cycle: a -> a" in run("graph", "put", "g", "bad.json", code=1).stderr
    assert "WRONGTYPE affine@1 is no graph, but ONNX" in run("graph", "show", "affine", code=1).stderr
