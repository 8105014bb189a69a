"""npy: round trips, interoperation with NumPy, and what is remembered of headers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from tests.unit.npy_files import NUMERIC, any_tensor, assert_same, loaded, make, saved

from keyside.tensorstore import npy
from keyside.tensorstore.errors import BadShape

SHAPES = [(), (0,), (1,), (7,), (0, 3), (2, 0, 3), (1, 30), (2, 3, 4), (1,) * 32]


# --- round trips


@given(any_tensor)
def test_round_trip(array: NDArray[Any]) -> None:
    header, data = npy.encode(array)
    value = npy.to_bytes(array)
    assert value == header + bytes(data)
    assert len(header) % 64 == 0
    assert header.endswith(b"\n")
    got = npy.decode(value)
    assert_same(got, array)
    assert not got.flags.writeable
    assert got.flags.aligned
    assert npy.parse_header(value, len(value)) == npy.Header(array.dtype, array.shape, len(header), array.nbytes)
    assert npy.parse_header(header, len(value)) == npy.parse_header(value, len(value))
    assert npy.header_size(value[:10]) == len(header)


@given(any_tensor)
def test_numpy_reads_what_we_write_and_we_read_what_numpy_writes(array: NDArray[Any]) -> None:
    assert_same(loaded(npy.to_bytes(array)), array)
    assert_same(npy.decode(saved(array)), array)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [*NUMERIC, np.dtype("S5")], ids=str)
def test_all_dtypes_and_shapes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    assert_same(npy.decode(npy.to_bytes(array)), array)
    assert_same(loaded(npy.to_bytes(array)), array)
    if len(shape) == 32:
        # what NumPy 1.26 calls the end of a header differs, what it says does not
        assert npy.decode(saved(array)).shape == shape
    assert_same(npy.decode(saved(array)), array)


def test_header_is_the_one_that_numpy_writes() -> None:
    assert npy.encode_header(np.dtype("f4"), (1, 30)).rstrip() == saved(np.zeros((1, 30), "f4"))[:128].rstrip()
    header = npy.encode_header(np.dtype("?"), ())
    assert header[:10] == b"\x93NUMPY\x01\x00\x36\x00" or len(header) % 64 == 0
    assert b"{'descr': '|b1', 'fortran_order': False, 'shape': (), }" in header
    assert npy.encode_header(np.dtype("f4"), (np.int64(2),)) == npy.encode_header(np.dtype("f4"), (2,))


@pytest.mark.parametrize("dtype", ["<f4", "<i8", "|b1", "|S3", "<f2"])
def test_no_copies(dtype: str) -> None:
    array = np.zeros((4, 5), dtype)
    _, data = npy.encode(array)
    assert data.format == "B"
    assert data.nbytes == array.nbytes
    assert np.shares_memory(np.frombuffer(data, np.uint8), array)
    buffer = bytearray(npy.to_bytes(array))
    got = npy.decode(buffer)
    assert got.flags.writeable
    buffer[-array.itemsize :] = np.ones(1, dtype).tobytes()
    assert got[-1, -1] == np.ones(1, dtype)[0]


def test_readonly_arrays_are_encoded_in_place() -> None:
    array = np.arange(5)
    array.flags.writeable = False
    assert np.shares_memory(np.frombuffer(npy.encode(array)[1], np.uint8), array)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(12).reshape(3, 4).T,
        np.arange(20)[::3],
        np.arange(20)[::-1],
        np.broadcast_to(np.float32(3), (2, 3)),
        np.array([[b"ab", b"c"], [b"", b"d"]]).T,
    ],
    ids=["fortran", "transposed", "strided", "reversed", "broadcast", "strings"],
)
def test_other_orders_are_copied_into_c_order(array: NDArray[Any]) -> None:
    got = npy.decode(npy.to_bytes(array))
    np.testing.assert_array_equal(got, array)
    assert got.flags.c_contiguous
    assert got.shape == array.shape


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_decode_takes_any_buffer(kind: Callable[[bytes], npy.Buffer]) -> None:
    array = np.arange(6, dtype="<i2").reshape(2, 3)
    got = npy.decode(kind(npy.to_bytes(array)))
    assert_same(got, array)


def test_decode_takes_views_of_other_formats() -> None:
    array = np.arange(6, dtype="<i4")
    words = np.frombuffer(npy.to_bytes(array), np.uint32)
    assert_same(npy.decode(words.data), array)
    assert_same(npy.decode(words.reshape(2, -1).data), array)
    assert npy.header_size(words.data) == 128


def test_elements_at_odd_addresses_are_copied() -> None:
    array = np.arange(6.0)
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (6,), }\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + array.tobytes()
    for buf in (data, bytearray(data)):
        got = npy.decode(buf)
        assert got.flags.aligned
        assert got.flags.writeable is (type(buf) is bytearray)
        assert_same(got, array)


# --- limits


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1 stops at 32 itself")
def test_more_than_32_dimensions() -> None:
    with pytest.raises(BadShape, match="33 dimensions"):
        npy.encode(np.zeros((1,) * 33))


@pytest.mark.parametrize("shape", [(1,) * 33, (-1,), (2**63,), (2**31, 2**31, 2), (0, 2**62, 4), ("a",), (1.5,)])
def test_encode_header_refuses(shape: tuple[Any, ...]) -> None:
    with pytest.raises(BadShape):
        npy.encode_header(np.dtype("f4"), shape)


# --- well-formed, though not as we write it


@pytest.mark.parametrize(
    "text",
    [
        "{'descr':'<f4','fortran_order':False,'shape':(2,3)}",
        '{"shape": (2, 3,), "descr": "<f4", "fortran_order": False}',
        " {\t'fortran_order' : False , 'shape' : ( 2 , 3 ) , 'descr' : '<f4' , } ",
        "{'descr': '<f4',\n 'fortran_order': False,\n 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }" + " " * 60_000,
    ],
)
def test_other_writers(text: str) -> None:
    data = make(text=text)
    assert npy.decode(data).shape == (2, 3)
    assert_same(npy.decode(data), loaded(data.replace(b" {\t", b"{\t ", 1)))


@pytest.mark.parametrize(("descr", "dtype"), [("'<i1'", "i1"), ("'<u1'", "u1"), ("'|S4'", "S4")])
def test_other_spellings(descr: str, dtype: str) -> None:
    assert npy.decode(make(descr, shape="(24,)" if dtype != "S4" else "(6,)")).dtype == np.dtype(dtype)


# --- the caches


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy, "_HEADERS", {})
    monkeypatch.setattr(npy, "_CACHE_ENTRIES", 10)
    for n in range(35):
        assert npy.decode(npy.to_bytes(np.zeros(n, "i1"))).shape == (n,)
        assert len(npy._HEADERS) <= 10
    npy.decode(make(text="{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}" + " " * 10_000))
    assert max(map(len, npy._HEADERS)) <= 1024
    maxsize = npy.encode_header.cache_info().maxsize
    assert maxsize is not None
    assert maxsize <= 4096
