"""Fixtures of the function tests."""

from collections.abc import Iterator
from typing import get_args

import pytest
import redis as redis_py
from tests.lua.jobs import Hand
from tests.servers import Kind, Server


@pytest.fixture(scope="session", params=get_args(Kind))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind in turn, of its own: on the servers of the other tests an executor may run, and take our jobs."""
    with Server(request.param) as server:
        yield server


@pytest.fixture
def hand(server: Server, db: redis_py.Redis) -> Iterator[Hand]:
    """The steps of callers and executors on an empty server."""
    with Hand(server.url_unix) as hand:
        yield hand
        db.flushall()
