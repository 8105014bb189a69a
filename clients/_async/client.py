"""The client: where it connects to, and its end."""

from typing import Any, Self

from keyside.clients._async.graphs import AsyncGraphs
from keyside.clients._async.inference import AsyncInference
from keyside.clients._async.models import AsyncModels
from keyside.clients._async.scripts import AsyncScripts
from keyside.clients._async.tensors import AsyncTensors
from keyside.clients._async.triggers import AsyncTriggers
from keyside.clients._async.waiting import AsyncWaiting
from keyside.clients.endpoint import Endpoint
from keyside.clients.transport_async import AsyncTransport

__all__ = ["AsyncClient"]


class AsyncClient(AsyncTensors, AsyncScripts, AsyncGraphs, AsyncModels, AsyncInference, AsyncTriggers, AsyncWaiting):
    """Tensors, models and inference on a Redis or Valkey server, or on a cluster of them.

    Nothing is sent before the first call. Close it, or use it as a context manager.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`, with user, password and database as redis-py takes them;
            None: `KEYSIDE_URL`, else `REDIS_URL`. Of a cluster any node, or several, `redis://h1:6379,h2:6379`: which
            nodes there are they say themselves. Where sentinels know the primary,
            `redis+sentinel://h1:26379,h2:26379/mymaster`.
        timeout: seconds until the deadline of a request that names none.
        idle_timeout: seconds without a byte from the server after which a connection counts as lost.
        client_name: shown by CLIENT LIST.
        options: further settings of the connections, as for redis-py: `username`, `password`, `db`, `ssl_ca_certs`,
            ...; for all nodes. `sentinel_username` and `sentinel_password` are for sentinels.

    Raises:
        BadArg: there is no URL, or it is malformed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = 30.0,
        idle_timeout: float = 20.0,
        client_name: str | None = None,
        **options: Any,
    ) -> None:
        if client_name is not None:
            options["client_name"] = client_name
        self._begin(Endpoint.from_environment(url, options), timeout, idle_timeout)

    def _begin(self, endpoint: Endpoint, timeout: float, idle_timeout: float) -> None:
        AsyncInference.__init__(self, AsyncTransport(endpoint, idle_timeout), timeout)

    @classmethod
    def from_redis(cls, client: Any, *, timeout: float = 30.0, idle_timeout: float = 20.0) -> Self:
        """Make a client of the server, user, database and TLS settings of a redis-py client, blocking or asyncio.

        Args:
            client: a `redis.Redis`, a `redis.RedisCluster`, or one of the same name in `redis.asyncio`; its own
                connections are not used.
            timeout: see the class.
            idle_timeout: see the class.

        Raises:
            BadArg: it is no such client.
        """
        made = cls.__new__(cls)
        made._begin(Endpoint.from_redis(client), timeout, idle_timeout)  # noqa: SLF001  # it is of this class
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport.endpoint}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; requests still in flight fail."""
        await self._transport.close()

    async def ping(self) -> int:
        """See that the server answers.

        Returns:
            The version of its function library.

        Raises:
            Unreachable: it does not answer.
            LibraryMissing: it has no function library. Likewise LibraryTooOld.
        """
        self._library = 0
        await self._functions()
        return self._library
