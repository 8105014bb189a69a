# ruff: noqa: E501  # the tables of what is refused
"""Programs of graphs: what is one, in which order it runs, and what is refused with which words."""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.tensorstore import graph
from keyside.tensorstore.errors import BadModel
from keyside.tensorstore.records import TensorSpec


def run(target: str, inputs: Any, outputs: Any) -> dict[str, Any]:
    return {"run": target, "inputs": inputs, "outputs": outputs}


def let(name: str, source: str) -> dict[str, Any]:
    return {"let": name, "from": source}


def program(*steps: Any, inputs: Any = ("x",), outputs: Any = ("y",)) -> bytes:
    return json.dumps({"inputs": list(inputs), "outputs": list(outputs), "steps": list(steps)}).encode()


def refused(*steps: Any, **more: Any) -> str:
    with pytest.raises(BadModel) as caught:
        graph.parse(program(*steps, **more))
    return caught.value.text


IF = {"tensor": "x", "is": ">", "value": 0.5}


# --- what is a program


def test_a_program() -> None:
    found = graph.parse(
        program(
            {"const": {"dtype": "FLOAT", "shape": [2], "values": [1, "nan"]}, "output": "c"},
            run("model@2", {"a": "x", "b": "c"}, {"score": "s"}),
            {"script": "prep", "function": "scale", "inputs": ["s", "s"], "outputs": ["y"], "args": ["1"]},
            run("model@2", ["x", "c"], []),
            inputs=[{"name": "x", "dtype": "float", "shape": [-1, 4]}, "z"],
        )
    )
    assert found.inputs == (TensorSpec("x", "FLOAT", (-1, 4)), TensorSpec("z", "", None))
    assert found.uses == ("model@2", "prep")
    const, model, script, _ = found.steps
    assert isinstance(const, graph.Const)
    assert const.value.dtype == np.float32
    assert np.isnan(const.value[1])
    assert model == graph.Run("model@2", {"a": "x", "b": "c"}, {"score": "s"})
    assert script == graph.Script("prep", "scale", ("s", "s"), ("y",), (), ("1",))


def test_steps_run_when_what_they_need_is_there() -> None:
    found = graph.parse(program(run("c", ["b"], ["y"]), run("b", ["a"], ["b"]), run("a", ["x"], ["a"])))
    assert [step.target for step in found.steps if isinstance(step, graph.Run)] == ["a", "b", "c"]


def test_steps_that_need_nothing_of_each_other_stay_as_written() -> None:
    found = graph.parse(program(run("one", ["x"], ["p"]), run("two", ["x"], ["q"]), run("three", ["p", "q"], ["y"])))
    assert [step.target for step in found.steps if isinstance(step, graph.Run)] == ["one", "two", "three"]


def test_both_branches_assign_what_is_used_behind_them() -> None:
    found = graph.parse(
        program(
            run("last", ["r"], ["y"]),
            {"if": IF, "then": [run("fine", ["t"], ["r"]), run("prep", ["x"], ["t"])], "else": [let("r", "x")]},
        )
    )
    branch = found.steps[0]
    assert isinstance(branch, graph.If)
    assert branch.gives == ("r",)
    assert branch.then == (graph.Run("prep", ("x",), ("t",)), graph.Run("fine", ("t",), ("r",)))


def test_branches_may_call_their_own_tensors_alike() -> None:
    branch = {"if": IF, "then": [run("a", ["x"], ["own"]), run("b", ["own"], [])]}
    assert len(graph.parse(program(branch, branch, let("y", "x"))).steps) == 3


def test_rows() -> None:
    found = graph.parse(
        program(
            {"each": "x", "as": "row", "steps": [run("m", ["row", "k"], ["z"])], "collect": {"z": "y", "row": "same"}},
            let("k", "x"),
            outputs=["y", "same"],
        )
    )
    each = found.steps[1]
    assert isinstance(each, graph.Each)
    assert (each.limit, each.keep) == (100, False)


