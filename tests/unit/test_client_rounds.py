"""Calls for many rows that a server does not take at once: clients/rounds.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from keyside.clients import rounds as module
from keyside.clients.rounds import Rounds, as_reply, is_refusal
from keyside.tensorstore.errors import Busy


class Full:
    """A server that takes so many requests of a round and says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def round(self, rounds: Rounds, room: int, hint: str = "; retry in 50 ms") -> tuple[list[int], int]:
        """Give back which parts were answered, and how many requests were made."""
        answered: list[int] = []
        index = 0
        while True:
            flying: list[tuple[int, Any]] = []
            while len(flying) < rounds.window and (request := next(rounds, None)) is not None:
                flying.append((index, request))
                index += 1
            if not flying:
                return answered, index
            for number, _ in flying:
                refused = room <= 0
                room -= 1
                part = rounds.took(number, b"BUSY full" + hint.encode() if refused else b"reply")
                if part is not None:
                    answered.append(part)


def parts(number: int) -> Any:
    return number


def test_all_in_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    server, rounds = Full(monkeypatch), Rounds(10, parts, 4, 5.0)
    assert server.round(rounds, 100) == (list(range(10)), 10)
    assert not rounds.end()
    assert not rounds.left


def test_what_is_refused_comes_again_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    server, rounds = Full(monkeypatch), Rounds(20, parts, 8, 5.0)
    answered: list[int] = []
    made = 0
    windows = []
    while rounds.left:
        windows.append(rounds.window)
        found, count = server.round(rounds, 3)
        answered += found
        made += count
        pause = rounds.end()
        server.now += pause
        assert pause == (0.05 if rounds.left else 0.0)
    assert sorted(answered) == list(range(20))
    assert windows[:2] == [8, 3]
    assert made <= 20 + 8 + 3 * len(windows), "each round stops at the first refusal"


def test_the_window_grows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server, rounds = Full(monkeypatch), Rounds(40, parts, 8, 5.0)
    server.round(rounds, 0)
    rounds.end()
    assert rounds.window == 1
    server.round(rounds, 100)
    assert rounds.end() == 0.0
    assert rounds.window == 2
    assert not rounds.left


def test_it_gives_up_after_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    server, rounds = Full(monkeypatch), Rounds(2, parts, 2, 1.0)
    for _ in range(3):
        server.round(rounds, 0, "; retry in 300 ms")
        server.now += rounds.end()
    server.round(rounds, 0, "; retry in 300 ms")
    with pytest.raises(Busy, match="full"):
        rounds.end()


def test_a_hint_beyond_the_timeout_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server, rounds = Full(monkeypatch), Rounds(2, parts, 2, 1.0)
    server.round(rounds, 1, "; retry in 5000 ms")
    with pytest.raises(Busy):
        rounds.end()
    assert server.now == 0.0


def test_a_refusal_without_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    server, rounds = Full(monkeypatch), Rounds(1, parts, 2, 1.0)
    server.round(rounds, 0, "")
    assert rounds.end() == 0.1
    assert rounds.left


def test_what_a_refusal_is() -> None:
    assert is_refusal(Busy("full; retry in 5 ms"))
    assert not is_refusal(Busy("Redis is busy running a script"))
    assert as_reply(Busy("full; retry in 5 ms")) == b"BUSY full; retry in 5 ms"
