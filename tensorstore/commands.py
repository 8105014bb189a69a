"""Builders for the functions of the library that clients call: one each, named like it in small letters.

Pure, and the same for every transport.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from keyside.tensorstore.command import Command, Name, nothing, same, text, to_bytes
from keyside.tensorstore.errors import BadArg, from_reply
from keyside.tensorstore.features import Feature
from keyside.tensorstore.records import PredictReply, decode_reply

__all__ = [
    "INLINE",
    "MIN_LIBRARY",
    "InputSpec",
    "Limits",
    "ListedModel",
    "ModelStats",
    "NodeReport",
    "QueueReport",
    "Submit",
    "ai_cancel",
    "ai_info",
    "ai_info_reset",
    "ai_limitget",
    "ai_limitset",
    "ai_modeldel",
    "ai_modelexecute",
    "ai_modelget",
    "ai_modelscan",
    "ai_modelstore",
    "ai_node",
    "ai_predict",
    "ai_tensorget",
    "ai_tensorset",
    "ks_version",
    "read_reply",
    "terms",
]

T = TypeVar("T")

INLINE = 32 * 1024
"""Values up to this many bytes, header included, ride in the call; also the largest output in a reply."""

MIN_LIBRARY = 1
"""The oldest function library that these builders fit."""


def _fcall(
    name: str,
    names: Sequence[Name],
    args: Iterable[Any],
    parse: Callable[[Any], T],
    *,
    readonly: bool = False,
    repeatable: bool = False,
    bulk: bool = False,
) -> Command[T]:
    command = b"FCALL_RO" if readonly else b"FCALL"
    return Command((command, name, len(names), *map(to_bytes, names), *args), parse, readonly or repeatable, bulk)


# --- functions on tensors


def ai_tensorset(key: Name, dtype: str, shape: Sequence[int], values: Sequence[object]) -> Command[None]:
    """Write a small tensor from numbers or strings in decimal.

    Args:
        key: the tensor.
        dtype: name in the dtype table.
        shape: its dims.
        values: the elements in C order, or none for zeros.
    """
    dims = [int(dim) for dim in shape]
    words = [item if isinstance(item, str | bytes) else repr(item) for item in values]
    args = (dtype, *dims, *((b"VALUES", *words) if words else ()))
    return _fcall("AI_TENSORSET", (key,), args, nothing, repeatable=True)


def ai_tensorget(key: Name) -> Command[list[Any]]:
    """Read a small tensor as numbers: integers, or the digits of floats and the bytes of strings."""
    return _fcall("AI_TENSORGET", (key,), (b"VALUES",), same, readonly=True)


# --- functions on models


class ListedModel(NamedTuple):
    """A model in the index.

    Attributes:
        name: of the model.
        tag: of the version that the bare name means.
    """

    name: str
    tag: str


class ModelStats(NamedTuple):
    """Counters of one version on one node.

    Attributes:
        key: the model.
        backend: as given when it was stored. Likewise device and tag.
        duration: time that it ran, microseconds.
        samples: rows that it ran on.
        calls: jobs that ended.
        errors: those of them that failed.
    """

    key: str
    backend: str
    device: str
    tag: str
    duration: int
    samples: int
    calls: int
    errors: int


def ai_modelstore(
    name: Name,
    backend: str,
    device: str,
    *,
    upload: tuple[str, int, int, str] | None = None,
    blob: Sequence[bytes | memoryview] = (),
    tag: str = "",
    batchsize: int = 0,
    minbatchsize: int = 0,
    minbatchtimeout: int = 0,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    options: str = "",
) -> Command[int]:
    """Add a version to a model; the result is its number.

    Args:
        name: of the model.
        backend: such as ONNX.
        device: name of the queue.
        upload: id, chunks, size in bytes and SHA-256 of a blob that was SET in chunks.
        blob: or the blob itself, at most 8 MiB.
        tag: any text.
        batchsize: rows run together at most; 0: not set.
        minbatchsize: rows that a batch waits for; 0: not set.
        minbatchtimeout: milliseconds that it waits; 0: not set.
        inputs: names, for models that have none.
        outputs: likewise.
        options: a JSON object.
    """
    args: list[Any] = [backend, device]
    for word, value in (("TAG", tag), ("BATCHSIZE", batchsize), ("MINBATCHSIZE", minbatchsize)):
        if value:
            args += (word, value)
    if minbatchtimeout:
        args += ("MINBATCHTIMEOUT", minbatchtimeout)
    for word, names in (("INPUTS", inputs), ("OUTPUTS", outputs)):
        if names:
            args += (word, len(names), *names)
    if options:
        args += ("OPTIONS", options)
    args += ("REPLY", "VERSION")
    if upload is not None:
        uid, chunks, size, digest = upload
        args += ("UPLOAD", uid, chunks, size, "DIGEST", digest)
    else:
        args += ("BLOB", *blob)
    return _fcall("AI_MODELSTORE", (name,), args, int)


def ai_modelget(name: Name, version: int | None = None) -> Command[list[bytes]]:
    """Ask for the keys that hold the blob of a version, in order."""
    return _fcall("AI_MODELGET", (name,), (*_version(version), b"CHUNKS"), same, readonly=True)


def ai_modeldel(name: Name, version: int | None = None) -> Command[None]:
    """Delete a model or one version of it."""
    return _fcall("AI_MODELDEL", (name,), _version(version), nothing)


def ai_modelscan(cursor: int | bytes, count: int = 100) -> Command[tuple[int, list[ListedModel]]]:
    """List some models: the next cursor, which is 0 at the end, and what was found."""
    return _fcall("AI_MODELSCAN", (), (cursor, b"COUNT", count), _parse_scan, readonly=True)


def _parse_scan(reply: Any) -> tuple[int, list[ListedModel]]:
    return int(reply[0]), [ListedModel(text(name), text(tag)) for name, tag in reply[1]]


def ai_info(name: Name, version: int | None = None) -> Command[ModelStats]:
    """Read the counters of a version on this node."""
    return _fcall("AI_INFO", (name,), _version(version), _parse_info, repeatable=True)


def ai_info_reset(name: Name, version: int | None = None) -> Command[None]:
    """Begin the counters of a version on this node anew."""
    return _fcall("AI_INFO", (name,), (*_version(version), b"RESETSTAT"), nothing, repeatable=True)


def _parse_info(reply: Any) -> ModelStats:
    found = dict(zip(map(text, reply[::2]), reply[1::2], strict=True))
    values = (found.get(field) for field in ModelStats._fields)
    return ModelStats(*(value if isinstance(value, int) else text(value or b"") for value in values))  # type: ignore[arg-type]


def _version(version: int | None) -> tuple[Any, ...]:
    return () if version is None else (b"VERSION", version)


# --- functions that run something


class InputSpec(NamedTuple):
    """One input of a job.

    Attributes:
        mode: VALUE, KEY, OWN or REF.
        data: an npy file of at most `INLINE` bytes, or a key.
    """

    mode: bytes
    data: bytes


class Submit(NamedTuple):
    """How a job is to be submitted.

    Attributes:
        timeout_ms: until its deadline.
        ticket: the list for its reply; empty: one that the server chooses.
        corr: stands before the reply; empty: nothing does.
        client: id of this client, and `seq` the number of its request; empty: no protection against doubles.
        more: further words, as of `terms`.
    """

    timeout_ms: int
    ticket: bytes = b""
    corr: bytes = b""
    client: bytes = b""
    seq: int = 0
    more: tuple[Any, ...] = ()

    def args(self) -> tuple[Any, ...]:
        """Return the words that say so, to stand at the end of a call."""
        words: tuple[Any, ...] = (b"TIMEOUT", self.timeout_ms)
        if self.ticket:
            words += (b"TICKET", self.ticket, self.corr) if self.corr else (b"TICKET", self.ticket)
        if self.client:
            words += (b"ID", self.client, self.seq)
        return words + self.more if self.more else words


PRIORITIES = {"high": b"HIGH", "normal": b"NORMAL", "low": b"LOW"}


def terms(priority: str = "normal", user: str | None = None) -> tuple[Any, ...]:
    """Return the words that say how urgent a job is and on whose behalf it is submitted.

    Raises:
        BadArg: there is no such priority.
    """
    words: tuple[Any, ...] = ()
    if priority != "normal":
        if priority not in PRIORITIES:
            raise BadArg(f"priority is 'high', 'normal' or 'low', not {priority!r}")
        words = (b"PRIORITY", PRIORITIES[priority])
    return words if user is None else (*words, b"USER", user)


class Limits(NamedTuple):
    """What may be queued, and how often jobs may come; 0 or None: no bound.

    Attributes:
        jobs: waiting or running at a time.
        nbytes: that their inputs hold together.
        rate: jobs, and the seconds in which so many may come. A window begins with the first of them.
        user_rate: the same for each user.
        queued: of a model that has a bound, what counts now on the node that was asked.
        held: its bytes.
    """

    jobs: int = 0
    nbytes: int = 0
    rate: tuple[int, float] | None = None
    user_rate: tuple[int, float] | None = None
    queued: int = 0
    held: int = 0


def ai_limitset(
    name: Name | None,
    *,
    jobs: int | None = None,
    nbytes: int | None = None,
    rate: tuple[int, float] | None = None,
    user_rate: tuple[int, float] | None = None,
) -> Command[None]:
    """Bound a model, or without a name the node; see `Limits`. What is None is not named."""
    args: list[Any] = [] if name is not None else [b"NODE"]
    for word, value in ((b"JOBS", jobs), (b"BYTES", nbytes)):
        if value is not None:
            args += (word, value)
    for word, pair in ((b"RATE", rate), (b"USERRATE", user_rate)):
        if pair is not None:
            args += (word, pair[0], b"PER", round(pair[1] * 1000))
    if args in ([], [b"NODE"]):
        args += (b"RATE", 0)
    return _fcall("AI_LIMITSET", () if name is None else (name,), args, nothing, repeatable=True)


def ai_limitget(name: Name | None) -> Command[Limits]:
    """Ask for the bounds of a model, or without a name of the node."""
    names, args = ((), (b"NODE",)) if name is None else ((name,), ())
    return _fcall("AI_LIMITGET", names, args, _parse_limits, readonly=True)


def _parse_limits(reply: Any) -> Limits:
    found = dict(zip(map(text, reply[::2]), reply[1::2], strict=True))
    rate, user_rate = ((int(n), int(ms) / 1000) if n else None for n, ms in (found["rate"], found["userrate"]))
    return Limits(found["jobs"], found["bytes"], rate, user_rate, found.get("queued", 0), found.get("held", 0))


def ai_modelexecute(
    target: Name, inputs: Sequence[InputSpec], outputs: Sequence[Name], submit: Submit
) -> Command[bytes]:
    """Run a model on tensor keys; the result is a ticket, or with a ticket of the caller's the job id."""
    specs: list[bytes] = []
    for mode, key in inputs:
        specs += (key,) if mode == b"KEY" else (mode, key)
    outs = [to_bytes(key) for key in outputs]
    names = list(dict.fromkeys([*(spec.data for spec in inputs), *outs]))
    args = (
        to_bytes(target), b"INPUTS", len(inputs), *specs, b"OUTPUTS", len(outs), *outs, *submit.args(),
    )  # fmt: skip
    return _fcall("AI_MODELEXECUTE", names, args, bytes)


