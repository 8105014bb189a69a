# ruff: noqa: E501  # the tables of errors
"""The GRAPH backend and the operations of DAGs, with members that are Python functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.executor.backends.base import Array, LoadedModel, Member
from keyside.executor.backends.base import GraphModel as GraphProtocol
from keyside.executor.backends.graph import GraphBackend, GraphModel
from keyside.executor.backends.graph_condition import decide
from keyside.executor.dag import NOT_RUN, OK, run_dag
from keyside.executor.members import check_inputs
from keyside.tensorstore import graph
from keyside.tensorstore.errors import BadArg, BadDtype, BadInput, BadModel, BadShape, RunFailed
from keyside.tensorstore.records import Signature, TensorSpec

F32 = np.float32


class Fake:
    """A member that a Python function runs."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Sequence[TensorSpec] = (TensorSpec("x", "", None),),
        outputs: Sequence[TensorSpec] | None = (TensorSpec("y", "", None),),
        inner: GraphModel | None = None,
    ) -> None:
        self.title = "fake@1"
        self.signature = Signature(tuple(inputs), None if outputs is None else tuple(outputs))
        self.names = [spec.name for spec in inputs]
        self.output_names = None if outputs is None else [spec.name for spec in outputs]
        self.is_graph = inner is not None
        self.calls = 0
        self._function = function
        self._inner = inner

    def check(self, inputs: Sequence[Array]) -> None:
        check_inputs(self.title, self.signature.inputs, inputs)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        self.calls += 1
        found = self._function(*inputs)
        return list(found) if isinstance(found, tuple) else [found]

    def timed(self, seconds: float) -> None:
        assert seconds >= 0

    def run_with(self, inputs: Sequence[Array], members: Mapping[str, Any]) -> list[Array]:
        assert self._inner is not None
        return self._inner.run_with(inputs, members)

    def call(self, function: str, tensors: Sequence[Array], keys: Sequence[str], args: Sequence[str]) -> list[Array]:
        return [np.array([function.encode(), *(text.encode() for text in (*keys, *args))]), *tensors]


def load(document: Mapping[str, Any], uses: Sequence[str] | None = None) -> GraphModel:
    blob = graph.to_json(document)
    given = list(graph.parse(blob).uses) if uses is None else uses
    return GraphBackend().load(
        blob, device="CPU", inputs=(), outputs=(), options={"uses": given}, allow_code=False, threads=1
    )


def go(steps: Sequence[Any], members: Mapping[str, Member], *inputs: Any, outputs: Sequence[str] = ("y",)) -> Any:
    names = ["x", "z"][: len(inputs)]
    model = load({"inputs": names, "outputs": list(outputs), "steps": list(steps)})
    found = model.run_with([np.asarray(value) for value in inputs], members)
    return found[0] if len(outputs) == 1 else found


def run(target: str, inputs: Any, outputs: Any) -> dict[str, Any]:
    return {"run": target, "inputs": inputs, "outputs": outputs}


TWICE = Fake(lambda x: x * 2)
ROW = np.arange(4, dtype=F32)


# --- loading


def test_what_is_loaded() -> None:
    model = load(
        {
            "inputs": [{"name": "x", "dtype": "FLOAT", "shape": [-1, 4]}],
            "outputs": ["y"],
            "steps": [run("a", ["x"], ["y"])],
        }
    )
    assert isinstance(model, LoadedModel)
    assert isinstance(model, GraphProtocol)
    assert not model.stackable
    assert model.nbytes > 0
    assert model.signature == Signature((TensorSpec("x", "FLOAT", (-1, 4)),), (TensorSpec("y", "", None),))
    with pytest.raises(BadInput, match="run 'a': 'a' was not resolved"):
        model.run([ROW])
    with pytest.raises(RunFailed, match="takes 1 inputs, got 2"):
        model.run_with([ROW, ROW], {})


