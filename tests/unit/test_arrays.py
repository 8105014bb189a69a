"""arrays: what callers have in hand, and what is made of it."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from keyside.tensorstore import npy
from keyside.tensorstore.errors import BadArg, BadDtype, BadValue, KeysideError


def shown(value: object) -> str:
    """The id of a parameter: without addresses, which differ from process to process."""
    return re.sub(r" at 0x\w+", "", repr(value))


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (1.5, "f8", ()),
        (3, "i8", ()),
        (True, "?", ()),
        (np.float32(2), "f4", ()),
        ([1, 2], "i8", (2,)),
        ([[1.0, 2]], "f8", (1, 2)),
        ([2**63], "u8", (1,)),
        ([], "f8", (0,)),
        (range(3), "i8", (3,)),
        ("é", "S2", ()),
        (b"ab", "S2", ()),
        (["a", "bcd"], "S3", (2,)),
        ([["a"], ["ü"]], "S2", (2, 1)),
        ([""], "S1", (1,)),
        (np.array([], "U"), "S1", (0,)),
        (np.array([["x", "yz"]]), "S2", (1, 2)),
        ([np.str_("ab")], "S2", (1,)),
        ([np.array(["ab"]), np.array(["c"])], "S2", (2, 1)),
        (np.zeros((1, 1)).view(type("Subclass", (np.ndarray,), {})), "f8", (1, 1)),
        (memoryview(b"abc"), "u1", (3,)),
    ],
    ids=shown,
)
def test_as_array(value: object, dtype: str, shape: tuple[int, ...]) -> None:
    array = npy.as_array(value)
    assert type(array) is np.ndarray
    assert array.dtype == np.dtype(dtype)
    assert array.shape == shape
    assert npy.decode(npy.to_bytes(value)).tolist() == array.tolist()


def test_text_is_utf8() -> None:
    texts = ["", "plain", "naïve", "漢字", "a\0b", "\N{GRINNING FACE}"]
    assert [item.decode() for item in npy.decode(npy.to_bytes(texts)).tolist()] == texts


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=5))
def test_text_round_trip(texts: list[str]) -> None:
    if any(text.endswith("\0") for text in texts):
        with pytest.raises(BadValue, match="NUL"):
            npy.to_bytes(texts)
    elif texts:
        assert [item.decode() for item in npy.decode(npy.to_bytes(texts)).tolist()] == texts


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 2 has it")
def test_string_dtype_of_numpy_2() -> None:
    assert npy.as_array(np.array(["a", "漢字"], np.dtypes.StringDType())).tolist() == [b"a", "漢字".encode()]
    with pytest.raises(BadValue, match="NUL"):
        npy.as_array(np.array(["a\0"], np.dtypes.StringDType()))


class Foreign:
    """An array of some other library."""

    def __init__(self, array: NDArray[Any], device: int = 1) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)


class ForeignWithArray(Foreign):
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array


class Unwilling(ForeignWithArray):
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.\nUse tensor.detach().numpy() instead.")


@pytest.mark.parametrize("kind", [Foreign, ForeignWithArray])
def test_arrays_of_other_libraries_share_memory(kind: type[Foreign]) -> None:
    array = np.arange(6, dtype="f4").reshape(2, 3)
    got = npy.as_array(kind(array))
    np.testing.assert_array_equal(got, array, strict=True)
    assert np.shares_memory(got, array)
    with pytest.raises(BadArg, match="CPU"):
        npy.as_array(kind(array, device=2))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, BadDtype, "objects are never pickled"),
        ({"a": 1}, BadDtype, "objects"),
        (np.array([1, "a", None], object), BadDtype, "objects"),
        ([2**64], BadDtype, "objects"),
        ([2**63 + 1, -1], BadValue, "digits"),
        ([1, "a"], BadDtype, "mixed"),
        (["a", b"a"], BadDtype, "mixed"),
        (["a", np.array(1)], BadDtype, "mixed"),
        ([[1, 2], [3]], BadArg, "list"),
        (["a\0"], BadValue, "NUL"),
        ([["a"], ["b\0"]], BadValue, "NUL"),
        (b"a\0", BadValue, "NUL"),
        ("\ud800", BadValue, "Unicode"),
        (1j, BadDtype, "real and imaginary"),
        (np.arange(3, dtype=">i4"), BadDtype, "'<i4'"),
        (np.array(["2020-01-01"], "M8[D]"), BadDtype, "<i8"),
        (np.zeros(2, [("a", "i4")]), BadDtype, "field"),
        (np.ma.masked_array([1, 2], [True, False]), BadDtype, "filled"),
        (Unwilling(np.zeros(1)), BadArg, "Use tensor.detach().numpy() instead."),
    ],
    ids=shown,
)
def test_what_cannot_be_a_tensor(value: object, error: type[KeysideError], text: str) -> None:
    for function in (npy.as_array, npy.encode, npy.to_bytes):
        with pytest.raises(error, match=re.escape(text)) as info:
            function(value)
        assert "\n" not in str(info.value)
