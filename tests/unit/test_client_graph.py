# ruff: noqa: E501  # strategies
"""The builder of graphs and that of DAGs: what program they make, and what they refuse."""

import json
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside import Graph, Key
from keyside.clients.dag import DagPlan, staged_of, values_of
from keyside.clients.request import Identity
from keyside.tensorstore import graph as programs
from keyside.tensorstore import graph_const
from keyside.tensorstore.errors import BadArg, CrossSlot, RunFailed
from keyside.tensorstore.results import decode_results, encode_results

X = np.arange(4, dtype=np.float32)
BIG = np.zeros(100_000, np.float32)
JUNK: Any = st.fixed_dictionaries(
    {"results": st.lists(st.text(max_size=3) | st.binary(max_size=3) | st.dictionaries(st.just("key"), st.text(max_size=3) | st.integers(0, 9)))}
) | st.dictionaries(st.text(max_size=8), st.integers(0, 9), max_size=2)  # fmt: skip


def steps(g: Graph) -> Any:
    return g.document()["steps"]


def test_a_cascade() -> None:
    g = Graph("cascade")
    x = g.input("x", "FLOAT", (-1, 4))
    scaled = g.script("prep", "scale", x, args=[0.5, "a", b"b"], keys=["k"])
    found = g.run("detector", scaled)
    label = g.when(found["score"] > 0.5, then=lambda: g.run("fine@2", {"image": x}), otherwise=lambda: found["label"])
    g.output("label", label)
    g.output("score", found["score"])
    document = g.document()
    assert document["inputs"] == [{"name": "x", "dtype": "FLOAT", "shape": [-1, 4]}]
    assert document["outputs"] == ["label", "score"]
    script, run, branch, first, second = document["steps"]
    assert script["args"] == ["0.5", "a", "b"]
    assert run == {
        "run": "detector", "inputs": script["outputs"], "outputs": {"score": "score#3", "label": "label#5"},
    }  # fmt: skip
    assert branch["if"] == {"tensor": "score#3", "take": "one", "is": ">", "value": 0.5}
    assert branch["then"][0]["inputs"] == {"image": "x"}
    assert branch["else"] == [{"let": branch["then"][1]["let"], "from": "label#5"}]
    assert first == {"let": "label", "from": branch["then"][1]["let"]}
    assert second == {"let": "score", "from": "score#3"}
    blob, uses = g.to_json()
    assert uses == list(programs.parse(blob).uses) == ["prep", "detector", "fine@2"]
    assert json.loads(blob) == document


def test_outputs_of_models() -> None:
    g = Graph()
    x = g.input("x")
    one = g.run("a", x, X)
    g.run("unused", x)
    two, three = g.run("b", one, outputs=2)
    four, five = g.run("c", two, three, outputs=["q", "p"])
    for n, value in enumerate((one, four, five)):
        g.output(f"y{n}", value)
    runs = [step for step in steps(g) if "run" in step]
    assert [type(step["outputs"]) for step in runs] == [list, dict, list, dict]
    assert list(runs[3]["outputs"]) == ["q", "p"]
    assert runs[1]["outputs"] == {}


def test_constants() -> None:
    g = Graph()
    x = g.input("x")
    g.output("y", g.run("m", x, X, [[1, 2]], "text", 3.5))
    consts = [graph_const.array(step["const"], "") for step in steps(g) if "const" in step]
    assert [(const.dtype.kind, const.shape) for const in consts] == [("f", (4,)), ("i", (1, 2)), ("S", ()), ("f", ())]


def test_rows() -> None:
    g = Graph()
    image, boxes = g.input("image"), g.input("boxes")
    plates = g.each(boxes, lambda box: g.run("plates", g.script("crop", "crop", image, box)), limit=20, keep=True)
    both = g.each(boxes, lambda box: {"box": box, "same": box})
    g.output("plates", plates)
    g.output("box", both["box"])
    first, second = (step for step in steps(g) if "each" in step)
    assert (first["limit"], first["keep"], len(first["steps"])) == (20, True, 2)
    assert list(second["collect"]) == [second["as"], second["steps"][0]["let"]]