@pytest.mark.parametrize(
    ("uses", "text"),
    [
        ([], "option uses lacks 'a', 'b@2'"),
        (["a"], "option uses lacks 'b@2'"),
        (["a", "b@2", "c"], "option uses has 'c', which the graph does not use"),
        (["a", "b"], "option uses lacks 'b@2' and has 'b'"),
        (["a", "b@2", "a"], "option uses has a target twice"),
        ("a", "option uses is not a list"),
        ([1], "option uses is not a list"),
    ],
)
def test_what_is_used_must_be_named(uses: Any, text: str) -> None:
    document = {"inputs": ["x"], "outputs": ["y"], "steps": [run("a", ["x"], ["t"]), run("b@2", ["t"], ["y"])]}
    with pytest.raises(BadModel) as caught:
        load(document, uses)
    assert caught.value.text.startswith(text)


@pytest.mark.parametrize("more", [{"options": {"warmup": False}}, {"inputs": ["x"]}, {"outputs": ["y"]}])
def test_what_does_not_belong_to_a_graph(more: Any) -> None:
    blob = graph.to_json({"inputs": ["x"], "outputs": ["x"], "steps": []})
    settings: dict[str, Any] = {"inputs": (), "outputs": (), "options": {}, **more}
    with pytest.raises(BadModel):
        GraphBackend().load(blob, device="CPU", allow_code=False, threads=1, **settings)


# --- steps


def test_a_graph_that_runs_no_other() -> None:
    model = load({"inputs": ["x"], "outputs": ["x"], "steps": []})
    (found,) = model.run([ROW])
    np.testing.assert_array_equal(found, ROW)


def test_models_by_position_and_by_name() -> None:
    both = Fake(
        lambda a, b: (a - b, a + b),
        (TensorSpec("a", "", None), TensorSpec("b", "", None)),
        (TensorSpec("minus", "", None), TensorSpec("plus", "", None)),
    )
    steps = [run("both", {"b": "x", "a": "z"}, {"plus": "p"}), run("both", ["x", "z"], ["m", "q"])]
    plus, minus = go(steps, {"both": both}, ROW, 2 * ROW, outputs=("p", "m"))
    np.testing.assert_array_equal(plus, 3 * ROW)
    np.testing.assert_array_equal(minus, -ROW)


def test_outputs_that_have_no_names_before_a_run() -> None:
    nameless = Fake(lambda x: (x, -x), outputs=None)
    np.testing.assert_array_equal(go([run("m", ["x"], {"output_1": "y"})], {"m": nameless}, ROW), -ROW)


def test_scripts() -> None:
    step = {
        "script": "s",
        "function": "fn",
        "inputs": ["x", "x"],
        "outputs": ["t", "y", "u"],
        "keys": ["k"],
        "args": ["é"],
    }
    text, second = go([step], {"s": Fake(lambda x: x)}, ROW, outputs=("t", "y"))
    assert text.tolist() == [b"fn", b"k", "é".encode()]
    np.testing.assert_array_equal(second, ROW)


def test_graphs_in_graphs() -> None:
    inner = load({"inputs": ["in"], "outputs": ["out"], "steps": [run("twice", ["in"], ["out"])]})
    wrapped = Fake(lambda x: x, inner.signature.inputs, inner.signature.outputs, inner)
    steps = [run("inner", ["x"], ["t"]), run("inner", {"in": "t"}, {"out": "y"})]
    np.testing.assert_array_equal(go(steps, {"inner": wrapped, "twice": TWICE}, ROW), 4 * ROW)


def test_only_one_branch_runs() -> None:
    fine, coarse = Fake(lambda x: x * 10), Fake(lambda x: x * 100)
    steps = [
        {
            "if": {"tensor": "x", "take": "max", "is": ">", "value": 2},
            "then": [run("fine", ["x"], ["y"])],
            "else": [run("coarse", ["x"], ["y"])],
        }
    ]
    members = {"fine": fine, "coarse": coarse}
    np.testing.assert_array_equal(go(steps, members, ROW), ROW * 10)
    assert (fine.calls, coarse.calls) == (1, 0)
    np.testing.assert_array_equal(go(steps, members, ROW[:2]), ROW[:2] * 100)
    assert (fine.calls, coarse.calls) == (1, 1)


def each(collect: Mapping[str, str], *steps: Any, **more: Any) -> dict[str, Any]:
    return {"each": "x", "as": "row", "steps": list(steps), "collect": collect, **more}


