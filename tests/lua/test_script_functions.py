"""AI_SCRIPTSTORE, AI_SCRIPTGET, AI_SCRIPTDEL, AI_SCRIPTSCAN and AI_SCRIPTEXECUTE, without an executor."""

import json
from typing import Any

import pytest
from tests.lua.jobs import LARGE, ROW, Hand

from keyside.tensorstore import commands_scripts as commands
from keyside.tensorstore.commands import InputSpec, Submit
from keyside.tensorstore.errors import KeysideError
from keyside.tensorstore.records import ModelInfo, Signature

SOURCE = "def f(tensors: List[Tensor], keys: List[str], args: List[str]):\n    return tensors[0]\n"
NOTHING = Signature((), None)


def store(hand: Hand, name: str = "s", *, ready: bool = True, points: tuple[str, ...] = ("f", "g")) -> int:
    """Store a version, and make it ready as an executor does."""
    version = int(hand.do(*commands.ai_scriptstore(name, "CPU", points, source=SOURCE, tag="t").args))
    if ready:
        assert hand.publish(name, version, NOTHING) == 1
    return version


def call(hand: Hand, *args: Any, names: tuple[Any, ...] = ()) -> Any:
    return hand.fcall("AI_SCRIPTEXECUTE", names, *args)


# --- storing


def test_a_script_is_a_version_like_any_other(hand: Hand) -> None:
    assert hand.fcall("AI_SCRIPTSTORE", ["s"], "cpu", "ENTRY_POINTS", 1, "f", "SOURCE", SOURCE) == b"OK"
    assert store(hand, ready=False, points=("f",)) == 2, "another tag"
    assert store(hand, ready=False, points=("f",)) == 2
    info = ModelInfo.from_hash("s", hand.do("HGETALL", "s"))
    found = info.versions[2]
    assert (found.backend, found.device, found.tag, found.state) == ("SCRIPT", "CPU", "t", "loading")
    assert found.options == {"entry_points": ["f"]}
    assert found.size == len(SOURCE)


def test_functions_of_the_operator(hand: Hand) -> None:
    args = ("GPU:1", "ENTRY_POINTS", 2, "tokenize", "text.crop", "OPTIONS", '{"run_limit_ms": 5}', "FUNCTIONS")
    assert hand.fcall("AI_SCRIPTSTORE", ["s"], *args) == b"OK"
    found = ModelInfo.from_hash("s", hand.do("HGETALL", "s")).versions[1]
    assert (found.backend, found.device) == ("FUNCTION", "GPU:1")
    assert found.options == {"entry_points": ["tokenize", "text.crop"], "run_limit_ms": 5}
    assert hand.fcall("AI_SCRIPTGET", ["s"], "SOURCE") == b""
    assert found.size == len("tokenize\ntext.crop")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((), "wrong number of arguments for 'AI_SCRIPTSTORE'"),
        (("C U", "ENTRY_POINTS", 1, "f", "SOURCE", "x"), "Invalid DEVICE"),
        (("CPU", "SOURCE", "x"), "Insufficient arguments, missing script entry points"),
        (("CPU", "ENTRY_POINTS", "many", "f", "SOURCE", "x"), "Non numeric entry points number provided"),
        (("CPU", "ENTRY_POINTS", 0, "SOURCE", "x"), "Non numeric entry points number provided"),
        (("CPU", "ENTRY_POINTS", 3, "f"), "only 1 names follow"),
        (("CPU", "ENTRY_POINTS", 2, "f", "f", "SOURCE", "x"), "entry point 'f' is there twice"),
        (("CPU", "ENTRY_POINTS", 1, "not a name", "SOURCE", "x"), "is no name of a function"),
        (("CPU", "ENTRY_POINTS", 1, "f"), "Insufficient arguments, missing script SOURCE"),
        (("CPU", "ENTRY_POINTS", 1, "f", "SOURCE"), "Invalid argument: 'SOURCE'"),
        (("CPU", "ENTRY_POINTS", 1, "f", "SOURCE", ""), "missing script SOURCE"),
        (("CPU", "ENTRY_POINTS", 1, "f", "SOURCE", "x", "y"), "Invalid argument: 'SOURCE'"),
        (("CPU", "ENTRY_POINTS", 1, "f", "FUNCTIONS", "y"), "Invalid argument: 'FUNCTIONS'"),
        (("CPU", "TAG"), "TAG needs a value"),
        (("CPU", "ENTRY_POINTS", 1, "f", "OPTIONS", "[]", "FUNCTIONS"), "OPTIONS needs a JSON object"),
        (("CPU", "ENTRY_POINTS", 1, "f", "OPTIONS", '{"x":1}', "FUNCTIONS"), "no option 'x' for scripts"),
        (("CPU", "ENTRY_POINTS", 1, "f", "OPTIONS", '{"run_limit_ms":1.5}', "FUNCTIONS"), "a whole number"),
    ],
)
def test_calls_that_store_nothing(hand: Hand, args: tuple[Any, ...], text: str) -> None:
    error = hand.refused("AI_SCRIPTSTORE", ["s"], *args)
    assert error.code == "BADARG"
    assert text in str(error)


