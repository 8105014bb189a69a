"""What another client may write into the keys that Keyside keeps: right records with a few wounds, and rubbish."""

import json
from typing import Any

import msgpack
import numpy as np
from hypothesis import strategies as st

from keyside.tensorstore import npy

__all__ = ["ROW", "entries", "hostile_json", "hostile_text", "infos", "model_fields", "replies", "wounded"]

ROW = npy.to_bytes(np.arange(4, dtype=np.float32).reshape(1, 4))
NOW = 9_007_199_254_740_991  # a deadline that never comes

numbers = st.sampled_from(
    [
        0,
        1,
        2,
        -1,
        7,
        255,
        2**31,
        2**32,
        2**53 - 1,
        2**53,
        2**63 - 1,
        2**64 - 1,
        -(2**63),
        10**30,
        1.5,
        float("nan"),
        1e400,
    ]
)
hostile_text = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "x",
        "nan",
        "1e5",
        " 1",
        "\u0663",
        "9" * 30,
        "9" * 5000,
        "\0",
        "\udcff",
        "m",
        "m@1",
        "m@",
        "@",
        "{}",
        "[]",
        "null",
        "true",
        '"',
        "[" * 3000,
        "{" * 3000,
        '{"a":' * 1500,
        "ready",
        "loading",
        "failed",
        "gone",
        "ONNX",
        "TORCH",
        "PICKLE",
        "../../etc/passwd",
        "ks:{0}:jobs:CPU",
        "a\nb",
        "e" * 70_000,
    ]
)
scalars = st.none() | st.booleans() | numbers | hostile_text | st.binary(max_size=9)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile_text, inner, max_size=3)
)


@st.composite
def wounded(draw: st.DrawFn, value: Any, most: int = 2) -> Any:
    """A list or mapping with some of its parts replaced, left out or doubled, at any depth."""
    for _ in range(draw(st.integers(0, most))):
        value = _wound(draw, value)
    return value


def _wound(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value, key=repr)))
        match draw(st.integers(0, 5)):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return value | {draw(hostile_text): draw(scalars)}
            case 2:
                return draw(trees)
            case _:
                return value | {key: _wound(draw, value[key])}
    if isinstance(value, list) and value:
        at = draw(st.integers(0, len(value) - 1))
        match draw(st.integers(0, 5)):
            case 0:
                return value[:at]
            case 1:
                return [*value[: at + 1], *value[at:]]
            case 2:
                return draw(trees)
            case _:
                return [*value[:at], _wound(draw, value[at]), *value[at + 1 :]]
    return draw(trees)


@st.composite
def hostile_json(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON text that is nearly this value, or no JSON at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(hostile_text | st.binary(max_size=20).map(lambda raw: raw.decode("latin-1"))).encode(
            "utf-8", "surrogateescape"
        )
    try:
        text = json.dumps(draw(wounded(value)), default=lambda raw: raw.decode("latin-1"))
    except (TypeError, ValueError, RecursionError):
        text = "{"
    raw = text.encode("utf-8", "surrogatepass")
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 9)) == 0 else raw


@st.composite
def hostile_msgpack(draw: st.DrawFn, value: Any) -> bytes:
    """A msgpack text that is nearly this value, or none at all."""
    if draw(st.integers(0, 6)) == 0:
        return draw(
            st.sampled_from([b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 2000, b"\xdf\x7f\xff\xff\xff", b"\x9c"])
        )
    try:
        raw = bytes(
            msgpack.packb(draw(wounded(value)), use_bin_type=draw(st.booleans()), unicode_errors="surrogatepass")
        )
    except (TypeError, ValueError, OverflowError, RecursionError):
        raw = b"\x9c\x01"
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 9)) == 0 else raw


