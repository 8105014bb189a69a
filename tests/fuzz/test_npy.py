"""The two npy parsers against each other: whatever the bytes, Python and Lua come to the same verdict."""

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from tests.fuzz.budget import COUNTS, few, for_a_while
from tests.lua.jobs import LUA_ERROR, Hand
from tests.servers import Server
from tests.unit.npy_files import any_tensor, make, saved

from keyside.tensorstore import dtypes, npy
from keyside.tensorstore.errors import BadNpy, from_reply
from keyside.tensorstore.records import Signature, TensorSpec

GOOD = make()
BLANKS = st.sampled_from(["", "", "", "", " ", "\n", "\t", "  ", "\r", "\0", "\x0b"])
QUOTES = st.sampled_from(["''", "''", "''", '""', "'\"", "``", "'"])
KEYS = ["descr", "fortran_order", "shape", "Descr", "shape2", "", "descr\0", "_" * 17]
DTYPES = [
    *dtypes.TABLE,
    "<f4",
    "<f4",
    "<f8",
    "<i8",
    "|b1",
    "|u1",
    "<u1",
    "<b1",
    "|i1",
    ">f4",
    "=f4",
    "f4",
    "|O",
    "<U2",
    "|V4",
    "<c8",
    "|S1",
    "|S3",
    "|S0",
    "|S",
    "|S01",
    "|S2147483647",
    "|S2147483648",
    "|S99999999999",
    "<S3",
    "|S-1",
    "|S 3",
    "|S3 ",
    "",
    "<f4\\x20",
    "<f4\0",
    "\xff",
    "|S\u0664",
]
NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "6",
    "00",
    "01",
    "-1",
    "-0",
    "+1",
    "1.",
    "1e3",
    "0x1",
    "1_0",
    "1L",
    "",
    " ",
    "1 1",
    "4294967296",
    "9007199254740991",
    "9007199254740992",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "1" * 19,
    "1" * 20,
    "9" * 16,
    "9" * 400,
    "\u0664",
    "\0",
]


@st.composite
def shapes(draw: st.DrawFn) -> str:
    """A shape, or nearly one."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(["()", "(1)", "(,)", "( , )", "[1,]", "(1,,)", "((1,),)", "1", "(", "None"]))
    dims = draw(
        st.lists(st.sampled_from(NUMBERS[:6]) | st.sampled_from(NUMBERS), max_size=draw(st.sampled_from([3, 34])))
    )
    text = ",".join(draw(BLANKS) + dim + draw(BLANKS) for dim in dims)
    if len(dims) == 1 or draw(st.integers(0, 5)) == 0:
        text += "," + draw(BLANKS)
    return f"({text})"


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A header by the grammar of docs/protocol.md, with a slip here and there."""
    names = draw(st.permutations(KEYS[:3]))
    if draw(st.integers(0, 6)) == 0:
        names = draw(st.lists(st.sampled_from(KEYS), max_size=4))
    items = []
    for name in names:
        value = {
            "descr": lambda: draw(QUOTES).replace("''", f"'{draw(st.sampled_from(DTYPES))}'"),
            "fortran_order": lambda: draw(st.sampled_from(["False"] * 6 + ["True", "0", "false", "None", "FalseX"])),
        }.get(name, lambda: draw(shapes()))()
        quotes = draw(QUOTES)
        items.append(
            draw(BLANKS) + quotes[0] + name + quotes[-1] + draw(BLANKS) + ":" + draw(BLANKS) + value + draw(BLANKS)
        )
    text = draw(BLANKS) + "{" + ",".join(items) + draw(st.sampled_from(["", ",", ", ", ",,", ";"])) + "}" + draw(BLANKS)
    return text.encode("utf-8", "surrogateescape") if draw(st.booleans()) else text.encode("latin-1", "replace")


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file of such a header, and about as much data as it takes."""
    return make(
        text=draw(headers()),
        data=bytes(draw(st.sampled_from([0, 0, 1, 2, 3, 4, 8, 12, 16, 24, 36, 48, 64, 100]))),
        version=draw(st.sampled_from([b"\1\0"] * 12 + [b"\2\0", b"\1\1", b"\0\0"])),
        size=draw(st.sampled_from([None] * 8 + [0, 1, 117, 118, 119, 246, 500, 65535])),
    )


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good file with a few of its bytes changed, taken out, put in or doubled."""
    array = draw(any_tensor)
    value = bytearray(npy.to_bytes(array) if draw(st.booleans()) else saved(array))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, min(len(value), 140)))
        match draw(st.integers(0, 5)):
            case 0:
                value[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del value[at : at + draw(st.integers(1, 20))]
            case 2:
                value[at:at] = draw(
                    st.sampled_from([b"0", b"9", b"-", b",", b" ", b"'", b"(", b")", b"\n", b"\0", b"{"])
                )
            case 3:
                del value[at:]
            case 4:
                value[at:at] = value[at : at + draw(st.integers(1, 30))]
            case _:
                value += draw(st.binary(min_size=1, max_size=9))
    return bytes(value)


def python_says(value: bytes) -> tuple[Any, ...]:
    """Name of the dtype and shape, or nothing if it is refused."""
    try:
        array = npy.decode(value)
    except BadNpy:
        return ()
    return dtypes.of(array.dtype).name, list(array.shape)


def refusal(reply: Exception) -> str:
    error = from_reply(str(reply))
    assert not LUA_ERROR.search(str(error)), error
    return error.code


def tensorget_says(reply: Any) -> tuple[Any, ...]:
    """What AI_TENSORGET META has told of it, or nothing."""
    if isinstance(reply, Exception):
        assert refusal(reply) in ("BADNPY", "WRONGTYPE"), reply
        return ()
    return bytes(reply[1]).decode(), reply[3]


def predict_says(reply: Any) -> bool:
    """Whether AI_PREDICT has taken it."""
    if isinstance(reply, Exception):
        assert refusal(reply) == "BADNPY", reply
        return False
    return True


ANY = Signature((TensorSpec("x", "", None),), None)
"""Of a model that takes whatever is a tensor."""


@for_a_while
@given(
    st.lists(
        files() | mutated() | st.binary(max_size=150).map(lambda data: GOOD[: len(data) % 13] + data),
        min_size=1,
        max_size=40,
    )
)
@example([make(shape="(9007199254740992,)", descr="'|i1'", data=b"")])
@example([make(text="{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", data=bytes(4)), GOOD])
@few(150)
def test_both_parsers_agree(server: Server, values: list[bytes]) -> None:
    with Hand(server.url_unix) as hand:
        if not hand.do("EXISTS", "any"):
            hand.store("any", signature=ANY)
        calls: list[Any] = []
        for value in values:
            calls += (
                ("SET", "x", value),
                ("FCALL_RO", "AI_TENSORGET", 1, "x", "META"),
                # A value in a call has its own way through the parser.
                ("FCALL", "AI_PREDICT", 0, "any", "INPUTS", 1, "VALUE", value, "TIMEOUT", 1),
            )
        stream = hand.node.jobs("CPU")
        replies = hand.wire.call_many([*calls, ("XTRIM", stream, "MAXLEN", 0), ("DEL", "x")])
    for n, value in enumerate(values):
        if not value:
            continue
        want, key, submit = python_says(value), replies[3 * n + 1], replies[3 * n + 2]
        assert tensorget_says(key) == want, f"Python: {want}, AI_TENSORGET: {key}, of {value[:300]!r}"
        assert predict_says(submit) == bool(want), f"Python: {want}, AI_PREDICT: {submit}, of {value[:300]!r}"
        COUNTS["files"] += 1
        COUNTS["files that are good"] += bool(want)