def ai_predict(
    target: Name,
    inputs: Sequence[InputSpec | Feature],
    submit: Submit,
    *,
    names: Sequence[str] = (),
    outputs: Sequence[Name] = (),
) -> Command[bytes]:
    """Run a model on values, tensor keys or both; the result is as of `ai_modelexecute`.

    Args:
        target: what to run.
        inputs: values, keys, and what is gathered.
        submit: how.
        names: of the inputs; without them they go by position.
        outputs: keys for the results; without them the results are in the reply.
    """
    args: list[Any] = [to_bytes(target), b"INPUTS", len(inputs)]
    used: list[Name] = []
    for spec in inputs:
        if isinstance(spec, Feature):
            args += spec.words
            used += spec.names
            continue
        args += spec
        if spec.mode != b"VALUE":
            used.append(spec.data)
    if names:
        args += (b"NAMES", len(names), *names)
    outs = [to_bytes(key) for key in outputs]
    if outs:
        args += (b"OUTPUTS", len(outs), *outs)
    args += submit.args()
    return _fcall("AI_PREDICT", list(dict.fromkeys([*used, *outs])), args, bytes)


def ai_cancel(ticket: Name, job: Name = b"") -> Command[bool]:
    """Take a job back; the result is whether it will write nothing any more."""
    args = (to_bytes(ticket), to_bytes(job)) if job else (to_bytes(ticket),)
    return _fcall("AI_CANCEL", (), args, bool, repeatable=True)


