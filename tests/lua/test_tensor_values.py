"""VALUES of AI_TENSORSET and AI_TENSORGET on real servers: every number of every dtype exactly, and strings."""

import string
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.lua.tensors import refused, stored, tensorget, tensorset

from keyside.tensorstore import dtypes, npy

INTEGERS = [name for name, dtype in dtypes.TABLE.items() if dtype.numpy.kind in "iu"]
FLOATS = [name for name, dtype in dtypes.TABLE.items() if dtype.numpy.kind == "f"]
MIB = 1 << 20


# --- numbers


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_exact_up_to_their_limits(db: Any, name: str) -> None:
    info = np.iinfo(dtypes.TABLE[name].numpy)
    low, high = int(info.min), int(info.max)
    wanted = [low, low + 1, 0, 1, high // 3, high - 1, high]
    texts = [*map(str, wanted[:-1]), f"+000{high}"]
    assert tensorset(db, "x", name, len(wanted), "VALUES", *texts) == b"OK"
    assert stored(db).tolist() == wanted
    assert [int(value) for value in tensorget(db, "x", "VALUES")] == wanted
    for beyond in (low - 1, high + 1, high * 10, -(10**30)):
        error = refused("AI_TENSORSET", db, "y", name, 2, "VALUES", 0, beyond)
        assert error.code == "BADVALUE"
        for fact in ("value 2", str(beyond), name, str(low), str(high)):
            assert fact in str(error)
    assert not db.exists("y")


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**54), 2**54), min_size=1, max_size=50))
def test_int64(db: Any, values: list[int]) -> None:
    tensorset(db, "x", "INT64", len(values), "VALUES", *values)
    assert stored(db).tolist() == values
    reply = tensorget(db, "x", "VALUES")
    assert [int(value) for value in reply] == values
    assert [isinstance(value, int) for value in reply] == [abs(value) <= 2**53 for value in values]


@given(values=st.lists(st.integers(0, 2**64 - 1) | st.integers(2**53 - 9, 2**53 + 9), min_size=1, max_size=50))
def test_uint64(db: Any, values: list[int]) -> None:
    tensorset(db, "x", "UINT64", len(values), "VALUES", *values)
    assert stored(db).tolist() == values
    assert [int(value) for value in tensorget(db, "x", "VALUES")] == values


def decimal_texts() -> st.SearchStrategy[str]:
    """Decimal numbers as people and programs write them."""
    digits = st.text(string.digits, min_size=1, max_size=25)
    plain = st.builds("{}{}".format, st.sampled_from(["", "-", "+"]), digits)
    point = st.builds("{}.{}".format, plain, digits) | st.builds("{}.".format, plain) | st.builds(".{}".format, digits)
    power = st.builds("{}{}{}".format, plain | point, st.sampled_from(["e", "E", "e+"]), st.integers(-330, 310))
    return plain | point | power.filter(lambda text: "+-" not in text) | st.floats(allow_nan=False).map(repr)


@pytest.mark.parametrize("name", FLOATS)
@given(texts=st.lists(decimal_texts(), min_size=1, max_size=20))
@example(["65519.99", "65504", "2049", "2051", "6e-8", "2.98e-8", "2.99e-8", "-0.0", "0.000060975552"])
@example(["3.4028235677973362e38", "16777217", "1.4e-45", "7.0064923216240853e-46", "7.1e-46", "1e-400"])
@example(["inf", "-inf", "+inf", "Infinity", "-INFINITY", "NaN", "nan"])
def test_floats_round_to_the_nearest_even(db: Any, name: str, texts: list[str]) -> None:
    with np.errstate(over="ignore"):
        wanted = np.array([float(text) for text in texts]).astype(dtypes.TABLE[name].numpy)
    overflows = [np.isinf(value) and "inf" not in text.lower() for value, text in zip(wanted, texts, strict=True)]
    if any(overflows):
        error = refused("AI_TENSORSET", db, "x", name, len(texts), "VALUES", *texts)
        assert str(error).startswith(f"BADVALUE value {overflows.index(True) + 1},")
        assert f"overflows {name}" in str(error)
    else:
        tensorset(db, "x", name, len(texts), "VALUES", *texts)
        assert stored(db).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", FLOATS)
@given(bits=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50))
@example([0, 1, 2, 3, 2**15, 2**31, 2**63, 0x3FF, 0x400, 0x7BFF, 0x7FFFFF, 0x800000, 0x7F7FFFFF])
def test_floats_are_written_so_that_they_read_back(db: Any, name: str, bits: list[int]) -> None:
    dtype = dtypes.TABLE[name]
    wanted = np.array([number % 256**dtype.itemsize for number in bits], f"<u{dtype.itemsize}").view(dtype.numpy)
    db.set("x", npy.to_bytes(wanted))
    texts = [text.decode() for text in tensorget(db, "x", "VALUES")]
    got = np.array([float(text) for text in texts]).astype(dtype.numpy)
    np.testing.assert_array_equal(got, wanted)
    assert np.array_equal(np.signbit(got[got == 0]), np.signbit(wanted[wanted == 0]))
    # What was written can be given to AI_TENSORSET.
    tensorset(db, "y", name, len(texts), "VALUES", *texts)
    np.testing.assert_array_equal(stored(db, "y"), wanted)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("FLOAT16", ["0.1", "1000", "65504", "-0", "6e-08", "inf", "-inf", "nan"]),
        ("FLOAT", ["0.1", "1", "16777216", "1e-07", "3.4028235e+38", "1e-45", "0.33333334"]),
        ("DOUBLE", ["0.1", "-2.5", "9007199254740992", "1e+300", "5e-324", "0.3333333333333333"]),
    ],
)
def test_floats_are_written_with_few_digits(db: Any, name: str, texts: list[str]) -> None:
    tensorset(db, "x", name, len(texts), "VALUES", *texts)
    assert [text.decode() for text in tensorget(db, "x", "VALUES")] == texts