def test_a_script_that_is_too_long(hand: Hand) -> None:
    error = hand.refused("AI_SCRIPTSTORE", ["s"], "CPU", "ENTRY_POINTS", 1, "f", "SOURCE", "x" * 262145)
    assert str(error).startswith("TOOBIG a script of 262145 bytes")


# --- reading, listing, deleting


def test_what_is_told_of_a_script(hand: Hand) -> None:
    store(hand)
    meta = [b"device", b"CPU", b"tag", b"t", b"Entry Points", [b"f", b"g"]]
    assert hand.do("FCALL_RO", "AI_SCRIPTGET", 1, "s", "META") == meta
    assert hand.fcall("AI_SCRIPTGET", ["s"], "source") == SOURCE.encode()
    assert hand.fcall("AI_SCRIPTGET", ["s"]) == [*meta, b"source", SOURCE.encode()]
    assert hand.fcall("AI_SCRIPTGET", ["s"], "VERSION", 1, "META", "SOURCE") == [*meta, b"source", SOURCE.encode()]
    assert "unsupported subcommand 'BLOB'" in str(hand.refused("AI_SCRIPTGET", ["s"], "BLOB"))
    assert hand.refused("AI_SCRIPTGET", ["s"], "VERSION", 7).code == "NOMODEL"
    about = hand.fcall("AI_INFO", ["s"])
    assert dict(zip(about[::2], about[1::2], strict=True))[b"type"] == b"SCRIPT"
    assert dict(zip(about[::2], about[1::2], strict=True))[b"samples"] == -1


def test_scripts_and_models_are_listed_apart(hand: Hand) -> None:
    store(hand, "s1")
    hand.store("m1", "TAG", 'a tag with "kind":"script" in it')
    store(hand, "s2", ready=False)
    assert sorted(hand.fcall("AI_SCRIPTSCAN", [])) == [[b"s1", b"t"], [b"s2", b"t"]]
    assert [name for name, _ in hand.fcall("AI_MODELSCAN", [])] == [b"m1"]
    assert commands.ai_scriptscan(0).result(hand.fcall("AI_SCRIPTSCAN", [], 0, "COUNT", 1000))[0] == 0
    assert hand.refused("AI_SCRIPTSCAN", [], "x").code == "BADARG"


def test_each_kind_has_functions_of_its_own(hand: Hand) -> None:
    store(hand)
    hand.store("m")
    for function, name, instead in (
        ("AI_SCRIPTGET", "m", "AI_MODELGET"),
        ("AI_SCRIPTDEL", "m", "AI_MODELDEL"),
        ("AI_MODELGET", "s", "AI_SCRIPTGET"),
        ("AI_MODELDEL", "s", "AI_SCRIPTDEL"),
    ):
        error = hand.refused(function, [name])
        assert error.code == "WRONGTYPE"
        assert str(error).endswith(f"that is for {instead}")
    assert "holds a model: a script needs another name" in str(
        hand.refused("AI_SCRIPTSTORE", ["m"], "CPU", "ENTRY_POINTS", 1, "f", "FUNCTIONS")
    )
    assert "holds a script: a model needs" in str(hand.refused("AI_MODELSTORE", ["s"], "ONNX", "CPU", "BLOB", "x"))


def test_deleting(hand: Hand) -> None:
    store(hand)
    store(hand, points=("h",))
    assert hand.fcall("AI_SCRIPTDEL", ["s"], "VERSION", 2) == b"OK"
    assert hand.fcall("AI_SCRIPTGET", ["s"], "META")[5] == [b"f", b"g"]
    assert hand.fcall("AI_SCRIPTDEL", ["s"]) == b"OK"
    error = hand.refused("AI_SCRIPTGET", ["s"])
    assert str(error).startswith("NOMODEL script key is empty: there is no script 's'")
    assert hand.refused("AI_SCRIPTDEL", ["s"]).code == "NOMODEL"


# --- calling


def test_a_call_on_keys_goes_to_the_executor_with_all_it_needs(hand: Hand) -> None:
    store(hand)
    hand.do("SET", "x", ROW)
    hand.do("SET", "large", LARGE)
    ticket = call(
        hand, "s", "f", "KEYS", 2, "a", "b{z}", "INPUTS", 2, "x", "OWN", "large",
        "OUTPUTS", 1, "y", "ARGS", 2, "1", b"\xff", "TIMEOUT", 500, names=("x", "y", "large"),
    )  # fmt: skip
    assert bytes(ticket).startswith(b"ks:{0}:ticket:")
    (job,) = hand.claim()
    assert job.extra == {b"f": b"f", b"k": [b"a", b"b{z}"], b"a": [b"1", b"\xff"]}
    assert (job.key, job.version, job.outputs) == (b"s", 1, [b"y"])
    assert job.inputs[0] == ROW
    assert job.composed
    assert hand.do("EXISTS", "large") == 0


