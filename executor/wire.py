"""A blocking connection to the server: several commands in one write, large values without copies.

redis-py makes the connection (URL forms, TLS, ACL users, database); after that the socket is ours, since one write per
batch and replies that are received in place are what the hot path is made of.
"""

import contextlib
import os
import select
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyside.tensorstore.errors import BadArg, KeysideError, NoPerm, Unreachable, from_reply
from keyside.tensorstore.resp import BIG_ARGUMENT, NOT_READY, Argument, ReplyReader, encode_many
from keyside.tensorstore.sockets import limit_receive, limit_send, tls_problem

__all__ = ["Wire"]

Command = Sequence[Argument]

LUCK_MAX = 8


class Wire:
    """One connection, for one thread.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        name: shown by CLIENT LIST.
        timeout: seconds without any byte after which the server counts as gone; None waits for ever.
        connect_s: seconds for the connection to be made.

    Attributes:
        host: of the server; empty for a unix socket.
        database: its number.
        client_id: as CLIENT ID says.
        spin_s: how long a read may look for bytes again and again before it sleeps; 0: it sleeps at once. It only does
            so while bytes have lately come within that time: then it spares the wake-up, which takes longer than most
            runs of small models, and the core would have been idle.
    """

    def __init__(self, url: str, *, name: str, timeout: float | None = 20.0, connect_s: float = 5.0) -> None:
        self._pool = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            client_name=name,
            socket_timeout=2 * connect_s,
            socket_connect_timeout=connect_s,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
        self._timeout = timeout
        self.host = str(self._pool.connection_kwargs.get("host", ""))
        self.database = int(self._pool.connection_kwargs.get("db") or 0)
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._reader = ReplyReader()
        self._scratch = self._reader.get_buffer()
        self.client_id = 0
        self.spin_s = 0.0
        self._luck = 0
        self._plain = True  # TLS has no receive that does not wait

    def connect(self) -> None:
        """Connect, or connect again.

        Raises:
            Unreachable: the server cannot be reached or refuses.
            NoPerm: it refuses this user.
            BadArg: the settings of TLS do not fit.
        """
        self.close()
        # Not the pool's make_connection: it counts all that it ever made, and stops at 100.
        connection: Any = self._pool.connection_class(**self._pool.connection_kwargs)
        try:
            connection.connect()
        except redis.AuthenticationError as error:
            raise NoPerm(f"the server refuses this user: {error}") from error
        except (redis.RedisError, OSError) as error:
            settings = self._pool.connection_kwargs
            tls = issubclass(self._pool.connection_class, redis.SSLConnection)
            problem, sure = tls_problem(error, tls=tls, certificate=bool(settings.get("ssl_certfile")))
            text = f"{problem} ({error})" if problem else f"{error}"
            raise (BadArg if sure else Unreachable)(f"cannot connect to the server: {text}") from error
        self._connection = connection
        self._socket = connection._sock  # noqa: SLF001  # redis-py hands out no socket
        self._plain = not isinstance(self._socket, ssl.SSLSocket)
        limit_send(self._socket, self._timeout)
        limit_receive(self._socket, self._timeout)
        self._reader = ReplyReader()
        self._scratch = self._reader.get_buffer()
        self.client_id = int(self.call("CLIENT", "ID"))

    @property
    def connected(self) -> bool:
        """Whether the connection was made and has not failed since."""
        return self._socket is not None

    def send(self, commands: Sequence[Command], encoded: bytes = b"") -> None:
        """Send commands in one write; `read` gives one reply for each.

        Args:
            commands: to be encoded.
            encoded: more of them, behind those, encoded already.

        Raises:
            Unreachable: the connection is gone.
        """
        sock = self._socket
        if sock is None:
            raise Unreachable("not connected")
        pieces = encode_many(commands)
        if encoded:
            if pieces and len(pieces[-1]) < BIG_ARGUMENT:
                encoded = b"".join((pieces.pop(), encoded))
            pieces.append(encoded)
        try:
            for piece in pieces:
                sock.sendall(piece)
        except OSError as error:
            self._lost(error)

    def read(self) -> Any:
        """Return the next reply; an error reply comes as a `hiredis.ReplyError`, not raised.

        Raises:
            Unreachable: the connection is gone.
        """
        reader, sock = self._reader, self._socket
        if sock is None:
            raise Unreachable("not connected")
        try:
            while (reply := reader.gets()) is NOT_READY:
                count = self._receive(sock, reader.get_buffer())
                if not count:
                    raise ConnectionResetError("the server closed the connection")
                reader.buffer_updated(count)
        except (OSError, hiredis.ProtocolError) as error:
            self._lost(error)
        return reply

    def read_small(self) -> Any:
        """Like `read`, in as little code as it takes, for replies that are no large bulk string."""
        reader, sock = self._reader, self._socket
        if sock is None or not reader.idle:
            return self.read()
        try:
            while True:
                count = self._receive(sock, self._scratch)
                if not count:
                    raise ConnectionResetError("the server closed the connection")
                reply = reader.receive(count)
                if reply is not NOT_READY:
                    return reply
        except (OSError, hiredis.ProtocolError) as error:
            self._lost(error)

    def poll(self, seconds: float) -> Any:
        """Return the next reply, or NOT_READY if none comes in time: for connections that are told things.

        Raises:
            Unreachable: the connection is gone.
        """
        reader, sock = self._reader, self._socket
        if sock is None:
            raise Unreachable("not connected")
        end = time.monotonic() + seconds
        try:
            while (reply := reader.gets()) is NOT_READY:
                pending = isinstance(sock, ssl.SSLSocket) and sock.pending()
                if not pending and not _readable(sock, end - time.monotonic()):
                    return NOT_READY
                count = sock.recv_into(reader.get_buffer())
                if not count:
                    raise ConnectionResetError("the server closed the connection")
                reader.buffer_updated(count)
        except (OSError, ValueError, hiredis.ProtocolError) as error:
            self._lost(error)
        return reply

    def fileno(self) -> int:
        """Return the descriptor of the connection, for who waits on several; -1 if there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def beside(self) -> bool:
        """Whether the server is on this host, as far as the connection shows."""
        sock = self._socket
        if sock is None:
            return False
        if sock.family == socket.AF_UNIX:
            return True
        try:
            return bool(sock.getpeername()[0] == sock.getsockname()[0])
        except OSError:
            return False

    def _receive(self, sock: socket.socket, buffer: memoryview) -> int:
        if not self.spin_s or not self._plain:
            return sock.recv_into(buffer)
        clock = time.perf_counter
        began = clock()
        if self._luck > 0:
            end = began + self.spin_s
            while True:
                try:
                    count = sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    # Whoever waits for this core goes first: the server and the client may have no other.
                    os.sched_yield()
                    if clock() > end:
                        break
                else:
                    self._luck = min(self._luck + 1, LUCK_MAX)
                    return count
            self._luck -= 2
            return sock.recv_into(buffer)
        count = sock.recv_into(buffer)
        if clock() - began < self.spin_s:
            self._luck += 1
        return count

    def call(self, *command: Argument) -> Any:
        """Send one command and return its reply.

        Raises:
            KeysideError: an error reply, as its class.
            Unreachable: the connection is gone.
        """
        self.send((command,))
        return checked(self.read())

    def call_many(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return their replies; error replies are among them."""
        self.send(commands)
        return [self.read() for _ in commands]

    def close(self) -> None:
        """Close the connection; `connect` opens it again."""
        connection, self._connection, self._socket = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(redis.RedisError, OSError):
                connection.disconnect()

    def _lost(self, error: Exception) -> None:
        self.close()
        raise Unreachable(f"the connection to the server was lost: {error}") from error


def _readable(sock: socket.socket, seconds: float) -> bool:
    waiter = select.poll()
    waiter.register(sock, select.POLLIN)
    return bool(waiter.poll(max(0.0, seconds) * 1000))


def checked(reply: Any) -> Any:
    """Return a reply, or raise the error that it is.

    Raises:
        KeysideError: it is an error reply.
    """
    if isinstance(reply, hiredis.ReplyError):
        raise as_error(reply)
    return reply


def as_error(reply: Exception) -> KeysideError:
    """Return the error that an error reply stands for."""
    return from_reply(str(reply))
