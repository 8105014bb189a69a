"""Puts the function library on a server: a newer one over an older one, never the other way round."""

from keyside.executor.wire import Wire
from keyside.tensorstore import library
from keyside.tensorstore.errors import KeysideError, LibraryMissing

__all__ = ["ensure_library", "installed_version"]


def installed_version(wire: Wire) -> tuple[int, str] | None:
    """Return number and digest of the library on the server; None if there is none.

    Raises:
        KeysideError: the server refuses or is gone.
    """
    try:
        number, digest = wire.call(b"FCALL_RO", b"KS_VERSION", 0)
    except LibraryMissing:
        return None
    return int(number), bytes(digest).decode()


def ensure_library(wire: Wire) -> str:
    """Load the library unless the server has this one or a newer one.

    Returns:
        What was done: `loaded`, `upgraded`, `present` or `newer`.

    Raises:
        KeysideError: the server refuses or is gone.
    """
    found = installed_version(wire)
    if found is not None:
        number, digest = found
        if number > library.LIBRARY_VERSION:
            return "newer"
        if number == library.LIBRARY_VERSION and digest == library.digest():
            return "present"
    try:
        wire.call(b"FUNCTION", b"LOAD", b"REPLACE", library.source())
    except KeysideError as error:
        # Two executors that start together: the other one was first.
        if installed_version(wire) is None:
            raise
        if "already exists" not in str(error):
            raise
    return "loaded" if found is None else "upgraded"