def test_a_call_with_values_and_one_with_nothing(hand: Hand) -> None:
    store(hand)
    submit = Submit(1000, b"ks:{0}:t:c:1", b"", b"c", 1)
    command = commands.ai_scriptexecute("s", "g", [InputSpec(b"VALUE", ROW)], submit, args=["1"])
    assert hand.do(*command.args)
    assert hand.do(*command.args) == b"", "the same request again"
    (job,) = hand.claim()
    assert job.extra == {b"f": b"g", b"a": [b"1"]}
    job.decode()
    assert job.arrays[0].tolist() == [[0, 1, 2, 3]]
    assert hand.do(*commands.ai_scriptexecute("s", "g", [], Submit(1000)).args)
    (job,) = hand.claim()
    job.decode()
    assert job.arrays == []


def test_a_script_that_is_still_loading_takes_calls_of_its_functions_only(hand: Hand) -> None:
    store(hand, ready=False)
    assert call(hand, "s", "f", "KEYS", 1, "k")
    error = hand.refused("AI_SCRIPTEXECUTE", [], "s", "bar1", "KEYS", 1, "k")
    assert str(error) == "BADARG Function bar1 does not exist in the given script: 's@1' has f, g"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("s",), "BADARG wrong number of arguments for 'AI_SCRIPTEXECUTE'"),
        (("s", "f"), "BADARG KEYS or INPUTS scope must be provided first"),
        (("s", "f", "OUTPUTS", 1, "y"), "BADARG KEYS or INPUTS scope must be provided first"),
        (("s", "f", "ARGS", 1, "y", "KEYS", 1, "k"), "BADARG KEYS or INPUTS scope must be provided first"),
        (("s", "f", "KEYS"), "BADARG Missing arguments after KEYS keyword"),
        (("s", "f", "KEYS", -1), "BADARG Invalid or negative value found in number of KEYS"),
        (("s", "f", "KEYS", 2, "a"), "BADARG Number of KEYS does not match the number of given arguments"),
        (("s", "f", "INPUTS", "x"), "BADARG Invalid argument for inputs count in AI_SCRIPTEXECUTE"),
        (("s", "f", "INPUTS", 2, "x"), "BADARG INPUTS 2: only 1 follow"),
        (("s", "f", "INPUTS", 1, "other"), "BADARG key 'other' is used but not among the KEYS"),
        (("s", "f", "INPUTS", 1, "y"), "NOTENSOR input key 'y' does not exist"),
        (("s", "f", "INPUTS", 1, "VALUE", "junk"), "BADNPY input VALUE"),
        (("s", "f", "INPUTS", 1, "x", "OUTPUTS", "no"), "BADARG Invalid argument for output_count"),
        (("s", "f", "INPUTS", 1, "x", "INPUTS", 1, "x"), "BADARG Invalid arguments provided to AI_SCRIPTEXECUTE"),
        (("s", "f", "INPUTS", 1, "x", "1"), "BADARG Unexpected argument: '1'"),
        (("s", "f", "INPUTS", 1, "x", "TIMEOUT"), "BADARG Invalid value for TIMEOUT"),
        (("s", "f", "INPUTS", 1, "x", "TIMEOUT", "no"), "BADARG Invalid value for TIMEOUT"),
        (("s", "f", "KEYS", 1, "x" * 40000), "TOOBIG KEYS and ARGS have 40001 bytes"),
        (("s@2", "f", "KEYS", 1, "k"), "NOMODEL model 's' has no version or alias '2'"),
        (("m", "f", "KEYS", 1, "k"), "BADARG 'm@1' is no script"),
        (("none", "f", "KEYS", 1, "k"), "NOMODEL "),
    ],
)
def test_calls_that_run_nothing(hand: Hand, args: tuple[Any, ...], text: str) -> None:
    store(hand)
    hand.store("m")
    hand.do("SET", "x", ROW)
    error = hand.refused("AI_SCRIPTEXECUTE", ["x", "y"], *args)
    assert str(error).startswith(text)


def test_a_script_is_not_run_like_a_model(hand: Hand) -> None:
    store(hand)
    hand.do("SET", "x", ROW)
    for function, args in (
        ("AI_PREDICT", ("s", "INPUTS", 1, "VALUE", ROW)),
        ("AI_MODELEXECUTE", ("s", "INPUTS", 1, "x", "OUTPUTS", 1, "y")),
    ):
        with pytest.raises(KeysideError, match=r"^BADARG 's@1' is a script: call it with AI_SCRIPTEXECUTE"):
            hand.fcall(function, ["x", "y"], *args)


def test_a_refusal_goes_to_the_ticket_too(hand: Hand) -> None:
    with pytest.raises(KeysideError, match=r"^NOMODEL "):
        call(hand, "none", "f", "KEYS", 1, "k", "TICKET", "ks:{0}:t:c:1")
    assert (hand.reply("ks:{0}:t:c:1") or b"").startswith(b"NOMODEL ")


def test_the_catalog_knows_what_a_script_offers(hand: Hand) -> None:
    store(hand)
    record = json.loads(bytes(hand.do("HGET", hand.node.catalog, "s")))
    assert (record["kind"], record["functions"]) == ("script", ["f", "g"])