def test_bool(db: Any) -> None:
    assert tensorset(db, "x", "BOOL", 3, "VALUES", 1, 0, "+01") == b"OK"
    assert stored(db).tolist() == [True, False, True]
    assert tensorget(db, "x", "VALUES") == [1, 0, 1]
    assert "neither 0 nor 1" in str(refused("AI_TENSORSET", db, "x", "BOOL", 3, "BLOB", b"\0\1\2"))
    for value in ("2", "-1", "true", ""):
        assert refused("AI_TENSORSET", db, "x", "BOOL", 1, "VALUES", value).code == "BADVALUE"


BAD_NUMBERS = [
    "",
    " 1",
    "1 ",
    "0x10",
    "1_000",
    "1,5",
    "--1",
    "+",
    "-",
    "1\0",
    "\0",
    "\u0661",
    "1-",
    "abc",
    "1\n",
    "1e",
    "e5",
]


@pytest.mark.parametrize("text", [*BAD_NUMBERS, "nan", "inf", "1.0", "1e3"])
def test_what_is_no_integer(db: Any, text: str) -> None:
    for name in INTEGERS:
        error = refused("AI_TENSORSET", db, "x", name, 1, "VALUES", text)
        assert error.code == "BADVALUE"
        assert "is not an integer in decimal digits" in str(error)


@pytest.mark.parametrize("text", [*BAD_NUMBERS, ".", "1.2.3", "1e5.5", "0x1p3", "nan(1)", "infin", "1d5", "1e5e5"])
def test_what_is_no_float(db: Any, text: str) -> None:
    for name in FLOATS:
        error = refused("AI_TENSORSET", db, "x", name, 1, "VALUES", text)
        assert error.code == "BADVALUE"
        assert "is not a decimal number" in str(error)


def test_numbers_of_megabytes_take_no_more_than_linear_time(db: Any) -> None:
    long = "1" * (2 * MIB)
    assert refused("AI_TENSORSET", db, "x", "DOUBLE", 1, "VALUES", long).code == "BADVALUE"
    assert refused("AI_TENSORSET", db, "x", "FLOAT", 1, "VALUES", long + "x").code == "BADVALUE"
    error = refused("AI_TENSORSET", db, "x", "INT64", 1, "VALUES", "0" * 2 * MIB + "x")
    assert len(str(error)) < 300
    assert tensorset(db, "x", "INT64", 1, "VALUES", "-" + "0" * 2 * MIB + "7") == b"OK"
    assert tensorget(db, "x", "VALUES") == [-7]


# --- strings


@given(
    texts=st.lists(st.text(max_size=12).map(lambda text: text.rstrip("\0")), max_size=20),
    inner_nul=st.booleans(),
)
def test_strings(db: Any, texts: list[str], inner_nul: bool) -> None:
    wanted = [text.encode() for text in (texts if inner_nul else [text.replace("\0", "") for text in texts])]
    tensorset(db, "x", "STRING", len(wanted), "VALUES", *wanted)
    array = stored(db)
    assert array.dtype.itemsize == max(1, *map(len, wanted)) if wanted else 1
    assert array.tolist() == wanted
    assert tensorget(db, "x", "VALUES") == wanted
    if any(b"\0" in text for text in wanted):
        assert refused("AI_TENSORGET", db, "x", "BLOB").code == "BADVALUE"
    else:
        blob = tensorget(db, "x", "BLOB")
        assert blob == b"".join(text + b"\0" for text in wanted)
        tensorset(db, "y", "STRING", len(wanted), "BLOB", blob)
        assert db.get("y") == db.get("x")


def test_strings_that_cannot_be_told_from_padding(db: Any) -> None:
    error = refused("AI_TENSORSET", db, "x", "STRING", 2, "VALUES", "a", b"b\0")
    assert error.code == "BADVALUE"
    assert "value 2, 'b\\x00', ends in NUL" in str(error)


@pytest.mark.parametrize("blob", [b"", b"a", b"a\0b", b"a\0b\0c", b"a\0b\0\0"])
def test_a_blob_of_another_number_of_strings(db: Any, blob: bytes) -> None:
    assert refused("AI_TENSORSET", db, "x", "STRING", 2, "BLOB", blob).code == "BADARG"


def test_padding_of_megabytes_takes_linear_time(db: Any) -> None:
    header = npy.encode_header(np.dtype("S4194304"), (1,))
    for data in (b"a" + b"\0" * (4 * MIB - 1), b"a" + b"\0" * (4 * MIB - 2) + b"b", b"\0" * 4 * MIB):
        db.set("x", header + data)
        assert tensorget(db, "x", "VALUES") == [data.rstrip(b"\0")]