@st.composite
def entries(draw: st.DrawFn, model: str, key: str, load: str) -> list[Any]:
    """Fields of an entry of a job stream: nearly a job for a model, or nearly a load.

    Args:
        model: id of a version that serves, `key` its name.
        load: id of a version that does not exist.
    """
    if draw(st.booleans()):
        header: list[Any] = [1, "run", model, key, 1, NOW, "ks:{0}:t:fuzz", "", ["v"], [], [], 0]
        mode = draw(st.sampled_from(["v", "v", "v", "cks:{0}:cap:none", "rnone", "rlist", "c", "r", "x"]))
        header[8] = [mode] * draw(st.sampled_from([1, 1, 1, 0, 2, 300]))
        if draw(st.integers(0, 3)) == 0:
            header[10] = ["ks:{0}:fuzz:out"]
        if draw(st.integers(0, 3)) == 0:
            header[9] = draw(st.sampled_from([["x"], ["y"], ["x", "x"], [""]]))
    else:
        header = [
            1,
            "load",
            draw(st.sampled_from([model, load, "0-1", "x-9007199254740991"])),
            key,
            1,
            0,
            "",
            "",
            [],
            [],
            [],
            0,
        ]
    packed = draw(hostile_msgpack(header))
    value = draw(
        st.sampled_from(
            [
                ROW,
                ROW,
                ROW,
                ROW[:-1],
                b"",
                b"\x93NUMPY",
                npy.to_bytes(np.zeros((0, 4), np.float32)),
                npy.to_bytes(np.array("text")),
                npy.to_bytes(np.zeros((3, 5))),
            ]
        )
    )
    fields: list[Any] = ["h", packed, "0", value]
    match draw(st.integers(0, 8)):
        case 0:
            fields = fields[:2]
        case 1:
            fields = ["x", "y", *fields]
        case 2:
            fields = ["h", packed, *(["0", value] * 40)]
        case _:
            pass
    return fields


def infos() -> st.SearchStrategy[bytes]:
    """What an executor tells about itself, or nearly."""
    return hostile_json(
        {
            "name": "e",
            "pid": 1,
            "host": "h",
            "devices": ["CPU"],
            "backends": ["ONNX"],
            "keyside": "0.1.0",
            "started": 1.0,
            "held": 0,
            "models": 1,
            "memory": 1,
            "budget": 1,
            "lease_ms": 15000,
            "ready": ["u-1"],
            "node": "",
            "local": True,
        }
    )


def replies() -> st.SearchStrategy[bytes]:
    """The reply to a prediction, or nearly."""
    good: dict[str, Any] = {"target": "m@1", "outputs": {"y": ROW}}
    staged: dict[str, Any] = {"target": "m@1", "outputs": {"y": "fuzz:staged", "z": ROW}}
    words = st.sampled_from(
        [b"OK", b"", b" ", b"OK ", b"ERR", b"BUSY", b"TIMEDOUT ", b"x" * 9, b"\xff", b"\x7f", b"\0", b"MOVED 1 a:1"]
    )
    return hostile_msgpack(good) | hostile_msgpack(staged) | words | st.binary(max_size=30)


FIELDS = [
    "type",
    "uid",
    "last",
    "default",
    "same:x",
    "1:state",
    "1:reason",
    "1:backend",
    "1:device",
    "1:tag",
    "1:batchsize",
    "1:minbatchsize",
    "1:minbatchtimeout",
    "1:inputs",
    "1:outputs",
    "1:options",
    "1:size",
    "1:chunks",
    "1:upload",
    "1:load",
    "1:expected",
    "1:digest",
    "1:sha1",
    "1:signature",
    "1:created",
    "1:ready",
    "0:state",
    "2:state",
    "9" * 5000 + ":state",
    "\u0661:state",
    "-1:state",
    "1:",
    ":",
    "1:state:x",
    "rev",
]
SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "FLOAT", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "dtype": "FLOAT", "shape": [-1, 4]}],
}


@st.composite
def model_fields(draw: st.DrawFn) -> dict[str, bytes]:
    """Fields to be written over those of a model."""
    names = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4))
    texts = hostile_text.map(lambda text: text.encode("utf-8", "surrogateescape"))
    return {field: draw(hostile_json(SIGNATURE) if field == "1:signature" else texts) for field in names}
