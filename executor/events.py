"""Results of runs that triggers have started, as the JSON that their subscribers read (docs/triggers.md).

The function library publishes what comes out of here as it is, so all that JSON lacks is decided here: nan and
infinities are strings, and what is not UTF-8 in a name is replaced.
"""

import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from keyside.executor.backends.base import Array
from keyside.executor.protocol import Job
from keyside.tensorstore import dtypes, npy

__all__ = ["VALUES_MAX", "result", "shown", "values"]

VALUES_MAX = 1000
"""Elements of an output that ride in a result; a larger one goes to a key that the result names."""


def shown(value: bytes) -> dict[str, Any]:
    """Return an output, an npy file, as a result shows it: dtype, shape, and its elements flat in C order."""
    header = npy.read_header(value)
    return {
        "dtype": dtypes.of(header.dtype).name,
        "shape": list(header.shape),
        "values": values(npy.over(header, value)),
    }


def values(array: Array) -> list[Any]:
    """Return the elements of an array as JSON has them.

    Floats have as few digits as read back as the same number of their dtype; nan and infinities are the strings nan,
    inf and -inf. Strings that are not UTF-8 have their bad bytes replaced.
    """
    flat = array.ravel()
    kind = array.dtype.kind
    if kind == "S":
        return [item.decode("utf-8", "replace") for item in flat.tolist()]
    if kind == "f":
        # float() of a float32 has digits that nobody wrote.
        items = flat.tolist() if array.dtype == np.float64 else [float(str(item)) for item in flat]
        return [item if math.isfinite(item) else str(item) for item in items]
    return flat.tolist()


def result(job: Job, run: str, target: str, outputs: Sequence[tuple[str, dict[str, Any]]]) -> bytes:
    """Return the result of a run.

    Args:
        job: with the event in its `extra`.
        run: id of the job.
        target: `name@version` that ran.
        outputs: name, and what is said of it: as of `shown`, or `{"key": name}`.
    """
    trigger, source, *_ = job.trigger or (b"", b"")
    found = {
        "trigger": _text(trigger),
        "run": run,
        "source": _text(source),
        "target": target,
        "outputs": dict(outputs),
        "ms": round((time.monotonic() - job.claimed) * 1000, 3),
    }
    return json.dumps(found, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
