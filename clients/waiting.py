"""What one may wait for at a key. No I/O happens here."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from keyside.tensorstore import plain
from keyside.tensorstore.command import Command, text, to_bytes
from keyside.tensorstore.errors import BadArg, KeysideError, NoPerm, TimedOut, WrongType

__all__ = ["Condition", "Test", "Wanted", "not_told", "passes"]

Test = Callable[[NDArray[Any]], Any]
Condition = Literal["exists", "gone", "changed"] | Test
"""What to wait for; a function gets the tensor, and says whether that will do."""

_EDGE = 4096
# What happens to a key without its value changing.
_NO_CHANGE = (b"expire", b"persist")


class Wanted:
    """A key, and what shall become of it.

    Args:
        key: its name.
        condition: see `Condition`.

    Raises:
        BadArg: there is no such condition.

    Attributes:
        key: see above.
        test: of the tensor, if the condition is one.
    """

    def __init__(self, key: str | bytes, condition: Condition) -> None:
        if condition not in ("exists", "gone", "changed") and not callable(condition):
            raise BadArg(f"a condition is 'exists', 'gone', 'changed' or a function of the tensor, not {condition!r}")
        self.key = to_bytes(key)
        self.test: Test | None = condition if callable(condition) else None
        self._word = "" if callable(condition) else condition
        self._before: list[Any] | None = None

    def question(self) -> list[Command[Any]]:
        """Return what to ask the server to see whether it has come to that; `met` takes the replies."""
        if self._word != "changed":
            return [plain.exists(self.key)]
        # Enough to see most changes that nobody was told of, such as those while a connection was broken.
        return [plain.strlen(self.key), plain.get_prefix(self.key, _EDGE), plain.get_suffix(self.key, _EDGE)]

    def met(self, replies: Sequence[Any]) -> bool:
        """Whether it has come to that.

        Args:
            replies: to `question`, as they came.

        Raises:
            KeysideError: one of them is an error.
        """
        if self._word == "changed":
            now = [_plain(reply) for reply in replies]
            before, self._before = self._before, self._before or now
            return before is not None and before != now
        there = bool(_plain(replies[0]))
        return there if self._word == "exists" else not there and self._word == "gone"

    def told(self, event: bytes) -> bool:
        """Whether that this has happened to the key is enough to know."""
        return self._word == "changed" and event not in _NO_CHANGE

    def late(self, seconds: float) -> TimedOut:
        """Return what to say when the time is over."""
        words = {"exists": "is not there", "gone": "is still there", "changed": "has not changed"}
        found = words.get(self._word, "holds nothing that will do")
        return TimedOut(f"key {text(self.key)!r} {found} after {seconds:g} s")


def _plain(reply: Any) -> Any:
    if isinstance(reply, WrongType):
        return WrongType.code  # a key of another type has no bytes to compare
    if isinstance(reply, KeysideError):
        raise reply
    return bytes(reply) if isinstance(reply, memoryview) else reply


def passes(test: Test, array: NDArray[Any]) -> bool:
    """Whether a tensor will do; of a test that returns an array, all elements have to be true."""
    return bool(np.all(test(array)))


def not_told(address: str, missing: str, refused: KeysideError) -> NoPerm:
    """Say that a server does not tell what happens to keys, and what to do about it.

    Args:
        address: of the server.
        missing: flags of `notify-keyspace-events` that it lacks.
        refused: what it said to the attempt to turn them on.
    """
    return NoPerm(
        f"{address} does not tell what happens to keys, and this user may not have it do so ({refused.text}): somebody "
        f"who may has to run CONFIG SET notify-keyspace-events {missing}, together with the flags that are set already"
    )
