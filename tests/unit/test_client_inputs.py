"""What callers give as inputs, and the requests that are made of it."""

from typing import Any

import numpy as np
import pytest

from keyside.clients import inputs
from keyside.clients.inputs import Bound, Key
from keyside.clients.request import Identity, may_retry, not_answered, pauses, who_serves
from keyside.clients.versions import meant, newest, parse_target, same_version
from keyside.tensorstore import errors, keys, npy
from keyside.tensorstore.records import ModelInfo, Signature, TensorSpec, VersionInfo

A = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("given", "items", "names"),
    [
        (A, 1, []),
        ((A, A), 2, []),
        ([A, [1, 2], Key("x")], 3, []),
        ({"a": A, "b": 1.5}, 2, ["a", "b"]),
        ([1, 2, 3], 1, []),
        ((1.0, 2.0), 1, []),
        ([[1, 2], [3, 4]], 1, []),
        ([np.float32(1), np.float32(2)], 1, []),
        ([], 1, []),
        (Key("x"), 1, []),
        ("text", 1, []),
        (["text", "more"], 1, []),
    ],
)
def test_one_input_is_told_from_several(given: Any, items: int, names: list[str]) -> None:
    bound = inputs.bind(given)
    assert (len(bound.items), bound.names) == (items, names)


@pytest.mark.parametrize("given", [{}, {1: A}])
def test_names_must_be_text(given: Any) -> None:
    with pytest.raises(errors.BadArg):
        inputs.bind(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("x", [Key("x")]),
        (b"x", [Key(b"x")]),
        (["x", "y"], [Key("x"), Key("y")]),
        (("x", Key("y", "ref")), [Key("x"), Key("y", "ref")]),
        ({"a": "x"}, [Key("x")]),
    ],
)
def test_where_keys_are_meant_text_is_a_key(given: Any, expected: list[Key]) -> None:
    assert inputs.bind_keys(given).items == expected


def spec(dtype: str) -> Signature:
    return Signature((TensorSpec("x", dtype, None),), None)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ([1, 2], "FLOAT", np.array([1, 2], np.float32)),
        ([1.5], "FLOAT16", np.array([1.5], np.float16)),
        ([1.5], "DOUBLE", np.array([1.5])),
        ([1, 2], "UINT8", np.array([1, 2], np.uint8)),
        ([True], "INT32", np.array([1], np.int32)),
        ([0, 1], "BOOL", np.array([False, True])),
        (2**63, "UINT64", np.array(2**63, np.uint64)),
        (["a"], "STRING", np.array([b"a"])),
        ([], "INT64", np.array([], np.int64)),
        ([1.5], "", np.array([1.5])),
    ],
)
def test_plain_values_become_the_dtype_of_the_model(value: Any, dtype: str, expected: Any) -> None:
    bound = Bound([value], [])
    assert bound.needs_signature
    bound.convert(spec(dtype))
    (found,) = bound.items
    assert isinstance(found, np.ndarray)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert not bound.needs_signature


