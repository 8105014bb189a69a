"""Inputs of AI_PREDICT that are gathered where they live: what they become, and what is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tests.lua.jobs import LUA_ERROR, TWO, Hand
from tests.servers import Server

from keyside.tensorstore import dtypes, npy
from keyside.tensorstore.errors import KeysideError
from keyside.tensorstore.records import Signature, TensorSpec

FREE = Signature((TensorSpec("x", "", None),), (TensorSpec("y", "FLOAT", (-1, 4)),))
VECTOR = Signature((TensorSpec("x", "FLOAT", (-1,)),), (TensorSpec("y", "FLOAT", (-1,)),))
TABLE = np.arange(24, dtype=np.int16).reshape(4, 3, 2)


@pytest.fixture
def ready(hand: Hand) -> Hand:
    """Models `free` and `pair`, which take anything, `vector`, FLOAT [-1], and `late`, not yet known; and data."""
    hand.beat("e1")
    hand.store("free", signature=FREE)
    hand.store("vector", signature=VECTOR)
    hand.store("pair", signature=Signature((TensorSpec("a", "", None), TensorSpec("b", "", None)), FREE.outputs))
    hand.store("late", signature=None)
    hand.wire.call_many(
        [
            ("HSET", "user:1", "age", "41", "income", "1e3", "score", "-0.5", "name", "Ada", "word", "many"),
            ("HSET", "user:2", "age", "7", "income", "nan", "score", "inf", "name", "Jo"),
            ("RPUSH", "list", "1", "2.5", "-3", "4", "5"),
            ("RPUSH", "words", "one", "two", "x"),
            ("ZADD", "zset", "1", "a", "2.5", "b", "1e17", "c", "inf", "d"),
            ("SET", "n1", "1"), ("SET", "n2", "-2.5"), ("SET", "empty", ""),
            ("SET", "table", npy.to_bytes(TABLE)),
        ]
    )  # fmt: skip
    return hand


def names_of(spec: tuple[Any, ...]) -> list[Any]:
    """The keys that a spec names."""
    if str(spec[0]).upper() == "ROWS":
        return [spec[1]]
    if str(spec[0]).upper() in ("HASH", "NUMBERS"):
        return list(spec[3 : 3 + int(spec[2])])
    return [spec[2]]


def gathered(hand: Hand, *spec: Any, target: str = "free") -> np.ndarray[Any, Any]:
    """What an input becomes in the job."""
    hand.fcall("AI_PREDICT", names_of(spec), target, "INPUTS", 1, *spec)
    job = next(job for job in reversed(hand.claim()) if job.op == b"run")
    (value,) = job.inputs
    return npy.decode(value)


CASES: list[tuple[tuple[Any, ...], Any]] = [
    (("HASH", "FLOAT", 1, "user:1", 2, "age", "score"), np.array([[41, -0.5]], np.float32)),
    (("hash", "float", 1, "user:1", 1, "income"), np.array([[1000]], np.float32)),
    (
        ("HASH", "DOUBLE", 2, "user:1", "user:2", 2, "income", "score"),
        np.array([[1000, -0.5], [np.nan, np.inf]], np.float64),
    ),
    (("HASH", "INT64", 2, "user:2", "user:1", 1, "age"), np.array([[7], [41]], np.int64)),
    (("HASH", "FLOAT16", 1, "user:1", 2, "none", "age", "DEFAULT", "1.5"), np.array([[1.5, 41]], np.float16)),
    (("HASH", "UINT8", 1, "user:1", 3, "age", "no", "none", "DEFAULTS", 3, 1, 2, 3), np.array([[41, 2, 3]], np.uint8)),
    (("HASH", "INT32", 2, "user:1", "nobody", 1, "age", "DEFAULT", "-1"), np.array([[41], [-1]], np.int32)),
    (("HASH", "STRING", 2, "user:1", "user:2", 1, "name"), np.array([[b"Ada"], [b"Jo"]])),
    (("HASH", "STRING", 1, "nobody", 2, "a", "b", "DEFAULTS", 2, "", "DEFAULT"), np.array([[b"", b"DEFAULT"]])),
    (("LIST", "FLOAT", "list", 0, -1), np.array([[1, 2.5, -3, 4, 5]], np.float32)),
    (("LIST", "DOUBLE", "list", -2, -1), np.array([[4, 5]], np.float64)),
    (("LIST", "INT8", "list", 3, 100), np.array([[4, 5]], np.int8)),
    (("LIST", "FLOAT", "list", -100, 0), np.array([[1]], np.float32)),
    (("LIST", "FLOAT", "list", 4, 3), np.zeros((1, 0), np.float32)),
    (("LIST", "FLOAT", "list", 9, 12), np.zeros((1, 0), np.float32)),
    (("LIST", "STRING", "words", 0, 1), np.array([[b"one", b"two"]])),
    (("ZSET", "DOUBLE", "zset", 0, -1, "SCORES"), np.array([[1, 2.5, 1e17, np.inf]], np.float64)),
    (("ZSET", "INT64", "zset", 2, 2, "SCORES"), np.array([[10**17]], np.int64)),
    (("ZSET", "UINT64", "zset", -1, 0, "SCORES"), np.zeros((1, 0), np.uint64)),
    (("ZSET", "FLOAT", "zset", 0, 1, "SCORES", "REV"), np.array([[np.inf, 1e17]], np.float32)),
    (("ZSET", "STRING", "zset", 0, 1, "MEMBERS", "REV"), np.array([[b"d", b"c"]])),
    (("ZSET", "STRING", "zset", 0, -3, "members"), np.array([[b"a", b"b"]])),
    (("NUMBERS", "FLOAT", 2, "n1", "n2"), np.array([[1, -2.5]], np.float32)),
    (("NUMBERS", "BOOL", 1, "n1"), np.array([[True]])),
    (("NUMBERS", "INT16", 2, "n1", "none", "DEFAULT", 0), np.array([[1, 0]], np.int16)),
    (("NUMBERS", "STRING", 1, "empty"), np.array([[b""]])),
    (("ROWS", "table", 2, 3, 0), TABLE[[3, 0]]),
    (("ROWS", "table", 3, 1, 1, 1), TABLE[[1, 1, 1]]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "expected"), CASES)
def test_what_is_gathered(ready: Hand, spec: tuple[Any, ...], expected: np.ndarray[Any, Any]) -> None:
    found = gathered(ready, *spec)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


REFUSED: list[tuple[str, tuple[Any, ...], list[str]]] = [
    ("NOFEATURE", ("HASH", "FLOAT", 1, "user:1", 2, "age", "none"), ["'user:1'", "'none'", "DEFAULT"]),
    ("NOFEATURE", ("HASH", "FLOAT", 2, "user:1", "nobody", 1, "age"), ["'nobody'", "'age'", "DEFAULT"]),
    ("BADVALUE", ("HASH", "FLOAT", 2, "user:2", "user:1", 2, "age", "name"), ["'name'", "'user:2'", "'Jo'"]),
    ("BADVALUE", ("HASH", "INT8", 1, "user:1", 1, "score"), ["'score'", "'user:1'", "'-0.5'", "integer"]),
    ("BADVALUE", ("HASH", "FLOAT", 1, "user:1", 1, "z", "DEFAULT", "x"), ["default", "'z'", "'user:1'", "'x'"]),
    ("WRONGTYPE", ("HASH", "FLOAT", 1, "list", 1, "x"), ["'list'", "hash"]),
    ("WRONGTYPE", ("HASH", "FLOAT", 1, "n1", 1, "x", "DEFAULT", 0), ["'n1'", "hash"]),
    ("NOFEATURE", ("LIST", "FLOAT", "none", 0, -1), ["'none'", "list"]),
    ("BADVALUE", ("LIST", "FLOAT", "words", 1, -1), ["element 1", "'words'", "'two'"]),
    ("WRONGTYPE", ("LIST", "FLOAT", "zset", 0, -1), ["'zset'", "list"]),
    ("NOFEATURE", ("ZSET", "FLOAT", "none", 0, -1, "SCORES"), ["'none'", "sorted set"]),
    ("BADVALUE", ("ZSET", "INT64", "zset", 0, 1, "SCORES"), ["score of 'b'", "'zset'", "'2.5'"]),
    ("BADVALUE", ("ZSET", "FLOAT", "zset", 0, 0, "MEMBERS"), ["rank 0", "'zset'", "'a'"]),
    ("BADVALUE", ("ZSET", "FLOAT16", "zset", 2, 2, "SCORES"), ["overflows"]),
    ("WRONGTYPE", ("ZSET", "FLOAT", "user:1", 0, -1, "SCORES"), ["'user:1'", "sorted set"]),
    ("NOFEATURE", ("NUMBERS", "FLOAT", 2, "n1", "none"), ["'none'"]),
    ("BADVALUE", ("NUMBERS", "FLOAT", 2, "n1", "empty"), ["'empty'", "''"]),
    ("BADVALUE", ("NUMBERS", "UINT8", 1, "n2"), ["'n2'", "'-2.5'"]),
    ("WRONGTYPE", ("NUMBERS", "FLOAT", 1, "list"), ["'list'", "string"]),
    ("BADVALUE", ("ROWS", "table", 2, 0, 4), ["'table'", "index 2", "'4'", "0 to 3"]),
    ("BADVALUE", ("ROWS", "table", 1, -1), ["'-1'", "0 to 3"]),
    ("BADVALUE", ("ROWS", "table", 1, "x"), ["'x'"]),
    ("NOTENSOR", ("ROWS", "none", 1, 0), ["'none'"]),
    ("WRONGTYPE", ("ROWS", "n1", 1, 0), ["'n1'"]),
    ("WRONGTYPE", ("ROWS", "list", 1, 0), ["'list'"]),
    ("BADARG", ("HASH", "FLOAT32", 1, "user:1", 1, "age"), ["'FLOAT32'", "AUTO", "HASH dtype"]),
    ("BADARG", ("HASH", "FLOAT", 0, "user:1", 1, "age"), ["HASH", "keys", "'0'"]),
    ("BADARG", ("HASH", "FLOAT", 1, "user:1", 3, "age"), ["fields", "3", "1 arguments follow"]),
    ("BADARG", ("HASH", "FLOAT", 1, "user:1", 1, "age", "DEFAULT"), ["DEFAULT"]),
    ("BADARG", ("HASH", "FLOAT", 1, "user:1", 1, "age", "DEFAULTS", 2, 1, 2), ["2 DEFAULTS for 1"]),
    ("BADARG", ("HASH", "FLOAT", 1, "user:1", 1, "age", "OTHERWISE", 2), ["'OTHERWISE'"]),
    ("BADARG", ("LIST", "FLOAT", "list", 0), ["start and stop"]),
    ("BADARG", ("LIST", "FLOAT", "list", 0, "end"), ["'end'"]),
    ("BADARG", ("LIST", "FLOAT", "list", "1e3", "0"), ["'1e3'"]),
    ("BADARG", ("ZSET", "FLOAT", "zset", 0, 1), ["SCORES or MEMBERS"]),
    ("BADARG", ("ZSET", "FLOAT", "zset", 0, 1, "VALUES"), ["'VALUES'"]),
    ("BADARG", ("ROWS", "table", 10_001, 1), ["10000"]),
    ("BADARG", ("LOOKUP", "table", 1), ["'LOOKUP'", "HASH, LIST, ZSET, NUMBERS or ROWS"]),
]  # fmt: skip


def refused(hand: Hand, names: list[Any], *args: Any) -> KeysideError:
    """Call AI_PREDICT, which must refuse and add nothing."""
    before = hand.length(), hand.do("DBSIZE")
    with pytest.raises(KeysideError) as caught:
        hand.fcall("AI_PREDICT", names, *args)
    assert (hand.length(), hand.do("DBSIZE")) == before
    assert not LUA_ERROR.search(str(caught.value)), caught.value
    return caught.value


@pytest.mark.parametrize(("code", "spec", "words"), REFUSED)
def test_what_is_refused(ready: Hand, code: str, spec: tuple[Any, ...], words: list[str]) -> None:
    error = refused(ready, [*names_of((*spec, "")), "more"], "free", "INPUTS", 1, *spec)
    assert error.code == code, error
    for word in words:
        assert word in str(error), error


# --- the model


def test_a_vector_for_a_model_that_takes_one(ready: Hand) -> None:
    for spec, expected in (
        (("HASH", "AUTO", 1, "user:1", 2, "age", "score"), [41, -0.5]),
        (("LIST", "AUTO", "list", 0, 1), [1, 2.5]),
        (("ZSET", "FLOAT", "zset", 0, 0, "SCORES"), [1]),
        (("NUMBERS", "AUTO", 1, "n2"), [-2.5]),
    ):
        found = gathered(ready, *spec, target="vector")
        assert (found.dtype, found.tolist()) == (np.float32, expected)
    ready.do("SET", "rows", npy.to_bytes(np.ones((2, 3), np.float32)))
    assert gathered(ready, "ROWS", "rows", 1, 1, target="vector").tolist() == [1, 1, 1]
    error = refused(ready, ["user:1", "user:2"], "vector", "INPUTS", 1, "HASH", "AUTO", 2, "user:1", "user:2", 1, "age")
    assert error.code == "BADSHAPE"
    error = refused(ready, ["user:1"], "vector", "INPUTS", 1, "HASH", "INT8", 1, "user:1", 1, "age")
    assert error.code == "BADDTYPE"


def test_a_dtype_that_nobody_knows(ready: Hand) -> None:
    for target, words in (("free", "does not say"), ("late", "still loading")):
        error = refused(ready, ["user:1"], target, "INPUTS", 1, "HASH", "AUTO", 1, "user:1", 1, "age")
        assert (error.code, words in str(error)) == ("BADARG", True), error
    ready.fcall("AI_PREDICT", ["user:1"], "late", "INPUTS", 1, "HASH", "INT8", 1, "user:1", 1, "age")


def test_several_inputs_by_name(hand: Hand) -> None:
    hand.beat("e1")
    hand.store("two", signature=TWO)
    hand.do("HSET", "h", "x", "1", "y", "2")
    hand.do("SET", "b", npy.to_bytes(np.array([5], np.int64)))
    hand.fcall(
        "AI_PREDICT", ["h", "b"], "two", "INPUTS", 2, "KEY", "b", "HASH", "FLOAT", 1, "h", 2, "x", "y",
        "DEFAULT", 0, "NAMES", 2, "b", "a", "TIMEOUT", 1000,
    )  # fmt: skip
    (job,) = hand.claim()
    assert [npy.decode(value).tolist() for value in job.inputs] == [[[1, 2]], [5]]


def test_what_is_gathered_is_that_of_the_submit(ready: Hand) -> None:
    ready.do("MULTI")
    ready.do("HSET", "user:1", "age", "42")
    ready.do("FCALL", "AI_PREDICT", 1, "user:1", "free", "INPUTS", 1, "HASH", "FLOAT", 1, "user:1", 1, "age")
    ready.do("DEL", "user:1")
    ready.do("EXEC")
    job = next(job for job in ready.claim() if job.op == b"run")
    assert npy.decode(job.inputs[0]).tolist() == [[42]]


def test_rows_of_a_key_that_is_given_away(ready: Hand) -> None:
    ready.fcall("AI_PREDICT", ["table"], "pair", "INPUTS", 2, "OWN", "table", "ROWS", "table", 1, 2)
    job = next(job for job in ready.claim() if job.op == b"run")
    np.testing.assert_array_equal(npy.decode(job.inputs[1]), TABLE[[2]])
    assert ready.do("EXISTS", "table") == 0


# --- how much


def test_sizes(ready: Hand) -> None:
    fields = [f"f{n}" for n in range(10_000)]
    ready.do("HSET", "wide", *(word for n, field in enumerate(fields) for word in (field, n % 100)))
    found = gathered(ready, "HASH", "INT16", 1, "wide", 10_000, *fields)
    np.testing.assert_array_equal(found, np.arange(10_000, dtype=np.int16)[None] % 100)
    found = gathered(ready, "HASH", "FLOAT", 1, "wide", 8160, *fields[:8160])
    assert npy.to_bytes(found).__len__() == 32_768
    ready.do("RPUSH", "long", *range(10_001))
    for code, spec in (
        ("TOOBIG", ("HASH", "FLOAT", 1, "wide", 8161, *fields[:8161])),
        ("TOOBIG", ("HASH", "INT8", 2, "wide", "wide", 5001, *fields[:5001])),
        ("TOOBIG", ("LIST", "INT8", "long", 0, -1)),
        ("TOOBIG", ("LIST", "DOUBLE", "long", 0, 5000)),
        ("BADARG", ("HASH", "INT8", 1, "wide", 10_001, *fields, "f0")),
    ):
        error = refused(ready, names_of(spec), "free", "INPUTS", 1, *spec)
        assert error.code == code, error
    assert "AI_TENSORSET" in str(refused(ready, ["long"], "free", "INPUTS", 1, "LIST", "INT16", "long", 0, -1))
    found = gathered(ready, "LIST", "INT16", "long", 1, -1)
    np.testing.assert_array_equal(found, np.arange(1, 10_001, dtype=np.int16)[None])


def test_strings_that_are_too_wide(ready: Hand) -> None:
    ready.do("HSET", "h", "a", "x" * 20_000, "b", "y")
    assert gathered(ready, "HASH", "STRING", 1, "h", 1, "a").tolist() == [[b"x" * 20_000]]
    assert refused(ready, ["h"], "free", "INPUTS", 1, "HASH", "STRING", 1, "h", 2, "a", "b").code == "TOOBIG"
    ready.do("HSET", "h", "c", "nul\0")
    error = refused(ready, ["h"], "free", "INPUTS", 1, "HASH", "STRING", 1, "h", 1, "c")
    assert (error.code, "field 'c' of hash 'h'" in str(error)) == ("BADVALUE", True)
    ready.do("SET", "long", "1" * 40_000)
    assert refused(ready, ["long"], "free", "INPUTS", 1, "NUMBERS", "STRING", 1, "long").code == "TOOBIG"


def test_rows_of_a_tensor_that_is_large(ready: Hand) -> None:
    table = np.random.default_rng(1).standard_normal((50_000, 64)).astype(np.float32)
    ready.do("SET", "embedding", npy.to_bytes(table))
    found = gathered(ready, "ROWS", "embedding", 4, 49_999, 0, 7, 7)
    np.testing.assert_array_equal(found, table[[49_999, 0, 7, 7]])
    error = refused(ready, ["embedding"], "free", "INPUTS", 1, "ROWS", "embedding", 128, *range(128))
    assert (error.code, "fewer rows" in str(error)) == ("TOOBIG", True)
    ready.do("SET", "vector1", npy.to_bytes(np.arange(5)))
    assert gathered(ready, "ROWS", "vector1", 2, 4, 1).tolist() == [4, 1]
    for name, array, code in (("none", np.zeros((0, 3)), "BADVALUE"), ("scalar", np.float32(1), "BADSHAPE")):
        ready.do("SET", name, npy.to_bytes(array))
        assert refused(ready, [name], "free", "INPUTS", 1, "ROWS", name, 1, 0).code == code
    ready.do("SET", "thin", npy.to_bytes(np.zeros((3, 0), np.int8)))
    assert gathered(ready, "ROWS", "thin", 2, 2, 0).shape == (2, 0)
    ready.do("SET", "cut", npy.to_bytes(table)[:-1])
    assert refused(ready, ["cut"], "free", "INPUTS", 1, "ROWS", "cut", 1, 0).code == "BADNPY"


# --- who may


def test_keys_are_declared(ready: Hand) -> None:
    for spec in (
        ("HASH", "FLOAT", 2, "user:2", "user:1", 1, "age"), ("LIST", "FLOAT", "list", 0, 1),
        ("ZSET", "FLOAT", "zset", 0, 1, "SCORES"), ("NUMBERS", "FLOAT", 2, "n1", "n2"), ("ROWS", "table", 1, 0),
    ):  # fmt: skip
        error = refused(ready, ["user:2", "n1"], "free", "INPUTS", 1, *spec)
        assert (error.code, "not among the KEYS" in str(error)) == ("BADARG", True), error


def test_the_caller_s_rights_hold(ready: Hand, server: Server) -> None:
    ready.do(
        "ACL", "SETUSER", "sam", "on", "nopass", "+@all", "~ks:*", "~free", "~allowed", "(+fcall ~*)", "(+exists ~*)",
    )  # fmt: skip
    with Hand(server.url_unix) as sam:
        sam.do("AUTH", "sam", "x")
        for spec in (
            ("HASH", "FLOAT", 1, "user:1", 1, "age"), ("LIST", "FLOAT", "list", 0, 1),
            ("ZSET", "FLOAT", "zset", 0, 1, "SCORES"), ("NUMBERS", "FLOAT", 2, "n1", "n2"), ("ROWS", "table", 1, 0),
        ):  # fmt: skip
            with pytest.raises(KeysideError) as caught:
                sam.fcall("AI_PREDICT", names_of(spec), "free", "INPUTS", 1, *spec)
            assert caught.value.code == "NOPERM"
            assert f"'{names_of(spec)[0]}'" in str(caught.value)
        ready.do("HSET", "allowed", "age", "3")
        sam.fcall("AI_PREDICT", ["allowed"], "free", "INPUTS", 1, "HASH", "FLOAT", 1, "allowed", 1, "age")
    ready.do("ACL", "DELUSER", "sam")


# --- what AI_TENSORSET says of the same texts

NUMBER_TEXTS = st.one_of(
    st.integers(-(2**64), 2**65).map(str),
    st.floats(width=64).map(repr),
    st.floats(width=16).map(repr),
    st.sampled_from(
        ["", "1.", ".5", "+3", "-0", "1e400", "0x10", " 1", "1 ", "nan", "-inf", "Infinity", "true", "1_0"]
    ),
    st.text(max_size=6),
)


@given(dtype=st.sampled_from(list(dtypes.TABLE)), texts=st.lists(NUMBER_TEXTS, min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_are_those_of_a_tensor_of_the_same_texts(ready: Hand, dtype: str, texts: list[str]) -> None:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ready.wire.call_many([("DEL", "h", "l", "t", "s")])
    ready.do("HSET", "h", *(word for n, text in enumerate(encoded) for word in (f"f{n}", text)))
    ready.do("RPUSH", "l", *encoded)
    specs: list[tuple[Any, ...]] = [
        ("HASH", dtype, 1, "h", len(texts), *(f"f{n}" for n in range(len(texts)))),
        ("LIST", dtype, "l", 0, -1),
        ("HASH", dtype, 1, "s", len(texts), *range(len(texts)), "DEFAULTS", len(texts), *encoded),
    ]
    wrong = None
    try:
        ready.fcall("AI_TENSORSET", ["t"], dtype, 1, len(texts), "VALUES", *encoded)
    except KeysideError as error:
        wrong = error
    if wrong is not None:
        for spec in specs:
            too = refused(ready, names_of(spec), "free", "INPUTS", 1, *spec)
            assert (too.code, str(too).rpartition("', ")[2]) == (wrong.code, str(wrong).rpartition("', ")[2])
        return
    expected = bytes(ready.do("GET", "t"))
    for spec in specs:
        assert npy.to_bytes(gathered(ready, *spec)) == expected


@given(start=st.integers(-12, 12), stop=st.integers(-12, 12), size=st.integers(1, 10), rev=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranges_are_those_of_the_server(ready: Hand, start: int, stop: int, size: int, rev: bool) -> None:
    ready.wire.call_many([("DEL", "l", "z")])
    ready.do("RPUSH", "l", *range(size))
    ready.do("ZADD", "z", *(word for n in range(size) for word in (n * 0.5, n)))
    expected = [int(n) for n in ready.do("LRANGE", "l", start, stop)]
    assert gathered(ready, "LIST", "INT8", "l", start, stop).tolist() == [expected]
    words = ["REV"] if rev else []
    members = [int(n) for n in ready.do("ZRANGE", "z", start, stop, *words)]
    assert gathered(ready, "ZSET", "INT8", "z", start, stop, "MEMBERS", *words).tolist() == [members]
    scores = gathered(ready, "ZSET", "DOUBLE", "z", start, stop, "SCORES", *words)
    assert scores.tolist() == [[n * 0.5 for n in members]]


ROW_ARRAYS = arrays(
    st.sampled_from([np.dtype(kind) for kind in ("<f2", "<f4", "<f8", "|i1", "<i8", "|u1", "<u8", "|b1", "|S3")]),
    array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5),
)


@given(data=st.data(), table=ROW_ARRAYS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_those_of_numpy(ready: Hand, data: st.DataObject, table: np.ndarray[Any, Any]) -> None:
    indices = data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=8))
    ready.do("SET", "t", npy.to_bytes(table))
    found = gathered(ready, "ROWS", "t", len(indices), *indices)
    assert npy.to_bytes(found) == npy.to_bytes(table[indices])


# --- triggers


def test_a_trigger_gathers_too(ready: Hand) -> None:
    spec = ("HASH", "AUTO", 1, "user:{who}", 2, "age", "score", "DEFAULT", 0)
    ready.fcall("AI_TRIGGERSET", ["scores"], "ON", "SET", "visit:{who}", "RUN", "vector", "INPUTS", 1, *spec)
    for who, expected in (("1", [41, -0.5]), ("nobody", [0, 0])):
        ready.fcall("AI_TENSORSET", [f"visit:{who}"], "FLOAT", 1, "VALUES", 1)
        job = next(job for job in reversed(ready.claim()) if job.op == b"run")
        assert npy.decode(job.inputs[0]).tolist() == expected
    ready.do("HSET", "user:3", "age", "many")
    ready.fcall("AI_TENSORSET", ["visit:3"], "FLOAT", 1, "VALUES", 1)
    assert not ready.claim()
    told = ready.fcall("AI_TRIGGERINFO", ["scores"])
    found = dict(zip(told[::2], told[1::2], strict=True))
    assert (found[b"fired"], found[b"errors"]) == (2, 1)
    assert b"BADVALUE field 'age' of hash 'user:3', 'many'" in found[b"last_error"]
