"""What clients say about scripts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keyside.clients.versions import ModelVersion
from keyside.tensorstore.errors import BadArg

__all__ = ["Script", "read_source", "script_of"]


@dataclass(frozen=True, slots=True)
class Script:
    """One version of a script.

    Attributes:
        name: of the script.
        version: its number.
        state: loading, ready or failed.
        reason: why it failed.
        device: the queue whose executors run it.
        tag: as given when it was stored.
        entry_points: the functions that may be called.
        source: TorchScript; None: they are Python functions of the operator.
    """

    name: str
    version: int
    state: str
    reason: str
    device: str
    tag: str
    entry_points: tuple[str, ...]
    source: str | None

    @property
    def target(self) -> str:
        """What names this version to `run_script`."""
        return f"{self.name}@{self.version}"


def script_of(found: ModelVersion, source: bytes) -> Script:
    """Return what is to be said of a version.

    Args:
        found: the version.
        source: as AI_SCRIPTGET tells it.
    """
    info = found.info
    return Script(
        found.name,
        info.version,
        info.state,
        info.reason,
        info.device,
        info.tag,
        tuple(str(name) for name in info.options.get("entry_points", ())),
        None if info.backend == "FUNCTION" else source.decode("utf-8", "replace"),
    )


def read_source(
    source: str | bytes | os.PathLike[str] | None, entry_points: str | Sequence[str], *, functions: bool
) -> tuple[str | bytes | None, list[str]]:
    """Check what is to be stored.

    Args:
        source: text, or the path of a file.
        entry_points: names of functions, or one.
        functions: whether they are Python functions of the operator.

    Returns:
        The source, None for functions of the operator, and the entry points.

    Raises:
        BadArg: there is no source, or one too many, or the file cannot be read.
    """
    if (source is None) != functions:
        raise BadArg("a script has a source, or with functions=True names functions of the operator: one of the two")
    points = [entry_points] if isinstance(entry_points, str) else list(entry_points)
    if not points or not all(isinstance(name, str) for name in points):
        raise BadArg("entry_points are the names of the functions that may be called")
    if isinstance(source, os.PathLike):
        try:
            return Path(source).read_bytes(), points
        except OSError as error:
            raise BadArg(f"{os.fspath(source)!r} cannot be read: {error.strerror or error}") from error
    return source, points