# --- what is none


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([run("m", ["y"], ["y"])], "a cycle: y -> y"),
        ([run("m", ["b"], ["a"]), run("n", ["a"], ["b"]), let("y", "b")], "a cycle: a -> b -> a"),
        (
            [let("y", "a"), let("a", "c"), let("b", "a"), let("c", "b"), let("d", "y")],
            "a cycle: a -> b -> c -> a",
        ),
        (
            [{"if": IF, "then": [let("y", "q")], "else": [let("y", "x")]}, let("q", "y")],
            "a cycle: y -> q -> y",
        ),
        (
            [{"each": "x", "as": "i", "steps": [let("z", "y")], "collect": {"z": "y"}}],
            "a cycle: y -> y",
        ),
        ([{"if": IF, "then": [let("a", "b"), let("b", "a")]}, let("y", "x")], "a cycle: a -> b -> a"),
    ],
)
def test_cycles(steps: list[Any], text: str) -> None:
    assert refused(*steps) == text


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([let("y", "q")], "steps[0] (let 'y') needs 'q', which is not known: nothing assigns it"),
        ([let("q", "x")], "output 'y' of the graph is not known: nothing assigns it"),
        (
            [{"if": IF, "then": [let("a", "x")]}, let("y", "a")],
            "steps[1] (let 'y') needs 'a', which is not known: steps[0] assigns it in one branch only",
        ),
        (
            [{"if": IF, "then": [let("y", "x")]}],
            "output 'y' of the graph is not known: steps[0] assigns it in one branch only",
        ),
        (
            [{"each": "x", "as": "i", "steps": [let("z", "i")], "collect": {"z": "zs"}}, let("y", "z")],
            "steps[1] (let 'y') needs 'z', which is not known: steps[0] (each 'x') assigns it for each row: collect it",
        ),
        (
            [{"each": "x", "as": "i", "steps": [], "collect": {"z": "y"}}],
            "steps[0] (each 'x') needs 'z', which is not known",
        ),
        ([let("y", "x"), let("y", "x")], "steps[1] (let 'y') assigns 'y', which steps[0] (let 'y') has assigned"),
        ([let("x", "x"), let("y", "x")], "steps[0] (let 'x') assigns 'x', which an input has assigned"),
        (
            [let("y", "x"), {"if": IF, "then": [let("y", "x")]}],
            "steps[1].then[0] (let 'y') assigns 'y', which steps[0] (let 'y') has assigned",
        ),
        (
            [{"if": IF, "then": [let("y", "x")]}, let("y", "x")],
            "steps[0].then[0] (let 'y') assigns 'y', which steps[1] (let 'y') has assigned",
        ),
        (
            [{"each": "x", "as": "x", "steps": [], "collect": {"x": "y"}}],
            "steps[0] (each 'x') calls its rows 'x', which an input has assigned",
        ),
    ],
)
def test_names(steps: list[Any], text: str) -> None:
    assert refused(*steps).startswith(text)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (3, "steps[0] is not an object"),
        ({}, "steps[0] has nothing: a step has exactly one of run, script, const, let, if, each"),
        ({"run": "m", "let": "y"}, "steps[0] has run and let"),
        ({"run": "m", "inputs": ["x"]}, "steps[0] lacks outputs"),
        (run("", ["x"], ["y"]), "steps[0]: the target is a text of 1 to 1024"),
        (run("m", "x", ["y"]), "steps[0] (run 'm'): inputs is a list"),
        (run("m", ["x"], ["y", "y"]), "steps[0] (run 'm'): outputs has 'y' twice"),
        (run("m", ["x"], [3]), "steps[0] (run 'm'): outputs[0] is a name"),
        ({**let("y", "x"), "more": 1}, "steps[0] has 'more'; it takes let, from"),
        ({"script": "s", "function": "f", "inputs": ["x"], "outputs": ["y"], "args": [1]}, "steps[0] (script 's' 'f'): args is"),
        ({"const": {"dtype": "FLOAT", "shape": [2], "values": [1]}, "output": "y"}, "steps[0] (const 'y'): 1 values; shape [2] has 2"),
        ({"const": {"dtype": "INT8", "shape": [1], "values": [128]}, "output": "y"}, "steps[0] (const 'y'): 128 is no INT8"),
        ({"const": {"dtype": "BOOL", "shape": [1], "values": [2]}, "output": "y"}, "steps[0] (const 'y'): 2 is no BOOL"),
        ({"const": {"dtype": "FLOAT16", "shape": [1], "values": [1e9]}, "output": "y"}, "steps[0] (const 'y'): a number is too large"),
        ({"const": {"dtype": "FLOAT", "shape": [1], "values": [True]}, "output": "y"}, "steps[0] (const 'y'): True is no FLOAT"),
        ({"const": {"dtype": "STRING", "shape": [1], "values": ["a\0"]}, "output": "y"}, "steps[0] (const 'y'): 'a\\x00' ends in NUL"),
        ({"const": {"dtype": "FLOAT", "shape": [1 << 40, 0], "values": []}, "output": "y"}, "steps[0] (const 'y'): shape"),
        ({"if": {**IF, "is": "~"}, "then": []}, "steps[0]: if: is is one of >"),
        ({"if": {**IF, "take": "median"}, "then": []}, "steps[0]: if: take is one of one, max"),
        ({"if": {**IF, "take": [1.5]}, "then": []}, "steps[0]: if: an index is a list"),
        ({"if": {**IF, "value": None}, "then": []}, "steps[0]: if: value is a number"),
        ({"if": {**IF, "value": "text"}, "then": []}, "steps[0]: if: a text can only be compared by == and !="),
        ({"if": {**IF, "value": 2**64}, "then": []}, "steps[0]: if: value 18446744073709551616 has more than 64 bits"),
        ({"each": "x", "as": "i", "steps": [], "collect": {}}, "steps[0] (each 'x'): collect is not an object"),
        ({"each": "x", "as": "i", "steps": [], "collect": {"i": "y"}, "limit": 0}, "steps[0] (each 'x'): limit is"),
    ],
)  # fmt: skip
def test_steps_that_are_none(step: Any, text: str) -> None:
    assert refused(step).startswith(text)


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (b"", "the graph is not JSON"),
        (b"\xff", "the graph is not JSON"),
        (b"[" * 100_000, "the graph is not JSON"),
        (b"[]", "the graph is not an object with inputs, outputs, steps"),
        (b'{"inputs":["x"],"outputs":["x"]}', "the graph lacks steps"),
        (b'{"inputs":[],"outputs":["x"],"steps":[]}', "inputs of the graph is not a list of 1"),
        (b'{"inputs":["x","x"],"outputs":["x"],"steps":[]}', "inputs of the graph has 'x' twice"),
        (b'{"inputs":["x"],"outputs":[],"steps":[]}', "outputs of the graph is a list of 1"),
        (b'{"inputs":["x"],"outputs":["x","x"],"steps":[]}', "outputs of the graph has 'x' twice"),
        (b'{"inputs":[{"name":"x","dtype":"TEXT"}],"outputs":["x"],"steps":[]}', "inputs[0]: no dtype 'TEXT'"),
        (b'{"inputs":[{"name":"x","shape":[-2]}],"outputs":["x"],"steps":[]}', "inputs[0]: shape is a list"),
        (b'{"inputs":["x"],"inputs":["x"],"outputs":["x"],"steps":[]}', "a JSON object has 'inputs' twice"),
        (b'{"inputs":["\\ud800"],"outputs":["x"],"steps":[]}', "inputs[0] is not valid Unicode"),
        (b'{"inputs":["x"],"outputs":["x"],"steps":[{"if":{"tensor":"x","is":">","value":NaN},"then":[]}]}', "NaN is no JSON"),
        (b'{"inputs":["x"],"outputs":["x"],"steps":[{"if":{"tensor":"x","is":">","value":1e999},"then":[]}]}', "steps[0]: if: value"),
        (b" " * (16 << 20) + b"{}", "a graph has at most 16,777,216 bytes"),
    ],
)  # fmt: skip
def test_blobs_that_are_none(blob: bytes, text: str) -> None:
    with pytest.raises(BadModel) as caught:
        graph.parse(blob)
    assert caught.value.text.startswith(text)


