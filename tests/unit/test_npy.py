"""npy: round trips, interoperation with NumPy, and files that mean harm."""

import io
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keyside.tensorstore import dtypes, npy
from keyside.tensorstore.errors import BadNpy, BadShape, KeysideError

NUMERIC = [dtype.numpy for dtype in dtypes.TABLE.values() if dtype.itemsize]
SHAPES = [(), (0,), (1,), (7,), (0, 3), (2, 0, 3), (1, 30), (2, 3, 4), (1,) * 32]

any_dtype = st.one_of(st.sampled_from(NUMERIC), st.integers(1, 12).map(lambda n: np.dtype(f"S{n}")))
any_shape = st.one_of(
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    st.integers(0, 32).map(lambda rank: (1,) * rank),
)
any_tensor = st.tuples(any_dtype, any_shape).flatmap(lambda pair: hnp.arrays(pair[0], pair[1]))


def make(
    descr="'<f4'",
    fortran="False",
    shape="(2, 3)",
    data=bytes(24),
    *,
    text=None,
    version=b"\x01\x00",
    size=None,
):
    """Write an npy file by hand, with anything wrong that is asked for."""
    if text is None:
        text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    header = text.encode("latin-1") if isinstance(text, str) else text
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    size = len(header) if size is None else size
    return b"\x93NUMPY" + version + size.to_bytes(2, "little") + header + data


def saved(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def loaded(data):
    return np.load(io.BytesIO(data), allow_pickle=False, max_header_size=100_000)


def assert_same(got, array):
    """Bytes are compared: NaNs have payloads, and -0.0 == 0.0."""
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()


# --- round trips


@given(any_tensor)
def test_round_trip(array):
    header, data = npy.encode(array)
    value = npy.to_bytes(array)
    assert value == header + bytes(data)
    assert len(header) % 64 == 0
    assert header.endswith(b"\n")
    got = npy.decode(value)
    assert_same(got, array)
    assert not got.flags.writeable
    assert got.flags.aligned
    assert npy.parse_header(value, len(value)) == npy.Header(
        array.dtype, array.shape, len(header), array.nbytes
    )
    assert npy.parse_header(header, len(value)) == npy.parse_header(value, len(value))
    assert npy.header_size(value[:10]) == len(header)


@given(any_tensor)
def test_numpy_reads_what_we_write_and_we_read_what_numpy_writes(array):
    assert_same(loaded(npy.to_bytes(array)), array)
    assert_same(npy.decode(saved(array)), array)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [*NUMERIC, np.dtype("S5")], ids=str)
def test_all_dtypes_and_shapes(dtype, shape):
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    assert_same(npy.decode(npy.to_bytes(array)), array)
    assert_same(loaded(npy.to_bytes(array)), array)
    if len(shape) == 32:
        # what NumPy 1.26 calls the end of a header differs, what it says does not
        assert npy.decode(saved(array)).shape == shape
    assert_same(npy.decode(saved(array)), array)


def test_header_is_the_one_that_numpy_writes():
    assert (
        npy.encode_header(np.dtype("f4"), (1, 30)).rstrip() == saved(np.zeros((1, 30), "f4"))[:128].rstrip()
    )
    header = npy.encode_header(np.dtype("?"), ())
    assert header[:10] == b"\x93NUMPY\x01\x00\x36\x00" or len(header) % 64 == 0
    assert b"{'descr': '|b1', 'fortran_order': False, 'shape': (), }" in header
    assert npy.encode_header(np.dtype("f4"), (np.int64(2),)) == npy.encode_header(np.dtype("f4"), (2,))


@pytest.mark.parametrize("dtype", ["<f4", "<i8", "|b1", "|S3", "<f2"])
def test_no_copies(dtype):
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


def test_readonly_arrays_are_encoded_in_place():
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
def test_other_orders_are_copied_into_c_order(array):
    got = npy.decode(npy.to_bytes(array))
    np.testing.assert_array_equal(got, array)
    assert got.flags.c_contiguous
    assert got.shape == array.shape


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_decode_takes_any_buffer(kind):
    array = np.arange(6, dtype="<i2").reshape(2, 3)
    got = npy.decode(kind(npy.to_bytes(array)))
    assert_same(got, array)