def test_rows_are_stacked() -> None:
    rows = np.arange(12, dtype=F32).reshape(3, 4)
    step = each({"t": "y", "row": "same"}, run("twice", ["row"], ["t"]))
    twice, same = go([step], {"twice": TWICE}, rows, outputs=("y", "same"))
    np.testing.assert_array_equal(twice, rows * 2)
    np.testing.assert_array_equal(same, rows)


def test_rows_that_keep_their_dim_are_joined() -> None:
    grow = Fake(lambda x: np.repeat(x, int(x[0, 0]), axis=0))
    rows = np.array([[1.0, 5.0], [3.0, 6.0]], F32)
    found = go([each({"t": "y"}, run("grow", ["row"], ["t"]), keep=True)], {"grow": grow}, rows)
    np.testing.assert_array_equal(found, [[1, 5], [3, 6], [3, 6], [3, 6]])


def test_texts_of_rows() -> None:
    names = Fake(lambda x: np.array([b"a" * int(x)]))
    found = go([each({"t": "y"}, run("names", ["row"], ["t"]))], {"names": names}, np.array([1, 3], F32))
    assert found.tolist() == [[b"a"], [b"aaa"]]


@pytest.mark.parametrize(
    ("spec", "keep", "dtype", "shape"),
    [
        (TensorSpec("y", "INT64", (2, 3)), False, np.int64, (0, 2, 3)),
        (TensorSpec("y", "INT64", (-1, 3)), True, np.int64, (0, 3)),
        (TensorSpec("y", "STRING", (1,)), False, np.dtype("S1"), (0, 1)),
        (TensorSpec("y", "UINT8", (-1, 3)), False, np.uint8, (0,)),
        (TensorSpec("y", "", None), False, F32, (0,)),
    ],
)
def test_no_rows(spec: TensorSpec, keep: bool, dtype: Any, shape: Any) -> None:
    member = Fake(lambda x: x, outputs=(spec,))
    steps = [
        run("m", {"x": "row"}, {"y": "t"}),
        {"let": "u", "from": "t"},
        {"const": {"dtype": "BOOL", "shape": [], "values": [1]}, "output": "c"},
        {"if": {"tensor": "x", "take": "rows", "is": ">", "value": 0}, "then": [{"let": "b", "from": "u"}], "else": [{"let": "b", "from": "u"}]},
    ]  # fmt: skip
    collect = {"t": "y", "u": "z1", "b": "z2", "row": "z3", **({} if keep else {"c": "z4"})}
    found = go(
        [each(collect, *steps, keep=keep)], {"m": member}, np.zeros((0, 5), F32), outputs=tuple(collect.values())
    )
    assert member.calls == 0
    for one in found[:3]:
        assert (one.dtype, one.shape) == (dtype, shape)
    assert (found[3].dtype, found[3].shape) == (F32, (0, 5))
    if not keep:
        assert (found[4].dtype, found[4].shape) == (np.bool_, (0,))


def test_rows_in_rows() -> None:
    inner = {"each": "row", "as": "cell", "steps": [run("twice", ["cell"], ["t"])], "collect": {"t": "u"}}
    rows = np.arange(6, dtype=F32).reshape(2, 3)
    np.testing.assert_array_equal(go([each({"u": "y"}, inner)], {"twice": TWICE}, rows), rows * 2)
    assert go([each({"u": "y"}, inner)], {"twice": TWICE}, rows[:0]).shape == (0,)


FLOATS = [TensorSpec("x", "FLOAT", (-1, 4))]


