"""Every error that Keyside raises, and how an error reply of the server becomes one.

    KeysideError
    +-- CallerError         the call was wrong: change it
    |   +-- BadArg, BadNpy, BadValue, TooBig, NoTensor, NoFeature, WrongType, NoModel, ModelFailed,
    |       BadInput, BadDtype, BadShape, BadModel, CrossSlot, NoPerm, ScanLimit, UploadLost,
    |       NoTrigger, Loop
    +-- StateError          the call may be right, the server cannot take it now
    |   +-- Busy, OutOfMemory, TryAgain, InputLost, LibraryMissing, LibraryTooOld
    +-- TransportError      no answer was received
    |   +-- Unreachable     (also a ConnectionError)
    +-- ExecutionError      the job was accepted, and ended without a result
    |   +-- RunFailed, TimedOut (also a TimeoutError), DeadLetter, Cancelled
    +-- ServerError         an error reply that is none of Keyside's own

On the wire an error is ``CODE text``; ``str(error)`` is the same, so that an error reads alike everywhere.
"""

# The names are the words of the protocol and say what is wrong; a suffix would add nothing.

import re
from typing import ClassVar

__all__ = [
    "CODES",
    "BadArg",
    "BadDtype",
    "BadInput",
    "BadModel",
    "BadNpy",
    "BadShape",
    "BadValue",
    "Busy",
    "CallerError",
    "Cancelled",
    "CrossSlot",
    "DeadLetter",
    "ExecutionError",
    "InputLost",
    "KeysideError",
    "LibraryMissing",
    "LibraryTooOld",
    "Loop",
    "ModelFailed",
    "NoFeature",
    "NoModel",
    "NoPerm",
    "NoTensor",
    "NoTrigger",
    "OutOfMemory",
    "RunFailed",
    "ScanLimit",
    "ServerError",
    "StateError",
    "TimedOut",
    "TooBig",
    "TransportError",
    "TryAgain",
    "Unreachable",
    "UploadLost",
    "WrongType",
    "from_reply",
]


_RETRY = re.compile(r"; retry in (\d{1,9}) ms$", re.ASCII)


class KeysideError(Exception):
    """Base of all errors of Keyside.

    Attributes:
        code: The first word of the error on the wire.
        text: What went wrong, without the code.
    """

    code: ClassVar[str] = "ERR"

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"{self.code} {self.text}" if self.text else self.code


class CallerError(KeysideError):
    """The call was wrong; the same call will fail again."""

    code = "BADARG"


class StateError(KeysideError):
    """The server cannot take the call as things are now."""

    code = "TRYAGAIN"


class TransportError(KeysideError):
    """No answer was received; the call may or may not have been carried out."""

    code = "UNREACHABLE"


class ExecutionError(KeysideError):
    """The job was accepted, and ended without a result."""

    code = "RUNFAILED"


class ServerError(KeysideError):
    """An error reply of the server that is none of Keyside's own."""

    code = "ERR"


class BadArg(CallerError):
    """An argument is missing, malformed or out of range."""

    code = "BADARG"


class BadNpy(CallerError):
    """A value is not a well-formed ``.npy`` file of the kind that Keyside takes."""

    code = "BADNPY"


class BadValue(CallerError):
    """An element is not a number, overflows, or is not allowed for the dtype."""

    code = "BADVALUE"


class TooBig(CallerError):
    """Larger than this route takes; the text names the route."""

    code = "TOOBIG"


class NoTensor(CallerError):
    """A key that should hold a tensor does not exist or holds something else."""

    code = "NOTENSOR"


class NoFeature(CallerError):
    """A hash, a field of it, or another key from which an input is to be gathered does not exist."""

    code = "NOFEATURE"


class WrongType(CallerError):
    """A key holds another type."""

    code = "WRONGTYPE"


class NoModel(CallerError):
    """There is no such model, version or alias."""

    code = "NOMODEL"


class NoTrigger(CallerError):
    """There is no such trigger."""

    code = "NOTRIGGER"


class Loop(CallerError):
    """Runs that triggers start would start each other without end."""

    code = "LOOP"


class ModelFailed(CallerError):
    """The version failed to load; the text has the backend's reason."""

    code = "MODELFAILED"


class BadInput(CallerError):
    """Number or names of inputs or outputs do not fit the model."""

    code = "BADINPUT"


class BadDtype(CallerError):
    """The dtype is not one of Keyside's, or does not fit the model."""

    code = "BADDTYPE"