def test_bounds() -> None:
    assert "at most 1000 steps" in refused(*[let(f"y{n}", "x") for n in range(1001)])
    deep: dict[str, Any] = let("z", "x")
    for _ in range(20):
        deep = {"if": IF, "then": [deep]}
    assert "go 16 deep at most" in refused(deep)


# --- properties

NAMES = st.sampled_from("xyabcd")
LETS = st.builds(let, NAMES, NAMES)
STEPS = st.recursive(
    LETS | st.builds(run, st.sampled_from(["m", "n"]), st.lists(NAMES, max_size=2), st.lists(NAMES, max_size=2)),
    lambda inner: st.builds(
        lambda name, then, other: {"if": {**IF, "tensor": name}, "then": then, "else": other},
        NAMES, st.lists(inner, max_size=3), st.lists(inner, max_size=3),
    )
    | st.builds(
        lambda over, item, steps, one, out: {"each": over, "as": item, "steps": steps, "collect": {one: out}},
        NAMES, NAMES, st.lists(inner, max_size=3), NAMES, NAMES,
    ),
    max_leaves=8,
)  # fmt: skip


def assigned(steps: tuple[graph.Step, ...], known: set[str]) -> set[str]:
    """Go through steps as they would run: whatever they need must be there."""
    known = set(known)
    for step in steps:
        match step:
            case graph.Run(inputs=inputs, outputs=outputs):
                assert set(inputs) <= known
                new = set(outputs)
            case graph.Let(name=name, source=source):
                assert source in known
                new = {name}
            case graph.If():
                assert step.test.tensor in known
                both = assigned(step.then, known) & assigned(step.otherwise, known)
                assert set(step.gives) == both - known
                new = set(step.gives)
            case graph.Each():
                assert step.over in known
                assert step.item not in known
                assert set(step.collect) <= assigned(step.steps, known | {step.item})
                new = set(step.collect.values())
            case _:
                raise AssertionError(step)
        assert not new & known, "assigned twice"
        known |= new
    return known


