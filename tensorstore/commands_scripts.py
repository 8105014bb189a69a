"""Builders for the functions on scripts, as `commands` has those on models."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keyside.tensorstore.command import Command, Name, nothing, text, to_bytes
from keyside.tensorstore.commands import InputSpec, Submit

__all__ = ["ListedScript", "ai_scriptdel", "ai_scriptexecute", "ai_scriptget", "ai_scriptscan", "ai_scriptstore"]


class ListedScript(NamedTuple):
    """A script in the index.

    Attributes:
        name: of the script.
        tag: of the version that the bare name means.
    """

    name: str
    tag: str


def ai_scriptstore(
    name: Name,
    device: str,
    entry_points: Sequence[str],
    *,
    source: str | bytes | None = None,
    tag: str = "",
    run_limit_ms: int | None = None,
) -> Command[int]:
    """Add a version to a script; the result is its number.

    Args:
        name: of the script.
        device: name of the queue.
        entry_points: names of the functions that may be called.
        source: TorchScript; None: they are Python functions of the operator.
        tag: any text.
        run_limit_ms: a call that takes longer is given up; 0: none is; None: as the executor is set.
    """
    args: list[Any] = [device]
    if tag:
        args += ("TAG", tag)
    args += ("ENTRY_POINTS", len(entry_points), *entry_points)
    if run_limit_ms is not None:
        args += ("OPTIONS", f'{{"run_limit_ms":{run_limit_ms}}}')
    args += ("REPLY", "VERSION")
    args += ("FUNCTIONS",) if source is None else ("SOURCE", source)
    return Command((b"FCALL", "AI_SCRIPTSTORE", 1, to_bytes(name), *args), int)


def ai_scriptget(name: Name, version: int | None = None) -> Command[bytes]:
    """Read the source of a version; empty where its functions are the operator's."""
    return Command((b"FCALL_RO", "AI_SCRIPTGET", 1, to_bytes(name), *_version(version), b"SOURCE"), bytes, True)


def ai_scriptdel(name: Name, version: int | None = None) -> Command[None]:
    """Delete a script or one version of it."""
    return Command((b"FCALL", "AI_SCRIPTDEL", 1, to_bytes(name), *_version(version)), nothing)


def ai_scriptscan(cursor: int | bytes, count: int = 100) -> Command[tuple[int, list[ListedScript]]]:
    """List some scripts: the next cursor, which is 0 at the end, and what was found."""
    return Command((b"FCALL_RO", "AI_SCRIPTSCAN", 0, cursor, b"COUNT", count), _parse_scan, True)


def _parse_scan(reply: Any) -> tuple[int, list[ListedScript]]:
    return int(reply[0]), [ListedScript(text(name), text(tag)) for name, tag in reply[1]]


def _version(version: int | None) -> tuple[Any, ...]:
    return () if version is None else (b"VERSION", version)


def ai_scriptexecute(
    target: Name,
    function: str,
    inputs: Sequence[InputSpec],
    submit: Submit,
    *,
    keys: Sequence[Name] = (),
    args: Sequence[str | bytes] = (),
    outputs: Sequence[Name] = (),
) -> Command[bytes]:
    """Call a function of a script; the result is a ticket, or with a ticket of the caller's the job id.

    Args:
        target: the script.
        function: an entry point.
        inputs: values and keys.
        submit: how.
        keys: names for the function to read; they need not be keys of this call.
        args: texts for it.
        outputs: keys for the results; without them the results are in the reply.
    """
    words: list[Any] = [to_bytes(target), function]
    if inputs:
        words += (b"INPUTS", len(inputs))
        for mode, data in inputs:
            words += (data,) if mode == b"KEY" else (mode, data)
    elif not keys:
        words += (b"INPUTS", 0)  # one of the two must be there
    if keys:
        words += (b"KEYS", len(keys), *map(to_bytes, keys))
    if args:
        words += (b"ARGS", len(args), *args)
    outs = [to_bytes(key) for key in outputs]
    if outs:
        words += (b"OUTPUTS", len(outs), *outs)
    words += submit.args()
    used = dict.fromkeys([*(spec.data for spec in inputs if spec.mode != b"VALUE"), *outs])
    return Command((b"FCALL", "AI_SCRIPTEXECUTE", len(used), *used, *words), bytes)
