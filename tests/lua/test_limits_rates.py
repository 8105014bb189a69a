"""Rates: how many jobs may come in a window, exactly, and when the next one may."""

import time
from typing import Any

import numpy as np
import pytest
from tests.lua.jobs import ROW, Hand, ok
from tests.servers import Server

from keyside.tensorstore import npy
from keyside.tensorstore.errors import Busy, KeysideError


@pytest.fixture
def ready(hand: Hand) -> Hand:
    """With a model that serves."""
    hand.beat("e1")
    hand.store()
    return hand


def rate(hand: Hand, count: int, ms: int, *, word: str = "RATE", model: str | None = "m") -> None:
    """Set a rate."""
    names, first = ([model], ()) if model else ([], ("NODE",))
    hand.fcall("AI_LIMITSET", names, *first, word, count, "PER", ms)


def refused(hand: Hand, *args: Any, **kwargs: Any) -> Busy:
    """Submit; it must be refused."""
    with pytest.raises(Busy) as caught:
        hand.predict(*args, **kwargs)
    assert caught.value.retry_after is not None
    return caught.value


def accepted(hand: Hand, count: int, *args: Any, **kwargs: Any) -> int:
    """Submit so often; how many were accepted."""
    done = 0
    for _ in range(count):
        try:
            hand.predict(*args, **kwargs)
        except Busy:
            continue
        done += 1
    return done


LONG = 60_000


def test_no_more_than_so_many_come_in_a_window(ready: Hand) -> None:
    rate(ready, 5, LONG)
    assert accepted(ready, 20) == 5
    error = refused(ready)
    assert "model 'm' takes 5 jobs in 60000 ms" in error.text
    assert error.retry_after is not None
    assert 50 < error.retry_after <= 60.001
    assert ready.length() == 5


def test_a_window_begins_with_its_first_job_and_the_hint_is_exact(ready: Hand) -> None:
    rate(ready, 2, 1500)
    for _ in range(2):
        before = ready.now()
        ready.predict()
        ready.predict()
        hint = refused(ready).retry_after
        after = ready.now()
        assert hint is not None
        assert before + 1500 - after <= hint * 1000 <= 1501
        time.sleep(hint)
    assert accepted(ready, 5) == 2


def test_what_is_refused_takes_no_permit(ready: Hand) -> None:
    rate(ready, 2, LONG)
    for value in (npy.to_bytes(np.ones((1, 3), np.float32)), b"junk"):
        with pytest.raises(KeysideError):
            ready.predict(value=value)
    with pytest.raises(KeysideError):
        ready.execute(["none"], ["y"])
    ready.do("RPUSH", "list", "1")
    ready.do("SET", "x", ROW)
    with pytest.raises(KeysideError):
        ready.execute(["x"], ["list"])
    ready.fcall("AI_LIMITSET", ["m"], "JOBS", 1, "RATE", 2, "PER", LONG)
    ready.predict()
    for _ in range(5):
        assert "its limit" in refused(ready).text  # no room
    (job,) = ready.claim()
    ready.complete("e1", [ok(job)])
    ready.predict()
    ready.complete("e1", [ok(job) for job in ready.claim()])
    assert "takes 2 jobs" in refused(ready).text


def test_a_request_that_comes_again_takes_no_second_permit(ready: Hand) -> None:
    rate(ready, 2, LONG)
    for _ in range(4):
        ready.predict("TICKET", "ks:{0}:t:c", "ID", "c", 1)
    assert accepted(ready, 3) == 1


def test_each_user_has_a_rate(ready: Hand) -> None:
    rate(ready, 2, LONG, word="USERRATE")
    error = ready.refused("AI_PREDICT", [], "m", "INPUTS", 1, "VALUE", ROW)
    assert (error.code, "USER name" in error.text) == ("BADARG", True)
    for user in ("ann", "bob", "a:b"):
        assert accepted(ready, 5, "USER", user) == 2
    assert "user 'bob'" in refused(ready, "USER", "bob").text
    ready.store("other")
    ready.predict(target="other")


def test_the_longest_of_several_waits_is_told(ready: Hand) -> None:
    ready.fcall("AI_LIMITSET", ["m"], "RATE", 1, "PER", 20000, "USERRATE", 1, "PER", 40000)
    rate(ready, 1, 30000, model=None)
    ready.predict("USER", "ann")
    hint = refused(ready, "USER", "ann").retry_after
    assert hint is not None
    assert 35 < hint <= 40.001
    hint = refused(ready, "USER", "bob").retry_after
    assert hint is not None
    assert 25 < hint <= 30.001, "bob has done nothing yet, but the node has had its job"
    ready.fcall("AI_LIMITSET", [], "NODE", "RATE", 0)
    hint = refused(ready, "USER", "bob").retry_after
    assert hint is not None
    assert 15 < hint <= 20.001


def test_rates_of_the_node(ready: Hand) -> None:
    ready.store("other")
    rate(ready, 3, LONG, model=None)
    assert accepted(ready, 2) == 2
    assert accepted(ready, 5, target="other") == 1
    rate(ready, 1, LONG, word="USERRATE", model=None)
    assert accepted(ready, 2, "USER", "ann") == 1
    assert accepted(ready, 2, "USER", "ann", target="other") == 0
    assert accepted(ready, 2, "USER", "bob", target="other") == 1


def test_a_rate_outlives_the_library(ready: Hand, server: Server) -> None:
    rate(ready, 3, LONG)
    assert accepted(ready, 2) == 2
    server.load_library()
    assert accepted(ready, 5) == 1
    server.load_library()
    assert accepted(ready, 5) == 0


def test_counters_expire_and_one_that_does_not_is_dropped(ready: Hand) -> None:
    ready.fcall("AI_LIMITSET", ["m"], "RATE", 1, "PER", LONG, "USERRATE", 1, "PER", LONG)
    ready.predict("USER", "ann")
    names = ready.do("KEYS", "ks:{0}:rate:*")
    assert len(names) == 2
    for name in names:
        assert 0 < ready.do("PTTL", name) <= LONG
        ready.do("PERSIST", name)
    ready.predict("USER", "ann")  # such a counter would be in the way for ever
    for name in names:
        assert 0 < ready.do("PTTL", name) <= LONG
        ready.do("SET", name, "junk", "PX", LONG)
    assert refused(ready, "USER", "ann").retry_after


def test_a_rate_that_was_raised_holds_for_the_window_under_way(ready: Hand) -> None:
    rate(ready, 1, LONG)
    ready.predict()
    refused(ready)
    rate(ready, 3, LONG)
    assert accepted(ready, 5) == 2
    rate(ready, 2, LONG)
    refused(ready)
    ready.fcall("AI_LIMITSET", ["m"], "RATE", 0)
    assert accepted(ready, 5) == 5
