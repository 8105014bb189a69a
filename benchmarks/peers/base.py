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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from drivers import RedisCaller
from numpy.typing import NDArray
from processes import cpu_seconds, rss_mb, stop_tree
from rig import ROOT, free_port
from scenario import REFERENCES, Fraud

from keyside.executor.wire import Wire
from keyside.tensorstore.resp import NOT_READY

__all__ = ["SERVERS", "Absent", "HttpCaller", "Peer"]

HOME = ROOT / ".cache/peers"
SERVERS = Path(__file__).resolve().parent / "servers"
INSTALL_S = 900.0
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
        self._one: tuple[Wire, _Http] | None = None
        self._redis_url = ""
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
    def request(self, transaction: bytes, reference: bytes) -> bytes:
        """Return a whole request; both tensors are little-endian float32."""

    def read(self, body: bytes) -> NDArray[np.float32]:
        """Return the probabilities that the body of an answer has."""
        return np.frombuffer(body, np.float32)

    def post(self, path: str, body: bytes, headers: str = "Content-Type: application/octet-stream") -> bytes:
        """Return a POST."""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

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

    def start(self, redis_url: str, model: bytes) -> int:
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
        self._redis_url = redis_url
        self._await(scratch / "log")
        time.sleep(self.settle_s)
        return self.port

    def _await(self, log: Path) -> None:
        assert self._process is not None
        sample = self.request(bytes(30 * 4), bytes(256 * 4))
        end = time.monotonic() + self.start_s
        said = "no answer in time"
        while time.monotonic() < end and self._process.poll() is None:
            try:
                http = _Http(self.port)
                try:
                    assert self.read(http.call(sample)).shape == (2,)
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
        self._hang_up()
        if self._process is not None:
            stop_tree(self._process, self.stop_s)
            self._process = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    # --- requests

    def one(self, fraud: Fraud) -> Callable[[int], bytes]:
        """Return what makes request i over kept connections and returns the body of its answer."""
        self._hang_up()
        wire, http = self._one = (Wire(self._redis_url, name="bench"), _Http(self.port))
        wire.connect()
        transactions = [fraud.arrays(i)[0].tobytes() for i in range(REFERENCES)]

        def call(i: int) -> bytes:
            n = i % REFERENCES
            reference = wire.call(b"GET", Fraud.key(n))
            return http.call(self.request(transactions[n], reference[HEADER:]))

        return call

    def callers(self, fraud: Fraud, count: int) -> list["HttpCaller"]:
        """Return clients for a load."""
        return [HttpCaller(self._redis_url, self, fraud) for _ in range(count)]

    def _hang_up(self) -> None:
        if self._one is not None:
            for connection in self._one:
                connection.close()
            self._one = None


class _Http:
    """A connection that blocks."""

    def __init__(self, port: int) -> None:
        self._socket = _connect(port)
        self._socket.settimeout(20.0)

    def call(self, request: bytes) -> bytes:
        """Send a request and return the body of its answer."""
        self._socket.sendall(request)
        data = b""
        while True:
            more = self._socket.recv(65_536)
            if not more:
                raise ConnectionResetError("it closed the connection")
            data += more
            body = _body(data)
            if body is not None:
                return body

    def close(self) -> None:
        self._socket.close()


class HttpCaller:
    """A client that GETs the reference from Redis, and then POSTs; see `measure.Caller`."""

    def __init__(self, redis_url: str, peer: Peer, fraud: Fraud) -> None:
        self._peer = peer
        self._fraud = fraud
        self._get = RedisCaller(redis_url, lambda i: [["GET", Fraud.key(i % REFERENCES)]])
        self._http = _connect(peer.port)
        self._http.setblocking(False)
        self._number = 0
        self._data = b""

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """To Redis and to the peer."""
        return (*self._get.sockets, self._http)

    def begin(self, number: int) -> None:
        """Send the GET."""
        self._number = number
        self._get.begin(number)

    def ready(self, sock: socket.socket) -> Any:
        """Send the POST once the reference is there; return the body of its answer."""
        if sock is not self._http:
            reference = self._get.ready(sock)
            if reference is not NOT_READY:
                transaction = self._fraud.arrays(self._number % REFERENCES)[0]
                data = self._peer.request(transaction.tobytes(), reference[HEADER:])
                assert self._http.send(data) == len(data)
            return NOT_READY
        more = sock.recv(65_536)
        assert more, f"{self._peer.name} closed a connection"
        self._data += more
        body = _body(self._data)
        if body is None:
            return NOT_READY
        self._data = b""
        return body

    def close(self) -> None:
        """Close both connections."""
        self._get.close()
        self._http.close()


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=5.0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _body(data: bytes) -> bytes | None:
    """Return the body of an answer, or None while it is not all there."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return None
    length = _LENGTH.search(data, 0, head)
    if length is None:
        raise Absent(f"its answers have no Content-Length: {data[:200]!r}")
    end = head + 4 + int(length[1])
    if len(data) < end:
        return None
    if data[9:12] != b"200":
        raise Absent(f"it answers {data[:300]!r}")
    return data[head + 4 : end]
