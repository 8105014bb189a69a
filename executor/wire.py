"""A blocking connection to the server: several commands in one write, large values without copies.

redis-py makes the connection (URL forms, TLS, ACL users, database); after that the socket is ours, since one write per
batch and replies that are received in place are what the hot path is made of.
"""

import contextlib
import socket
from collections.abc import Sequence
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyside.tensorstore.errors import KeysideError, Unreachable, from_reply
from keyside.tensorstore.resp import NOT_READY, Argument, ReplyReader, encode_many
from keyside.tensorstore.sockets import limit_receive, limit_send

__all__ = ["Wire"]

Command = Sequence[Argument]


class Wire:
    """One connection, for one thread.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        name: shown by CLIENT LIST.
        timeout: seconds without any byte after which the server counts as gone; None waits for ever.
    """

    def __init__(self, url: str, *, name: str, timeout: float | None = 20.0) -> None:
        self._pool = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            client_name=name,
            socket_timeout=10.0,
            socket_connect_timeout=5.0,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
        self._timeout = timeout
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._reader = ReplyReader()
        self.client_id = 0

    def connect(self) -> None:
        """Connect, or connect again.

        Raises:
            Unreachable: the server cannot be reached or refuses.
        """
        self.close()
        connection: Any = self._pool.make_connection()
        try:
            connection.connect()
        except (redis.RedisError, OSError) as error:
            raise Unreachable(f"cannot connect to the server: {error}") from error
        self._connection = connection
        self._socket = connection._sock  # noqa: SLF001  # redis-py hands out no socket
        limit_send(self._socket, self._timeout)
        limit_receive(self._socket, self._timeout)
        self._reader = ReplyReader()
        self.client_id = int(self.call("CLIENT", "ID"))

    @property
    def connected(self) -> bool:
        """Whether the connection was made and has not failed since."""
        return self._socket is not None

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands in one write; `read` gives one reply for each.

        Raises:
            Unreachable: the connection is gone.
        """
        sock = self._socket
        if sock is None:
            raise Unreachable("not connected")
        try:
            for piece in encode_many(commands):
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
                count = sock.recv_into(reader.get_buffer())
                if not count:
                    raise ConnectionResetError("the server closed the connection")
                reader.buffer_updated(count)
        except (OSError, hiredis.ProtocolError) as error:
            self._lost(error)
        return reply

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