@given(st.lists(STEPS, max_size=6))
def test_what_is_taken_can_run(steps: list[Any]) -> None:
    try:
        found = graph.parse(program(*steps))
    except BadModel:
        return
    assert "y" in assigned(found.steps, {"x"})


@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_any_order_of_steps_is_the_same_graph(count: int, rng: random.Random) -> None:
    steps = [let(f"t{n}", rng.choice(["x", *(f"t{m}" for m in range(n))])) for n in range(count)]
    steps.append(let("y", f"t{count - 1}"))
    shuffled = list(steps)
    rng.shuffle(shuffled)
    first, second = graph.parse(program(*steps)), graph.parse(program(*shuffled))
    assert assigned(first.steps, {"x"}) == assigned(second.steps, {"x"})
    assert set(first.steps) == set(second.steps)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["inputs", "outputs", "steps", "run", "let", "from", "if", "then", "else", "each", "as", "collect", "const",
             "output", "dtype", "shape", "values", "tensor", "take", "is", "value", "name", "limit", "keep", "x"]
        ),
        inner, max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@given(JSON, JSON, JSON)
def test_any_json_is_a_program_or_refused(inputs: Any, outputs: Any, steps: Any) -> None:
    document = {"inputs": inputs, "outputs": outputs, "steps": steps}
    for blob in (json.dumps(document), json.dumps({**document, "inputs": ["x"], "outputs": ["x"], "steps": [steps]})):
        try:
            graph.parse(blob)
        except BadModel:
            continue


@given(
    st.lists(st.floats(width=32), max_size=5).map(lambda items: np.array(items, np.float32))
    | st.lists(st.integers(0, 2**64 - 1), max_size=5).map(lambda items: np.array(items, np.uint64))
    | st.lists(st.booleans(), max_size=5).map(lambda items: np.array(items, np.bool_))
    | st.lists(st.text("aé☃ ", min_size=1), min_size=1).map(lambda items: np.array([i.encode() for i in items]))
)
def test_constants_come_back(value: Any) -> None:
    document = json.loads(graph.to_json({"const": graph.const_document(value), "output": "c"}))
    found = graph.parse(program(document, let("y", "c"))).steps[0]
    assert isinstance(found, graph.Const)
    assert found.value.dtype == value.dtype
    np.testing.assert_array_equal(found.value, value)
    assert not found.value.flags.writeable
