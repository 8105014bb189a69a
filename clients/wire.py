"""One blocking connection: several commands in one write, large values without copies."""

import contextlib
import re
import select
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

import hiredis
import numpy as np
import redis

from keyside.clients.endpoint import Endpoint
from keyside.clients.request import process
from keyside.tensorstore.command import Command, encode
from keyside.tensorstore.errors import Unreachable, from_reply
from keyside.tensorstore.resp import BIG_REPLY, NOT_READY, Piece, ReplyReader
from keyside.tensorstore.sockets import limit_receive, limit_send

__all__ = ["Wire"]

_SLICE = 1 << 20
_FIRST = 8 << 10
_GATHERED = 512
_BIG = re.compile(rb"\$([1-9][0-9]{4,18})\r\n")
_BIG_START = 8  # bytes of the shortest that this matches
_FRESH_S = 1.0


class Wire:
    """A connection, for one thread at a time.

    Args:
        endpoint: the server.
        name: shown by CLIENT LIST.
        idle: seconds without a byte after which the server counts as gone.
        patience: seconds that each step of the handshake may take; None: as many.

    Raises:
        KeysideError: it cannot be made.

    Attributes:
        used: when it was used last, by `time.monotonic`.
        said: what the call of the last `ask` said.
    """

    def __init__(self, endpoint: Endpoint, name: str, idle: float, patience: float | None = None) -> None:
        self._connection = endpoint.connect(name, idle if patience is None else patience)
        self._socket: socket.socket | None = self._connection._sock  # noqa: SLF001  # redis-py hands out no socket
        self._tls = isinstance(self._socket, ssl.SSLSocket)
        # The kernel need not come back before all of a large value is there.
        self._whole = 0 if self._tls else socket.MSG_WAITALL
        self._idle = idle
        self._limit = idle
        self._allowed = idle
        if self._socket is not None:
            limit_send(self._socket, idle)
            limit_receive(self._socket, idle)
        self._reader = ReplyReader()
        self._scratch = self._reader.get_buffer()
        self._first = self._scratch[:_FIRST]
        self.used = time.monotonic()
        self._pid = process.pid
        self.said: Any = None

    @property
    def connected(self) -> bool:
        """Whether it has not been closed here."""
        return self._socket is not None

    @property
    def usable(self) -> bool:
        """Whether it is open, and, after some time unused, has not been closed by the server meanwhile."""
        sock = self._socket
        if sock is None or not self._reader.idle or self._pid != process.pid:
            return False
        if self._tls or time.monotonic() - self.used < _FRESH_S:
            return True
        # Nothing is awaited, so anything to read is the end. (With TLS it may be a ticket for the session.)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return not poll.poll(0)

    @property
    def holds(self) -> bool:
        """Whether more of what the server has said may be here already, where no look at the socket shows it."""
        sock = self._open()
        return self._reader.waiting or (isinstance(sock, ssl.SSLSocket) and sock.pending() > 0)

    def fileno(self) -> int:
        """Return the descriptor of the socket, to wait for something to read.

        Raises:
            Unreachable: it is closed.
        """
        return self._open().fileno()

    def send(self, commands: Sequence[Command[Any]]) -> None:
        """Send commands in one write; `read` gives one reply for each.

        Raises:
            Unreachable: the connection is gone.
        """
        self.write(encode(commands))

    def write(self, pieces: list[Piece]) -> None:
        """Send commands that are encoded already; see `send`."""
        sock = self._open()
        try:
            if len(pieces) == 1 and len(pieces[0]) <= _SLICE:
                sock.sendall(pieces[0])
            elif self._tls:
                _send_slices(sock, pieces)
            else:
                _send_gathered(sock, pieces)
        except OSError as error:
            self._lost(error)

    def read(self, wait: float = 0.0, *, limit: float | None = None) -> Any:
        """Return the next reply as it is; an error reply as the error that it stands for, not raised.

        Args:
            wait: seconds that the server may take on top of what it always may.
            limit: seconds that it may take in all.

        Raises:
            Unreachable: the connection is gone.
        """
        reader = self._reader
        sock = self._open()
        allowed = self._idle + wait if limit is None else limit
        try:
            while (reply := reader.gets()) is NOT_READY:
                large = reader.large
                if large is None:
                    # Not more at a time: what of a large value lies in the scratch has to be copied once more.
                    count = self._receive(sock, reader.get_buffer()[:_FIRST], allowed)
                else:
                    count = self._receive(sock, large, allowed, self._whole)
                reader.buffer_updated(count)
        except (OSError, hiredis.ProtocolError) as error:
            self._lost(error)
        except BaseException:  # the wait was interrupted: whose the next reply is would not be known
            self.close()
            raise
        if isinstance(reply, hiredis.ReplyError):
            return from_reply(str(reply))
        return reply

    def ask(self, data: bytes, wait: float, limit: float | None = None) -> Any:
        """Send a call and a wait for what it sets off, both encoded; return the reply to the wait.

        What the call itself says, which may be an error, is in `said` as soon as it is there. Behind an error the reply
        to the wait has yet to be read.

        Args:
            data: both.
            wait: seconds that the server may take for the second reply on top of what it always may.
            limit: seconds that it always may take, if fewer than usual.

        Raises:
            Unreachable: the connection is gone.
        """
        reader, scratch = self._reader, self._scratch
        self.said = None
        sock = self._open()
        idle = self._idle if limit is None or limit > self._idle else limit
        try:
            sock.sendall(data)
            while (said := reader.receive(self._receive(sock, scratch, idle))) is NOT_READY:
                pass
            if isinstance(said, hiredis.ReplyError):
                self.said = from_reply(str(said))
                return None
            self.said = said
            reply = reader.gets()
            while reply is NOT_READY:
                reply = reader.receive(self._receive(sock, scratch, idle + wait))
        except (OSError, hiredis.ProtocolError) as error:
            self._lost(error)
        except BaseException:
            self.close()
            raise
        return from_reply(str(reply)) if isinstance(reply, hiredis.ReplyError) else reply

    def put(self, head: bytes, data: memoryview, tail: bytes, expected: bytes, count: int) -> list[Any] | None:
        """Send commands, one of which lies in three pieces, in as little code as it takes.

        After so much data nothing of Python is in the processor's caches any more: each further step is paid dearly.

        Args:
            head: what comes before the data.
            data: as it lies.
            tail: what comes behind it.
            expected: the replies if nothing is the matter; no others are shorter.
            count: of the commands.

        Returns:
            None: the replies are as expected. Otherwise what they are.

        Raises:
            Unreachable: the connection is gone.
        """
        sock, first = self._open(), self._first
        got, size = 0, len(expected)
        try:
            if self._tls:
                _send_slices(sock, [head, data, tail])
            else:
                sent = sock.sendmsg((head, data, tail))
                if sent != len(head) + data.nbytes + len(tail):
                    _send_gathered(sock, [head, data, tail], sent)
            while got < size:
                got += self._receive(sock, first[got:size], self._idle, self._whole)
                if not expected.startswith(first[:got].tobytes()):
                    break
            else:
                return None
        except OSError as error:
            self._lost(error)
        except BaseException:
            self.close()
            raise
        self._reader.buffer_updated(got)
        return [self.read() for _ in range(count)]

    def fetch(self, data: bytes) -> Any:
        """Send a command and return its reply, which may be a large bulk string; as `put`.

        Returns:
            The reply; a large bulk string as an array of bytes with two more at its end.

        Raises:
            Unreachable: the connection is gone.
        """
        sock, first = self._open(), self._first
        try:
            sock.sendall(data)
            count = self._receive(sock, first, self._idle)
            found = _BIG.match(first[:count]) if count >= _BIG_START else None
            if found is None or (size := int(found[1])) <= BIG_REPLY:
                self._reader.buffer_updated(count)
                return self.read()
            start = found.end()
            large = np.empty(size + 2, np.uint8)
            view = large.data
            at = count - start
            view[:at] = first[start:count]
            while at < size + 2:
                at += self._receive(sock, view[at:], self._idle, self._whole)
            if view[size:].tobytes() != b"\r\n":
                raise hiredis.ProtocolError("a bulk string does not end in CR LF")
        except (OSError, MemoryError, ValueError, hiredis.ProtocolError) as error:
            self._lost(error)
        except BaseException:
            self.close()
            raise
        return large

    def _receive(self, sock: socket.socket, buffer: memoryview, allowed: float, flags: int = 0) -> int:
        """Receive something, within some seconds.

        The kernel's own limit stays what it is unless it runs out: setting it costs a system call.
        """
        if allowed < self._limit or self._limit < self._idle:
            self._bound(sock, min(allowed, self._idle))
        try:
            count = sock.recv_into(buffer, 0, flags)
        except (TimeoutError, BlockingIOError):
            count = self._receive_late(sock, buffer, allowed)
        if not count:
            raise ConnectionResetError("the server closed the connection")
        return count

    def _receive_late(self, sock: socket.socket, buffer: memoryview, allowed: float) -> int:
        self._allowed = allowed
        left = allowed - self._limit
        while left > 0:
            self._bound(sock, min(left, self._idle))
            try:
                return sock.recv_into(buffer)
            except (TimeoutError, BlockingIOError):
                left -= self._limit
        raise TimeoutError

    def _bound(self, sock: socket.socket, seconds: float) -> None:
        if seconds != self._limit:
            limit_receive(sock, seconds)
            self._limit = seconds

    def close(self) -> None:
        """Close it."""
        connection, self._connection, self._socket = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(redis.RedisError, OSError):
                connection.disconnect()

    def _open(self) -> socket.socket:
        sock = self._socket
        if sock is None:
            raise Unreachable("the connection to the server is closed")
        return sock

    def _lost(self, error: Exception) -> None:
        self.close()
        what = (
            f"nothing came for {self._allowed:g} s" if isinstance(error, TimeoutError | BlockingIOError) else str(error)
        )
        raise Unreachable(f"the connection to the server was lost: {what}") from error


def _send_gathered(sock: socket.socket, pieces: list[Piece], sent: int = 0) -> None:
    """Send buffers as they lie, but for what is sent already, in as few system calls as it takes.

    Each makes progress within the time limit.
    """
    views = [memoryview(piece) for piece in pieces]
    while True:
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if not views:
            return
        views[0] = views[0][sent:]
        sent = sock.sendmsg(views[:_GATHERED])


def _send_slices(sock: socket.socket, pieces: list[Piece]) -> None:
    """Send buffers in slices: the time limit of sendall is for all of what it is given."""
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), _SLICE):
            sock.sendall(view[start : start + _SLICE])
