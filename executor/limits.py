"""How long a run or a load may take, and which take longer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from keyside.executor.cache import ModelRef
from keyside.executor.model import Model
from keyside.executor.protocol import Job
from keyside.executor.runner import Runner
from keyside.tensorstore.errors import BadModel
from keyside.tensorstore.records import VersionInfo

__all__ = ["Limits", "OverLoad", "OverRun", "own_run_limit"]

OPTION = "run_limit_ms"
OPTION_MAX = 86_400_000
TICK_MAX_S = 1.0
"""Who looks less often counts no more than this per look: the whole process may have been stopped."""


def own_run_limit(info: VersionInfo) -> tuple[float | None, VersionInfo]:
    """Return the run limit of a version in seconds, None if it has no own one, and the version without that option.

    Raises:
        BadModel: the option is no number of milliseconds.
    """
    if OPTION not in info.options:
        return None, info
    value = info.options[OPTION]
    if type(value) is not int or not 0 <= value <= OPTION_MAX:
        raise BadModel(f"option {OPTION} must be a whole number from 0 (no limit) to {OPTION_MAX}, got {value!r:.80}")
    options = {name: other for name, other in info.options.items() if name != OPTION}
    return value / 1000, msgspec.structs.replace(info, options=options)


@dataclass(frozen=True, slots=True)
class OverRun:
    """A run that takes longer than it may.

    Attributes:
        model: that runs.
        jobs: on which.
        seconds: how long, at least.
    """

    model: Model
    jobs: Sequence[Job]
    seconds: float


@dataclass(frozen=True, slots=True)
class OverLoad:
    """A load that takes longer than it may.

    Attributes:
        ref: of the version.
        seconds: how long, at least.
    """

    ref: ModelRef
    seconds: float


class Limits:
    """Finds what takes too long, by looking again and again what is under way.

    Those who run and load only say what they do, by one assignment each; nothing is timed on the way of a job.

    Args:
        runners: all that run models.
        loads: returns what is being loaded.
        load_limit_s: 0: a load may take for ever.
    """

    def __init__(
        self, runners: Sequence[Runner], loads: Callable[[], Sequence[tuple[ModelRef]]], load_limit_s: float
    ) -> None:
        self._runners = runners
        self._loads = loads
        self._load_limit_s = load_limit_s
        self._looked: float | None = None
        self._lived = 0.0
        self._since: dict[int, tuple[Any, float]] = {}  # by id() of what is under way, which is held here

    def look(self, now: float) -> list[OverRun | OverLoad]:
        """Return what takes too long.

        Args:
            now: monotonic seconds.
        """
        if self._looked is not None:
            self._lived += min(now - self._looked, TICK_MAX_S)
        self._looked = now
        before, self._since = self._since, {}
        found: list[OverRun | OverLoad] = []
        for work, limit in self._under_way():
            known = before.get(id(work))
            since = known[1] if known is not None else self._lived
            self._since[id(work)] = (work, since)
            if limit and self._lived - since > limit:
                found.append(_over(work, self._lived - since))
        return found

    def _under_way(self) -> Iterator[tuple[Any, float]]:
        for runner in self._runners:
            running = runner.running
            if running is not None:
                yield running, running[0].run_limit_s
        for loading in self._loads():
            yield loading, self._load_limit_s


def _over(work: Any, seconds: float) -> OverRun | OverLoad:
    if isinstance(work[0], ModelRef):
        return OverLoad(work[0], seconds)
    return OverRun(work[0], work[1], seconds)
