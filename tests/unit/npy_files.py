"""npy files as NumPy writes them, by hand with anything wrong, and tensors of any kind."""

import io
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from keyside.tensorstore import dtypes

__all__ = ["NUMERIC", "any_tensor", "assert_same", "loaded", "make", "saved"]

NUMERIC = [dtype.numpy for dtype in dtypes.TABLE.values() if dtype.itemsize]

any_dtype = st.one_of(st.sampled_from(NUMERIC), st.integers(1, 12).map(lambda n: np.dtype(f"S{n}")))
any_shape = st.one_of(
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    st.integers(0, 32).map(lambda rank: (1,) * rank),
)
any_tensor = st.tuples(any_dtype, any_shape).flatmap(lambda pair: hnp.arrays(pair[0], pair[1]))


def make(
    descr: str = "'<f4'",
    fortran: str = "False",
    shape: str = "(2, 3)",
    data: bytes = bytes(24),
    *,
    text: str | bytes | None = None,
    version: bytes = b"\x01\x00",
    size: int | None = None,
) -> bytes:
    """Write an npy file by hand, with anything wrong that is asked for."""
    if text is None:
        text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    header = text.encode("latin-1") if isinstance(text, str) else text
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    size = len(header) if size is None else size
    return b"\x93NUMPY" + version + size.to_bytes(2, "little") + header + data


def saved(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def loaded(data: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False, max_header_size=100_000)
    return array


def assert_same(got: NDArray[Any], array: NDArray[Any]) -> None:
    """Bytes are compared: NaNs have payloads, and -0.0 == 0.0."""
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()
