"""What AI_MODELEXECUTE and AI_PREDICT refuse: by which code, with what text, and with nothing changed."""

from typing import Any

import numpy as np
import pytest
from tests.lua.jobs import LARGE, ROW, Hand, ok
from tests.servers import Server

from keyside.tensorstore import npy
from keyside.tensorstore.errors import KeysideError
from keyside.tensorstore.records import Signature, TensorSpec

PAIR = npy.to_bytes(np.ones((1, 2), np.float32))
COUNT = npy.to_bytes(np.ones(1, np.int64))
HUGE = 64 * (1 << 20) + 1

EXECUTE = ("m", "INPUTS", 1, "x", "OUTPUTS", 1, "y")
PREDICT = ("m", "INPUTS", 1, "VALUE", ROW)
VALUE = ("VALUE", ROW)


@pytest.fixture
def ready(hand: Hand) -> Hand:
    """With a model m of one input and one output, which is ready, and a tensor x for it."""
    hand.store()
    hand.do("SET", "x", ROW)
    return hand


@pytest.mark.parametrize(
    "options",
    [
        ("TICKET",),
        ("TICKET", "t"),
        ("TICKET", "ks:t"),
        ("TICKET", "ks:{" + "0" * 1021),
        *(
            ("TICKET", f"ks:{name}")
            for name in (
                "{0}",
                "{0}:",
                "{0}t",
                "{0}:tt",
                "{0}:T",
                "{0}::t",
                "{}:t",
                "{0}:x:t",
                "{0}:tmp:c:1:0",
                "{0}:bytes:CPU",
                "{0}:catalog",
                "{0}:models",
                "{0}:jobs:CPU",
                "{0}:stats:u-1",
                "{0}:tickets",
                "{m}:up:u:0",
                "{0:t}x:t",
            )
        ),
        ("TICKET", "ks:{0}:t", "a b"),
        ("TICKET", "ks:{0}:t", "a\n"),
        ("TICKET", "ks:{0}:t", "c" * 65),
        ("TIMEOUT",),
        ("TIMEOUT", 0),
        ("TIMEOUT", -1),
        ("TIMEOUT", 86_400_001),
        ("TIMEOUT", "1e3"),
        ("TIMEOUT", "soon"),
        ("ID",),
        ("ID", "c"),
        ("ID", "c", "x"),
        ("ID", "c", 2**53),
        ("ID", "c", -1),
        ("ID", "", 1),
        ("ID", "c:1", 1),
        ("ID", "c" * 65, 1),
        ("NOW",),
        ("",),
    ],
)
def test_options_that_are_refused(ready: Hand, options: tuple[Any, ...]) -> None:
    assert ready.refused("AI_PREDICT", [], *PREDICT, *options).code == "BADARG"
    assert ready.refused("AI_MODELEXECUTE", ["x", "y"], *EXECUTE, *options).code == "BADARG"


# --- refused


@pytest.mark.parametrize(
    ("code", "names", "args"),
    [
        ("BADARG", [], ()),
        ("BADARG", [], ("m",)),
        ("BADARG", [], ("m", "OUTPUTS", 1, "y")),
        ("BADARG", ["x"], ("m", "INPUTS")),
        ("BADARG", ["x"], ("m", "INPUTS", 0, "OUTPUTS", 0)),
        ("BADARG", ["x"], ("m", "INPUTS", "x", "OUTPUTS", 1, "y")),
        ("BADARG", ["x"], ("m", "INPUTS", 1)),
        ("BADARG", ["x"], ("m", "INPUTS", 1, "x")),
        ("BADARG", ["x", "y"], ("m", "INPUTS", 1, "x", "y")),
        ("BADARG", ["x", "y"], ("m", "INPUTS", 1, "x", "OUTPUTS")),
        ("BADARG", ["x", "y"], ("m", "INPUTS", 1, "x", "OUTPUTS", 2, "y")),
        ("BADARG", ["y"], EXECUTE),
        ("BADARG", ["x"], EXECUTE),
        ("BADARG", ["x", "y"], ("m", "INPUTS", 1, "OWN", "OUTPUTS", 1, "y")),
        ("BADARG", ["x", "y"], ("m", "INPUTS", 2, "OWN", "x", "x", "OUTPUTS", 1, "y")),
        ("BADARG", ["x", "y"], ("m", "INPUTS", 2, "x", "OWN", "x", "OUTPUTS", 1, "y")),
        ("BADARG", ["x", "y"], ("m", "INPUTS", 2, "OWN", "x", "OWN", "x", "OUTPUTS", 1, "y")),
        ("NOMODEL", ["x", "y"], ("other", *EXECUTE[1:])),
        ("NOMODEL", ["x", "y"], ("m@2", *EXECUTE[1:])),
        ("NOMODEL", ["x", "y"], ("m@prod", *EXECUTE[1:])),
        ("NOMODEL", ["x", "y"], ("@", *EXECUTE[1:])),
        ("NOMODEL", ["x", "y"], ("", *EXECUTE[1:])),
        ("BADINPUT", ["x", "y"], ("m", "INPUTS", 2, "x", "x", "OUTPUTS", 1, "y")),
        ("BADINPUT", ["x", "y"], ("m", "INPUTS", 1, "x", "OUTPUTS", 2, "y", "y")),
        ("NOTENSOR", ["y"], ("m", "INPUTS", 1, "y", "OUTPUTS", 1, "y")),
    ],
)
def test_executions_that_are_refused(ready: Hand, code: str, names: list[str], args: tuple[Any, ...]) -> None:
    assert ready.refused("AI_MODELEXECUTE", names, *args).code == code


