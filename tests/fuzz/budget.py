"""How long the fuzzers go on: a few examples among the other tests, `FUZZ_SECONDS` each under `make fuzz`."""

import functools
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

__all__ = ["COUNTS", "SECONDS", "few", "for_a_while"]

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
COUNTS: Counter[str] = Counter()
"""What the fuzzers have done, by what that was: they count, and `for_a_while` prints."""

F = TypeVar("F", bound=Callable[..., Any])


def few(count: int, **more: Any) -> settings:
    """Settings of a fuzzer that tries so many examples in one round; a database of old failures is not kept."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        **more,
    )


def for_a_while(test: F) -> F:
    """Run a property test in rounds of fresh examples until its time is over; one round if it has none."""

    @functools.wraps(test)
    def rounds(*args: Any, **kwargs: Any) -> None:
        began = time.monotonic()
        before = COUNTS.copy()
        count = 0
        while not count or time.monotonic() - began < SECONDS:
            test(*args, **kwargs)
            count += 1
        done = ", ".join(f"{number:,} {what}" for what, number in sorted((COUNTS - before).items()))
        print(f"\n{test.__name__}: {count} rounds in {time.monotonic() - began:.0f} s: {done}", flush=True)

    return rounds  # type: ignore[return-value]