def read_reply(reply: bytes | memoryview) -> PredictReply | None:
    """Make out what a reply on a ticket is.

    Returns:
        The outputs of a prediction; None where they are in their keys.

    Raises:
        KeysideError: the job failed.
    """
    data = bytes(reply)
    if data[:1] >= b"\x80":
        return decode_reply(data)
    if data == b"OK":
        return None
    raise from_reply(data.decode("utf-8", "replace"))


class QueueReport(NamedTuple):
    """A device queue of a node.

    Attributes:
        live: executors that take jobs from it.
        queued: jobs that wait or run.
        age_ms: of the oldest of these; -1 if there is none.
    """

    live: int
    queued: int
    age_ms: int


class NodeReport(NamedTuple):
    """What a node says of itself.

    Attributes:
        tag: of its own keys.
        cluster: whether it is one of a cluster.
        now: its time, ms.
        library: version of the function library.
        complete: whether its catalog knows the models of all other nodes.
        devices: its queues.
    """

    tag: bytes
    cluster: bool
    now: int
    library: int
    complete: bool
    devices: dict[str, QueueReport]


def ai_node() -> Command[NodeReport]:
    """Ask a node what it is and how much it has to do; the answer also shows that its functions work."""
    return _fcall("AI_NODE", (), (), _parse_node, readonly=True)


def _parse_node(reply: Any) -> NodeReport:
    found = dict(zip(map(text, reply[::2]), reply[1::2], strict=True))
    queues = {
        text(device): QueueReport(int(live), int(queued), int(age)) for device, live, queued, age in found["devices"]
    }
    return NodeReport(
        bytes(found["tag"]), bool(int(found["cluster"])), int(found["now"]), int(found["library"]),
        bool(int(found["complete"])), queues,
    )  # fmt: skip


def ks_version() -> Command[int]:
    """Ask for the version of the function library."""
    return _fcall("KS_VERSION", (), (), lambda reply: int(reply[0]), readonly=True)
