"""What callers give as inputs, made into what a job takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keyside.clients.request import Identity, Parts, Request
from keyside.clients.topology import check_slots
from keyside.tensorstore import dtypes, keys, npy, plain
from keyside.tensorstore.command import Command, to_bytes
from keyside.tensorstore.commands import INLINE, InputSpec, Submit, ai_modelexecute, ai_predict
from keyside.tensorstore.errors import BadArg, BadDtype, BadInput, BadValue
from keyside.tensorstore.features import Feature, Hash, ListRange, Numbers, Rows, SortedSet
from keyside.tensorstore.records import Signature, TensorSpec

__all__ = [
    "KEYED",
    "Bound",
    "Key",
    "Moved",
    "bind",
    "bind_keys",
    "count_rows",
    "input_spec",
    "output_keys",
    "request",
    "strangers",
]

_MODES = {"copy": b"KEY", "ref": b"REF", "own": b"OWN"}


@dataclass(frozen=True, slots=True)
class Key:
    """A tensor in the database as an input.

    Attributes:
        name: of the tensor key.
        mode: "copy": as it is when the request is submitted, up to 64 MiB. "ref": as it is when the job runs, of any
            size and without a copy. "own": it is the caller's temporary; the job takes it away, without a copy.
    """

    name: str | bytes
    mode: Literal["copy", "ref", "own"] = "copy"

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise BadArg(f"the mode of a Key is copy, ref or own, not {self.mode!r}")
        if not isinstance(self.name, str | bytes):
            raise BadArg(f"the name of a Key is text or bytes, not {type(self.name).__name__}")


KEYED: frozenset[type] = frozenset({Key, Hash, ListRange, Numbers, Rows, SortedSet})
"""What names keys: a call with one of these goes where they are."""

Maker = Callable[[list[InputSpec | Feature]], Callable[[Submit], Command[bytes]]]
"""Makes the call of what is sent as its inputs."""


def input_spec(key: Key) -> InputSpec:
    """Return a key as a job takes it."""
    return InputSpec(_MODES[key.mode], to_bytes(key.name))


class Moved(NamedTuple):
    """A tensor that was read from where it lies, to be written where the call runs."""

    header: bytes
    data: memoryview


@dataclass(slots=True)
class Bound:
    """Inputs in the order in which they are sent.

    Attributes:
        items: keys, what is gathered, arrays, and what is none of these and has yet to be made an array of.
        names: of the inputs; empty: they go by position.
    """

    items: list[object]
    names: list[str]

    @property
    def needs_signature(self) -> bool:
        """Whether there are plain numbers or text among them, which become what the model takes."""
        return not all(isinstance(item, Key | Feature) or _is_array(item) for item in self.items)

    def convert(self, signature: Signature | None) -> None:
        """Make arrays of the plain values.

        Args:
            signature: of the model; None where it is not known, and NumPy chooses.

        Raises:
            KeysideError: a value does not fit.
        """
        for index, item in enumerate(self.items):
            if not isinstance(item, Key | Feature) and not _is_array(item):
                self.items[index] = _convert(item, self._spec(index, signature))

    def _spec(self, index: int, signature: Signature | None) -> TensorSpec | None:
        if signature is None:
            return None
        if self.names:
            return next((spec for spec in signature.inputs if spec.name == self.names[index]), None)
        return signature.inputs[index] if index < len(signature.inputs) else None


def _is_array(value: object) -> bool:
    if isinstance(value, Moved):
        return True
    if isinstance(value, np.generic):  # a number, though it looks like an array
        return False
    return isinstance(value, np.ndarray) or hasattr(value, "__dlpack__") or hasattr(value, "__array__")


def bind(inputs: object) -> Bound:
    """Tell one input from several.

    Args:
        inputs: a mapping is inputs by name. A tuple or list with an array, a `Key` or a `Feature` in it is inputs by
            position. Anything else is the one input: so `[1.0, 2.0]` is one array of two numbers.

    Raises:
        BadArg: a name is no text, or there are no inputs.
    """
    if isinstance(inputs, Mapping):
        if not inputs:
            raise BadArg("no inputs were given")
        for name in inputs:
            if not isinstance(name, str):
                raise BadArg(f"names of inputs are text, not {type(name).__name__}")
        return Bound(list(inputs.values()), list(inputs))
    if isinstance(inputs, list | tuple) and any(isinstance(item, Key | Feature) or _is_array(item) for item in inputs):
        return Bound(list(inputs), [])
    return Bound([inputs], [])


def bind_keys(inputs: object) -> Bound:
    """Like `bind`, but text and bytes are names of tensor keys.

    Raises:
        BadArg: there are no inputs.
    """
    if isinstance(inputs, str | bytes):
        return Bound([Key(inputs)], [])
    if isinstance(inputs, list | tuple) and any(isinstance(item, str | bytes) for item in inputs):
        bound = Bound(list(inputs), [])
    else:
        bound = bind(inputs)
    bound.items = [Key(item) if isinstance(item, str | bytes) else item for item in bound.items]
    return bound


def output_keys(outputs: object) -> list[bytes]:
    """Return the names of output keys.

    Raises:
        BadArg: there are none, or they are no names.
    """
    names = [outputs] if isinstance(outputs, str | bytes) else outputs
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise BadArg("outputs are the name of a key or a list of names")
    return [to_bytes(name) for name in names]


def request(
    target: str | bytes,
    bound: Bound,
    outputs: Sequence[bytes],
    timeout: float,
    identity: Identity,
    node: bytes,
    seq: int | None = None,
    make: Maker | None = None,
) -> Request:
    """Make a request of inputs that are all keys, gathered, or arrays.

    Args:
        target: what to run.
        bound: the inputs.
        outputs: keys for the results; none: they come back in the reply.
        timeout: seconds until the deadline, 0.001 to 86,400.
        identity: of the client.
        node: tag of the node, in whose slot large values go if the call has no key; empty on a cluster, where the node
            is chosen when it is sent.
        seq: number of the request; None: a new one.
        make: makes the call of what is sent as its inputs; None: that of a model.

    Raises:
        KeysideError: an array cannot be a tensor, or an argument is out of range.
    """
    if not isinstance(timeout, int | float) or not 0.001 <= timeout <= 86_400:
        raise BadArg(f"a timeout is 0.001 to 86400 seconds, not {timeout!r}")
    seq = identity.number() if seq is None else seq
    anchor = _tag(bound, outputs)
    if not node and anchor is not None:
        check_slots([*(name for item in bound.items for name in _names(item)), *outputs])

    def parts(tag: bytes) -> Parts:
        return _parts(target, bound, outputs, (identity.id, seq), tag, make)

    build, before, temporaries = parts(node if anchor is None else anchor)
    made = Request(target, build, timeout, identity, seq)
    made.before, made.temporaries = before, temporaries
    made.tag, made.keyed = (node, False) if anchor is None else (anchor, True)
    if temporaries:
        made.remake = parts
    return made


def _parts(
    target: str | bytes,
    bound: Bound,
    outputs: Sequence[bytes],
    number: tuple[bytes, int],
    tag: bytes,
    make: Maker | None,
) -> Parts:
    """Make what of a request depends on where its keys are: large values go to keys in the slot of a tag."""
    specs: list[InputSpec | Feature] = []
    before: list[Command[None]] = []
    temporaries: list[bytes] = []
    all_keys = not bound.names and bool(outputs)
    for index, item in enumerate(bound.items):
        if isinstance(item, Key):
            specs.append(InputSpec(_MODES[item.mode], to_bytes(item.name)))
            continue
        all_keys = False
        if isinstance(item, Feature):
            if make is not None:
                raise BadArg(
                    "a script takes arrays and keys; what is gathered goes to a model, or to a graph that calls it"
                )
            specs.append(item)
            continue
        header, data = item if isinstance(item, Moved) else npy.encode(item)
        if len(header) + data.nbytes <= INLINE:
            specs.append(InputSpec(b"VALUE", header + data))
            continue
        name = keys.temporary(tag, *number, index)
        before.append(plain.set_temporary(name, header, data))
        temporaries.append(name)
        specs.append(InputSpec(b"OWN", name))
    if make is not None:
        build = make([spec for spec in specs if isinstance(spec, InputSpec)])
    else:
        build = _builder(target, specs, bound.names, outputs, all_keys=all_keys)
    return Parts(build, before, temporaries)


def _builder(
    target: str | bytes, specs: list[InputSpec | Feature], names: list[str], outputs: Sequence[bytes], *, all_keys: bool
) -> Callable[[Submit], Command[bytes]]:
    def execute(submit: Submit) -> Command[bytes]:
        return ai_modelexecute(target, [spec for spec in specs if isinstance(spec, InputSpec)], outputs, submit)

    def predict(submit: Submit) -> Command[bytes]:
        return ai_predict(target, specs, submit, names=names, outputs=outputs)

    return execute if all_keys else predict


def _names(item: object) -> tuple[bytes, ...]:
    """Return the keys that an input names."""
    if isinstance(item, Key):
        return (to_bytes(item.name),)
    return item.names if isinstance(item, Feature) else ()


def _tag(bound: Bound, outputs: Sequence[bytes]) -> bytes | None:
    """Return the hash tag of the slot in which all keys of a call are; None if it has none."""
    for item in bound.items:
        for name in _names(item):
            return keys.tag(name)
    return keys.tag(outputs[0]) if outputs else None


def strangers(bound: Bound, outputs: Sequence[bytes]) -> list[int]:
    """Return which inputs are tensor keys that lie elsewhere than the rest.

    That is in another slot than the outputs; without outputs, than what is gathered; without that, than the first key.
    """
    names = {index: to_bytes(item.name) for index, item in enumerate(bound.items) if isinstance(item, Key)}
    if not names:
        return []
    fixed = [*outputs, *(name for item in bound.items if isinstance(item, Feature) for name in item.names)]
    slot = keys.slot(fixed[0] if fixed else next(iter(names.values())))
    return [index for index, name in names.items() if keys.slot(name) != slot]


def _convert(value: object, spec: TensorSpec | None) -> NDArray[Any]:
    """Make an array of plain numbers or text, of the dtype that the model takes."""
    array = npy.as_array(value)
    if spec is None or not spec.dtype:
        return array
    wanted = dtypes.by_name(spec.dtype)
    if array.dtype == wanted.numpy or (wanted is dtypes.STRING and array.dtype.kind == "S"):
        return array
    kind, to = array.dtype.kind, wanted.numpy
    if array.size == 0 and to.kind != "S":
        return array.astype(to)
    if to.kind == "f" and kind in "iubf":
        return array.astype(to)
    if to.kind in "iu" and kind in "iub":
        limits = np.iinfo(to)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise BadValue(
                f"input {spec.name!r} takes {spec.dtype}: {low if low < limits.min else high} is out of range"
            )
        return array.astype(to)
    if to.kind == "b" and kind in "iu" and bool(((array == 0) | (array == 1)).all()):
        return array.astype(to)
    raise BadDtype(f"input {spec.name!r} takes {spec.dtype}, got {dtypes.of(array.dtype).name} values: convert them")


def count_rows(bound: Bound) -> int:
    """Return how many rows the inputs of `predict_many` have; what is no array yet becomes one.

    Raises:
        BadArg: an input is a key, or gathered from keys.
        BadInput: inputs are 0-d, or differ in their number of rows.
    """
    if any(isinstance(item, Key | Feature) for item in bound.items):
        raise BadArg("predict_many takes arrays; a tensor key or what is gathered is one request: use predict")
    arrays = [npy.as_array(item) for item in bound.items]
    if not all(array.ndim for array in arrays):
        raise BadInput("predict_many takes arrays of rows, and a 0-d array has none")
    counts = sorted({array.shape[0] for array in arrays})
    if len(counts) != 1:
        raise BadInput(f"inputs differ in their number of rows: {', '.join(map(str, counts))}")
    bound.items = [*arrays]
    return int(counts[0])