@pytest.mark.parametrize(
    ("code", "names", "args"),
    [
        ("BADARG", [], ()),
        ("BADARG", [], ("m", "INPUTS", 1)),
        ("BADARG", [], ("m", "INPUTS", 1, "VALUE")),
        ("BADARG", [], ("m", "INPUTS", 1, "BLOB", ROW)),
        ("BADARG", [], ("m", "INPUTS", 1, "KEY", "x")),
        ("BADARG", [], ("m", "INPUTS", 2, *VALUE)),
        ("BADARG", [], ("m", "INPUTS", 1, *VALUE, "NAMES")),
        ("BADARG", [], ("m", "INPUTS", 1, *VALUE, "NAMES", 2, "x", "y")),
        ("BADARG", [], ("m", "INPUTS", 1, *VALUE, "NAMES", 1)),
        ("BADARG", [], ("m", "INPUTS", 1, *VALUE, "OUTPUTS", 1, "y")),
        ("BADARG", [], ("m", "INPUTS", 1, *VALUE, "OUTPUTS", 0)),
        ("BADARG", [], ("m", "INPUTS", 1001, *VALUE * 1001)),
        ("BADNPY", [], ("m", "INPUTS", 1, "VALUE", b"")),
        ("BADNPY", [], ("m", "INPUTS", 1, "VALUE", ROW[:-1])),
        ("BADNPY", [], ("m", "INPUTS", 1, "VALUE", ROW + b"x")),
        ("BADNPY", [], ("m", "INPUTS", 1, "VALUE", ROW.replace(b"<f4", b">f4"))),
        ("BADNPY", [], ("m", "INPUTS", 1, "VALUE", ROW.replace(b"False", b"True "))),
        ("TOOBIG", [], ("m", "INPUTS", 1, "VALUE", LARGE)),
        ("BADDTYPE", [], ("m", "INPUTS", 1, "VALUE", npy.to_bytes(np.ones((1, 4))))),
        ("BADSHAPE", [], ("m", "INPUTS", 1, "VALUE", npy.to_bytes(np.ones((1, 5), np.float32)))),
        ("BADSHAPE", [], ("m", "INPUTS", 1, "VALUE", npy.to_bytes(np.ones(4, np.float32)))),
        ("BADSHAPE", [], ("m", "INPUTS", 1, "VALUE", npy.to_bytes(np.ones((1, 4, 1), np.float32)))),
    ],
)
def test_predictions_that_are_refused(ready: Hand, code: str, names: list[str], args: tuple[Any, ...]) -> None:
    assert ready.refused("AI_PREDICT", names, *args).code == code


