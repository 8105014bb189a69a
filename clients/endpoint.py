"""Where the server is and how to log in there; redis-py makes the connections, and their sockets are then ours."""

import os
from collections.abc import Mapping
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyside.tensorstore.errors import BadArg, KeysideError, NoPerm, Unreachable, from_reply
from keyside.tensorstore.sockets import tls_problem

__all__ = ["Endpoint"]

# What of a redis-py client's settings says where the server is and who calls. The rest, such as how it decodes
# replies or retries, is that client's own business.
_CARRIED = frozenset(
    {"host", "port", "db", "username", "password", "credential_provider", "path", "client_name", "socket_type"}
    | {"socket_connect_timeout", "socket_keepalive", "socket_keepalive_options"}
)
# Of redis-py's SSL settings, asyncio connections have none of these.
_BLOCKING_ONLY = ("ssl_validate_ocsp", "ssl_ocsp_")
_CONNECT_S = 5.0
_HANDSHAKE_S = 10.0


def _only_blocking(name: str, value: object) -> bool:
    return not value and name.startswith(_BLOCKING_ONLY)


class Endpoint:
    """One server.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        options: further settings for redis-py's `ConnectionPool.from_url`; what the URL says goes before them.

    Raises:
        BadArg: the URL is none of these, or a setting is unknown.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        try:
            pool = redis.ConnectionPool.from_url(url, **options)
            twin = redis.asyncio.ConnectionPool.from_url(url, **options)
        except (ValueError, TypeError, redis.RedisError) as error:
            raise BadArg(f"not the address of a server: {error}") from error
        self._pools = (pool, twin)
        self._tls = issubclass(pool.connection_class, redis.SSLConnection)
        for one in self._pools:
            one.connection_kwargs.update(
                protocol=2,
                decode_responses=False,
                retry=Retry(NoBackoff(), 0),
                retry_on_timeout=False,
                retry_on_error=[],
                health_check_interval=0,
                driver_info=None,
            )

    @classmethod
    def from_environment(cls, url: str | None, options: Mapping[str, Any]) -> "Endpoint":
        """Take the URL given, else `KEYSIDE_URL`, else `REDIS_URL`.

        Raises:
            BadArg: there is none, or it is malformed.
        """
        found = url or os.environ.get("KEYSIDE_URL") or os.environ.get("REDIS_URL")
        if not found:
            raise BadArg(
                "no server given: pass a URL such as 'redis://localhost:6379', or set KEYSIDE_URL or REDIS_URL; "
                "`keyside up` starts a server and says its URL"
            )
        return cls(found, options)

    @classmethod
    def from_redis(cls, client: Any) -> "Endpoint":
        """Take server, user and TLS settings of a redis-py client, blocking or asyncio.

        Raises:
            BadArg: it is no client of a single server.
        """
        pool = getattr(client, "connection_pool", None)
        settings = getattr(pool, "connection_kwargs", None)
        if settings is None:
            raise BadArg(f"a redis.Redis or redis.asyncio.Redis is needed, not {type(client).__name__}")
        options = {
            name: value
            for name, value in settings.items()
            if value is not None and (name in _CARRIED or (name.startswith("ssl_") and not _only_blocking(name, value)))
        }
        tls = "SSL" in getattr(pool, "connection_class", type(None)).__name__
        scheme = "unix" if "path" in options else "rediss" if tls else "redis"
        return cls(f"{scheme}://", options)

    def __str__(self) -> str:
        settings = self._pools[0].connection_kwargs
        if "path" in settings:
            return f"unix://{settings['path']}"
        return f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"

    def connect(self, name: str, patience: float) -> Any:
        """Make a blocking connection, logged in.

        Args:
            name: shown by CLIENT LIST if the settings name no other.
            patience: seconds that the server may take for each step of the handshake.

        Returns:
            redis-py's connection, whose socket the caller takes over.

        Raises:
            Unreachable: the server cannot be reached.
            NoPerm: it refuses this user.
            BadArg: a setting is unknown.
        """
        pool = self._prepared(0, name, patience)
        try:
            # Not the pool's make_connection: it counts all that it ever made, and stops at 100.
            connection = pool.connection_class(**pool.connection_kwargs)
            connection.connect()
        except (redis.RedisError, OSError, TypeError) as error:
            raise self._failed(error) from error
        return connection

    async def connect_async(self, name: str, patience: float) -> Any:
        """Make an asyncio connection, logged in; like `connect`."""
        pool = self._prepared(1, name, patience)
        try:
            connection = pool.connection_class(**pool.connection_kwargs)
            await connection.connect()
        except (redis.RedisError, OSError, TypeError) as error:
            raise self._failed(error) from error
        return connection

    def _prepared(self, which: int, name: str, patience: float) -> Any:
        pool = self._pools[which]
        settings = pool.connection_kwargs
        settings.setdefault("client_name", name)
        settings["socket_timeout"] = min(patience, _HANDSHAKE_S)
        settings["socket_connect_timeout"] = min(settings.get("socket_connect_timeout") or _CONNECT_S, patience)
        return pool

    def _failed(self, error: Exception) -> KeysideError:
        if isinstance(error, TypeError):
            return BadArg(f"a setting of the connection is unknown: {error}")
        if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError):
            return NoPerm(f"{self}: {error}")
        if isinstance(error, redis.ResponseError):
            return from_reply(str(error))
        settings = self._pools[0].connection_kwargs
        problem, _ = tls_problem(error, tls=self._tls, certificate=bool(settings.get("ssl_certfile")))
        return Unreachable(f"cannot connect to {self}: {f'{problem} ({error})' if problem else error}")
