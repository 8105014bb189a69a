"""Checks an ONNX file before onnxruntime sees it.

Given a model as bytes, onnxruntime opens the files that its tensors name as external data, from its working
directory. So the protobuf is walked here first, without trust and without the `onnx` package: a walk over
tags and lengths that looks into the messages that can hold tensors or operators and skips everything else.

Where protobuf parsers differ or take odd forms (overlong tags, groups), the file is refused: what is
skipped here must be what onnxruntime skips.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from keyside.tensorstore.errors import BadModel

__all__ = ["DOMAINS", "Scan", "scan"]

DOMAINS: Final = frozenset(
    {
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.training",
        "ai.onnx.preview.training",
        "com.microsoft",
    }
)

# Operators of these domains that open files or run other code.
_REFUSED_OPERATORS: Final = frozenset({"EPContext", "PythonOp", "PythonOpGrad"})

# protobuf's own limit on nesting, to which onnxruntime keeps.
MAX_DEPTH: Final = 100

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _INFO = range(9)

# Message type -> field number -> the type of the message that the field holds.
_CHILDREN: Final[dict[int, dict[int, int]]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 11: _INFO, 12: _INFO, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}

# Message type -> the fields of it that name a domain and an operator.
_NAMES: Final[dict[int, tuple[int, int]]] = {_NODE: (7, 4), _FUNCTION: (10, 1)}

_NOTHING: Final[tuple[int, ...]] = ()

_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14

# Tree ensembles hold millions of numbers as one field each: runs of them are skipped at the speed of `re`.
_FLOATS: Final = re.compile(rb"(?:\x3d.{4})++", re.DOTALL)  # AttributeProto.floats
_INTS: Final = re.compile(rb"(?:\x40[\x80-\xff]{0,9}+[\x00-\x7f])++", re.DOTALL)  # AttributeProto.ints


@dataclass(slots=True)
class Scan:
    """What the walk found.

    Attributes:
        shaped: input or output of the top graph -> whether it declares a shape (onnxruntime shows one without
            as if it were 0-d).
        operators: (domain, operator) of every node.
        functions: (domain, name) of every function that the model brings along.
    """

    shaped: dict[str, bool] = field(default_factory=dict)
    operators: set[tuple[str, str]] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)


def scan(blob: bytes) -> Scan:
    """Walk a model file.

    Raises:
        BadModel: it is not an ONNX file, it keeps data outside of itself, or it has custom operators.
    """
    if blob[4:8] == b"ORTM":
        raise BadModel("the blob is in ORT format; store the ONNX model that it was made from")
    found = Scan()
    graphs = 0
    stack = [(_MODEL, 0, len(blob), 1)]
    while stack:
        kind, start, end, depth = stack.pop()
        graphs += kind == _GRAPH
        if depth > MAX_DEPTH:
            raise BadModel("the ONNX file nests messages too deeply")
        if kind == _TENSOR:
            _check_tensor(blob, start, end)
            continue
        if kind == _INFO:
            if depth == 3:
                _value_info(blob, start, end, found)
            continue
        children = _CHILDREN[kind]
        naming = _NAMES.get(kind, _NOTHING)
        texts: dict[int, str] = {}
        for number, value, stop in _fields(blob, start, end, runs=kind == _ATTRIBUTE):
            if stop < 0:
                continue
            if number in children:
                stack.append((children[number], value, stop, depth + 1))
            elif number in naming:
                texts[number] = _text(blob, value, stop)
        if naming:
            names = found.operators if kind == _NODE else found.functions
            names.add((texts.get(naming[0], ""), texts.get(naming[1], "")))
    if not graphs:
        raise BadModel("the blob is not an ONNX model: it has no graph")
    _check_operators(found)
    return found


def _check_operators(found: Scan) -> None:
    for domain, operator in sorted(found.operators - found.functions):
        if domain not in DOMAINS:
            raise BadModel(f"the model uses the custom operator {domain}::{operator}, which is not allowed")
        if operator in _REFUSED_OPERATORS:
            raise BadModel(f"the model uses the operator {operator}, which is not allowed")


def _fields(blob: bytes, pos: int, end: int, *, runs: bool = False) -> "list[tuple[int, int, int]]":
    """List the fields of the message in blob[pos:end].

    A scalar is (number, value, -1), where fixed-width ones have the value 1; anything with a length is
    (number, start, end). With `runs`, numbers of AttributeProto.floats and .ints are left out.
    """
    fields: list[tuple[int, int, int]] = []
    while pos < end:
        tag = blob[pos]
        if runs and tag in (0x3D, 0x40):
            match = (_FLOATS if tag == 0x3D else _INTS).match(blob, pos, end)
            if match is None:
                raise _malformed(pos)
            pos = match.end()
            continue
        if tag < 0x80:
            pos += 1
        else:
            tag, pos = _varint(blob, pos, end, longest=5)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _malformed(pos)
        if wire == 2:
            length, pos = _varint(blob, pos, end, longest=5)
            stop = pos + length
            if stop > end:
                raise _malformed(pos)
            fields.append((number, pos, stop))
            pos = stop
        elif wire == 0:
            value, pos = _varint(blob, pos, end, longest=10)
            fields.append((number, value, -1))
        elif wire in (1, 5):
            pos += 8 if wire == 1 else 4
            if pos > end:
                raise _malformed(pos)
            fields.append((number, 1, -1))
        else:
            raise _malformed(pos)
    return fields


def _varint(blob: bytes, pos: int, end: int, *, longest: int) -> tuple[int, int]:
    value = 0
    for index in range(longest):
        if pos >= end:
            break
        byte = blob[pos]
        pos += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, pos
    raise _malformed(pos)


def _value_info(blob: bytes, start: int, end: int, found: Scan) -> None:
    """Note whether one ValueInfoProto {1: name, 2: type {1: tensor {2: shape}}} declares a shape."""
    name = ""
    shaped = False
    for number, value, stop in _fields(blob, start, end):
        if number == 1 and stop >= 0:
            name = _text(blob, value, stop)
        elif number == 2 and stop >= 0:
            for of_type, at, until in _fields(blob, value, stop):
                if of_type == 1 and until >= 0:
                    shaped |= any(n == 2 and upto >= 0 for n, _, upto in _fields(blob, at, until))
    found.shaped[name] = shaped


def _check_tensor(blob: bytes, start: int, end: int) -> None:
    """Refuse a TensorProto that keeps its data outside; its name is field 8."""
    name = ""
    external = False
    for number, value, stop in _fields(blob, start, end):
        if number == 8 and stop >= 0:
            name = _text(blob, value, stop)
        elif number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value):
            external = True
    if not external:
        return
    tensor = f"tensor {name[:80]!r}" if name else "a tensor"
    raise BadModel(
        f"{tensor} keeps its data in an external file, which is refused; save the model as one file "
        "(onnx.save_model with save_as_external_data=False)"
    )


def _text(blob: bytes, start: int, end: int) -> str:
    return blob[start:end].decode("utf-8", "replace")


def _malformed(pos: int) -> BadModel:
    return BadModel(f"the blob is not an ONNX file: malformed at byte {pos:,}")
