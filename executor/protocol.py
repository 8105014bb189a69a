"""What an executor says to the server and what it reads there: docs/protocol.md sections 5 to 7.

Entries are read with distrust: another client may write anything into a stream.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgpack
from numpy.typing import NDArray

from keyside.executor.extras import MODEL_ID, MOST, BadEntry, Extra, read_extra
from keyside.tensorstore import npy
from keyside.tensorstore.errors import BadNpy, InputLost, KeysideError
from keyside.tensorstore.resp import Argument

__all__ = [
    "GROUP",
    "NO_MODEL",
    "BadEntry",
    "Finished",
    "Job",
    "Ref",
    "claim",
    "complete",
    "device_of",
    "entry_order",
    "parse_entry",
    "rank_of",
]

GROUP = b"ks"
INLINE_OUTPUT = 32 * 1024
"""Outputs up to this many bytes ride in KS_COMPLETE or in the reply."""


Ref = tuple[str, bytes]
"""What tells a job from all others of a node: the word for its queue, and its entry."""

_DEVICES: dict[str, str] = {}


def device_of(queue: str) -> str:
    """Return the device of a queue word: `CPU` of `CPU!H@0aB`."""
    device = _DEVICES.get(queue)
    if device is None:
        bare = queue.partition("@")[0].partition("!")[0]
        device = _DEVICES[queue] = bare
    return device


_RANKS = {"H": 0, "L": 2}


def rank_of(queue: str) -> int:
    """Return the place of a queue word among those of its device: 0 for `CPU!H`, 1 for `CPU`, 2 for `CPU!L`."""
    priority = queue.partition("@")[0].partition("!")[2]
    return _RANKS[priority] if priority else 1


class Job:
    """One entry of a job stream.

    Attributes:
        id: entry id.
        queue: the word for its queue (docs/protocol.md section 7).
        device: the device of that.
        ref: both queue and id.
        op: `run`, `load`, or `look`: a queue is used for the first time.
        model: id of the version, `uid-version`.
        key: the model's name.
        version: number.
        deadline: server time in ms; 0: none.
        inputs: one per input: bytes are an npy file; a tuple (key, captured) is a key that holds one, and whether it is
            ours to delete.
        keyed: whether there are such keys.
        names: names of the inputs, if the executor has to bind them.
        outputs: keys to write; empty: the outputs go into the reply.
        bytes: what it counts in its queue.
        mark: the bytes that it counts for its model; None: it is not counted there.
        alone: never in a batch: it was delivered before.
        values: the inputs as npy files, once they are all here.
        headers: what their headers say.
        claimed: when it was read, monotonic seconds.
        extra: what goes along with a script, a graph or a trigger (docs/protocol.md section 7); None: a plain run of a
            model.
        decoded: whether the inputs are all here.
    """

    __slots__ = (
        "alone",
        "bytes",
        "claimed",
        "corr",
        "deadline",
        "decoded",
        "device",
        "extra",
        "group",
        "headers",
        "id",
        "inputs",
        "key",
        "keyed",
        "mark",
        "model",
        "names",
        "op",
        "outputs",
        "queue",
        "ref",
        "rows",
        "ticket",
        "values",
        "version",
    )

    names: list[bytes]
    outputs: list[bytes]

    def __init__(
        self, queue: str, entry_id: bytes, header: Sequence[Any], inputs: list[Any], *, keyed: bool = True
    ) -> None:
        self.id = entry_id
        self.queue = queue
        self.device = device_of(queue)
        self.ref = (queue, entry_id)
        self.op: bytes
        self.model: bytes
        self.key: bytes
        self.version: int
        self.deadline: int
        self.ticket: bytes
        self.corr: bytes
        self.bytes: int
        self.mark: int | None
        (
            _, self.op, self.model, self.key, self.version, self.deadline, self.ticket, self.corr, _, self.names,
            self.outputs, self.bytes, *more,
        ) = header  # fmt: skip
        self.mark = more[0] if more else None
        self.inputs = inputs
        self.keyed = keyed
        self.alone = False
        self.values: list[bytes | memoryview] = []
        self.headers: list[npy.Header] = []
        self.rows = 0
        self.group: Any = None
        self.claimed = 0.0
        self.extra: Extra | None = None
        self.decoded = False

    @property
    def trigger(self) -> list[Any] | None:
        """Of a job that a trigger has made: [trigger, source, chain...] as bytes; else None."""
        return None if self.extra is None else self.extra.get(b"e")

    @property
    def composed(self) -> bool:
        """Whether it is more than a run of one model: the call of a script, a graph, or a DAG."""
        return self.extra is not None and not _COMPOSED.isdisjoint(self.extra)

    @property
    def is_dag(self) -> bool:
        """Whether it is a DAG, which is a run of no model."""
        return self.extra is not None and b"d" in self.extra

    @property
    def captures(self) -> list[bytes]:
        """The private keys that hold inputs of this job and of no other."""
        return [source[0] for source in self.inputs if type(source) is tuple and source[1]] if self.keyed else []

    @property
    def missing(self) -> list[int]:
        """Positions of the inputs that have to be read from keys."""
        return [n for n, source in enumerate(self.inputs) if type(source) is tuple] if self.keyed else []

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """The inputs as arrays over the memory of their values."""
        return [npy.over(header, value) for header, value in zip(self.headers, self.values, strict=True)]

    def let_go(self) -> None:
        """Give the inputs back: it does not run here."""
        self.headers, self.values, self.decoded = [], [], False

    def decode(self, fetched: Sequence[Any] = ()) -> None:
        """Read the headers, of inline values and of what was read from keys.

        Args:
            fetched: for each of `missing`, the value, None, or an exception.

        Raises:
            InputLost: a key had gone or no longer holds a tensor.
            BadNpy: an inline value is no tensor.
        """
        if not self.keyed:
            self.headers = [npy.read_header(value) for value in self.inputs]
            self.values = self.inputs
            self.decoded = True
            return
        given = iter(fetched)
        headers, values = [], []
        for source in self.inputs:
            if type(source) is tuple:
                value = next(given)
                headers.append(_read(source[0], value))
            else:
                value = source
                headers.append(npy.read_header(value))
            values.append(value)
        self.headers, self.values = headers, values
        self.decoded = True


def _read(key: bytes, value: Any) -> npy.Header:
    if value is None or isinstance(value, Exception):
        raise InputLost(
            f"input key {key.decode(errors='replace')!r} was gone when the job ran:"
            f" {value or 'expired, evicted or deleted'}"
        )
    try:
        return npy.read_header(value)
    except BadNpy as error:
        raise InputLost(f"input key {key.decode(errors='replace')!r} no longer holds a tensor: {error.text}") from None


_COMPOSED = frozenset((b"f", b"m", b"d"))
_CAPTURE = re.compile(rb"cks:\{[^}]+\}:cap:")
NO_MODEL = b"0-1"
"""In place of a model's id in a job that is for none, a DAG."""
_TYPES = (int, bytes, bytes, bytes, int, int, bytes, bytes, list, list, list, int)
_FIELDS = len(_TYPES)
_INLINE = frozenset((b"v",))

