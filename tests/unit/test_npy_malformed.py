"""npy: files that mean harm, or were damaged."""

import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.unit.npy_files import any_tensor, assert_same, loaded, make, saved

from keyside.tensorstore import npy
from keyside.tensorstore.errors import BadNpy, KeysideError

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
def test_malformed(name: str, kind: Callable[[bytes], npy.Buffer]) -> None:
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


def test_a_prefix_must_have_the_whole_header() -> None:
    with pytest.raises(BadNpy, match="only 100 of them were read"):
        npy.parse_header(GOOD[:100], len(GOOD))
    with pytest.raises(BadNpy, match="truncated"):
        npy.header_size(GOOD[:9])


def check(data: bytes) -> None:
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
def test_mutations(array: NDArray[Any], data: st.DataObject) -> None:
    value = bytearray(npy.to_bytes(array) if data.draw(st.booleans()) else saved(array))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(value), 130)))
        match data.draw(st.integers(0, 3)):
            case 0:
                value[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case 1:
                del value[at : at + data.draw(st.integers(1, 20))]
            case 2:
                value[at:at] = data.draw(st.sampled_from([b"0", b"9", b"-", b",", b" ", b"'", b"(", b"\n", b"\0"]))
            case 3:
                del value[at:]
    check(bytes(value))


TOKENS = r"""{ } ( ) [ ] , : ' " 'descr' 'fortran_order' 'shape' '<f4' '|S3' '>i2' '|O' False True None
    0 1 2 -1 () (1,) 99999999999999999999 L _ # \
    'descr':'<f4', 'fortran_order':False, 'shape':(1,), 'shape':(),"""
token = st.sampled_from([*TOKENS.split(), " ", "\n"])


@given(st.lists(token, max_size=12), st.booleans())
@example(["'descr':'<f4',", "'fortran_order':False,", "'shape':(1,),"], True)
def test_headers_of_tokens(tokens: list[str], braced: bool) -> None:
    text = "".join(tokens)
    check(make(text="{" + text + "}" if braced else text, data=bytes(4)))


@given(st.binary(max_size=200), st.integers(0, 10))
def test_garbage(data: bytes, known: int) -> None:
    check(GOOD[:known] + data)


@given(st.lists(st.integers(0, 2**64), max_size=34))
def test_shapes(dims: list[int]) -> None:
    check(make("'|i1'", shape=f"{tuple(dims)}", data=b""))


def test_malformed_headers_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy, "_HEADERS", {})
    for data, _ in MALFORMED.values():
        with pytest.raises(KeysideError):
            npy.decode(data)
    # only of those whose data does not fit a good header
    assert all(npy.parse_header(raw, header.offset + header.nbytes) for raw, header in npy._HEADERS.copy().items())
