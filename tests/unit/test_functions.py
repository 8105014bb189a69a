"""Functions of the operator: how they are registered, found and called."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyside
from keyside.executor import functions, script_metrics
from keyside.executor.backends import base
from keyside.executor.backends.function import FunctionBackend, FunctionModel
from keyside.tensorstore.errors import BadArg, BadModel, ModelFailed, RunFailed

BACKEND = FunctionBackend()


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "_functions", {})


def load(*points: str, blob: bytes | None = None) -> FunctionModel:
    return BACKEND.load(
        "\n".join(points).encode() if blob is None else blob,
        device="CPU", inputs=[], outputs=[], options={"entry_points": list(points)}, allow_code=False, threads=1,
    )  # fmt: skip


def call(found: Any, *tensors: Any, keys: tuple[str, ...] = (), args: tuple[str, ...] = ()) -> list[Any]:
    """Register a function and call it."""
    functions._functions.pop("it", None)
    functions.function("it")(found)
    return load("it").call("it", [np.asarray(one) for one in tensors], keys, args)


def test_it_is_found_by_its_name_and_is_a_backend() -> None:
    assert isinstance(base.find("FUNCTION"), FunctionBackend)
    keyside.function("it")(lambda tensors, keys, args: tensors)
    assert isinstance(load("it"), base.ScriptModel)
    assert isinstance(load("it"), base.LoadedModel)


def test_what_it_gets_and_gives() -> None:
    def both(tensors: Any, keys: Any, args: Any) -> Any:
        assert not tensors[0].flags.writeable
        return tensors[0] * 2, np.array(len(keys)), np.array(args)

    doubled, count, words = call(both, np.ones(2), keys=("k",), args=("abc", "\xe9"))
    assert (doubled.tolist(), count.tolist(), words.tolist()) == ([2, 2], 1, [b"abc", b"\xc3\xa9"])
    (same,) = call(lambda tensors, keys, args: tensors[0][:, ::2], np.arange(8.0).reshape(2, 4))
    assert same.flags.c_contiguous


@pytest.mark.parametrize("result", [None, object(), 1j, {"a": 1}, [object()], [[1, [2]]]])
def test_results_that_are_no_tensors(result: Any) -> None:
    with pytest.raises(RunFailed, match="that is no tensor"):
        call(lambda tensors, keys, args: result)


def test_a_failure_has_its_line() -> None:
    def fails(tensors: Any, keys: Any, args: Any) -> Any:
        int("x")

    with pytest.raises(RunFailed, match=r"^RUNFAILED test_functions\.py line \d+, in fails \(int\(.x.\)\): ValueError"):
        call(fails)
    with pytest.raises(RunFailed, match="SystemExit: 3"):
        call(lambda tensors, keys, args: sys.exit(3))


def test_registering() -> None:
    @keyside.function
    def first(tensors: Any, keys: Any, args: Any) -> Any:
        return tensors

    @keyside.function("shop.second")
    def second(tensors: Any, keys: Any, *rest: Any) -> Any:
        return tensors

    assert dict(functions.registered()) == {"first": first, "shop.second": second}
    keyside.function("first")(first)
    with pytest.raises(ValueError, match="there is a function 'first' already, in "):
        keyside.function("first")(second)
    for name in ("", "1st", "a b", "x" * 129, "<lambda>"):
        with pytest.raises(ValueError, match="a function's name has"):
            keyside.function(name)(lambda tensors, keys, args: tensors)
    with pytest.raises(TypeError, match="must take three arguments"):
        keyside.function("x")(lambda tensors: tensors)
    with pytest.raises(TypeError, match="not for"):
        keyside.function("x")(dict)

    async def later(tensors: Any, keys: Any, args: Any) -> Any: ...

    with pytest.raises(TypeError, match="is async"):
        keyside.function(later)


def test_loads_that_fail() -> None:
    keyside.function("a")(lambda tensors, keys, args: tensors)
    with pytest.raises(ModelFailed, match=r"has no function 'b', 'c': start it with --functions MODULE .*; it has a$"):
        load("b", "a", "c")
    with pytest.raises(BadModel, match="are not those of the ENTRY_POINTS"):
        load("a", blob=b"import os")
    with pytest.raises(BadArg, match="Function b does not exist"):
        load("a").call("b", [], [], [])


def test_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "operators_own.py").write_text(
        "import keyside\n@keyside.function\ndef mine(tensors, keys, args):\n    return tensors\n"
    )
    (tmp_path / "operators_broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    functions.load_modules(["operators_own"])
    assert list(functions.registered()) == ["mine"]
    with pytest.raises(ImportError, match="module 'operators_broken' cannot be imported: ZeroDivisionError"):
        functions.load_modules(["operators_broken"])
    with pytest.raises(ImportError, match=r"module 'no.such' cannot be imported: ModuleNotFoundError"):
        functions.load_modules(["no.such"])
    for name in ("operators_own", "operators_broken"):
        sys.modules.pop(name, None)


def test_metrics() -> None:
    def measures(tensors: Any, keys: Any, args: Any) -> Any:
        keyside.metric("of a function", 2)
        keyside.metric("of a function", np.array([3.5]))
        return tensors

    with script_metrics.Running("operators"):
        call(measures)
    samples = [sample for family in script_metrics.collected() for sample in family.samples]
    found = {sample.name: sample.value for sample in samples if sample.labels["script"] == "operators"}
    assert found == {"keyside_custom_metric_count": 2, "keyside_custom_metric_sum": 5.5}
    with pytest.raises(ValueError, match="could not convert"):
        keyside.metric("x", "much")