@pytest.mark.parametrize(
    ("step", "member", "error", "text"),
    [
        (run("m", ["x", "x"], ["y"]), TWICE, BadInput, "run 'm': 'fake@1' takes 1 inputs, x; got 2"),
        (run("m", {"q": "x"}, ["y"]), TWICE, BadInput, "run 'm': 'fake@1' takes x; got q"),
        (run("m", ["x"], ["y", "w"]), TWICE, BadInput, "run 'm': 'fake@1' gives 1 outputs, not 2"),
        (run("m", ["x"], {"q": "y"}), TWICE, BadInput, "run 'm': 'fake@1' has no output 'q'; it gives y"),
        (run("m", ["x"], ["y"]), Fake(lambda x: x, FLOATS), BadShape, "run 'm': input 'x' of 'fake@1' takes shape [-1, 4] (-1: any), got [4]"),
        (run("m", ["x"], ["y"]), Fake(lambda x: x, [TensorSpec("x", "INT8", None)]), BadDtype, "run 'm': input 'x' of 'fake@1' takes INT8, got FLOAT"),
        (run("m", ["x"], ["y"]), Fake(lambda x: 1 // 0), RunFailed, "run 'm': ZeroDivisionError"),
        (run("other", ["x"], ["y"]), TWICE, BadInput, "run 'other': 'other' was not resolved"),
        (each({"t": "y"}, run("m", ["row"], ["t"])), Fake(lambda x: np.zeros(int(x))), RunFailed, "each 'x': 't' has shape [0] in row 0 and [1] in row 1"),
        (each({"t": "y"}, run("m", ["row"], ["t"])), Fake(lambda x: x.astype(np.int8) if x else x), RunFailed, "each 'x': 't' is float32 in row 0 and int8"),
        (each({"t": "y"}, run("m", ["row"], ["t"])), Fake(lambda x: 1 // int(x - 2)), RunFailed, "each 'x': row 2: run 'm': ZeroDivisionError"),
        (each({"t": "y"}, run("m", ["row"], ["t"]), limit=3), TWICE, RunFailed, "each 'x': 4 rows; the limit of this step is 3"),
    ],
)  # fmt: skip
def test_errors_say_which_step(step: Any, member: Fake, error: Any, text: str) -> None:
    with pytest.raises(error) as caught:
        go([step], {"m": member}, ROW)
    assert caught.value.text.startswith(text)


def test_no_rows_at_all() -> None:
    with pytest.raises(RunFailed, match="each 'x': 'x' has no dims"):
        go([each({"row": "y"})], {}, F32(3))


# --- conditions


@pytest.mark.parametrize(
    ("values", "take", "op", "value", "holds"),
    [
        ([1.5], "one", ">", 1, True),
        (2.0, "one", "==", 2, True),
        ([1, 5], "max", ">=", 5, True),
        ([1, 5], "min", "<", 1, False),
        ([1, 5], "sum", "==", 6, True),
        ([1, 4], "mean", "==", 2.5, True),
        ([1, 5], "any", ">", 4, True),
        ([1, 5], "all", ">", 4, False),
        ([7, 5], "first", "==", 7, True),
        ([[1, 2], [3, 4]], (1, 0), "==", 3, True),
        ([[1, 2], [3, 4]], (-1, -1), "==", 4, True),
        ([[1, 2], [3, 4]], "rows", "==", 2, True),
        ([], "any", ">", 0, False),
        ([], "all", ">", 0, True),
        ([], "sum", "==", 0, True),
        ([np.nan], "one", ">", 0, False),
        ([np.nan], "one", "!=", 0, True),
        ([True, False], "sum", "==", 1, True),
        (np.array([200, 100], np.uint8), "sum", "==", 300, True),
        (np.array([2**63 + 1], np.uint64), "one", "==", 2**63, False),
        (np.array([-1], np.int8), "one", "<", 2**63, True),
        (np.array([b"cat"]), "one", "==", b"cat", True),
        (np.array([b"cat", b"dog"]), "any", "==", b"dog", True),
        (np.array([b"cat", b"dog"]), "rows", "==", 2, True),
    ],
)
def test_conditions(values: Any, take: Any, op: str, value: Any, holds: bool) -> None:
    assert decide(graph.Test("x", take, op, value), np.asarray(values)) is holds


@pytest.mark.parametrize(
    ("values", "take", "value", "text"),
    [
        ([1, 2], "one", 1, "'x' has 2 elements, and the condition needs one"),
        ([], "max", 1, "'x' has no elements: max of nothing"),
        ([], "first", 1, "'x' has no elements"),
        ([1, 2], (0, 0), 1, "'x' has 1 dims, the index [0, 0] has 2"),
        ([1, 2], (2,), 1, "'x' has shape [2], the index [2] is outside"),
        (1, "rows", 1, "'x' has no dims"),
        ([1], "one", b"a", "'x' holds int64, which cannot be compared with b'a'"),
        (np.array([b"a"]), "one", 1, "'x' holds |S1"),
        (np.array([b"a"]), "max", b"a", "'x' is STRING, which has no max"),
    ],
)
def test_conditions_that_cannot_be_decided(values: Any, take: Any, value: Any, text: str) -> None:
    with pytest.raises(RunFailed) as caught:
        decide(graph.Test("x", take, "==", value), np.asarray(values))
    assert caught.value.text.startswith(text)


@given(
    st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=6),
    st.sampled_from(list(graph.OPERATORS)),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)
def test_any_and_all_are_each_others_opposites(values: list[float], op: str, value: float) -> None:
    opposite = {">": "<=", ">=": "<", "<": ">=", "<=": ">", "==": "!=", "!=": "=="}[op]
    tensor = np.array(values, F32)
    anything = decide(graph.Test("x", "any", op, value), tensor)
    assert anything is not decide(graph.Test("x", "all", opposite, value), tensor)


# --- DAGs


def dag(*operations: Any, names: Sequence[bytes] = (b"a",), persist: Sequence[bytes] = ()) -> dict[bytes, Any]:
    return {b"n": list(names), b"o": list(operations), b"p": list(persist)}


MODEL = [b"m", b"twice", [b"a"], [b"b"]]


def test_a_dag() -> None:
    program = dag(
        [b"s", b"c", 1], MODEL, [b"g", b"b"], [b"m", b"twice", [b"b"], [b"a"]], [b"g", b"a"], [b"g", b"c"],
        persist=[b"a", b"b"],
    )  # fmt: skip
    found = run_dag(program, [ROW, ROW + 1], {"twice": TWICE})
    assert [one if isinstance(one, str) else one.tolist() for one in found.results] == [
        OK, OK, (ROW * 2).tolist(), OK, (ROW * 4).tolist(), (ROW + 1).tolist(),
    ]  # fmt: skip
    assert [one.tolist() for one in found.persisted] == [(ROW * 4).tolist(), (ROW * 2).tolist()]
    assert found.error is None


def test_a_script_in_a_dag() -> None:
    program = dag([b"f", b"s", b"fn", [b"a"], [b"t", b"u"], {}, [b"\xff"]], [b"g", b"t"])
    found = run_dag(program, [ROW], {"s": Fake(lambda x: x)})
    assert found.results[0] == OK
    text = found.results[1]
    assert not isinstance(text, str)
    assert text.tolist() == [b"fn", "\ufffd".encode()]


def test_nothing_follows_an_error() -> None:
    failing = Fake(lambda x: 1 // 0)
    program = dag([b"g", b"a"], MODEL, [b"g", b"b"], [b"g", b"a"], persist=[b"a"])
    found = run_dag(program, [ROW], {"twice": failing})
    assert not isinstance(found.results[0], str)
    assert found.results[1:] == ["RUNFAILED ZeroDivisionError: integer division or modulo by zero", NOT_RUN, NOT_RUN]
    assert found.persisted == []
    assert isinstance(found.error, RunFailed)


def test_names_that_are_not_there() -> None:
    found = run_dag(dag([b"g", b"q"], MODEL), [ROW], {"twice": TWICE})
    assert found.results == ["BADINPUT INPUT key cannot be found in DAG: 'q'", NOT_RUN]
    found = run_dag(dag(MODEL, persist=[b"q"]), [ROW], {"twice": TWICE})
    assert isinstance(found.error, BadInput)
    assert found.persisted == []


JUNK: Any = st.recursive(
    st.none() | st.integers() | st.sampled_from([b"m", b"f", b"s", b"g", b"a", b"twice", "a"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from([b"n", b"o", b"p", b"x"]), inner, max_size=3),
    max_leaves=20,
)  # fmt: skip


@given(JUNK | st.fixed_dictionaries({b"n": st.just([b"a"]), b"o": st.lists(JUNK, min_size=1), b"p": JUNK}))
def test_any_program_runs_or_is_refused(program: Any) -> None:
    try:
        found = run_dag(program, [ROW], {"twice": TWICE})
    except BadArg:
        return
    assert len(found.results) == len(program[b"o"])
