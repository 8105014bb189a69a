"""Where the server is and how to log in there; redis-py makes the connections, and their sockets are then ours."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyside.clients.address import parse_address
from keyside.tensorstore.errors import BadArg, KeysideError, NoPerm, Unreachable, from_reply
from keyside.tensorstore.sockets import tls_problem

__all__ = ["Endpoint", "NotConnected"]

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


def _tls_of(pool: Any) -> dict[str, Any]:
    return {name: value for name, value in pool.connection_kwargs.items() if name.startswith("ssl_")}


def _only_blocking(name: str, value: object) -> bool:
    return not value and name.startswith(_BLOCKING_ONLY)


def _carried(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in settings.items()
        if value is not None and (name in _CARRIED or (name.startswith("ssl_") and not _only_blocking(name, value)))
    }


class NotConnected(Unreachable):
    """There is no connection: what was to be sent has surely not been."""


class Endpoint:
    """One server.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
            Several hosts of a cluster, as in `redis://h1:6379,h2:6379`; or sentinels and what they call the server,
            `redis+sentinel://h1:26379,h2:26379/mymaster`.
        options: further settings for redis-py's `ConnectionPool.from_url`; what the URL says goes before them.
            `sentinel_username` and `sentinel_password` are for the sentinels.

    Raises:
        BadArg: the URL is none of these, or a setting is unknown.

    Attributes:
        seeds: further nodes of the same cluster, host and port.
        sentinels: who knows where the server is; none: it is where the URL says.
        service: what they call it.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        url, hosts, self.service = parse_address(url)
        options = dict(options)
        login = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        try:
            pool = redis.ConnectionPool.from_url(url, **options)
            twin = redis.asyncio.ConnectionPool.from_url(url, **options)
        except (ValueError, TypeError, redis.RedisError) as error:
            raise BadArg(f"not the address of a server: {error}") from error
        self._pools = (pool, twin)
        self._tls = issubclass(pool.connection_class, redis.SSLConnection)
        self._named = {*options, *parse_qs(urlsplit(url).query)}
        self.seeds: tuple[tuple[str, int], ...] = () if self.service else hosts[1:]
        self.sentinels: tuple[Endpoint, ...] = ()
        if self.service:
            known = {name: value for name, value in login.items() if value is not None}
            first = Endpoint(url.partition("?")[0].partition("://")[0] + "://", {**_tls_of(pool), **known})
            self.sentinels = tuple(first.at(*host) for host in hosts)
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
        """Take server, user and TLS settings of a redis-py client, blocking or asyncio, also one of a cluster.

        Raises:
            BadArg: it is no such client.
        """
        nodes = getattr(client, "startup_nodes", None)
        if nodes:
            return cls._from_cluster(client, nodes)
        pool = getattr(client, "connection_pool", None)
        settings = getattr(pool, "connection_kwargs", None)
        if settings is None:
            raise BadArg(
                f"a redis.Redis, redis.RedisCluster, or an asyncio one, is needed, not {type(client).__name__}"
            )
        options = _carried(settings)
        tls = "SSL" in getattr(pool, "connection_class", type(None)).__name__
        scheme = "unix" if "path" in options else "rediss" if tls else "redis"
        return cls(f"{scheme}://", options)

    @classmethod
    def _from_cluster(cls, client: Any, nodes: Any) -> "Endpoint":
        known = getattr(client, "nodes_manager", None)
        settings = dict(getattr(known, "connection_kwargs", None) or getattr(client, "connection_kwargs", {}))
        tls = bool(settings.pop("ssl", False)) or "SSL" in getattr(settings.get("connection_class"), "__name__", "")
        for name in ("host", "port", "path"):
            settings.pop(name, None)
        listed = list(nodes.values()) if isinstance(nodes, Mapping) else list(nodes)
        hosts = [(str(node.host), int(node.port)) for node in listed]
        made = cls("rediss://" if tls else "redis://", {**_carried(settings), "host": hosts[0][0], "port": hosts[0][1]})
        made.seeds = tuple(hosts[1:])
        return made

    def at(self, host: str, port: int) -> "Endpoint":
        """Return another server, where user, database and TLS settings are the same."""
        settings = self._pools[0].connection_kwargs
        carried = {
            name: value
            for name, value in settings.items()
            if name in self._named or name in _CARRIED or name.startswith("ssl_")
        }
        for name in ("path", "socket_type", "socket_timeout"):
            carried.pop(name, None)
        carried.update(host=host, port=port)
        return Endpoint("rediss://" if self._tls else "redis://", carried)

    @property
    def host(self) -> str:
        """Its name; that of this machine for a unix socket."""
        return str(self._pools[0].connection_kwargs.get("host") or "localhost")

    @property
    def database(self) -> int:
        """Number of the database."""
        return int(self._pools[0].connection_kwargs.get("db") or 0)

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
        except TypeError as error:
            raise self._failed(error) from error
        try:
            await connection.connect()
        except (redis.RedisError, OSError, TypeError) as error:
            raise self._failed(error) from error
        except BaseException:
            # redis-py leaves a connection open whose handshake was cancelled.
            with contextlib.suppress(redis.RedisError, OSError):
                await connection.disconnect(nowait=True)
            raise
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
        return NotConnected(f"cannot connect to {self}: {f'{problem} ({error})' if problem else error}")
