"""Records: signatures, model hashes and replies."""

import msgpack
import pytest

from keyside.tensorstore.errors import BadArg, NoModel, WrongType
from keyside.tensorstore.records import (
    ModelInfo,
    Signature,
    TensorSpec,
    VersionInfo,
    decode_reply,
    encode_reply,
    model_id,
)

SIGNATURE = Signature((TensorSpec("x", "FLOAT", (-1, 4)), TensorSpec("any", "", None)), (TensorSpec("y", "FLOAT", ()),))
TEXT = (
    '{"inputs":[{"name":"x","dtype":"FLOAT","shape":[-1,4]},{"name":"any","dtype":"","shape":null}],'
    '"outputs":[{"name":"y","dtype":"FLOAT","shape":[]}]}'
)


def test_signatures_as_text() -> None:
    unknown = Signature((), None)

    assert SIGNATURE.to_json() == TEXT
    assert Signature.from_json(TEXT) == SIGNATURE
    assert Signature.from_json(TEXT.encode()) == SIGNATURE
    assert unknown.to_json() == '{"inputs":[],"outputs":null}'
    assert Signature.from_json(unknown.to_json()) == unknown
    assert Signature.from_json('{"inputs":[],"outputs":[],"since":2}') == Signature((), ())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs":[{"name":1}],"outputs":[]}', b"\xff", "null"])
def test_what_is_no_signature(text: str | bytes) -> None:
    with pytest.raises(BadArg, match="not a signature"):
        Signature.from_json(text)


FIELDS = {
    b"type": b"model",
    b"uid": b"u7",
    b"last": b"3",
    b"default": b"1",
    b"future": b"thing",
    b"1:state": b"ready",
    b"1:backend": b"ONNX",
    b"1:device": b"CPU",
    b"1:tag": b"v1\xff",
    b"1:batchsize": b"8",
    b"1:minbatchsize": b"2",
    b"1:minbatchtimeout": b"5",
    b"1:inputs": b'["x","any"]',
    b"1:outputs": b"[]",
    b"1:options": b'{"intra_op_num_threads":2}',
    b"1:size": b"1000",
    b"1:chunks": b"1",
    b"1:digest": b"abc",
    b"1:signature": TEXT.encode(),
    b"1:created": b"1700000000000",
    b"1:ready": b"1700000000500",
    b"1:future": b"thing",
    b"3:state": b"failed",
    b"3:backend": b"TORCH",
    b"3:device": b"GPU",
    b"3:inputs": b"{}",
    b"3:reason": b"BADMODEL no",
    b"2:tag": b"left behind",
}


def test_a_model_hash() -> None:
    model = ModelInfo.from_hash(b"fraud", FIELDS)

    assert (model.key, model.uid, model.last, model.default) == ("fraud", "u7", 3, 1)
    assert list(model.versions) == [1, 3]
    assert model.versions[1] == VersionInfo(
        version=1,
        state="ready",
        backend="ONNX",
        device="CPU",
        tag="v1\udcff",
        batchsize=8,
        minbatchsize=2,
        minbatchtimeout=5,
        inputs=("x", "any"),
        options={"intra_op_num_threads": 2},
        size=1000,
        chunks=1,
        digest="abc",
        signature=SIGNATURE,
        created=1700000000000,
        ready=1700000000500,
    )
    assert model.versions[3].reason == "BADMODEL no"
    assert model.versions[3].signature is None
    assert model.model_id(3) == model_id("u7", 3) == "u7-3"


def test_a_model_hash_as_a_flat_list() -> None:
    flat = [part for pair in FIELDS.items() for part in pair]

    assert ModelInfo.from_hash("fraud", flat) == ModelInfo.from_hash("fraud", FIELDS)


def test_a_model_without_a_ready_version() -> None:
    model = ModelInfo.from_hash("m", {b"type": b"model", b"uid": b"u", b"last": b"1", b"1:state": b"loading"})

    assert model.default is None
    assert model.versions[1].backend == ""


def test_what_is_no_model() -> None:
    with pytest.raises(NoModel, match="no model 'm'"):
        ModelInfo.from_hash("m", {})
    with pytest.raises(WrongType, match="key 'm' is a hash, but not a model"):
        ModelInfo.from_hash("m", {b"name": b"Ada"})
    with pytest.raises(WrongType, match="not a model"):
        ModelInfo.from_hash("m", {b"type": b"endpoint", b"uid": b"u"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"1:state", b"odd"),
        (b"1:batchsize", b"many"),
        (b"1:inputs", b'"x"'),
        (b"1:inputs", b"[1]"),
        (b"1:options", b"[1]"),
        (b"1:options", b"{"),
        (b"1:options", b"[" * 100_000),
        (b"1:signature", b"{}"),
        (b"last", b"x"),
    ],
)
def test_damaged_fields_are_named(field: bytes, value: bytes) -> None:
    with pytest.raises(WrongType, match=f"model 'm': field {field.decode()}: "):
        ModelInfo.from_hash("m", FIELDS | {field: value})


def test_replies() -> None:
    reply = encode_reply("fraud@3", [("y", b"npy"), ("big", "ks:{0}:out:1"), ("view", memoryview(b"npy"))])

    assert reply[0] >= 0x80
    assert msgpack.unpackb(reply) == {
        "target": "fraud@3",
        "outputs": {"y": b"npy", "big": "ks:{0}:out:1", "view": b"npy"},
    }
    decoded = decode_reply(reply)
    assert decoded.target == "fraud@3"
    assert list(decoded.outputs.items()) == [("y", b"npy"), ("big", "ks:{0}:out:1"), ("view", b"npy")]
    assert decode_reply(memoryview(reply)) == decoded


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"OK",
        b"\x80",
        b"\xc1",
        msgpack.packb([1]),
        msgpack.packb({"target": "t"}),
        msgpack.packb({"target": "t", "outputs": {"y": 1}}),
        msgpack.packb({"target": "t", "outputs": {1: b""}}),
        msgpack.packb({"target": b"t", "outputs": {}}),
        encode_reply("t", [("y", b"npy")])[:-1],
    ],
)
def test_what_is_no_reply(data: bytes) -> None:
    with pytest.raises(BadArg, match="not a reply"):
        decode_reply(data)