@pytest.mark.parametrize("mode", ["KEY", "OWN", "REF"])
def test_input_keys_that_hold_no_tensor(ready: Hand, mode: str) -> None:
    ready.do("SET", "text", "hello")
    ready.do("SET", "short", LARGE[:-1])
    ready.do("SET", "empty", "")
    ready.do("RPUSH", "list", ROW)
    for key, code in (
        ("text", "NOTENSOR"), ("short", "NOTENSOR"), ("empty", "NOTENSOR"), ("none", "NOTENSOR"),
        ("list", "WRONGTYPE"), ("m", "WRONGTYPE"),
    ):  # fmt: skip
        error = ready.refused("AI_PREDICT", [key], "m", "INPUTS", 1, mode, key)
        assert (error.code, f"'{key}'" in error.text) == (code, True), error


def test_output_keys_that_hold_no_tensor(ready: Hand) -> None:
    ready.do("SET", "text", "hello")
    ready.do("SET", "empty", "")
    ready.do("RPUSH", "list", ROW)
    for key in ("text", "empty", "list", "m"):
        error = ready.refused("AI_MODELEXECUTE", ["x", key], "m", "INPUTS", 1, "x", "OUTPUTS", 1, key)
        assert (error.code, f"'{key}'" in error.text) == ("WRONGTYPE", True), error


def test_output_keys_that_the_caller_may_not_write(server: Server, ready: Hand) -> None:
    ready.do("SET", "y", ROW)
    ready.do("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@all", "-set", "(+set ~mine:*)")
    caller = Hand(server.url_unix)
    try:
        caller.do("AUTH", "reader", "pw")
        for key in ("y", "new"):
            for function, args in (
                ("AI_MODELEXECUTE", ("m", "INPUTS", 1, "x", "OUTPUTS", 1, key)),
                ("AI_PREDICT", ("m", "INPUTS", 1, *VALUE, "OUTPUTS", 1, key)),
            ):
                error = caller.refused(function, ["x", key], *args)
                assert (error.code, f"'{key}'" in error.text) == ("NOPERM", True), error
        caller.execute(["x"], ["mine:y"])
        assert len(ready.claim()) == 1
    finally:
        caller.wire.close()
        ready.do("ACL", "DELUSER", "reader")


def test_what_does_not_fit_says_what_would(ready: Hand) -> None:
    error = ready.refused("AI_PREDICT", [], "m", "INPUTS", 1, "VALUE", npy.to_bytes(np.ones((2, 3), np.float32)))
    for fact in ("'x'", "'m@1'", "[-1,4]", "[2,3]"):
        assert fact in error.text
    error = ready.refused("AI_PREDICT", [], "m", "INPUTS", 1, "VALUE", npy.to_bytes(np.ones((2, 3))))
    for fact in ("'x'", "'m@1'", "FLOAT", "DOUBLE"):
        assert fact in error.text


def test_a_model_of_unknown_shapes_and_types(hand: Hand) -> None:
    anything = Signature((TensorSpec("x", "", None),), None)
    hand.store(signature=anything)
    for array in (np.ones((), np.int8), np.ones((2, 3, 4)), np.array([b"ab"])):
        hand.predict(value=npy.to_bytes(array))
    hand.do("SET", "x", ROW)
    hand.execute(["x"], ["a", "b", "c"])
    assert len(hand.claim()) == 4


def test_a_version_that_failed(hand: Hand) -> None:
    hand.store(signature=None)
    hand.publish("m", 1, None, "BADMODEL it is garbage")
    error = hand.refused("AI_PREDICT", [], *PREDICT)
    assert error.code == "MODELFAILED"
    assert "BADMODEL it is garbage" in error.text


def test_inputs_that_are_too_large_to_copy(ready: Hand) -> None:
    header = npy.encode_header(np.dtype("<f4"), (HUGE // 16, 4))
    ready.do("SETRANGE", "huge", len(header) + HUGE // 16 * 16 - 1, b"\0")
    ready.do("SETRANGE", "huge", 0, header)
    with pytest.raises(KeysideError) as caught:
        ready.execute(["huge"], ["y"])
    assert caught.value.code == "TOOBIG"
    for word in ("OWN", "REF"):
        assert word in caught.value.text
    ready.fcall("AI_PREDICT", ["huge"], "m", "INPUTS", 1, "REF", "huge")
    ready.fcall("AI_PREDICT", ["huge"], "m", "INPUTS", 1, "OWN", "huge")
    assert not ready.do("EXISTS", "huge")
    first, second = ready.claim()
    ready.complete("e1", [ok(first), ok(second)])
    assert ready.do("GET", ready.node.bytes("CPU")) == b"0"
