"""How long a run or a load may take, and which take longer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from keyside.executor import memory
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
        grown: bytes by which the process grew meanwhile, if that is what is wrong; else 0.
    """

    model: Model
    jobs: Sequence[Job]
    seconds: float
    grown: int = 0


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
        run_memory: bytes by which the process may grow during a run; 0: by any number.
        resident: returns how many bytes the process has in memory; 0: nobody knows.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        loads: Callable[[], Sequence[tuple[ModelRef]]],
        load_limit_s: float,
        run_memory: int = 0,
        resident: Callable[[], int] = memory.resident,
    ) -> None:
        self._runners = runners
        self._loads = loads
        self._load_limit_s = load_limit_s
        self._looked: float | None = None
        self._lived = 0.0
        self._since: dict[int, tuple[Any, float, int]] = {}  # by id() of what is under way, which is held here
        self._run_memory = run_memory
        self._resident = resident
        self._size = 0
        self._loading = False

    def look(self, now: float) -> list[OverRun | OverLoad]:
        """Return what takes too long.

        Args:
            now: monotonic seconds.
        """
        if self._looked is not None:
            self._lived += min(now - self._looked, TICK_MAX_S)
        self._looked = now
        grew = self._grew()
        before, self._since = self._since, {}
        found: list[OverRun | OverLoad] = []
        for work, limit in self._under_way():
            _, since, grown = before.get(id(work)) or (work, self._lived, 0)
            grown += grew
            self._since[id(work)] = (work, since, grown)
            if limit and self._lived - since > limit:
                found.append(_over(work, self._lived - since))
            elif self._run_memory and grown > self._run_memory and not isinstance(work[0], ModelRef):
                found.append(OverRun(work[0], work[1], self._lived - since, grown))
        return found

    def _grew(self) -> int:
        """Return by how many bytes the process has grown since the last look; 0 where loads may have done that."""
        if not self._run_memory:
            return 0
        size, loading = self._resident(), bool(self._loads())
        grew = size - self._size if self._size and size and not (loading or self._loading) else 0
        self._size, self._loading = size, loading
        return grew

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
