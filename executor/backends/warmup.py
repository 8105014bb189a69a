"""The first runs of a model that has been loaded.

They make the backend allocate and compile what it does lazily, show whether the model runs at all, and find
out whether its rows are independent, so that requests may be stacked.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keyside.executor.backends.base import Array, one_line
from keyside.tensorstore import dtypes
from keyside.tensorstore.errors import BadDtype, BadModel, KeysideError, ModelFailed
from keyside.tensorstore.records import Signature

__all__ = ["dim0_is_free", "warm_up"]

# Inputs that the operator did not ask for stay modest, and slow models are not run more often than they must.
MAX_BYTES = 256 << 20
PROBE_LIMIT_S = 1.0

Run = Callable[[Sequence[Array]], list[Array]]
_logger = logging.getLogger(__name__)


def dim0_is_free(signature: Signature) -> bool:
    """Return whether dim 0 of every input and output may be of any size, as far as the signature says."""
    specs = signature.inputs + (signature.outputs or ())
    return bool(signature.inputs) and all(
        spec.shape is None or (len(spec.shape) > 0 and spec.shape[0] < 0) for spec in specs
    )


def warm_up(signature: Signature, run: Run, option: object) -> bool:
    """Run a model on zeros, and find out whether requests may be stacked on dim 0.

    Args:
        signature: what the model takes.
        run: runs it.
        option: what OPTIONS has as `warmup`: None for sizes made up where the signature leaves them free,
            False for no warm-up, or an object with `shapes` and, if the signature lacks them, `dtypes`.

    Returns:
        Whether requests may be stacked, as far as can be known.

    Raises:
        BadModel: `option` is malformed.
        ModelFailed: the model does not run on sizes that it declares or that the option gives.
    """
    stackable = dim0_is_free(signature)
    if option is False:
        return stackable
    if option is None or option is True:
        inputs, invented = _default(signature)
    else:
        inputs, invented = _asked_for(signature, option), False
    if inputs is None:
        return stackable
    began = time.monotonic()
    try:
        run(inputs)
    except KeysideError as error:
        if not invented:
            raise ModelFailed(f"the warm-up run failed: {error.text}") from error
        # The sizes were ours, so this does not speak against the model.
        _logger.info("warm-up on made-up sizes failed: %s", one_line(error.text))
        return stackable
    if stackable and time.monotonic() - began < PROBE_LIMIT_S:
        return _rows_are_independent(inputs, run)
    return stackable


def _default(signature: Signature) -> tuple[list[Array] | None, bool]:
    """Make zeros for a signature; also say whether sizes had to be made up."""
    shapes: list[tuple[int, ...]] = []
    invented = False
    for spec in signature.inputs:
        if not spec.dtype:
            return None, True
        shape = spec.shape if spec.shape is not None else (-1,)
        invented = invented or spec.shape is None or any(dim < 0 for dim in shape)
        shapes.append(tuple(1 if dim < 0 else dim for dim in shape))
    names = [spec.dtype for spec in signature.inputs]
    if _total(shapes, names) > MAX_BYTES:
        return None, invented
    return _zeros(shapes, names), invented


def _asked_for(signature: Signature, option: object) -> list[Array]:
    if not isinstance(option, Mapping) or not set(option) <= {"shapes", "dtypes"} or "shapes" not in option:
        raise BadModel('option warmup is false or an object such as {"shapes": [[1, 4]], "dtypes": ["FLOAT"]}')
    shapes, names = option["shapes"], option.get("dtypes")
    if not _is_shapes(shapes):
        raise BadModel("option warmup: shapes is not a list of lists of sizes")
    if names is None:
        names = [spec.dtype or "FLOAT" for spec in signature.inputs]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadModel("option warmup: dtypes is not a list of names")
    count = len(signature.inputs)
    if len(shapes) != count or len(names) != count:
        raise BadModel(f"option warmup: the model has {count} inputs, not {len(shapes)} shapes and {len(names)} dtypes")
    try:
        total = _total(shapes, names)
    except BadDtype as error:
        raise BadModel(f"option warmup: {error.text}") from None
    if total > 4 * MAX_BYTES:
        raise BadModel(f"option warmup: inputs of {total:,} bytes; at most {4 * MAX_BYTES:,}")
    return _zeros(shapes, names)


def _is_shapes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(shape, list)
        and len(shape) <= 32
        and all(isinstance(dim, int) and not isinstance(dim, bool) and 0 <= dim < 1 << 31 for dim in shape)
        for shape in value
    )


def _total(shapes: Sequence[Sequence[int]], names: Sequence[str]) -> int:
    sizes = (max(dtypes.by_name(name).itemsize, 1) for name in names)
    return sum(math.prod(shape) * size for shape, size in zip(shapes, sizes, strict=True))


def _zeros(shapes: Sequence[Sequence[int]], names: Sequence[str]) -> list[Array]:
    return [np.zeros(shape, _numpy(name)) for shape, name in zip(shapes, names, strict=True)]


def _numpy(name: str) -> np.dtype[Any]:
    dtype = dtypes.by_name(name)
    return dtype.numpy if dtype.itemsize else np.dtype("S1")


def _rows_are_independent(inputs: Sequence[Array], run: Run) -> bool:
    """Run a row of ones and a row of zeros, apart and stacked: independent rows give the same.

    Ones come first, so that sums and maxima along dim 0 show in the second row.
    """
    if any(array.ndim == 0 or array.size == 0 for array in inputs):
        return False
    zeros = [np.zeros_like(array[:1]) for array in inputs]
    ones = [_ones(array) for array in zeros]
    try:
        apart = list(zip(run(ones), run(zeros), strict=True))
    except KeysideError:
        return True  # the model does not take such values, which says nothing about its rows
    try:
        stacked = run([np.concatenate(pair) for pair in zip(ones, zeros, strict=True)])
    except KeysideError:
        return False
    return all(_same(whole, first, second) for whole, (first, second) in zip(stacked, apart, strict=True))


def _ones(zeros: Array) -> Array:
    return np.full_like(zeros, b"1") if zeros.dtype.kind == "S" else np.ones_like(zeros)


def _same(whole: Array, first: Array, second: Array) -> bool:
    if first.ndim == 0 or first.shape[0] != 1 or second.shape != first.shape:
        return False
    if whole.shape != (2, *first.shape[1:]):
        return False
    parts = np.concatenate((first, second))
    if whole.dtype.kind in "fc":
        # Kernels round differently for other numbers of rows; rows that mix differ by far more than that.
        return bool(np.allclose(whole, parts, rtol=1e-2, atol=1e-3, equal_nan=True))
    return bool(np.array_equal(whole, parts))