class BadShape(CallerError):
    """Rank or dimensions are out of range, or do not fit the model."""

    code = "BADSHAPE"


class BadModel(CallerError):
    """The blob is not what the backend loads, or asks for what is refused."""

    code = "BADMODEL"


class CrossSlot(CallerError):
    """The keys of one call are in different slots."""

    code = "CROSSSLOT"


class NoPerm(CallerError):
    """The caller may not use that key, model or command."""

    code = "NOPERM"


class ScanLimit(CallerError):
    """Too many for one reply: use the cursor."""

    code = "SCANLIMIT"


class UploadLost(CallerError):
    """A chunk of the upload is missing or has another size: upload again."""

    code = "UPLOADLOST"


class Busy(StateError):
    """The queue is full, a rate is used up, or the server is busy with a script: try again later."""

    code = "BUSY"

    @property
    def retry_after(self) -> float | None:
        """Seconds after which to try again, as the server advises; None: it does not say."""
        found = _RETRY.search(self.text)
        return int(found[1]) / 1000 if found else None


class OutOfMemory(StateError):
    """The server is at maxmemory."""

    code = "OOM"


class TryAgain(StateError):
    """A slot is moving or has moved: send the call again."""

    code = "TRYAGAIN"


class InputLost(StateError):
    """A captured or referenced input was gone when the job ran."""

    code = "INPUTLOST"


class LibraryMissing(StateError):
    """The function library is not loaded on this server."""

    code = "NOLIBRARY"


class LibraryTooOld(StateError):
    """The function library on this server is too old for this client."""

    code = "OLDLIBRARY"


class Unreachable(TransportError, ConnectionError):
    """The server cannot be reached, closed the connection, or is not serving."""

    code = "UNREACHABLE"


class RunFailed(ExecutionError):
    """The model failed on these inputs; the text has the backend's reason."""

    code = "RUNFAILED"


class TimedOut(ExecutionError, TimeoutError):
    """The deadline passed."""

    code = "TIMEDOUT"


class DeadLetter(ExecutionError):
    """The job was given up after executors died running it."""

    code = "DEADLETTER"


class Cancelled(ExecutionError):
    """The caller cancelled the job."""

    code = "CANCELLED"


CODES: dict[str, type[KeysideError]] = {
    cls.code: cls
    for cls in (
        *(BadArg, BadNpy, BadValue, TooBig, NoTensor, WrongType, NoModel, ModelFailed, BadInput, BadDtype),
        *(NoFeature, BadShape, BadModel, CrossSlot, NoPerm, ScanLimit, UploadLost, NoTrigger, Loop),
        *(Busy, OutOfMemory, TryAgain, InputLost, LibraryMissing, LibraryTooOld),
        *(Unreachable, RunFailed, TimedOut, DeadLetter, Cancelled, ServerError),
    )
}
"""The class of every code."""

# Codes of the server itself whose text says nothing without its first word, so that word is kept.
_NATIVE: dict[str, type[KeysideError]] = {
    "MOVED": TryAgain,
    "ASK": TryAgain,
    "NOAUTH": NoPerm,
    "WRONGPASS": NoPerm,
    "LOADING": Unreachable,
    "MASTERDOWN": Unreachable,
    "CLUSTERDOWN": Unreachable,
}

# What the server says of these has only ERR in front.
_PHRASES: tuple[tuple[str, type[KeysideError]], ...] = (
    ("Script attempted to access keys that do not hash to the same slot", CrossSlot),
    ("Script attempted to access a non local key", TryAgain),
)

# Where in the library an error was raised is added by the server; callers have no use for it.
_ORIGIN = re.compile(r",? script: \S+, on @\S+:\d+\.?$")

_NO_LIBRARY = (
    "the function library is not loaded on this server, or has no such function: "
    "run `keyside install`, or start an executor"
)


def from_reply(text: str) -> KeysideError:
    """Make the error that an error reply stands for.

    Args:
        text: The error reply without its leading ``-``.

    Returns:
        An error to raise, of the class of the reply's first word.
    """
    code, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    if code in _NATIVE:
        return _NATIVE[code](_ORIGIN.sub("", text.strip()))
    if code != "ERR":
        known = CODES.get(code)
        return known(_ORIGIN.sub("", rest)) if known else ServerError(text.strip())
    if rest.startswith("Function not found"):
        return LibraryMissing(_NO_LIBRARY)
    for phrase, cls in _PHRASES:
        if rest.startswith(phrase):
            return cls(_ORIGIN.sub("", rest))
    return ServerError(rest)
