"""The SCRIPT backend: what it compiles, what it refuses, and what its functions give."""

import contextlib
import logging
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.executor import script_metrics
from keyside.executor.backends import base, script_check
from keyside.executor.backends.script import ScriptBackend, ScriptModel
from keyside.tensorstore.errors import BadArg, BadModel, RunFailed

torch = pytest.importorskip("torch")

BACKEND = ScriptBackend()
HEAD = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n"
X = np.array([[1, 2], [3, 4]], np.float32)
X.flags.writeable = False


def load(source: str | bytes, *points: str, **changes: Any) -> ScriptModel:
    arguments: dict[str, Any] = {
        "device": "CPU",
        "inputs": [],
        "outputs": [],
        "options": {"entry_points": list(points or ("f",))},
        "allow_code": False,
        "threads": 1,
    }
    blob = source if isinstance(source, bytes) else source.encode()
    return BACKEND.load(blob, **arguments | changes)


def refused(source: str | bytes, *points: str, **changes: Any) -> str:
    with pytest.raises(BadModel) as caught:
        load(source, *points, **changes)
    return caught.value.text


def of(*lines: str) -> str:
    """A script whose one function has these lines."""
    return HEAD + "".join(f"    {line}\n" for line in lines)


def measured() -> dict[tuple[str, str], tuple[float, float]]:
    """Count and sum of each custom metric, by script and name."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for family in script_metrics.collected():
        for sample in family.samples:
            key = (sample.labels["script"], sample.labels["name"])
            found.setdefault(key, {})[sample.name.rpartition("_")[2]] = sample.value
    return {key: (row["count"], row["sum"]) for key, row in found.items()}


def test_it_is_found_by_its_name_and_is_a_backend() -> None:
    assert isinstance(base.find("SCRIPT"), ScriptBackend)
    assert isinstance(BACKEND, base.Backend)
    model = load(of("return tensors"))
    assert isinstance(model, base.LoadedModel)
    assert isinstance(model, base.ScriptModel)


# --- what it gives


def test_one_tensor_several_and_none() -> None:
    (one,) = load(of("return tensors[0] * 2")).call("f", [X], [], [])
    np.testing.assert_array_equal(one, X * 2)
    assert [array.tolist() for array in load(of("return tensors")).call("f", [X, X[0]], [], [])] == [
        X.tolist(), X[0].tolist(),
    ]  # fmt: skip
    pair = load(of("return tensors[0].sum(), torch.zeros([2], dtype=torch.int64)")).call("f", [X], [], [])
    assert [array.tolist() for array in pair] == [10, [0, 0]]
    assert load(of("x: List[Tensor] = []", "return x")).call("f", [], [], []) == []


def test_what_names_there_are() -> None:
    source = (
        "import torch\nimport math\nimport torch.nn.functional as F\nfrom typing import List, Dict\n"
        "from torch import Tensor\n'''What it is for.'''\n\n"
    ).replace("\\'", "'") + of(
        "x = F.softmax(tensors[0], dim=0) + torch.nn.functional.relu(tensors[0])",
        "x = x + torch.linalg.norm(x) + math.pi + torch.fft.fft(x).real",
        "table: Dict[str, int] = {'a': len(keys)}",
        "return torch.full([2], table['a'], dtype=torch.float64, device=torch.device('cpu'))",
    )
    assert load(source).call("f", [X], ["k", "k"], [])[0].tolist() == [2, 2]


def test_texts_come_as_they_are() -> None:
    source = of("n = 0", "for text in args:", "    n = n + len(text)", "return torch.tensor(n + 100 * len(keys))")
    assert load(source).call("f", [], ["key"], ["abc", "\xe9"])[0].tolist() == 105, "bytes, as everywhere in C++"


def test_it_writes_to_copies() -> None:
    (total,) = load(of("tensors[0] += 1", "return tensors[0]")).call("f", [X], [], [])
    assert total.tolist() == [[2, 3], [4, 5]]
    assert X.tolist() == [[1, 2], [3, 4]]


# --- errors with their lines


@pytest.mark.parametrize(
    ("line", "mutates"),
    [
        ("return F.relu(tensors[0], inplace=True)", True),
        ("return F.relu(tensors[0], inplace=len(args) > 0)", True),
        ("return F.relu(tensors[0])", False),
        ("return F.relu(tensors[0], inplace=False) + 1", False),
        ("return F.dropout(F.relu(tensors[0]), training=False)", False),
        ("return tensors[0].relu_()", True),
        ("return torch.softmax(tensors[0], 0)", False),
    ],
)
def test_what_works_in_place_works_on_copies(line: str, mutates: bool) -> None:
    source = HEAD + f"    return g(tensors, args)\n\ndef g(tensors: List[Tensor], args: List[str]):\n    {line}\n"
    for text in (of(line), source):
        model = load(text)
        assert model.habits.mutates is mutates
        mine = np.frombuffer(np.array([-1, 2], np.float32).tobytes(), np.float32)
        model.call("f", [mine], [], ["x"])
        assert mine.tolist() == [-1, 2]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (of("x = tensors[0]", "return x @ torch.ones([3, 3])"), "line 3, in f (return x @ torch.ones([3, 3])): "),
        (of("raise ValueError('too dark')"), "line 2, in f (raise ValueError('too dark')): ValueError: too dark"),
        (of("assert len(keys) > 0, 'no key'", "return tensors"), "line 2, in f (assert len(keys) > 0, 'no key'): "),
        (of("return tensors[7]"), "line 2, in f (return tensors[7]): RuntimeError: list index out of range"),
    ],
)
def test_a_failure_has_its_line(source: str, text: str) -> None:
    with pytest.raises(RunFailed) as caught:
        load(source).call("f", [X], [], [])
    assert caught.value.text.startswith(text)


@pytest.mark.parametrize("result", ["1", "[1]", "{'a': tensors[0]}", "'text'", "None"])
def test_results_that_are_no_tensors(result: str) -> None:
    with pytest.raises(RunFailed, match="let it return"):
        load(of(f"return {result}")).call("f", [X], [], [])


def test_what_cannot_be_called() -> None:
    model = load(of("return tensors") + HEAD.replace("f(", "g(") + "    return tensors\n")
    with pytest.raises(BadArg, match="Function g does not exist in the given script"):
        model.call("g", [], [], [])
    with pytest.raises(RunFailed, match="AI_SCRIPTEXECUTE"):
        model.run([X])
    with pytest.raises(RunFailed, match="no tensors of text"):
        model.call("f", [np.array([b"a"])], [], [])
    model.close()
    with pytest.raises(BadArg):
        model.call("f", [], [], [])


# --- what is refused


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("", "the script has no function"),
        ("x = 1\n", "line 1: outside its functions a script has nothing but imports"),
        ("class A:\n    pass\n", "line 1: outside its functions"),
        ("import os\n" + of("return tensors"), "line 1: a script cannot import 'os'"),
        ("import torch as t\n" + of("return tensors"), "line 1: a script cannot import 'torch'"),
        ("from os import path\n" + of("return tensors"), "line 1: a script imports nothing"),
        ("@decorated\n" + of("return tensors"), "functions of a script have no decorators"),
        (of("return tensors") * 2, "there are two functions 'f'"),
        (of("return redis.execute('GET', 'x')"), "uses redis in line 2, which there is not: a script runs beside"),
        (of("x = redisAI.model_execute('m', [], 1)", "return x"), "uses redisAI in line 2"),
        (of("return open('/etc/passwd')"), "undefined value open"),
        (of("return __import__('os')"), "undefined value __import__"),
        (of("return eval('1')"), "undefined value eval"),
        (of("return torch.load('x')"), "line 2"),
        (of("torch.save(tensors[0], 'x')", "return tensors"), "operator aten::save, which is not allowed"),
        (of("return torch.from_file('x')"), "operator aten::from_file, which is not allowed"),
        (of("return torch.ops.aten.relu(tensors[0])"), "has no attribute ops"),
        (of("return torch.jit.fork(f)"), "has no attribute jit"),
        (of("return torch.hub.load('a', 'b')"), "has no attribute hub"),
        (of("return torch.os.getcwd()"), "has no attribute os"),
        (of("return torch.nn.functional.torch.load('x')"), "has no attribute torch"),
        (of("return torch.__dict__"), "has no attribute __dict__"),
        (of("return math._of"), "has no attribute _of"),
        (of("return f(tensors, keys, args)"), "called recursively"),
        (of("g = lambda x: x", "return tensors"), "functions within functions"),
        (of("return tensors") + "(", "line 3: '(' was never closed"),
        (b"def f(\xff)", "not UTF-8"),
        ("def f(x: Tensor):\n    return x\n", "Wrong number of inputs in function f. Expected 3 but was 1"),
        (
            "def f(a: Tensor, b: Tensor, c: Tensor):\n    return a\n",
            "function f. Expected signature similar to: def f(tensors: List[Tensor], keys: List[str], args: List[str])",
        ),
        ("def g():\n    return 1\n", "Function f does not exist in the given script."),
    ],
)
def test_sources_that_are_refused(source: str | bytes, text: str) -> None:
    assert text in refused(source)


def calls_itself_apart(depth: int) -> str:
    steps = [f"def g{n}(x: Tensor) -> Tensor:\n    return g{n - 1}(g{n - 1}(x))\n" for n in range(1, depth)]
    last = of(f"return g{depth - 1}(tensors[0])")
    return "def g0(x: Tensor) -> Tensor:\n    return x + 1\n" + "".join(steps) + last


@pytest.mark.parametrize(
    "source",
    [
        of("return " + "(" * 5000 + "tensors" + ")" * 5000),
        of("return " + "[" * 5000 + "tensors" + "]" * 5000),
        of("x = " + "not " * 30000 + "True", "return tensors"),
        of("x = 1" + " + 1" * 30000, "return tensors"),
        of("x = 1" + " if True else 1" * 5000, "return tensors"),
        HEAD + "".join(" " * n + "if True:\n" for n in range(1, 150)) + " " * 150 + "x = 1\n return tensors\n",
        HEAD + "    n = 0\n    if n == 1:\n        n = 2\n" + "    elif n == 3:\n        n = 4\n" * 5000,
        "def f(a, b, c):\n    # type: (" + "List[" * 50000 + "Tensor" + "]" * 50000 + ") -> Tensor\n    return a\n",
        of(
            "x = 0",
            *(f"{' ' * n}for a{n} in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10):" for n in range(9)),
            " " * 9 + "x = x + 1",
            "return tensors",
        ),
        calls_itself_apart(40),
        of("return tensors", "# " + "x" * 300_000),
        of("return tensors\x0c"),
    ],
    ids=[
        "parentheses", "lists", "not", "sum", "conditions", "blocks", "elif", "types in comments", "unrolled",
        "calls", "long", "control characters",
    ],
)  # fmt: skip
def test_what_would_crash_or_hang_the_compiler(source: str) -> None:
    assert refused(source)


@given(st.text(max_size=200) | st.text("deft()[]: \n,.=xifor'\"#@+*", max_size=60).map(lambda text: HEAD + " " + text))
def test_any_text_is_compiled_or_refused(source: str) -> None:
    with contextlib.suppress(BadModel):
        load(source)


@pytest.mark.parametrize(
    "options",
    [{}, {"entry_points": []}, {"entry_points": "f"}, {"entry_points": ["f", "f"]}, {"entry_points": [1]},
     {"entry_points": ["f"], "more": 1}],
)  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    assert refused(of("return tensors"), options=options)


def test_inputs_and_outputs_are_for_models() -> None:
    assert "no INPUTS" in refused(of("return tensors"), inputs=["x"])


def test_names_stand_for_operators_alone() -> None:
    found = script_check.names()
    for name in (
        "jit",
        "hub",
        "ops",
        "classes",
        "utils",
        "cuda",
        "multiprocessing",
        "os",
        "sys",
        "Tensor",
        "_of",
        "__dict__",
    ):
        assert not hasattr(found["torch"], name)
    assert not hasattr(found["F"], "importlib")


# --- what it prints and measures


def test_metrics_in_one_line() -> None:
    model = load(
        of(
            "print('metric', 'm_int', tensors[0].numel())",
            "print('metric', 'm_tensor', tensors[0].sum())",
            "print('metric', 'm_float', -0.5)",
            "print('metric', 'm_bool', len(keys) > 0)",
            "print('metric', 'm_nan', float('nan'))",
            "return tensors",
        )
    )
    before = measured()
    with script_metrics.Running("measures"):
        model.call("f", [X], ["k"], [])
        model.call("f", [X], [], [])
    found = {name: row for (script, name), row in measured().items() if script == "measures"}
    assert ("measures", "m_int") not in before
    assert found == {"m_int": (2, 8), "m_tensor": (2, 20), "m_float": (2, -1), "m_bool": (2, 1)}


def test_what_else_it_prints_goes_to_the_log(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(of("print('hello', args)", "print('metric', 'no number', 'x')", "return tensors"))
    with caplog.at_level(logging.INFO, "keyside.script"), script_metrics.Running("talks"):
        model.call("f", [X], [], ["a"])
        other = threading.Thread(target=print, args=("of somebody else",))
        other.start()
        other.join()
    assert [record.getMessage() for record in caplog.records] == [
        "script talks: hello [a]", "script talks: metric no number x",
    ]  # fmt: skip
    assert capsys.readouterr().out == "of somebody else\n"


def test_metrics_are_bounded_in_number() -> None:
    metrics = script_metrics.CustomMetrics()
    for n in range(script_metrics.MAX_NAMES + 50):
        metrics.observe("s", f"name{n}", 1.0)
    metrics.observe("s", "name0", 2.0)
    (family,) = metrics.collect()
    rows = {sample.labels["name"]: sample.value for sample in family.samples if sample.name.endswith("_count")}
    assert len(rows) == script_metrics.MAX_NAMES + 1
    assert (rows["name0"], rows["other"]) == (2, 50)
    assert list(script_metrics.CustomMetrics().collect()) == []