@pytest.mark.parametrize(
    ("measure", "take"),
    [
        (lambda x: x, "one"),
        (lambda x: x.max(), "max"),
        (lambda x: x.min(), "min"),
        (lambda x: x.sum(), "sum"),
        (lambda x: x.mean(), "mean"),
        (lambda x: x.any(), "any"),
        (lambda x: x.all(), "all"),
        (lambda x: x.first(), "first"),
        (lambda x: x.rows(), "rows"),
        (lambda x: x.at(0, -1), [0, -1]),
    ],
)
def test_conditions(measure: Callable[[Any], Any], take: Any) -> None:
    g = Graph()
    x = g.input("x")
    found = measure(x)
    tests = [found > 1, found >= np.float32(1), found < True, found <= 1.5, found == 2, found != 3]
    for n, test in enumerate(tests):
        g.output(f"y{n}", g.when(test, x, lambda: x))
    made = [step["if"] for step in steps(g) if "if" in step]
    assert [one["is"] for one in made] == [">", ">=", "<", "<=", "==", "!="]
    assert [one["value"] for one in made] == [1, 1.0, True, 1.5, 2, 3]
    assert all(one["take"] == take for one in made)


def test_branches_give_tensors_in_one_form() -> None:
    g = Graph()
    x = g.input("x")
    a, b = g.when(x > 0, lambda: (x, g.run("m", x)), lambda: (g.run("n", x), x))
    named = g.when(x == "a", lambda: {"p": a}, {"p": b})
    nothing = g.when(x > 1, lambda: g.script("log", "seen", x, outputs=0) and None)
    g.output("y", named["p"])
    assert nothing is None
    assert len(g.to_json()[1]) == 3


def tensor_and_name(g: Graph, y: Any) -> None:
    g.output("y", y)
    y["q"]


def name_and_tensor(g: Graph, y: Any) -> None:
    y["q"]
    g.output("y", y)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda g, x: g.input("x"), "an input 'x' already"),
        (lambda g, x: g.input("a#1"), "without #"),
        (lambda g, x: g.output("", x), "without #"),
        (lambda g, x: [g.output("y", x), g.output("y", x)], "an output 'y' already"),
        (lambda g, x: g.run("m", x)[0], "by name"),
        (lambda g, x: tensor_and_name(g, g.run("m", x)), "taken as a tensor"),
        (lambda g, x: name_and_tensor(g, g.run("m", x)), "taken by name, q"),
        (lambda g, x: list(g.run("m", x)), "outputs=n"),
        (lambda g, x: bool(x > 1), "use graph.when"),
        (lambda g, x: bool(x), "compare it"),
        (lambda g, x: x > x, "a number or a text, not Value"),
        (lambda g, x: g.run("m", x > 1), "no tensor"),
        (lambda g, x: g.run("m", Graph().input("z")), "another graph"),
        (lambda g, x: g.run("m", object()), "object is neither a tensor"),
        (lambda g, x: g.when(True, x, x), "a comparison of a tensor of the graph, not bool"),
        (lambda g, x: g.when(x > 1, x), "one branch gives a tensor and the other nothing"),
        (lambda g, x: g.when(x > 1, (x, x), {"a": x}), "one branch gives 2 tensors and the other a"),
        (lambda g, x: g.each(x, lambda row: None), "must return a tensor"),
        (lambda g, x: g.when(x > 1, lambda: g.output("y", x)), "within a branch"),
    ],
)
def test_what_is_refused(make: Callable[[Graph, Any], Any], text: str) -> None:
    g = Graph()
    with pytest.raises(BadArg, match=text):
        make(g, g.input("x"))


def test_a_tensor_of_one_branch_cannot_be_used_outside() -> None:
    g = Graph()
    x = g.input("x")
    inner: list[Any] = []
    g.when(x > 1, lambda: inner.append(g.script("s", "f", x)))
    g.output("y", inner[0])
    with pytest.raises(BadArg, match=r"the graph cannot run: .* assigns it in one branch only"):
        g.document()


def test_a_graph_without_outputs() -> None:
    g = Graph()
    g.input("x")
    with pytest.raises(BadArg, match="outputs of the graph is a list of 1"):
        g.to_json()