def test_decode_takes_views_of_other_formats():
    array = np.arange(6, dtype="<i4")
    words = np.frombuffer(npy.to_bytes(array), np.uint32)
    assert_same(npy.decode(words.data), array)
    assert_same(npy.decode(words.reshape(2, -1).data), array)
    assert npy.header_size(words.data) == 128


def test_elements_at_odd_addresses_are_copied():
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
def test_more_than_32_dimensions():
    with pytest.raises(BadShape, match="33 dimensions"):
        npy.encode(np.zeros((1,) * 33))


@pytest.mark.parametrize(
    "shape", [(1,) * 33, (-1,), (2**63,), (2**31, 2**31, 2), (0, 2**62, 4), ("a",), (1.5,)]
)
def test_encode_header_refuses(shape):
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
def test_other_writers(text):
    data = make(text=text)
    assert npy.decode(data).shape == (2, 3)
    assert_same(npy.decode(data), loaded(data.replace(b" {\t", b"{\t ", 1)))


@pytest.mark.parametrize(("descr", "dtype"), [("'<i1'", "i1"), ("'<u1'", "u1"), ("'|S4'", "S4")])
def test_other_spellings(descr, dtype):
    assert npy.decode(make(descr, shape="(24,)" if dtype != "S4" else "(6,)")).dtype == np.dtype(dtype)


# --- malformed

GOOD = make()
LONG = "1" * 5000

