"""Records that cross the wire: model signatures, model hashes and the replies of predictions.

Layouts are those of docs/protocol.md sections 3 and 5.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import msgspec

from keyside.tensorstore.errors import BadArg, NoModel, WrongType

__all__ = [
    "ModelInfo",
    "PredictReply",
    "Signature",
    "TensorSpec",
    "VersionInfo",
    "decode_reply",
    "encode_reply",
    "model_id",
    "reply_parts",
]

STATES = ("loading", "ready", "failed")
_DIGITS = 16
_NUMBERS = ("batchsize", "minbatchsize", "minbatchtimeout", "size", "chunks", "created", "ready")
_TEXTS = ("backend", "device", "reason", "tag", "upload", "expected", "digest", "sha1")


class TensorSpec(msgspec.Struct, frozen=True):
    """What one input or output looks like.

    Attributes:
        name: its name in the model.
        dtype: a name of the dtype table, or "" where the model does not say (any dtype).
        shape: its dims, -1 for any size; None where the rank is not known.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None


class Signature(msgspec.Struct, frozen=True):
    """Inputs and outputs of a model, in its order.

    Attributes:
        inputs: what it takes.
        outputs: what it gives; None where that is not known until it has run.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] | None

    def to_json(self) -> str:
        """Return the text that the field `n:signature` of a model hash holds."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Signature":
        """Read the text of a field `n:signature`.

        Raises:
            BadArg: the text is not a signature.
        """
        try:
            return _SIGNATURE.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise BadArg(f"not a signature: {error}") from None


_SIGNATURE = msgspec.json.Decoder(Signature)


def model_id(uid: str, version: int) -> str:
    """Return the id under which jobs, counters and caches know one version of a model."""
    return f"{uid}-{version}"


class VersionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model, as its hash has it.

    Attributes:
        options: the JSON object given with OPTIONS; empty if none was.
        expected: the digest that the uploader announced.
        digest: the one that an executor found.
        signature: None until an executor has loaded the version.
        created: server time in ms; 0 where the hash does not say. Likewise `ready`.
    """

    version: int
    state: str
    backend: str = ""
    device: str = ""
    reason: str = ""
    tag: str = ""
    batchsize: int = 0
    minbatchsize: int = 0
    minbatchtimeout: int = 0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    size: int = 0
    chunks: int = 0
    upload: str = ""
    expected: str = ""
    digest: str = ""
    sha1: str = ""
    signature: Signature | None = None
    created: int = 0
    ready: int = 0


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model key: its identity, and its versions by number.

    Attributes:
        default: the version that the bare name means; None until one is ready.
    """

    key: str
    uid: str
    last: int
    default: int | None
    versions: dict[int, VersionInfo]

    def model_id(self, version: int) -> str:
        """Return the id of one version, as jobs name it."""
        return model_id(self.uid, version)

    @classmethod
    def from_hash(cls, key: str | bytes, fields: Mapping[bytes, bytes] | Sequence[bytes]) -> Self:
        """Read a model from the reply to HGETALL, a mapping or the flat list of RESP2.

        Fields that this version does not know are passed over.

        Raises:
            NoModel: the hash is empty, that is, there is no such key.
            WrongType: it is a hash, but not one of a model, or a field of it is damaged.
        """
        name = _text(key)
        if isinstance(fields, Mapping):
            pairs: Iterable[tuple[bytes, bytes]] = fields.items()
        else:
            pairs = zip(fields[::2], fields[1::2], strict=True)
        own: dict[str, str] = {}
        by_version: dict[int, dict[str, str]] = {}
        for raw, value in pairs:
            field = _text(raw)
            number, colon, rest = field.partition(":")
            if colon and number.isascii() and number.isdigit() and len(number) <= _DIGITS:
                by_version.setdefault(int(number), {})[rest] = _text(value)
            else:
                own[field] = _text(value)
        if not own and not by_version:
            raise NoModel(f"no model {name!r}")
        if own.get("type") != "model" or not own.get("uid"):
            raise WrongType(f"key {name!r} is a hash, but not a model")
        reader = _Reader(name)
        return cls(
            key=name,
            uid=own["uid"],
            last=reader.integer("last", own.get("last")),
            default=reader.integer("default", own["default"]) if own.get("default") else None,
            # Fields of a half-deleted version may outlive its state: such a version does not exist.
            versions={n: reader.version(n, of) for n, of in sorted(by_version.items()) if "state" in of},
        )


