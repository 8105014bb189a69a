"""dtypes: the table, and both lookups."""

from typing import Any

import numpy as np
import pytest

from keyside.tensorstore import dtypes
from keyside.tensorstore.errors import BadDtype

EXPECTED = {
    "FLOAT16": ("<f2", 2),
    "FLOAT": ("<f4", 4),
    "DOUBLE": ("<f8", 8),
    "INT8": ("|i1", 1),
    "INT16": ("<i2", 2),
    "INT32": ("<i4", 4),
    "INT64": ("<i8", 8),
    "UINT8": ("|u1", 1),
    "UINT16": ("<u2", 2),
    "UINT32": ("<u4", 4),
    "UINT64": ("<u8", 8),
    "BOOL": ("|b1", 1),
    "STRING": ("|S", 0),
}


def test_table_is_that_of_the_protocol() -> None:
    assert {name: (dtype.descr, dtype.itemsize) for name, dtype in dtypes.TABLE.items()} == EXPECTED
    assert all(dtype.name == name for name, dtype in dtypes.TABLE.items())


@pytest.mark.parametrize("name", EXPECTED)
def test_lookups_are_inverse(name: str) -> None:
    dtype = dtypes.by_name(name)
    assert dtypes.by_name(name.lower()) is dtype
    if dtype is not dtypes.STRING:
        assert dtypes.of(dtype.numpy) is dtype
        assert np.dtype(dtype.descr) == dtype.numpy


@pytest.mark.parametrize("numpy", ["S1", "S7", "S100000"])
def test_strings_of_any_length(numpy: str) -> None:
    assert dtypes.of(np.dtype(numpy)) is dtypes.STRING


@pytest.mark.parametrize("numpy", [np.intc, np.int_, np.longlong, np.uintc, np.ulonglong, np.float32, float, int, bool])
def test_aliases_of_numpy(numpy: type[Any]) -> None:
    assert dtypes.of(np.dtype(numpy)).itemsize == np.dtype(numpy).itemsize


@pytest.mark.parametrize("name", ["", "FLOAT32", "float 32", "BF16", "x" * 1000])
def test_unknown_names_are_told_all_names(name: str) -> None:
    with pytest.raises(BadDtype) as info:
        dtypes.by_name(name)
    assert all(known in str(info.value) for known in EXPECTED)
    assert len(str(info.value)) < 400


@pytest.mark.parametrize(
    ("numpy", "advice"),
    [
        (">f4", ".astype('<f4')"),
        (">i8", ".astype('<i8')"),
        (">u2", ".astype('<u2')"),
        ("O", "never pickled"),
        ("U3", "np.char.encode"),
        (">U3", "np.char.encode"),
        ("c8", "real and imaginary"),
        ("M8[s]", ".astype('<i8')"),
        ("m8[ms]", ".astype('<i8')"),
        ("S0", ".astype('S1')"),
        ("V4", "field"),
        ([("a", "i4"), ("b", "f4")], "field"),
    ],
)
def test_what_cannot_be_a_tensor_is_told_what_to_do(numpy: str | list[tuple[str, str]], advice: str) -> None:
    with pytest.raises(BadDtype) as info:
        dtypes.of(np.dtype(numpy))
    assert advice in str(info.value)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is double here")
def test_long_double_is_refused() -> None:
    with pytest.raises(BadDtype, match="astype"):
        dtypes.of(np.dtype(np.longdouble))
