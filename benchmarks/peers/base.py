"""What all HTTP peers share: their environment, their start and end, and a raw client.

Variant a: the client GETs the reference from Redis over the unix socket, then POSTs transaction and reference over a
connection that it keeps. Raw bytes where the server takes them. The answers are checked by the caller, later.
"""

import abc
import atexit
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from drivers import PATIENCE_S, Caller, Prepared, RedisCaller, prepare
from numpy.typing import NDArray
from processes import cpu_seconds, rss_mb, stop_tree
from rig import ROOT, free_port
from scenario import REFERENCES, Fraud

from keyside.tensorstore.resp import NOT_READY
from keyside.tensorstore.sockets import limit_receive, limit_send

__all__ = ["SERVERS", "Absent", "HttpCaller", "Peer"]

HOME = ROOT / ".cache/peers"
SERVERS = Path(__file__).resolve().parent / "servers"
INSTALL_S = 900.0
REFERENCE_BYTES = 256 * 4
HEADER = 128  # of the npy files in Redis; what follows are the elements

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)  # of a line of its own, not the end of another's


class Absent(Exception):  # it says what is the case
    """A peer cannot be measured here; the text says why."""


class Peer(abc.ABC):
    """One HTTP model server.

    Attributes:
        key: its name on the command line.
        name: its name in tables.
        packages: what is installed, pinned.
        settings: how it is set.
        resident: whether it may stay up while others are measured.
        start_s: seconds that its start may take.
        settle_s: seconds after its first answer until it is ready for more.
        stop_s: seconds that it may take to end by itself.
        python: what its environment is made with.
    """

    key: ClassVar[str]
    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    settings: ClassVar[str]
    resident: ClassVar[bool] = True
    start_s: ClassVar[float] = 60.0
    settle_s: ClassVar[float] = 0.5
    stop_s: ClassVar[float] = 10.0
    python: ClassVar[str] = sys.executable

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None
        self._requests: tuple[Prepared, list[tuple[bytes, bytes]]] | None = None
        self.port = 0

    @property
    def version(self) -> str:
        """What is installed, as pinned."""
        return ", ".join(package.replace("==", " ") for package in self.packages if "==" in package)

    # --- what differs

    @abc.abstractmethod
    def command(self, python: Path, scratch: Path) -> Sequence[str]:
        """Return the command that serves the model on `self.port` of 127.0.0.1.

        Args:
            python: of its environment.
            scratch: a folder for files of its own.
        """

    def environment(self) -> dict[str, str]:
        """Return variables for it, besides BENCH_MODEL, the path of the model."""
        return {}

    @abc.abstractmethod
    def around(self, transaction: bytes) -> tuple[bytes, bytes]:
        """Return what a whole request has before and after the reference; tensors are little-endian float32."""

    def encode(self, reference: bytes) -> bytes:
        """Return the reference as it stands in a request."""
        return reference

    def read(self, body: bytes) -> NDArray[np.float32]:
        """Return the probabilities that the body of an answer has."""
        return np.frombuffer(body, np.float32)

    def post(self, path: str, size: int, headers: str = "Content-Type: application/octet-stream") -> bytes:
        """Return what a POST has before its body of so many bytes."""
        return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\nContent-Length: {size}\r\n\r\n".encode()

    # --- its environment

    @property
    def home(self) -> Path:
        """Its virtual environment."""
        return HOME / self.key

    @property
    def installed(self) -> bool:
        """Whether its environment is there, with these packages."""
        stamp = self.home / ".stamp"
        return stamp.exists() and stamp.read_text() == self._stamp()

    def _stamp(self) -> str:
        return "\n".join(self._requirements()) + "\n"

    def _requirements(self) -> list[str]:
        # The same onnxruntime everywhere: servers are compared, not that.
        return [*self.packages, f"onnxruntime=={onnxruntime.__version__}", "numpy"]

    def make_venv(self) -> None:
        """Make its environment if it is not there.

        Raises:
            Absent: that does not work; the text has the reason.
        """
        if self.installed:
            return
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.parent.mkdir(parents=True, exist_ok=True)
        log = self.home.with_suffix(".log")
        print(f"installing {self.name} (log: {log.relative_to(ROOT)})", file=sys.stderr)
        steps = [
            [self.python, "-m", "venv", str(self.home)],
            [str(self.home / "bin/python"), "-m", "pip", "install", "--no-input", *self._requirements()],
        ]
        with log.open("wb") as output:
            for step in steps:
                try:
                    done = subprocess.run(step, stdout=output, stderr=output, timeout=INSTALL_S, check=False)
                except (OSError, subprocess.TimeoutExpired) as error:
                    raise Absent(f"not installed: {type(error).__name__}") from error
                if done.returncode:
                    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR")]
                    raise Absent(f"not installed: {lines[-1] if lines else f'exit code {done.returncode}'}")
        (self.home / ".stamp").write_text(self._stamp())

    # --- its processes

    @property
    def pid(self) -> int:
        """Of the process that it was started as; the others descend from it."""
        assert self._process is not None
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Return the CPU time that all its processes have used."""
        return cpu_seconds(self.pid)

    def rss_mb(self) -> float:
        """Return the memory of all its processes."""
        return rss_mb(self.pid)

    def start(self, model: bytes) -> int:
        """Start it, and wait until it answers.

        Returns:
            Its port on 127.0.0.1.

        Raises:
            Absent: it does not start; the text has the reason.
        """
        scratch = self._scratch = Path(tempfile.mkdtemp(prefix="peer-"))
        (scratch / "model.onnx").write_bytes(model)
        self.port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KEYSIDE_"))}
        environment = {
            **kept, "PYTHONPATH": str(SERVERS), "BENCH_MODEL": str(scratch / "model.onnx"), **self.environment()
        }  # fmt: skip
        command = self.command(self.home / "bin/python", scratch)
        with (scratch / "log").open("wb") as log:
            # A session of its own, so that a Ctrl-C meant for us lets us stop it in order.
            self._process = subprocess.Popen(
                command, env=environment, cwd=scratch, stdout=log, stderr=log, start_new_session=True
            )
        atexit.register(self.stop)
        self._await(scratch / "log")
        time.sleep(self.settle_s)
        return self.port

    def _await(self, log: Path) -> None:
        assert self._process is not None
        before, after = self.around(bytes(30 * 4))
        sample = before + self.encode(bytes(REFERENCE_BYTES)) + after
        end = time.monotonic() + self.start_s
        said = "no answer in time"
        while time.monotonic() < end and self._process.poll() is None:
            try:
                http = _Http(self)
                try:
                    http.send(sample)
                    assert self.read(http.wait()).shape == (2,)
                finally:
                    http.close()
            except (OSError, Absent) as error:
                said = str(error)
                time.sleep(0.1)
            else:
                return
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        self.stop()
        raise Absent(f"does not start: {said}; {lines[-1][:300] if lines else 'it says nothing'}")

    def stop(self) -> None:
        """End it with all its processes."""
        atexit.unregister(self.stop)
        if self._process is not None:
            stop_tree(self._process, self.stop_s)
            self._process = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    # --- requests

    def callers(self, url: str, fraud: Fraud, count: int, *, blocking: bool = False) -> list["HttpCaller"]:
        """Return clients."""
        if self._requests is None:
            transactions = [fraud.arrays(n)[0].tobytes() for n in range(REFERENCES)]
            gets = prepare(lambda n: [["GET", Fraud.key(n)]], REFERENCES)
            self._requests = gets, [self.around(transaction) for transaction in transactions]
        return [HttpCaller(url, self, *self._requests, blocking=blocking) for _ in range(count)]


class _Http:
    """A connection to a peer.

    Args:
        peer: the peer.
        blocking: whether it is waited on.
    """

    __slots__ = ("_body", "_data", "_head", "_name", "_whole", "socket")

    def __init__(self, peer: Peer, *, blocking: bool = True) -> None:
        self.socket = _connect(peer.port)
        if not blocking:
            self.socket.setblocking(False)
        self._name = peer.name
        self._data = b""
        # Nearly all answers are as long as the one before; then there is no header to be searched for.
        self._head, self._whole = 0, -1

    def send(self, request: bytes) -> None:
        """Send a request."""
        if self.socket.send(request) != len(request):
            raise BlockingIOError(f"{self._name} does not take a request at once")

    def ready(self) -> Any:
        """Take what has come; return the body of the answer, or NOT_READY."""
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionResetError(f"{self._name} closed a connection")
        if self._data:
            data = self._data + data
        head = self._head
        if len(data) != self._whole or data[head - 4 : head] != b"\r\n\r\n" or data[9:12] != b"200":
            found = _measure(data)
            if found is None or len(data) < found[1]:
                self._data = data
                return NOT_READY
            head, self._whole = found
            self._head = head
        self._data = b""
        return data[head:]

    def wait(self) -> bytes:
        """Return the body of the answer."""
        while (body := self.ready()) is NOT_READY:
            pass
        return bytes(body)

    def close(self) -> None:
        """Close it."""
        self.socket.close()


class HttpCaller(Caller):
    """A client that GETs the reference from Redis, and then POSTs.

    Args:
        url: the server that has the references.
        peer: the peer.
        gets: the requests for them.
        around: what the POSTs have before and after them.
        blocking: for `call`.
    """

    __slots__ = ("_around", "_encode", "_get", "_http", "_http_fd")

    def __init__(
        self, url: str, peer: Peer, gets: Prepared, around: list[tuple[bytes, bytes]], *, blocking: bool
    ) -> None:
        super().__init__()
        self._get = RedisCaller(url, gets, blocking=blocking)
        self._http = _Http(peer, blocking=blocking)
        self._http_fd = self._http.socket.fileno()
        self._around = around
        self._encode = peer.encode

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """To Redis and to the peer."""
        return (*self._get.sockets, self._http.socket)

    def begin(self, number: int) -> None:
        """Send the GET."""
        self.number = number
        self._get.begin(number)

    def ready(self, fd: int) -> Any:
        """Send the POST once the reference is there; return the body of its answer."""
        if fd == self._http_fd:
            return self._http.ready()
        reference = self._get.ready()
        if reference is not NOT_READY:
            self._post(reference)
        return NOT_READY

    def _post(self, reference: bytes) -> None:
        before, after = self._around[self.number % REFERENCES]
        self._http.send(before + self._encode(reference[HEADER:]) + after)

    def call(self, number: int) -> Any:
        """See `Caller.call`."""
        self.number = number
        self._post(self._get.call(number))
        return self._http.wait()

    def close(self) -> None:
        """Close both connections."""
        self._get.close()
        self._http.close()


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=5.0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit_send(sock, PATIENCE_S)
    limit_receive(sock, PATIENCE_S)
    return sock


def _measure(data: bytes) -> tuple[int, int] | None:
    """Return where the body of an answer begins and where it ends, or None while its head is not all there."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return None
    length = _LENGTH.search(data, 0, head)
    if length is None:
        raise Absent(f"its answers have no Content-Length: {data[:200]!r}")
    if data[9:12] != b"200":
        raise Absent(f"it answers {data[:300]!r}")
    return head + 4, head + 4 + int(length[1])