# Headers begin with what is the same for all jobs of a version: whether that part is well formed is remembered.
_CHECKED: set[tuple[Any, ...]] = set()
_CHECKED_MAX = 4096


def parse_entry(queue: str, entry_id: bytes, fields: Sequence[bytes]) -> Job:
    """Read a stream entry.

    Args:
        queue: the word for the queue that it came from.
        entry_id: of the entry.
        fields: of the entry.

    Raises:
        BadEntry: it is not one that our functions make.
    """
    try:
        if len(fields) < 2 or fields[0] != b"h":
            raise BadEntry("the first field is not h")
        header = msgpack.unpackb(fields[1], raw=True, strict_map_key=False)
        if type(header) is not list or tuple(map(type, header[:_FIELDS])) != _TYPES:
            raise BadEntry(_wrong_type(header))
        _check_header(header)
        modes = header[8]
        if _INLINE.issuperset(modes):
            end = 2 + 2 * len(modes)
            inputs: list[Any] = list(fields[3:end:2])
            if len(inputs) != len(modes):
                raise BadEntry("an inline input is missing")
            keyed = False
        else:
            inputs, keyed = _sources(modes, fields), True
            end = 2 + 2 * modes.count(b"v")
        extra = read_extra(fields[end + 1]) if len(fields) > end + 1 and fields[end] == b"x" else None
        if not modes and header[1] == b"run" and extra is None:
            raise BadEntry("a run without inputs")
        for texts in (header[9], header[10]):
            for text in texts:
                if type(text) is not bytes:
                    raise BadEntry("a name is not a string")
    except BadEntry:
        raise
    except (ValueError, TypeError, IndexError, msgpack.UnpackException, RecursionError) as error:
        raise BadEntry(f"unreadable: {error}") from None
    job = Job(queue, entry_id, header, inputs, keyed=keyed)
    job.extra = extra
    return job


def _sources(modes: Sequence[Any], fields: Sequence[bytes]) -> list[Any]:
    inputs: list[Any] = []
    inline = 3
    for mode in modes:
        if mode == b"v":
            inputs.append(fields[inline])
            inline += 2
        elif mode[:1] == b"r":
            inputs.append((mode[1:], False))
        elif _CAPTURE.match(mode):
            inputs.append((mode[1:], True))  # it is deleted afterwards: nothing else may be called so
        else:
            raise BadEntry("an input has an unknown mode")
    return inputs


def _wrong_type(header: Any) -> str:
    if type(header) is not list or len(header) < _FIELDS:
        return "h is not a list of its length"
    for value, kind in zip(header, _TYPES, strict=False):
        if type(value) is not kind:
            return f"h has a {type(value).__name__} where a {kind.__name__} belongs"
    return "h is malformed"