@pytest.mark.parametrize(
    ("value", "dtype", "error"),
    [
        ([256], "UINT8", errors.BadValue),
        ([-1], "UINT8", errors.BadValue),
        ([2**40], "INT32", errors.BadValue),
        ([1.0], "INT64", errors.BadDtype),
        ([2], "BOOL", errors.BadDtype),
        ([1.0], "BOOL", errors.BadDtype),
        (["a"], "FLOAT", errors.BadDtype),
        ([1], "STRING", errors.BadDtype),
        ([None], "FLOAT", errors.BadDtype),
    ],
)
def test_plain_values_that_do_not_fit(value: Any, dtype: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Bound([value], []).convert(spec(dtype))


def test_without_a_signature_numpy_chooses() -> None:
    for bound, signature in ((Bound([[1.5]], []), None), (Bound([A, [1.5]], []), spec("FLOAT"))):
        bound.convert(signature)
        assert isinstance(bound.items[-1], np.ndarray)
        assert bound.items[-1].dtype == np.float64
    named = Bound([[1]], ["y"])
    named.convert(spec("FLOAT"))
    assert isinstance(named.items[0], np.ndarray)
    assert named.items[0].dtype == np.int64


def made(*items: object, outputs: tuple[bytes, ...] = (), names: tuple[str, ...] = ()) -> Any:
    return inputs.request("m", Bound([*items], [*names]), outputs, 2.5, Identity(), b"0")


def test_values_ride_in_the_call_up_to_32_kib() -> None:
    room = 32 * 1024 - len(npy.encode_header(np.dtype(np.uint8), (32_000,)))
    fits = made(np.zeros(room, np.uint8))
    assert not fits.before
    assert b"VALUE" in fits.submit(1, b"ks:{0}:t").args
    large = made(np.zeros(room + 1, np.uint8))
    (name,) = large.temporaries
    assert name == keys.temporary(b"0", large.identity.id, large.seq, 0)
    args = large.submit(1, b"ks:{0}:t").args
    assert args[args.index(b"OWN") + 1] == name
    assert args[2:4] == (1, name)
    (before,) = large.before
    assert before.args[:2] == (b"SET", name)
    assert before.args[-2:] == (b"PX", 60_000)


@pytest.mark.parametrize("key", ["a", "{t}a", "a}b{", "}{"])
def test_a_large_value_goes_into_the_slot_of_the_keys(key: str) -> None:
    large = np.zeros(100_000, np.uint8)
    for request in (made(large, Key(key)), made(large, outputs=(key.encode(),))):
        assert keys.slot(request.temporaries[0]) == keys.slot(key)


def test_keys_alone_are_executed() -> None:
    assert made(Key("x"), outputs=(b"y",)).submit(1, b"ks:{0}:t").args[1] == "AI_MODELEXECUTE"
    assert made(Key("x")).submit(1, b"ks:{0}:t").args[1] == "AI_PREDICT"
    assert made(Key("x"), A, outputs=(b"y",)).submit(1, b"ks:{0}:t").args[1] == "AI_PREDICT"
    assert made(Key("x"), outputs=(b"y",), names=("a",)).submit(1, b"ks:{0}:t").args[1] == "AI_PREDICT"


def test_a_request_keeps_its_number() -> None:
    request = made(A)
    first, second = request.submit(1, b"ks:{0}:t"), request.submit(0.0001, b"ks:{0}:t")
    assert first.args[-3:] == second.args[-3:] == (b"ID", request.identity.id, request.seq)
    assert second.args[second.args.index(b"TIMEOUT") + 1] == 1
    assert Identity().id != request.identity.id
    assert request.identity.id.isalnum()


def test_rows_must_agree() -> None:
    assert inputs.count_rows(Bound([A, [1, 2]], [])) == 2
    for wrong, error in (
        ([A, np.zeros(3)], errors.BadInput),
        ([np.float32(1)], errors.BadInput),
        ([Key("x")], errors.BadArg),
    ):
        with pytest.raises(error):
            inputs.count_rows(Bound([*wrong], []))


def test_pauses_grow_to_a_limit() -> None:
    pause = pauses()
    found = [pause() for _ in range(10)]
    assert found == sorted(found)
    assert found[-1] == 1.0


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (errors.Unreachable("gone"), True),
        (errors.TryAgain("a slot is moving"), True),
        (errors.TryAgain("MOVED 5 host:1"), False),
        (errors.Busy("full"), False),
        (errors.OutOfMemory("full"), False),
    ],
)
def test_what_may_be_tried_again(error: Exception, again: bool) -> None:
    assert may_retry(error) is again


def test_why_nobody_has_answered() -> None:
    cpu, gpu = {"devices": ["CPU"]}, {"devices": ["GPU"]}
    assert "has ever run" in who_serves("CPU", [], [])
    assert "no executor is alive" in who_serves("CPU", ["a"], [])
    assert "no executor on this server serves the queue CPU; those alive serve GPU" in who_serves("CPU", ["a"], [gpu])
    assert who_serves("CPU", ["a", "b"], [cpu, gpu]).startswith("1 executor is alive")
    assert who_serves("", ["a", "b"], [cpu, gpu]).startswith("2 executors are alive")
    assert "connection" in not_answered(1, b"", "x").text
    assert "connection" not in not_answered(1, b"CPU/1-0", "x").text


def test_targets() -> None:
    assert parse_target("m") == ("m", None)
    assert parse_target("m@3") == ("m", 3)
    for wrong in ("m@", "m@x", "m@-1", "m@1.5"):
        with pytest.raises(errors.BadArg):
            parse_target(wrong)


def test_which_version_is_meant() -> None:
    states = {1: "ready", 2: "ready", 3: "failed"}
    versions = {n: VersionInfo(version=n, state=state, digest="d", device="CPU") for n, state in states.items()}
    info = ModelInfo(key="m", uid="u", last=3, default=1, versions=versions)
    assert newest(info, None).target == "m@3"
    assert meant(info, None).target == "m@1"
    assert meant(info, 2).target == "m@2"
    fresh = ModelInfo(key="m", uid="u", last=3, default=None, versions=versions)
    assert meant(fresh, None).target == "m@2"
    assert same_version(info, "d", {"device": "CPU"}) == 2
    assert same_version(info, "d", {"device": "GPU"}) is None
    assert same_version(info, "e", {}) is None
    with pytest.raises(errors.NoModel):
        newest(info, 4)
