"""A version of a model, ready to serve: what was loaded, how it may be batched, and what its inputs must look like."""

from collections.abc import Sequence
from typing import Any

from keyside.executor.backends.base import Array, LoadedModel
from keyside.executor.protocol import Job
from keyside.tensorstore import dtypes
from keyside.tensorstore.errors import BadDtype, BadInput, BadShape
from keyside.tensorstore.records import Signature, TensorSpec, VersionInfo

__all__ = ["Model"]

_FORMS = 4096


class Model:
    """One loaded version.

    Attributes:
        id: `uid-version`, as jobs name it.
        title: `name@version`, as people do.
        max_rows: rows to stack at most; 1: never stack.
        min_rows: rows to wait for, 0: never wait.
        min_wait: seconds to wait for them at most.
        digest: SHA-256 of its blob, hex.
        run_s: smoothed time of a run, seconds; 0 until it has run.
    """

    def __init__(
        self, key: str, uid: str, info: VersionInfo, loaded: LoadedModel, *, max_batch: int, min_wait_ms: int
    ) -> None:
        self.id = f"{uid}-{info.version}".encode()
        # For people, logs and replies: what is not UTF-8 in a name is replaced.
        self.key = key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self.version = info.version
        self.title = f"{self.key}@{info.version}"
        self.loaded = loaded
        self.digest = ""
        self.signature: Signature = loaded.signature
        self.nbytes = loaded.nbytes
        self.names = [spec.name for spec in self.signature.inputs]
        self.output_names = None if self.signature.outputs is None else [spec.name for spec in self.signature.outputs]
        self.max_rows = (info.batchsize or max_batch) if loaded.stackable else 1
        self.min_rows = min(info.minbatchsize, self.max_rows) if self.max_rows > 1 else 0
        # RedisAI waits for ever where MINBATCHTIMEOUT is not set; here there is always a bound.
        self.min_wait = (info.minbatchtimeout or min_wait_ms) / 1000
        self.run_s = 0.0
        self._forms: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run it; see `LoadedModel.run`."""
        return self.loaded.run(inputs)

    def close(self) -> None:
        """Nothing: the memory goes with the last reference, so that a model that is evicted can end the runs begun."""

    @property
    def stackable(self) -> bool:
        """Whether requests may be stacked on dim 0."""
        return self.loaded.stackable

    def timed(self, seconds: float) -> None:
        """Take note of how long a run took."""
        self.run_s = seconds if self.run_s == 0.0 else self.run_s + 0.2 * (seconds - self.run_s)

    def prepare(self, job: Job) -> None:
        """Bind the inputs by name, check them, and find out with which others the job may be stacked.

        Sets `job.rows`, and `job.group`: jobs of one group may be stacked; None: it runs alone.

        Raises:
            BadInput: number or names of inputs, or number of outputs, do not fit.
            BadDtype: a dtype does not fit.
            BadShape: a shape does not fit.
        """
        if job.names:
            self._bind(job)
        arrays = job.arrays
        form = tuple([(array.dtype, array.shape) for array in arrays])
        known = self._forms.get(form)
        if known is None:
            known = self._examine(arrays)
            if len(self._forms) >= _FORMS:
                self._forms.clear()
            self._forms[form] = known
        job.rows, job.group = known
        if job.alone:
            job.group = None
        if job.outputs and self.output_names is not None and len(job.outputs) != len(self.output_names):
            raise BadInput(
                f"model {self.title!r} gives {len(self.output_names)} outputs, {', '.join(self.output_names)};"
                f" got {len(job.outputs)} output keys"
            )

    def _bind(self, job: Job) -> None:
        given = [name.decode(errors="replace") for name in job.names]
        if sorted(given) != sorted(self.names):
            raise BadInput(
                f"model {self.title!r} takes {', '.join(map(_shown, self.signature.inputs))}; got {', '.join(given)}"
            )
        by_name = dict(zip(given, job.arrays, strict=True))
        job.arrays = [by_name[name] for name in self.names]
        job.names = []

    def _examine(self, arrays: Sequence[Array]) -> tuple[Any, ...]:
        specs = self.signature.inputs
        if len(arrays) != len(specs):
            raise BadInput(
                f"model {self.title!r} takes {len(specs)} inputs, {', '.join(map(_shown, specs))}; got {len(arrays)}"
            )
        for spec, array in zip(specs, arrays, strict=True):
            self._check(spec, array)
        rows = arrays[0].shape[0] if arrays[0].ndim else 0
        if self.max_rows > 1 and all(array.ndim and array.shape[0] == rows for array in arrays):
            free = all(spec.shape is None or spec.shape[0] == -1 for spec in specs)
            # Elements of STRING tensors have a width each; numpy stacks only what has the same.
            group = (self.id, *((array.dtype, array.shape[1:]) for array in arrays)) if free else None
            return rows, group
        return max(rows, 1), None

    def _check(self, spec: TensorSpec, array: Array) -> None:
        dtype = dtypes.of(array.dtype).name
        if spec.dtype not in ("", dtype):
            raise BadDtype(f"input {spec.name!r} of {self.title!r} takes {spec.dtype}, got {dtype}: convert it")
        if spec.shape is not None and (
            len(spec.shape) != array.ndim
            or any(want not in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True))
        ):
            raise BadShape(
                f"input {spec.name!r} of {self.title!r} takes shape {list(spec.shape)} (-1: any),"
                f" got {list(array.shape)}"
            )


def _shown(spec: TensorSpec) -> str:
    shape = "" if spec.shape is None else str(list(spec.shape)).replace(" ", "")
    return f"{spec.name!r} {spec.dtype}{shape}"