def _check_header(header: Sequence[Any]) -> None:
    form, op, model, _, version, deadline, *_ = header
    front = (form, op, model, version)
    if front not in _CHECKED:
        if form != 1:
            raise BadEntry(f"its format is {form}, not 1")
        if op not in (b"run", b"load", b"look"):
            raise BadEntry("its operation is neither run nor load nor look")
        if not MODEL_ID.fullmatch(model) or not 0 < version <= MOST:
            raise BadEntry("it names no version of a model")
        if len(_CHECKED) >= _CHECKED_MAX:
            _CHECKED.clear()
        _CHECKED.add(front)
    if not 0 <= deadline <= MOST or not 0 <= header[11] <= MOST or not _is_mark(header):
        raise BadEntry("a number is out of range")
    if op == b"run" and not deadline:
        raise BadEntry("a run without a deadline")


def _is_mark(header: Sequence[Any]) -> bool:
    return len(header) == _FIELDS or (type(header[_FIELDS]) is int and 0 <= header[_FIELDS] <= MOST)


class Finished:
    """A job that has ended, with its reply and the outputs to put in place.

    Attributes:
        job: the job.
        reply: what its caller gets.
        outputs: (key, how, value) for KS_COMPLETE.
        staged: (key, pieces) to SET before, for outputs that are too large to ride along.
    """

    __slots__ = ("error", "job", "outputs", "reply", "staged")

    def __init__(self, job: Job, reply: bytes, outputs: list[tuple[bytes, bytes, bytes]], staged: list[Any]) -> None:
        self.job = job
        self.reply = reply
        self.outputs = outputs
        self.staged = staged
        self.error: KeysideError | None = None

    @classmethod
    def failed(cls, job: Job, error: KeysideError) -> "Finished":
        """Return the end of a job that could not be run."""
        finished = cls(job, str(error).encode("utf-8", "replace"), [], [])
        finished.error = error
        return finished


def claim(consumer: bytes, streams: Sequence[bytes], count: int, block_ms: int | None) -> list[Argument]:
    """Return the command that asks for jobs; with `block_ms`, that waits for them."""
    block: tuple[Argument, ...] = () if block_ms is None else (b"BLOCK", block_ms)
    return [
        b"XREADGROUP", b"GROUP", GROUP, consumer, b"COUNT", count, *block,
        b"STREAMS", *streams, *((b">",) * len(streams)),
    ]  # fmt: skip


def complete(
    queue: str,
    consumer: bytes,
    held: int,
    model: bytes,
    duration_us: int,
    samples: int,
    ended: Sequence[Finished],
) -> list[list[Argument]]:
    """Return the commands that end the jobs of one batch, of one queue: SETs of large outputs, then KS_COMPLETE."""
    commands: list[list[Argument]] = []
    errors = 0
    counted = False
    tail: list[Argument] = []
    if len(ended) > 1 and not _in_order(ended):
        ended = sorted(ended, key=lambda one: entry_order(one.job.id))
    for one in ended:
        job = one.job
        if one.error is not None:
            errors += 1
        if job.bytes or job.mark is not None:
            counted = True
        captures = job.captures
        if not captures and not one.outputs:
            tail += (job.id, job.deadline, job.ticket, job.corr, one.reply, b"0")
            continue
        for key, header, data, expires in one.staged:
            commands.append([b"SET", key, (header, data), b"PX", expires])
        more: list[Argument] = [len(captures), *captures]
        for output in one.outputs:
            more += output
        tail += (job.id, job.deadline, job.ticket, job.corr, one.reply, len(more), *more)
    sizes = " ".join(map(_size, ended)) if counted else b"0"
    head: list[Argument] = [
        b"FCALL", b"KS_COMPLETE", b"0", queue, consumer, held, model, duration_us, samples, errors, sizes, len(ended),
    ]  # fmt: skip
    commands.append(head + tail)
    return commands


def _size(one: Finished) -> str:
    job = one.job
    if job.mark is None:
        return str(job.bytes)
    return f"{job.bytes}:{job.mark}:{job.model.rpartition(b'-')[0].decode()}"


_DASH = ord("-")


def _in_order(ended: Sequence[Finished]) -> bool:
    """Whether entries are surely in the order of the stream, seen without taking their ids apart.

    Milliseconds have 13 digits until the year 2286: those compare as text, and so do the numbers behind them where they
    are equally long.
    """
    before = (b"", 0, b"")
    for one in ended:
        entry_id = one.job.id
        here = (entry_id[:13], len(entry_id), entry_id)
        if here <= before or here[1] < 15 or entry_id[13] != _DASH:
            return False
        before = here
    return True


def entry_order(entry_id: bytes) -> tuple[int, int]:
    """Return what entry ids are to be sorted by: as text, 10-0 would stand before 9-0."""
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq)