MALFORMED = {
    "empty": (b"", "truncated: 0 bytes"),
    "magic cut": (b"\x93NUM", "truncated: 4 bytes"),
    "fixed part cut": (GOOD[:9], "truncated: 9 bytes"),
    "header cut": (GOOD[:40], "truncated: the header ends at byte 128, the value has 40 bytes"),
    "no data": (GOOD[:128], "takes 24 bytes, there are 0"),
    "data cut": (GOOD[:-1], "takes 24 bytes, there are 23"),
    "data too long": (GOOD + b"x", "takes 24 bytes, there are 25"),
    "other magic": (b"PK\x03\x04" + bytes(60), "not an npy file"),
    "text": (b"hello world, this is text", "not an npy file"),
    "version 2": (make(version=b"\x02\x00"), "version 2.0"),
    "version 1.1": (make(version=b"\x01\x01"), "version 1.1"),
    "header longer than the value": (make(size=65_535), "truncated: the header ends at byte 65545"),
    "header shorter than it is": (make(size=20), "not a dict literal"),
    "header empty": (make(size=0), "not a dict literal"),
    "no dict": (make(text="('descr', 1)"), "not a dict literal"),
    "code": (make(text="{'descr': __import__('os').system('true')}"), "not a dict literal"),
    "unclosed": (
        make(text="{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), "),
        "not a dict literal",
    ),
    "two dicts": (make(text="{}{}"), "not a dict literal"),
    "empty dict": (make(text="{}"), "lacks 'descr'"),
    "only commas": (make(text="{,}"), "not a dict literal"),
    "double comma": (
        make(text="{'descr': '<f4',, 'fortran_order': False, 'shape': (2, 3)}"),
        "not a dict literal",
    ),
    "no comma": (make(text="{'descr': '<f4' 'fortran_order': False, 'shape': (2, 3)}"), "lacks a comma"),
    "no shape": (make(text="{'descr': '<f4', 'fortran_order': False}"), "lacks 'shape'"),
    "no order": (make(text="{'descr': '<f4', 'shape': (2, 3)}"), "lacks 'fortran_order'"),
    "unknown key": (
        make(text="{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x': False}"),
        "unknown key 'x'",
    ),
    "key twice": (
        make(text="{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}"),
        "'descr' twice",
    ),
    "quotes that differ": (make(descr="'<f4\""), "not a dict literal"),
    "quotes escaped": (make(descr=r"'\x3cf4'"), "not a dict literal"),
    "fortran": (make(fortran="True"), "np.ascontiguousarray"),
    "order is text": (make(fortran="'False'"), "must be False"),
    "order is a number": (make(fortran="0"), "not a dict literal"),
    "big-endian": (make("'>f4'"), "'<f4'"),
    "native": (make("'=f4'"), "'=f4' is not taken"),
    "no order in descr": (make("'f4'"), "'f4' is not taken"),
    "object": (make("'|O'"), "unpickled"),
    "unicode": (make("'<U2'"), "np.char.encode"),
    "complex": (make("'<c8'", shape="(3,)"), "is not taken"),
    "datetime": (make("'<M8[s]'", shape="(3,)"), "is not taken"),
    "long double": (make("'<f16'"), "is not taken"),
    "void": (make("'|V4'"), "is not taken"),
    "bool with order": (make("'<b1'", shape="(24,)"), "is not taken"),
    "string with order": (make("'<S4'", shape="(6,)"), "is not taken"),
    "string of nothing": (make("'|S0'", shape="(6,)", data=b""), "is not taken"),
    "string without length": (make("'|S'", shape="(24,)"), "is not taken"),
    "string of leading zero": (make("'|S04'", shape="(6,)"), "is not taken"),
    "string too long": (make("'|S2147483648'", shape="(0,)", data=b""), "is not taken"),
    "string negative": (make("'|S-4'", shape="(6,)"), "is not taken"),
    "structured": (make("[('a', '<f4')]"), "structured"),
    "descr is a shape": (make("(2, 3)"), "descr must be a string"),
    "descr is a bool": (make("True"), "descr must be a string"),
    "shape is a number": (make(shape="6"), "not a dict literal"),
    "shape is a list": (make(shape="[2, 3]"), "list"),
    "shape is text": (make(shape="'(2, 3)'"), "tuple"),
    "shape is a bool": (make(shape="False"), "tuple"),
    "shape in brackets only": (make(shape="(6)"), "(n,)"),
    "nested shape": (make(shape="((2, 3), 1)"), "not a dict literal"),
    "empty dimension": (make(shape="(2, , 3)"), "not a number"),
    "only a comma": (make(shape="(,)", data=bytes(4)), "not a number"),
    "two commas": (make(shape="(2, 3,,)"), "not a number"),
    "negative": (make(shape="(-2, -3)"), "is negative"),
    "minus one": (make(shape="(-1,)"), "is negative"),
    "plus": (make(shape="(+2, 3)"), "not a dict literal"),
    "leading zero": (make(shape="(02, 3)"), "not a number"),
    "float": (make(shape="(2., 3)"), "not a dict literal"),
    "hexadecimal": (make(shape="(0x2, 3)"), "not a dict literal"),
    "underscore": (make(shape="(2_4,)"), "not a dict literal"),
    "two numbers": (make(shape="(2 3,)"), "not a number"),
    "long integer of Python 2": (make(shape="(2L, 3L)"), "not a dict literal"),
    "huge": (make(shape="(9223372036854775808,)"), "overflows"),
    "5000 digits": (make(shape=f"({LONG},)"), "too large"),
    "overflow": (make(shape="(4294967296, 4294967296, 1)"), "overflows"),
    "overflow to the right length": (make(shape="(4611686018427387905, 2, 3)"), "overflows"),
    "overflow hidden by zero": (make(shape="(0, 4611686018427387904, 4)", data=b""), "overflows"),
    "terabytes": (make(shape="(1099511627776,)"), "there are 24"),
    "33 dimensions": (make(shape="(" + "1, " * 33 + ")", data=bytes(4)), "more than 32 dimensions"),
    "10000 dimensions": (make(shape="(" + "1," * 10_000 + ")", data=bytes(4)), "more than 32 dimensions"),
    "not ascii": (
        make(text="{'descr': '<f4', 'fortran_order': False, 'shape': (\N{FULLWIDTH DIGIT TWO}, 3)}".encode()),
        "dict literal",
    ),
    "digits not ascii": (
        make("'|S\N{ARABIC-INDIC DIGIT FOUR}'".encode().decode("latin-1"), shape="(6,)"),
        "is not taken",
    ),
    "nul in the header": (
        make(text="{'descr': '<f4',\0'fortran_order': False, 'shape': (2, 3)}"),
        "dict literal",
    ),
    "vertical tab": (
        make(text="{'descr': '<f4',\x0b'fortran_order': False, 'shape': (2, 3)}"),
        "dict literal",
    ),
    "brackets all the way": (make(text="{" * 30_000 + "}"), "not a dict literal"),
    "quotes all the way": (make(text="{" + "'" * 60_000 + "}"), "not a dict literal"),
    "spaces all the way": (make(text="{'descr'" + " " * 60_000 + "}"), "not a dict literal"),
    "key too long": (make(text="{'" + "d" * 60_000 + "': False}"), "not a dict literal"),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("kind", [bytes, bytearray], ids=["bytes", "buffer"])
def test_malformed(name, kind):
    data, text = MALFORMED[name]
    value = kind(data)
    tracemalloc.start()
    try:
        with pytest.raises(BadNpy, match=re.escape(text)) as info:
            npy.decode(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert len(str(info.value)) < 400
    # and not otherwise when asked again, nor by the other way in
    with pytest.raises(BadNpy):
        npy.parse_header(value, len(value))


def test_a_prefix_must_have_the_whole_header():
    with pytest.raises(BadNpy, match="only 100 of them were read"):
        npy.parse_header(GOOD[:100], len(GOOD))
    with pytest.raises(BadNpy, match="truncated"):
        npy.header_size(GOOD[:9])


def check(data):
    """Whatever it is: a tensor that agrees with its length and with NumPy, or BadNpy."""
    try:
        got = npy.decode(data)
    except BadNpy as error:
        assert len(str(error)) < 400  # noqa: PT017  # the other outcome is as good
        return
    header = npy.parse_header(data, len(data))
    assert header.offset + header.nbytes == len(data)
    assert got.nbytes == header.nbytes
    try:
        reference = loaded(data)
    except (ValueError, SyntaxError):
        # a header that begins with white space is one of few things that NumPy is stricter about
        assert data[10:11] in b" \t\n"
    else:
        assert_same(got, reference)


@given(any_tensor, st.data())
def test_mutations(array, data):
    value = bytearray(npy.to_bytes(array) if data.draw(st.booleans()) else saved(array))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(value), 130)))
        match data.draw(st.integers(0, 3)):
            case 0:
                value[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case 1:
                del value[at : at + data.draw(st.integers(1, 20))]
            case 2:
                value[at:at] = data.draw(
                    st.sampled_from([b"0", b"9", b"-", b",", b" ", b"'", b"(", b"\n", b"\0"])
                )
            case 3:
                del value[at:]
    check(bytes(value))


TOKENS = r"""{ } ( ) [ ] , : ' " 'descr' 'fortran_order' 'shape' '<f4' '|S3' '>i2' '|O' False True None
    0 1 2 -1 () (1,) 99999999999999999999 L _ # \
    'descr':'<f4', 'fortran_order':False, 'shape':(1,), 'shape':(),"""
token = st.sampled_from([*TOKENS.split(), " ", "\n"])


@given(st.lists(token, max_size=12), st.booleans())
@example(["'descr':'<f4',", "'fortran_order':False,", "'shape':(1,),"], True)
def test_headers_of_tokens(tokens, braced):
    text = "".join(tokens)
    check(make(text="{" + text + "}" if braced else text, data=bytes(4)))


@given(st.binary(max_size=200), st.integers(0, 10))
def test_garbage(data, known):
    check(GOOD[:known] + data)


@given(st.lists(st.integers(0, 2**64), max_size=34))
def test_shapes(dims):
    check(make("'|i1'", shape=f"{tuple(dims)}", data=b""))


# --- the caches


def test_caches_are_bounded(monkeypatch):
    monkeypatch.setattr(npy, "_HEADERS", {})
    monkeypatch.setattr(npy, "_CACHE_ENTRIES", 10)
    for n in range(35):
        assert npy.decode(npy.to_bytes(np.zeros(n, "i1"))).shape == (n,)
        assert len(npy._HEADERS) <= 10
    npy.decode(make(text="{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}" + " " * 10_000))
    assert max(map(len, npy._HEADERS)) <= 1024
    assert npy.encode_header.cache_info().maxsize <= 4096


def test_malformed_headers_are_not_remembered(monkeypatch):
    monkeypatch.setattr(npy, "_HEADERS", {})
    for data, _ in MALFORMED.values():
        with pytest.raises(KeysideError):
            npy.decode(data)
    # only of those whose data does not fit a good header
    assert all(
        npy.parse_header(raw, header.offset + header.nbytes) for raw, header in npy._HEADERS.copy().items()
    )
