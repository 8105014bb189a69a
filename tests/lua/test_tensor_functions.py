"""AI_TENSORSET and AI_TENSORGET on real servers: whole tensors, every limit, every malformed call."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from redis.exceptions import ResponseError
from tests.lua.tensors import refused, stored, tensorget, tensorset

from keyside.tensorstore import dtypes, npy
from keyside.tensorstore.errors import CODES, BadNpy

FIXED = [name for name, dtype in dtypes.TABLE.items() if dtype.itemsize]
MIB = 1 << 20


def random_bytes(name: str, count: int) -> bytes:
    rng = np.random.default_rng(count)
    if name == "BOOL":
        return rng.integers(0, 2, count, dtype=np.uint8).tobytes()
    return rng.bytes(count * dtypes.TABLE[name].itemsize)


# --- whole tensors


def test_the_first_steps_of_the_manual(db: Any) -> None:
    assert tensorset(db, "x", "FLOAT", 1, 4, "VALUES", "5.1", "3.5", "1.4", "0.2") == b"OK"
    np.testing.assert_array_equal(stored(db), np.array([[5.1, 3.5, 1.4, 0.2]], "<f4"))
    assert tensorget(db, "x", "VALUES") == [b"5.1", b"3.5", b"1.4", b"0.2"]


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3,), (2, 0, 3), (2, 3, 4), (1,) * 32])
def test_blob_round_trip(db: Any, name: str, shape: tuple[int, ...]) -> None:
    blob = random_bytes(name, math.prod(shape))
    assert tensorset(db, "x", name, *shape, "BLOB", blob) == b"OK"
    assert db.get("x") == npy.encode_header(dtypes.TABLE[name].numpy, shape) + blob
    assert tensorget(db, "x", "BLOB") == blob
    assert tensorget(db, "x", "META") == [b"dtype", name.encode(), b"shape", list(shape)]
    assert tensorget(db, "x") == [b"dtype", name.encode(), b"shape", list(shape), b"blob", blob]
    values = tensorget(db, "x", "META", "VALUES")
    assert values[4] == b"values"
    assert len(values[5]) == math.prod(shape)


@pytest.mark.parametrize("name", list(dtypes.TABLE))
def test_without_data_it_is_zeros_or_empty_strings(db: Any, name: str) -> None:
    assert tensorset(db, "x", name, 2, 3) == b"OK"
    array = stored(db)
    assert array.shape == (2, 3)
    assert array.tobytes().strip(b"\0") == b""
    assert tensorget(db, "x", "VALUES") == [{"f": b"0", "S": b""}.get(array.dtype.kind, 0)] * 6
    assert tensorset(db, "x", name) == b"OK"
    assert stored(db).shape == ()


def test_keywords_and_dtypes_in_any_case(db: Any) -> None:
    assert tensorset(db, "x", "float", 2, "vaLues", 1, 2) == b"OK"
    assert db.fcall("ai_tensorget", 1, "x", "meta", "values")[1::2] == [b"FLOAT", [2], [b"1", b"2"]]
    assert tensorset(db, "x", "Int8", 2, "blob", b"\x01\x02") == b"OK"
    assert tensorget(db, "x", "Blob") == b"\x01\x02"


def test_a_tensor_is_replaced_with_its_ttl_and_nothing_else_is(db: Any) -> None:
    tensorset(db, "x", "INT8", 1)
    db.expire("x", 100)
    tensorset(db, "x", "FLOAT", 2)
    assert db.ttl("x") == -1
    assert stored(db).shape == (2,)


def test_what_numpy_wrote_is_read(db: Any) -> None:
    array = np.arange(6, dtype="<f8").reshape(2, 3) / 7
    db.set("x", npy.to_bytes(array))
    assert [float(text) for text in tensorget(db, "x", "VALUES")] == list(array.flat)


def test_a_header_longer_than_the_first_read(db: Any) -> None:
    header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (3,)}" + b" " * 60000 + b"\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    db.set("x", start + b"\x01\0\x02\0\x03\0")
    assert tensorget(db, "x", "VALUES") == [1, 2, 3]


def test_one_byte_types_by_their_other_names(db: Any) -> None:
    for descr, name in (("<i1", b"INT8"), ("<u1", b"UINT8")):
        header = npy.encode_header(np.dtype("i1"), (2,)).replace(b"|i1", descr.encode())
        db.set("x", header + b"\xff\x01")
        assert tensorget(db, "x", "META")[1] == name


def test_get_is_for_readers_and_set_is_not(db: Any) -> None:
    with pytest.raises(ResponseError, match="write"):
        db.fcall_ro("AI_TENSORSET", 1, "x", "FLOAT")


# --- limits


def test_the_largest_tensors(db: Any) -> None:
    assert tensorset(db, "x", "FLOAT16", 10_000, "VALUES", *range(10_000)) == b"OK"
    assert len(tensorget(db, "x", "VALUES")) == 10_000
    blob = bytes(4 * MIB)
    assert tensorset(db, "x", "DOUBLE", MIB // 2, "BLOB", blob) == b"OK"
    assert tensorget(db, "x", "BLOB") == blob
    assert tensorset(db, "x", "UINT8", 4 * MIB) == b"OK"
    assert tensorset(db, "x", "STRING", 100_000, "BLOB", b"abc\0" * 100_000) == b"OK"
    assert tensorget(db, "x", "BLOB") == b"abc\0" * 100_000


@pytest.mark.parametrize(
    "args",
    [
        ("FLOAT", 10_001, "VALUES", *range(10_001)),
        ("FLOAT", 10_001, "VALUES", 1),
        ("FLOAT", 3, "VALUES", *range(10_001)),
        ("UINT8", 4 * MIB + 1, "BLOB", bytes(4 * MIB + 1)),
        ("UINT8", 4 * MIB + 1),
        ("DOUBLE", 1024, 1024),
        ("STRING", 2**40),
        ("STRING", 100_001, "BLOB", b"\0" * 100_001),
        ("STRING", 5000, "VALUES", "x" * 1000, *["y"] * 4999),
        ("STRING", 5000, "BLOB", b"x" * 1000 + b"\0" * 5000),
    ],
    ids=lambda args: f"{args[0]}-{args[1]}-{args[2] if len(args) > 2 else 'zeros'}",
)
def test_too_big_names_the_other_route(db: Any, args: tuple[object, ...]) -> None:
    error = refused("AI_TENSORSET", db, "x", *args)
    assert error.code == "TOOBIG"
    assert "SET" in str(error)
    assert not db.exists("x")


@pytest.mark.parametrize(
    ("array", "form"),
    [
        (np.zeros(10_001, "i1"), "VALUES"),
        (np.zeros(4 * MIB + 1, "i1"), "BLOB"),
        (np.zeros(4 * MIB + 1, "i1"), "VALUES"),
        (np.zeros(100_001, "S1"), "BLOB"),
        (np.zeros(2, "S3000000"), "VALUES"),
    ],
)
def test_too_big_to_get_names_the_other_route(db: Any, array: Any, form: str) -> None:
    db.set("x", npy.to_bytes(array))
    error = refused("AI_TENSORGET", db, "x", form)
    assert error.code == "TOOBIG"
    assert "GET" in str(error)
    assert tensorget(db, "x", "META")[3] == list(array.shape)


# --- refusals


@pytest.mark.parametrize(
    ("args", "fact"),
    [
        ((), "no dtype"),
        (("",), "no dtype ''"),
        (("FLOAT32", 1), "FLOAT16, FLOAT, DOUBLE"),
        (("FLOAT", -1), "'-1'"),
        (("FLOAT", "1e3"), "'1e3'"),
        (("FLOAT", "0x10"), "'0x10'"),
        (("FLOAT", " 1"), "' 1'"),
        (("FLOAT", ""), "''"),
        (("FLOAT", 2**53), str(2**53)),
        (("FLOAT", "9" * 100), "9..."),
        (("FLOAT", 1, "VALUE", 1), "'VALUE'"),
        (("FLOAT", "a\nb\x00\xff"), "'a\\x0ab\\x00"),
        (("FLOAT", *[1] * 33), "32 dims"),
        (("FLOAT", 2**30, 2**30), "product"),
        (("FLOAT", 2**52, 2**52, 0), "product"),
        (("STRING", 2**30, 2**30), "product"),
        (("FLOAT", 2, "VALUES", 1), "1 VALUES given"),
        (("FLOAT", 1, "VALUES", 1, 2), "2 VALUES given"),
        (("FLOAT", 1, "VALUES", 1, "BLOB", "aaaa"), "3 VALUES given"),
        (("FLOAT", 1, "BLOB"), "follow BLOB"),
        (("FLOAT", 1, "BLOB", "aaaa", "b"), "follow BLOB"),
        (("FLOAT", 2, "BLOB", "aaaa"), "4 bytes"),
        (("FLOAT", 0, "BLOB", "a"), "1 bytes"),
    ],
)
def test_malformed_set(db: Any, args: tuple[object, ...], fact: str) -> None:
    error = refused("AI_TENSORSET", db, "x", *args)
    assert error.code == "BADARG"
    assert fact in str(error)
    assert not db.exists("x")


@pytest.mark.parametrize(
    "args", [("META", "META"), ("BLOB", "VALUES"), ("VALUES", "VALUES"), ("x",), ("",), ("META", 1)]
)
def test_malformed_get(db: Any, args: tuple[object, ...]) -> None:
    tensorset(db, "x", "FLOAT", 1)
    assert refused("AI_TENSORGET", db, "x", *args).code == "BADARG"


@pytest.mark.parametrize("function", ["AI_TENSORSET", "AI_TENSORGET"])
@pytest.mark.parametrize("keys", [(), ("x", "y")])
def test_one_key(db: Any, function: str, keys: tuple[str, ...]) -> None:
    with pytest.raises(ResponseError, match=rf"^BADARG .*{function}.*one key"):
        db.fcall(function, len(keys), *keys, "FLOAT", 1)


def test_what_is_no_tensor_is_neither_read_nor_replaced(db: Any) -> None:
    db.set("string", "of yours")
    db.set("empty", "")
    db.rpush("list", 1)
    db.hset("hash", "type", "model")
    for key in ("string", "empty", "list", "hash"):
        before = db.dump(key)
        for function in ("AI_TENSORSET", "AI_TENSORGET"):
            error = refused(function, db, key, *(["FLOAT", 1] if function == "AI_TENSORSET" else []))
            assert error.code == "WRONGTYPE"
            assert f"'{key}'" in str(error)
        assert db.dump(key) == before


def test_a_missing_key(db: Any) -> None:
    error = refused("AI_TENSORGET", db, b"no\xffne")
    assert error.code == "NOTENSOR"
    assert "'no\\xffne'" in str(error)


@pytest.mark.parametrize(
    ("value", "fact"),
    [
        (b"\x93NUMPY", "truncated"),
        (b"\x93NUMPY\x02\0\x04\0{}  ", "version 2.0"),
        (b"\x93NUMPY\x01\0\xff\xff", "truncated"),
        (b"\x93NUMPY\x01\0\x04\0{}  ", "no descr"),
        (
            npy.encode_header(np.dtype("<f4"), (2,)) + bytes(7),
            "7 bytes of data where FLOAT of shape (2) has 8",
        ),
        (npy.encode_header(np.dtype("<f4"), (2,)).replace(b"<f4", b">f4") + bytes(8), "big-endian"),
        (npy.encode_header(np.dtype("<f4"), (2,)).replace(b"<f4", b"|O8") + bytes(8), "objects"),
        (npy.encode_header(np.dtype("<f4"), (2,)).replace(b"False", b"True ") + bytes(8), "Fortran"),
        (npy.encode_header(np.dtype("<f4"), (2,)).replace(b"(2,)", b"(-2)") + bytes(8), "negative"),
    ],
)
def test_damaged_files(db: Any, value: bytes, fact: str) -> None:
    db.set("x", value)
    error = refused("AI_TENSORGET", db, "x")
    assert error.code == "BADNPY"
    assert fact in str(error)
    # It is a tensor by its magic, so it may be replaced.
    assert tensorset(db, "x", "FLOAT", 1) == b"OK"


def headers() -> st.SearchStrategy[bytes]:
    """Headers of npy files, good ones and those that are off by a little."""
    space = st.text(" \t\n", max_size=2)
    number = st.integers(0, 12).map(str) | st.sampled_from(["-1", "007", "1L", "x", "", "99999999999999999999"])
    shape = st.builds("({}{})".format, st.lists(number, max_size=4).map(",".join), st.sampled_from(["", ",", " ,"]))
    descr = st.sampled_from([dtype.descr for dtype in dtypes.TABLE.values()]) | st.sampled_from(
        [
            "|S1",
            "|S7",
            "|S01",
            "|S0",
            "|S",
            "|S9999999999",
            "<i1",
            "<u1",
            "<b1",
            ">f4",
            "=f4",
            "|O",
            "<U4",
            "<c8",
            "",
        ]
    )
    quoted = st.builds("{0}{1}{0}".format, st.sampled_from("'\""), descr) | st.sampled_from(
        ["[('a','<f4')]", "'<f4\"", "7"]
    )
    order = st.sampled_from(["False"] * 9 + ["True", "false", "'False'", "0"])
    field = (
        st.tuples(st.just("'descr'"), quoted)
        | st.tuples(st.just("'fortran_order'"), order)
        | st.tuples(st.sampled_from(["'shape'", '"shape"', "shape", "'extra'"]), shape)
    )
    good = st.tuples(
        st.tuples(st.just("'descr'"), quoted),
        st.tuples(st.just("'fortran_order'"), order),
        st.tuples(st.just("'shape'"), shape),
    ).flatmap(st.permutations)
    fields = good | st.lists(field, max_size=5)
    body = st.builds(
        lambda pairs, gap, end: "{" + ", ".join(f"{key}{gap}:{gap}{value}" for key, value in pairs) + end,
        fields,
        space,
        st.sampled_from(["}", ", }", ",}\n", "}  \n", "", "}}", ",,}", "}x"]),
    )
    return st.builds("{}{}".format, space, body).map(lambda text: text.encode())


@given(header=headers(), cut=st.none() | st.integers(0, 120), extra=st.sampled_from([0, 0, 0, 1, -1]))
def test_both_sides_of_the_contract_read_the_same_headers(db: Any, header: bytes, cut: int | None, extra: int) -> None:
    start = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header
    size = 0
    try:
        npy.parse_header(start, len(start))
    except BadNpy as error:
        if takes := re.search(r"takes (\d+) bytes", str(error)):
            size = int(takes[1])
    assume(size < MIB)
    value = (start + bytes(max(0, size + extra)))[:cut]
    assume(value[:6] == b"\x93NUMPY")
    db.set("x", value)
    try:
        wanted = npy.parse_header(value, len(value))
    except BadNpy:
        assert refused("AI_TENSORGET", db, "x", "META").code == "BADNPY"
    else:
        assert tensorget(db, "x", "META")[1::2] == [dtypes.of(wanted.dtype).name.encode(), list(wanted.shape)]


# --- anything at all


WORDS = [
    *dtypes.TABLE,
    "VALUES",
    "BLOB",
    "META",
    "values",
    "blob",
    "0",
    "1",
    "2",
    "3",
    "-1",
    "1.5",
    "nan",
    "",
]
ARGUMENTS = st.lists(st.sampled_from(WORDS).map(str.encode) | st.binary(max_size=12), max_size=8)


def answers(call: Callable[..., object], *args: object) -> None:
    """Call, and see that what comes back is a reply or an error reply with a code of ours."""
    try:
        call(*args)
    except ResponseError as error:
        text = str(error)
    else:
        return
    assert text.split(maxsplit=1)[0] in CODES
    assert "user_function" not in text


@given(function=st.sampled_from(["AI_TENSORSET", "AI_TENSORGET"]), args=ARGUMENTS, missing=st.booleans())
def test_any_arguments(db: Any, function: str, args: list[bytes], missing: bool) -> None:
    if missing:
        db.delete("x")
    answers(db.fcall, function, 1, "x", *args)
    if db.exists("x"):
        stored(db)


@given(value=st.binary(max_size=80), magic=st.booleans(), args=ARGUMENTS)
def test_any_value(db: Any, value: bytes, magic: bool, args: list[bytes]) -> None:
    db.set("x", b"\x93NUMPY\x01\0" + value if magic else value)
    for arguments in ([], [b"VALUES"], args):
        answers(db.fcall_ro, "AI_TENSORGET", 1, "x", *arguments)
