"""Puts the function library on a server: a newer one over an older one, never the other way round."""

from keyside.executor.line import Line
from keyside.executor.wire import Wire, checked
from keyside.tensorstore import library
from keyside.tensorstore.errors import KeysideError, LibraryMissing, NoPerm
from keyside.tensorstore.seals import Seal

__all__ = ["Unreadable", "ensure_library", "installed_version", "read_seal"]


class Unreadable(Exception):
    """This user may not read the text of the library."""


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


def read_seal(wire: Wire | Line) -> Seal | None:
    """Return what the library on the server signs entries with; None if it does not, or there is no library.

    Raises:
        Unreadable: this user may not know.
        KeysideError: the server refuses or is gone.
    """
    command = (b"FUNCTION", b"LIST", b"LIBRARYNAME", library.LIBRARY_NAME, b"WITHCODE")
    try:
        found = checked(wire.call_many((command,))[0])
    except NoPerm as error:
        raise Unreadable(str(error)) from None
    for one in found:
        code = dict(zip(one[::2], one[1::2], strict=True))[b"library_code"]
        return library.seal_of(bytes(code).decode("utf-8", "replace"))
    return None


def ensure_library(wire: Wire, seal: Seal | None = None) -> str:
    """Load the library unless the server has this one or a newer one.

    Args:
        wire: to the server.
        seal: what entries are to be signed with if the server has no library that says so.

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
        seal = read_seal(wire) or seal
    except Unreadable:
        if found is not None:
            # It would lose what entries are signed with, if they are.
            raise NoPerm(
                "an older function library is there, and this user may not replace it, for want of FUNCTION LIST:"
                " let `keyside install` do it"
            ) from None
    try:
        wire.call(b"FUNCTION", b"LOAD", b"REPLACE", library.source(seal))
    except KeysideError as error:
        # Two executors that start together: the other one was first.
        if installed_version(wire) is None:
            raise
        if "already exists" not in str(error):
            raise
    return "loaded" if found is None else "upgraded"