class _Reader:
    """Converts the fields of one model hash; its errors name the key and the field."""

    def __init__(self, key: str) -> None:
        self._key = key

    def version(self, number: int, fields: Mapping[str, str]) -> VersionInfo:
        state = fields["state"]
        if state not in STATES:
            raise self._damaged(f"{number}:state", f"{state!r} is not one of {', '.join(STATES)}")
        values: dict[str, Any] = {name: self.integer(f"{number}:{name}", fields.get(name)) for name in _NUMBERS}
        values.update((name, fields[name]) for name in _TEXTS if name in fields)
        return VersionInfo(
            version=number,
            state=state,
            inputs=self._names(f"{number}:inputs", fields.get("inputs")),
            outputs=self._names(f"{number}:outputs", fields.get("outputs")),
            options=self._options(f"{number}:options", fields.get("options")),
            signature=self._signature(f"{number}:signature", fields.get("signature")),
            **values,
        )

    def integer(self, field: str, text: str | None) -> int:
        if not text:
            return 0
        try:
            return int(text)
        except ValueError:
            raise self._damaged(field, f"{text[:40]!r} is not a whole number") from None

    def _names(self, field: str, text: str | None) -> tuple[str, ...]:
        value = self._json(field, text)
        # An empty Lua table is written {} by the server's JSON library.
        if value is None or value == {}:
            return ()
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._damaged(field, "not a list of names")
        return tuple(value)

    def _options(self, field: str, text: str | None) -> dict[str, Any]:
        value = self._json(field, text)
        if value is None or value == []:
            return {}
        if not isinstance(value, dict):
            raise self._damaged(field, "not a JSON object")
        return value

    def _signature(self, field: str, text: str | None) -> Signature | None:
        if not text:
            return None
        try:
            return Signature.from_json(text)
        except BadArg as error:
            raise self._damaged(field, error.text) from None

    def _json(self, field: str, text: str | None) -> Any:
        if not text:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._damaged(field, f"not JSON: {error}") from None

    def _damaged(self, field: str, what: str) -> WrongType:
        return WrongType(f"model {self._key!r}: field {field}: {what}")


def _text(raw: str | bytes) -> str:
    # Model names and tags are the user's bytes; surrogateescape lets them come back as they were.
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


class PredictReply(msgspec.Struct, frozen=True):
    """The outputs of a prediction.

    Attributes:
        target: the version that ran, `name@3`.
        outputs: by name in the model's order; bytes are an npy file, text the name of a key that holds one.
    """

    target: str
    outputs: dict[str, bytes | str]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder()


def encode_reply(target: str, outputs: Iterable[tuple[str, bytes | memoryview | str]]) -> bytes:
    """Return the reply to a prediction, one msgpack map (docs/protocol.md section 5)."""
    return _ENCODER.encode({"target": target, "outputs": dict(outputs)})


def reply_parts(target: str, outputs: Sequence[tuple[str, bytes, int]]) -> list[bytes]:
    """Return the reply of `encode_reply` without the elements of its tensors.

    Args:
        target: the version that ran.
        outputs: name, npy header, and number of bytes of the elements, at least one.

    Returns:
        For each output, what stands between the elements of the one before and its own.
    """
    count = len(outputs)
    whole = _ENCODER.encode({"target": target, "outputs": {str(n): None for n in range(count)}})
    entries = b"".join(_ENCODER.encode(str(n)) + b"\xc0" for n in range(count))
    front = whole[: len(whole) - len(entries)]
    parts = []
    for name, header, nbytes in outputs:
        size = len(header) + nbytes
        head = _ENCODER.encode(bytes(size))[:-size]
        parts.append(front + _ENCODER.encode(name) + head + header)
        front = b""
    return parts


def decode_reply(data: bytes | memoryview) -> PredictReply:
    """Read the reply to a prediction.

    Raises:
        BadArg: the bytes are no such reply.
    """
    try:
        value = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArg(f"not a reply to a prediction: {error}") from None
    if isinstance(value, dict):
        target, outputs = value.get("target"), value.get("outputs")
        if isinstance(target, str) and isinstance(outputs, dict):
            for name, output in outputs.items():
                if not isinstance(name, str) or not isinstance(output, bytes | str):
                    raise BadArg(f"not a reply to a prediction: output {name!r} is neither bytes nor text")
            return PredictReply(target, outputs)
    raise BadArg("not a reply to a prediction: no target or no outputs")
