"""Fixtures of the fuzzers: servers of their own, that they may break."""

from collections.abc import Iterator
from typing import get_args

import pytest
from tests.servers import Kind, Server


@pytest.fixture(scope="module", params=get_args(Kind))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind in turn, with the library and without an executor."""
    with Server(request.param) as server:
        server.load_library()
        yield server
