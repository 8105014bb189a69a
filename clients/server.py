"""A Valkey or Redis of one's own: started on a private socket, watched, and stopped in order."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyside.clients.admin import ensure_library
from keyside.clients.binary import NoServer, find_server
from keyside.clients.child import Child
from keyside.tensorstore.errors import KeysideError, StateError, Unreachable

__all__ = ["DataInUse", "EmbeddedServer", "NoServer", "find_server", "running"]

STATE_FILE = "keyside.lock"
LOG_FILE = "server.log"

_NOISE = re.compile("WARNING|Configuration loaded|Server initialized")
# What a server says of files that it cannot read, as those of a newer one.
_FOREIGN = re.compile("RDB format version|Bad file format|signature|Unrecoverable error")
# A unix socket's path has 108 bytes with the NUL on Linux, 104 on macOS; longer ones are cut off, not refused.
_SOCKET_PATH_MAX = 103


class DataInUse(StateError):
    """Another server runs on the data directory."""

    code: ClassVar[str] = "INUSE"


class EmbeddedServer:
    """A server of our own on a data directory.

    Args:
        data_dir: Its data and its log; made if it does not exist.
        server_bin: Its program; None: as `find_server` finds one.
        port: TCP port on 127.0.0.1 for ordinary clients; 0: none, the unix socket only; None: any free one.
        socket_path: Where its unix socket shall be; None: in the data directory, or, if that path is too long for a
            socket, in a directory for temporary files.
        appendonly: Whether every write is kept on disk (within a second); otherwise nothing is.
        maxmemory: Memory limit such as ``2gb``; None: no limit. At the limit writes are refused, nothing is evicted.
        config: Further settings of the server.
        library: Whether the function library is loaded as soon as it answers. A replica takes it from its primary.
        start_timeout: Seconds that it may take to answer, loading its data not counted.

    Attributes:
        data_dir: Absolute path of its data directory.
        binary: Its program.
        url: Its address, over the unix socket.
    """

    def __init__(
        self,
        data_dir: str | Path,
        *,
        server_bin: str | Path | None = None,
        port: int | None = 0,
        socket_path: str | Path | None = None,
        appendonly: bool = True,
        maxmemory: str | None = None,
        config: Mapping[str, str | int] | None = None,
        library: bool = True,
        start_timeout: float = 30.0,
    ) -> None:
        self.data_dir = Path(data_dir).expanduser().absolute()
        self.binary = find_server(server_bin)
        self._wanted_port = port
        self.port = port or 0
        self._wanted_socket = socket_path
        self.socket_path = Path()
        self._config: dict[str, str | int] = {
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": "everysec",
            "save": "",
            **({"maxmemory": maxmemory} if maxmemory else {}),
            "maxmemory-policy": "noeviction",
            **(config or {}),
        }
        self._library = library
        self._start_timeout = start_timeout
        self._lock: int | None = None
        self._scratch: Path | None = None
        self._child: Child | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _clustered(self) -> bool:
        return self._config.get("cluster-enabled") == "yes"

    @property
    def url(self) -> str:
        """Its address over the unix socket."""
        return f"unix://{self.socket_path}"

    @property
    def url_tcp(self) -> str:
        """Its address over TCP; empty if it has no port."""
        return f"redis://127.0.0.1:{self.port}" if self.port else ""

    @property
    def name(self) -> str:
        """How it is called: host and port, or without a port its socket."""
        return f"127.0.0.1:{self.port}" if self.port else str(self.socket_path)

    @property
    def log_path(self) -> Path:
        """What it says."""
        return self.data_dir / LOG_FILE

    @property
    def pid(self) -> int:
        """Its process id; 0 if it was not started."""
        return self._child.pid if self._child else 0

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._child.poll() if self._child else 0

    def client(self, **options: Any) -> redis.Redis:
        """Return a plain client of it."""
        settings = {"protocol": 2, "socket_timeout": 20.0, "retry": Retry(NoBackoff(), 0), **options}
        return redis.Redis(unix_socket_path=str(self.socket_path), **settings)

    def start(self) -> Self:
        """Start it, and wait until it has loaded its data and runs functions.

        Raises:
            DataInUse: Another server runs on the data directory.
            NoServer: It does not start; the text has its reason.
        """
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._acquire()
            self._choose_socket()
        except OSError as error:
            self._release()
            raise NoServer(f"data directory {self.data_dir}: {error.strerror or error}") from error
        except KeysideError:
            self._release()
            raise
        try:
            self.restart()
        except BaseException:
            self.stop()
            raise
        return self

    def restart(self) -> None:
        """Start it again on its socket and port after it has ended.

        Raises:
            NoServer: It does not start; the text has its reason.
        """
        free = self._wanted_port is None and not self.port
        last = None
        for _ in range(3 if free else 1):
            if free:
                self.port = _free_port()
            try:
                self._launch()
            except _PortInUse as error:
                last = error
            else:
                self._note({"pid": os.getpid(), "url": self.url, "url_tcp": self.url_tcp})
                return
        taken = (last.port if last else 0) or self.port
        fix = "choose others with --port-base" if self._clustered else "choose another with --port, or 0 for none"
        raise NoServer(f"port {taken} of 127.0.0.1 is in use: {fix}") from last

    def stop(self, timeout: float = 60.0) -> bool:
        """End it in good order: what it has accepted is on disk afterwards.

        Returns:
            Whether it ended within `timeout` seconds; if not, it was killed.
        """
        orderly = True
        if self._child is not None:
            self._child.signal(signal.SIGTERM)
            if self._child.wait(timeout) is None:
                orderly = False
                self._child.kill()
            self._child = None
        self._release()
        return orderly

    # --- inside

    def _launch(self) -> None:
        settings: dict[str, str | int] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "logfile": str(self.log_path),
            "daemonize": "no",
            **self._config,
        }
        command = [str(self.binary.path)]
        for key, value in settings.items():
            command += [f"--{key}", str(value)]
        # Valkey does not start with a locale that the machine does not have.
        env = {**os.environ, "LC_ALL": "C"}
        with self.log_path.open("ab") as log:
            before = log.tell()
            # It inherits the lock, so that the directory stays in use until it is gone, even if we go first.
            self._child = Child(command, env=env, output=log, pass_fds=(self._lock,) if self._lock else ())
        try:
            self._await()
        except KeysideError as error:
            self._child.kill()
            said = self._complaint(before)
            if "Address already in use" in said:
                raise _PortInUse(said) from error
            raise NoServer(f"{self.binary} ({self.binary.path}) does not start: {said or error}") from error

    def _await(self) -> None:
        """Wait until it answers, then try what a module-free server must be able to do."""
        assert self._child is not None  # noqa: S101  # called by _launch
        end = time.monotonic() + self._start_timeout
        with self.client() as client:
            while True:
                code = self._child.poll()
                if code is not None:
                    raise Unreachable(f"it ended with code {code}")
                try:
                    client.ping()
                    break
                except redis.BusyLoadingError:
                    end = time.monotonic() + self._start_timeout
                except (redis.ConnectionError, redis.TimeoutError) as error:
                    if time.monotonic() > end:
                        raise Unreachable(f"no answer within {self._start_timeout:g} s ({error})") from error
                time.sleep(0.01)
            if self._library:
                ensure_library(client)

    def _complaint(self, offset: int) -> str:
        """What it said last in its log, on one line."""
        with self.log_path.open("rb") as log:
            log.seek(offset)
            text = log.read()[-16_384:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # "<pid>:M <date> # text": # marks warnings and fatal errors.
        grave = [line.partition(" # ")[2] for line in lines if " # " in line and not _NOISE.search(line)]
        said = "; ".join((grave or lines)[-3:])[:500]
        wrote = self._read_state().get("server")
        if _FOREIGN.search(said) and wrote not in (None, str(self.binary)):
            said = f"the data was written by {wrote}: use that, with --server-bin ({said})"
        return said

    def _choose_socket(self) -> None:
        if self._wanted_socket is not None:
            self.socket_path = Path(self._wanted_socket).expanduser().absolute()
            if len(os.fsencode(self.socket_path)) > _SOCKET_PATH_MAX:
                raise NoServer(f"the path of a unix socket has at most {_SOCKET_PATH_MAX} bytes: {self.socket_path}")
            return
        folder = self.data_dir / "run"
        if len(os.fsencode(folder / "keyside.sock")) > _SOCKET_PATH_MAX:
            folder = self._scratch = Path(tempfile.mkdtemp(prefix="keyside-"))
            if len(os.fsencode(folder / "keyside.sock")) > _SOCKET_PATH_MAX:
                folder.rmdir()
                folder = self._scratch = Path(tempfile.mkdtemp(prefix="keyside-", dir="/tmp"))
        else:
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
        self.socket_path = folder / "keyside.sock"

    def _acquire(self) -> None:
        """Take the data directory for ourselves."""
        descriptor = os.open(self.data_dir / STATE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + 10
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = self._read_state().get("pid")
                # A server whose keeper was killed is about to end.
                if _alive(owner) or time.monotonic() > end:
                    os.close(descriptor)
                    raise DataInUse(
                        f"data directory {self.data_dir} is in use by process {owner or '(unknown)'}: "
                        "stop that, or choose another with --data-dir"
                    ) from None
                time.sleep(0.05)
            except OSError:
                os.close(descriptor)
                raise
            else:
                self._lock = descriptor
                return

    def _note(self, facts: Mapping[str, object]) -> None:
        """Write down what runs here."""
        if self._lock is not None:
            text = json.dumps({"server": str(self.binary), "binary": str(self.binary.path), **facts})
            os.pwrite(self._lock, text.encode() + b"\n", 0)
            os.ftruncate(self._lock, len(text.encode()) + 1)

    def _read_state(self) -> dict[str, Any]:
        return _read_state(self.data_dir)

    def _release(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        if self._lock is not None:
            if self._read_state().get("url"):
                self._note({})
            os.close(self._lock)
            self._lock = None


class _PortInUse(Exception):  # never leaves this module
    def __init__(self, said: str) -> None:
        super().__init__(said)
        found = re.search(r"127\.0\.0\.1:(\d+): bind", said)
        # The port of a cluster's bus may be the one that is taken.
        self.port = int(found[1]) if found else 0


def running(data_dir: str | Path) -> str:
    """Return the address of the server that runs on a data directory; empty if none does."""
    folder = Path(data_dir).expanduser().absolute()
    url = _read_state(folder).get("url")
    if not isinstance(url, str) or not url.startswith("unix:///"):
        return ""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        if (folder / STATE_FILE).stat().st_uid == os.getuid():
            probe.settimeout(2)
            probe.connect(url.removeprefix("unix://"))
            return url
    return ""


def _read_state(data_dir: Path) -> dict[str, Any]:
    try:
        state = json.loads((data_dir / STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
