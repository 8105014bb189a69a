"""What a request says of itself when it is sent again: clients/request.py."""

import pytest

from keyside.clients.request import Identity, Request
from keyside.tensorstore.commands import Submit


@pytest.mark.parametrize(
    ("timeout", "left", "said"),
    [
        (30.0, 12.0, 12_000),
        (60.0, 0.5, 500),
        (61.0, 61.0, 61_000),
        (61.0, 59.0, 60_001),
        (120.0, 1.0, 60_001),
        (130.0, 100.0, 120_001),
        (130.0, 125.5, 125_500),
        (1.0, -3.0, 1),
    ],
)
def test_a_repeated_call_stays_in_the_class_of_its_timeout(timeout: float, left: float, said: int) -> None:
    seen: list[Submit] = []
    request = Request("m", seen.append, timeout, Identity(), 1)  # type: ignore[arg-type]
    request.submit(left, b"ticket")
    assert seen[0].timeout_ms == said
