"""What a trigger says on its channel. No I/O happens here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keyside.tensorstore import dtypes
from keyside.tensorstore.errors import BadValue, KeysideError, from_reply

__all__ = ["Event", "read_event"]


@dataclass(frozen=True, slots=True)
class Event:
    """What a run that a trigger has started has come to.

    Attributes:
        trigger: its name.
        run: id of the run; empty if none was started.
        source: what has set it off: a key, the id of an entry of a stream, a channel or a time.
        target: what was run, with its version.
        outputs: arrays by name; empty if there is an error.
        keys: names of the keys of those outputs that were written to keys. One of these that has gone since is not in
            `outputs`.
        error: why there are no outputs; None: there are.
        ms: how long it took, from its start to its result, if that is said.
    """

    trigger: str
    run: str = ""
    source: str = ""
    target: str = ""
    outputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    error: KeysideError | None = None
    ms: float | None = None


class _Output(msgspec.Struct):
    dtype: str = ""
    shape: list[int] | None = None
    values: list[float | int | str | bool] | None = None
    key: str | None = None


class _Result(msgspec.Struct):
    trigger: str = ""
    run: str | None = None
    source: str | None = None
    target: str | None = None
    outputs: dict[str, _Output] | None = None
    error: str | None = None
    ms: float | None = None


_DECODER = msgspec.json.Decoder(_Result)


def read_event(trigger: str, data: bytes) -> Event:
    """Read what was said on the channel of a trigger.

    Args:
        trigger: its name, for what does not say whose it is.
        data: the message.

    Returns:
        The event. Of a message that no trigger can have sent, one with an error that says so.
    """
    try:
        result = _DECODER.decode(data)
        if result.error is None and result.outputs is None:
            raise BadValue("it has neither outputs nor an error")
        outputs = {name: _array(name, one) for name, one in (result.outputs or {}).items() if one.key is None}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeysideError) as error:
        said = error.text if isinstance(error, KeysideError) else str(error)
        return Event(trigger, error=BadValue(f"a message on the channel is no result of a trigger: {said}"))
    return Event(
        trigger=result.trigger or trigger,
        run=result.run or "",
        source=result.source or "",
        target=result.target or "",
        outputs=outputs,
        keys={name: one.key for name, one in (result.outputs or {}).items() if one.key is not None},
        error=None if result.error is None else from_reply(result.error),
        ms=result.ms,
    )


def _array(name: str, output: _Output) -> NDArray[Any]:
    """Make the array of an output whose values are in the message."""
    try:
        dtype = dtypes.by_name(output.dtype)
    except KeysideError:
        raise BadValue(f"output {name!r} has dtype {output.dtype!r}") from None
    values, shape = output.values, output.shape
    if values is None or shape is None:
        raise BadValue(f"output {name!r} lacks values or shape")
    if dtype is dtypes.STRING:
        flat: NDArray[Any] = np.array([str(value).encode() for value in values], dtype=None if values else "S1")
    else:
        try:
            flat = np.array([_number(value) for value in values], dtype=dtype.numpy)
        except (ValueError, OverflowError) as error:
            raise BadValue(f"output {name!r}: {error}") from None
    if any(dim < 0 for dim in shape) or flat.size != int(np.prod(shape, dtype=object)):
        raise BadValue(f"output {name!r} has {flat.size} values, and shape {shape}")
    return flat.reshape(shape)


def _number(value: Any) -> Any:
    # JSON has no word for these.
    return float(value) if isinstance(value, str) else value
