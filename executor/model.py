"""A version of a model, ready to serve: what was loaded, how it may be batched, and what its inputs must look like."""

from collections.abc import Mapping, Sequence
from typing import Any

from keyside.executor import script_metrics
from keyside.executor.backends.base import Array, GraphModel, LoadedModel, ScriptModel
from keyside.executor.members import check_inputs
from keyside.executor.protocol import INLINE_OUTPUT, Job
from keyside.executor.replies import Replies
from keyside.tensorstore import dtypes
from keyside.tensorstore.errors import BadArg, BadDtype, BadInput, BadShape, NoModel, RunFailed
from keyside.tensorstore.npy import Header
from keyside.tensorstore.records import Signature, TensorSpec, VersionInfo

__all__ = ["Model", "Stack"]

_FORMS = 4096


class Stack:
    """What inputs have in common that may be stacked on dim 0; compared by identity, since each job is asked for it.

    Attributes:
        forms: dtype and dims but the first, of each input.
    """

    __slots__ = ("forms",)

    def __init__(self, forms: Sequence[tuple[Any, tuple[int, ...]]]) -> None:
        self.forms = forms


class Model:
    """One loaded version.

    Attributes:
        id: `uid-version`, as jobs name it.
        title: `name@version`, as people do.
        max_rows: rows to stack at most; 1: never stack.
        min_rows: rows to wait for, 0: never wait.
        min_wait: seconds to wait for them at most.
        is_graph: whether it runs others, by `run_with`.
        digest: SHA-256 of its blob, hex.
        run_s: smoothed time of a run, seconds; 0 until it has run.
        run_limit_s: a run that takes longer is abandoned (executor/limits.py); 0: none is.
    """

    def __init__(
        self, key: str, uid: str, info: VersionInfo, loaded: LoadedModel, *, max_batch: int, min_wait_ms: int
    ) -> None:
        self.id = f"{uid}-{info.version}".encode()
        # For people, logs and replies: what is not UTF-8 in a name is replaced.
        self._name = key.encode("utf-8", "surrogateescape")
        self.key = self._name.decode("utf-8", "replace")
        self.version = info.version
        self.title = f"{self.key}@{info.version}"
        self.loaded = loaded
        self.digest = ""
        self.signature: Signature = loaded.signature
        # Once, as looking whether a class has all the methods of a protocol takes longer than a small run.
        self._script = loaded if isinstance(loaded, ScriptModel) else None
        self._graph = loaded if isinstance(loaded, GraphModel) else None
        self.is_graph = self._graph is not None
        self.nbytes = loaded.nbytes
        self.names = [spec.name for spec in self.signature.inputs]
        self.output_names = None if self.signature.outputs is None else [spec.name for spec in self.signature.outputs]
        self.max_rows = (info.batchsize or max_batch) if loaded.stackable else 1
        self.min_rows = min(info.minbatchsize, self.max_rows) if self.max_rows > 1 else 0
        # RedisAI waits for ever where MINBATCHTIMEOUT is not set; here there is always a bound.
        self.min_wait = (info.minbatchtimeout or min_wait_ms) / 1000
        self.run_s = 0.0
        self.run_limit_s = 0.0
        self.replies = Replies(self.title, INLINE_OUTPUT)
        self.call_replies = Replies(self.title, INLINE_OUTPUT)  # outputs of functions have other names
        self._forms: dict[tuple[int, ...], tuple[int, Stack | None, Sequence[Header]]] = {}
        self._stacks: dict[Any, Stack] = {}
        self._fitting: set[Any] = set()

    def check(self, inputs: Sequence[Array]) -> None:
        """Check arrays against the signature; see `Member.check`. What has fitted once is not looked at again."""
        form = tuple([(array.dtype, array.shape) for array in inputs])
        if form in self._fitting:
            return
        check_inputs(self.title, self.signature.inputs, inputs)
        if len(self._fitting) >= _FORMS:
            self._fitting.clear()
        self._fitting.add(form)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run it; see `LoadedModel.run`."""
        return self.loaded.run(inputs)

    def call(self, function: str, tensors: Sequence[Array], keys: Sequence[str], args: Sequence[str]) -> list[Array]:
        """Call a function of a script; see `ScriptModel.call`.

        Raises:
            BadArg: it is no script, or has no such function.
            RunFailed: it failed; the text names the function, and where in it.
        """
        if self._script is None:
            raise BadArg(f"{self.title!r} is no script, it has no function {function!r}")
        try:
            with script_metrics.Running(self.key):
                return self._script.call(function, tensors, keys, args)
        except RunFailed as error:
            raise RunFailed(f"function {function!r} of {self.title!r}: {error.text}") from error

    def run_with(self, inputs: Sequence[Array], members: Mapping[str, "Model"]) -> list[Array]:
        """Run a graph; see `GraphModel.run_with`.

        Raises:
            BadArg: it is no graph.
        """
        if self._graph is None:
            raise BadArg(f"{self.title!r} is no graph")
        return self._graph.run_with(inputs, members)

    def name_outputs(self, count: int) -> list[str]:
        """Return the names of so many outputs: its own, if it has any."""
        return self.output_names or [f"output_{n}" for n in range(count)]

    def close(self) -> None:
        """Nothing: the memory goes with the last reference, so that a model that is evicted can end the runs begun."""

    @property
    def stackable(self) -> bool:
        """Whether requests may be stacked on dim 0."""
        return self.loaded.stackable

    def quicker_than(self, seconds: float) -> bool:
        """Whether it is known to run in less time than that, and waits for no further rows."""
        return 0.0 < self.run_s < seconds and not self.min_rows

    def timed(self, seconds: float) -> None:
        """Take note of how long a run took."""
        self.run_s = seconds if self.run_s == 0.0 else self.run_s + 0.2 * (seconds - self.run_s)

    def prepare(self, job: Job) -> None:
        """Bind the inputs by name, check them, and find out with which others the job may be stacked.

        Sets `job.rows`, and `job.group`: jobs of one group may be stacked; None: it runs alone.

        Raises:
            NoModel: the job is for a model of another name.
            BadInput: number or names of inputs, or number of outputs, do not fit.
            BadDtype: a dtype does not fit.
            BadShape: a shape does not fit.
        """
        self.check_name(job)
        if job.names:
            self._bind(job)
        headers = job.headers
        # By identity: npy remembers headers by their bytes, and what is remembered here keeps them from being others.
        form = tuple(map(id, headers))
        known = self._forms.get(form)
        if known is None:
            known = (*self._examine(headers), headers)
            if len(self._forms) >= _FORMS:
                self._forms.clear()
                self._stacks.clear()  # jobs of one form may be in two batches for once
            self._forms[form] = known
        job.rows, job.group, _ = known
        if job.alone:
            job.group = None
        if job.outputs and self.output_names is not None and len(job.outputs) != len(self.output_names):
            raise BadInput(
                f"model {self.title!r} gives {len(self.output_names)} outputs, {', '.join(self.output_names)};"
                f" got {len(job.outputs)} output keys"
            )

    def check_name(self, job: Job) -> None:
        """See that the job means this model.

        Raises:
            NoModel: it is for a model of another name.
        """
        self.check_key(job.key)

    def check_key(self, key: bytes) -> None:
        """See that this is the model of that key.

        Raises:
            NoModel: it is another one.
        """
        if key != self._name:
            # The right to use a model is checked by its name; who may write catalogs could name one and mean another.
            raise NoModel(f"the catalog says of model {key.decode(errors='replace')!r} what is true of another one")

    def _bind(self, job: Job) -> None:
        given = [name.decode(errors="replace") for name in job.names]
        if sorted(given) != sorted(self.names):
            raise BadInput(
                f"model {self.title!r} takes {', '.join(map(_shown, self.signature.inputs))}; got {', '.join(given)}"
            )
        order = [given.index(name) for name in self.names]
        job.headers = [job.headers[n] for n in order]
        job.values = [job.values[n] for n in order]
        job.names = []

    def _examine(self, headers: Sequence[Header]) -> tuple[int, "Stack | None"]:
        specs = self.signature.inputs
        if len(headers) != len(specs):
            raise BadInput(
                f"model {self.title!r} takes {len(specs)} inputs, {', '.join(map(_shown, specs))}; got {len(headers)}"
            )
        for spec, header in zip(specs, headers, strict=True):
            self._check(spec, header)
        rows = headers[0].shape[0] if headers[0].shape else 0
        if self.max_rows > 1 and all(header.shape and header.shape[0] == rows for header in headers):
            free = all(spec.shape is None or spec.shape[0] == -1 for spec in specs)
            # Elements of STRING tensors have a width each; numpy stacks only what has the same.
            key = tuple((header.dtype, header.shape[1:]) for header in headers)
            return rows, self._stacks.setdefault(key, Stack(key)) if free else None
        return max(rows, 1), None

    def _check(self, spec: TensorSpec, header: Header) -> None:
        dtype = dtypes.of(header.dtype).name
        if spec.dtype not in ("", dtype):
            raise BadDtype(f"input {spec.name!r} of {self.title!r} takes {spec.dtype}, got {dtype}: convert it")
        if spec.shape is not None and (
            len(spec.shape) != len(header.shape)
            or any(want not in (-1, got) for want, got in zip(spec.shape, header.shape, strict=True))
        ):
            raise BadShape(
                f"input {spec.name!r} of {self.title!r} takes shape {list(spec.shape)} (-1: any),"
                f" got {list(header.shape)}"
            )


def _shown(spec: TensorSpec) -> str:
    shape = "" if spec.shape is None else str(list(spec.shape)).replace(" ", "")
    return f"{spec.name!r} {spec.dtype}{shape}"