# --- DAGs


def words(dag: DagPlan, node: bytes = b"0") -> list[Any]:
    request = dag.request(5.0, Identity(), node, ("PRIORITY", "HIGH"))
    command = request.submit(5.0, b"ks:{0}:t:c:1")
    return [arg.decode() if isinstance(arg, bytes) and arg[:1] != b"\x93" else arg for arg in command.args]


def test_a_dag() -> None:
    dag = DagPlan(readonly=False).load("x", b"y").tensorset("t", X).tensorset("k", Key("z", "ref"))
    dag.modelexecute("m", ["x", "t"], "o").scriptexecute("s", "fn", "o", ["p", "q"], args=["a"], keys="{x}")
    dag.tensorget("p").persist("o")
    found = words(dag)
    assert found[:13] == ["FCALL", "AI_DAGEXECUTE", 5, "x", "y", "o", "z", "{x}", "LOAD", 2, "x", "y", "PERSIST"]
    assert found[13:25] == [
        1,
        "o",
        "TIMEOUT",
        5000,
        "TICKET",
        "ks:{0}:t:c:1",
        "ID",
        found[20],
        1,
        "PRIORITY",
        "HIGH",
        "|>",
    ]
    assert found[25:28] == ["TENSORSET", "t", "VALUE"]
    assert found[29:34] == ["|>", "TENSORSET", "k", "REF", "z"]
    assert found[34:45] == ["|>", "MODELEXECUTE", "m", "INPUTS", 2, "x", "t", "OUTPUTS", 1, "o", "|>"]
    assert found[45:] == [
        "SCRIPTEXECUTE", "s", "fn", "KEYS", 1, "{x}", "INPUTS", 1, "o", "ARGS", 1, "a", "OUTPUTS", 2, "p", "q",
        "|>", "TENSORGET", "p",
    ]  # fmt: skip


def test_a_dag_without_keys_is_at_home_where_its_reply_goes() -> None:
    dag = DagPlan(readonly=True).tensorset("x", 1).tensorget("x")
    found = words(dag)
    assert found[:6] == ["FCALL", "AI_DAGEXECUTE_RO", 1, "ks:{0}:t:c:1", "ROUTING", "ks:{0}:t:c:1"]
    assert not dag.request(5.0, Identity(), b"0", ()).keyed


def test_large_values_go_before() -> None:
    dag = DagPlan(readonly=False).tensorset("x", BIG).tensorget("x").persist("{a}y")
    request = dag.request(5.0, Identity(), b"", ())
    (name,) = request.temporaries
    assert name.startswith(b"ks:{a}:tmp:")
    assert len(request.before) == 1
    assert request.keyed
    request.place(b"b")
    assert request.temporaries[0].startswith(b"ks:{b}:tmp:")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: DagPlan(readonly=False).load("x").request(5.0, Identity(), b"0", ()), BadArg),
        (lambda: DagPlan(readonly=False).tensorget("x").request(0, Identity(), b"0", ()), BadArg),
        (lambda: DagPlan(readonly=False).load("x", "y").tensorget("x").request(5.0, Identity(), b"", ()), CrossSlot),
        (lambda: DagPlan(readonly=True).persist("x"), BadArg),
        (lambda: DagPlan(readonly=True).scriptexecute("s", "f"), BadArg),
    ],
)
def test_dags_that_are_refused(make: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_what_operations_have_given() -> None:
    from keyside.tensorstore import npy

    results: list[Any] = ["OK", npy.to_bytes(X), {"key": "k"}, "RUNFAILED no", "NA"]
    assert staged_of(results) == ["k"]
    ok, array, large, error, skipped = values_of(results, {"k": BIG})
    assert ok is None
    np.testing.assert_array_equal(array, X)
    assert large is BIG
    assert isinstance(error, RunFailed)
    assert skipped == "NA"


@given(st.binary(max_size=40) | JUNK.map(msgpack.packb))
def test_any_reply_to_a_dag_is_read_or_refused(reply: bytes) -> None:
    try:
        found = decode_results(reply)
    except BadArg:
        return
    assert decode_results(encode_results(found)) == found
