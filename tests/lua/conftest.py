"""Fixtures of the function tests."""

from collections.abc import Iterator

import pytest
import redis as redis_py
from tests.lua.jobs import Hand
from tests.servers import Server


@pytest.fixture
def hand(server: Server, db: redis_py.Redis) -> Iterator[Hand]:
    """The steps of callers and executors on an empty server.

    Jobs that nobody runs, and models that nobody loads, are part of these tests: what they leave is cleared away.
    """
    with Hand(server.url_unix) as hand:
        yield hand
        db.flushall()
