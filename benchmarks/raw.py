"""Keyside as any client has it, by FCALL and BLPOP: a request, its reply, and the check of many."""

from collections.abc import Callable
from typing import Any

import numpy as np
from drivers import NUMBER

from keyside.tensorstore import npy
from keyside.tensorstore.records import decode_reply

__all__ = ["check", "of_reply", "predict"]

Answers = list[tuple[int, Any]]


def predict(value: bytes, key: str = "", target: str = "fraud", tag: str = "0") -> list[list[Any]]:
    """Return the commands of one request: with a value in hand, and with a key if there is one."""
    ticket = b"ks:{%b}:t:bench:" % tag.encode() + NUMBER
    keys, more = ([key], ["KEY", key]) if key else ([], [])
    return [
        ["FCALL", "AI_PREDICT", len(keys), *keys, target, "INPUTS", 1 + len(keys), "VALUE", value, *more,
         "TICKET", ticket],
        ["BLPOP", ticket, 10],
    ]  # fmt: skip


def of_reply(answer: Any) -> Any:
    """Return the one array in Keyside's reply to a request."""
    assert answer is not None, "no answer"
    value = next(iter(decode_reply(answer[1]).outputs.values()))
    assert isinstance(value, bytes)
    return npy.decode(value)


def check(answers: Answers, expected: Any, decode: Callable[[Any], Any], name: str = "") -> None:
    """See that all answers are right; request i asks for row i modulo their number."""
    got = np.array([np.ravel(decode(answer)) for _, answer in answers])
    numbers = [i for i, _ in answers]
    want = expected[np.array(numbers) % len(expected)].reshape(got.shape)
    wrong = np.flatnonzero(~np.isclose(got, want, rtol=1e-3, atol=1e-4).all(axis=1))
    assert not len(wrong), (
        f"{name}: {len(wrong)} wrong answers, first request {numbers[wrong[0]]}: {got[wrong[0]]}, not {want[wrong[0]]}"
    )
