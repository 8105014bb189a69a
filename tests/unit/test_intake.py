"""Jobs that need more than one model wait until all are there: executor/intake.py."""

from collections.abc import Callable
from typing import Any, cast

import msgpack
import numpy as np
from tests.unit.fakes import model

from keyside.executor.cache import ModelRef
from keyside.executor.intake import Intake
from keyside.executor.protocol import Job, parse_entry
from keyside.tensorstore import npy
from keyside.tensorstore.errors import KeysideError, NoModel

MEMBERS = 1000


class Cache:
    """All models come into memory as soon as one of them was waited for, and call back at once."""

    def __init__(self, error: KeysideError | None = None) -> None:
        self.ready = False
        self.error = error
        self.asked = 0

    def get_ready(self, _: str) -> Any:
        return model()[0] if self.ready else None

    def request(self, _: ModelRef, callback: Callable[[Any, KeysideError | None], None]) -> None:
        self.asked += 1
        self.ready = True
        callback(None if self.error else model()[0], self.error)


class Lane:
    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def put(self, jobs: list[Any]) -> None:
        self.jobs += jobs


def dag() -> Job:
    members = [[f"m@{n}", f"u-{n}", "m", n] for n in range(1, MEMBERS + 1)]
    header = [1, "run", "0-1", "", 1, 9999, "", "", ["v"], [], [], 0]
    value = npy.to_bytes(np.ones((1, 4), np.float32))
    extra = {"m": members, "d": [[], []]}
    job = parse_entry("CPU", b"1-0", [b"h", msgpack.packb(header), b"0", value, b"x", msgpack.packb(extra)])
    job.decode()
    return job


def wait_for(cache: Cache) -> tuple[Lane, list[Any], int]:
    lane = Lane()
    ended: list[Any] = []
    held: dict[Any, Job] = {}
    other = cast("Any", None)
    intake = Intake(
        held, cast("Any", cache), other, cast("Any", {"CPU": lane}), ended.append, other, other, other, other
    )  # fmt: skip
    job = dag()
    held[job.ref] = job
    assert intake.ready(job) is None
    return lane, ended, intake.parked("CPU")


def test_many_members_that_are_in_memory_meanwhile() -> None:
    cache = Cache()
    lane, ended, parked = wait_for(cache)
    assert parked == 0
    assert len(lane.jobs) + len(ended) == 1
    assert cache.asked == 1


def test_a_member_that_cannot_be_had() -> None:
    lane, ended, parked = wait_for(Cache(NoModel("no such model")))
    assert (parked, lane.jobs) == (0, [])
    assert ended[0].error.code == "NOMODEL"
