"""What operators do to a server, over redis-py: look whether it has the function library, and load it."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyside.tensorstore import library
from keyside.tensorstore.errors import BadArg, LibraryMissing, ServerError, Unreachable, from_reply
from keyside.tensorstore.seals import Seal
from keyside.tensorstore.sockets import tls_problem

__all__ = [
    "command", "connect", "connect_cluster", "ensure_library", "installed_version", "new_seal", "read_seal",
    "translated",
]  # fmt: skip


def connect(url: str, **options: Any) -> redis.Redis:
    """Return a plain client of a server, for a few commands.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        **options: Options of redis-py that shall differ.

    Raises:
        BadArg: The address is malformed.
    """
    try:
        return redis.Redis.from_url(url, **{**_options(), **options})
    except (ValueError, TypeError) as error:
        # The text of some of these has the address in it, and the address may have a password.
        raise BadArg("the address of the server must be redis://, rediss:// or unix:// and well-formed") from error


def connect_cluster(url: str, *, replicas: bool = False) -> dict[str, redis.Redis]:
    """Return plain clients of the primaries of a cluster, or of all its nodes, by address.

    Raises:
        KeysideError: The cluster cannot be reached.
    """
    try:
        cluster = redis.RedisCluster.from_url(url, **_options())
        nodes = cluster.get_nodes() if replicas else cluster.get_primaries()  # type: ignore[no-untyped-call]
    except redis.RedisError as error:
        raise Unreachable(f"cannot reach the cluster: {' '.join(str(error).split())}") from error
    return {node.name: cluster.get_redis_connection(node) for node in nodes}


def _options() -> dict[str, Any]:
    return {
        "protocol": 2,
        "socket_timeout": 20.0,
        "socket_connect_timeout": 5.0,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "keyside-admin",
    }


def command(client: redis.Redis, *args: Any) -> Any:
    """Send one command.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    with translated(client):
        return client.execute_command(*args)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def translated(client: redis.Redis | None = None) -> Iterator[None]:
    """Raise errors of redis-py as those of Keyside.

    Args:
        client: Which raises them, for what is to be said of its settings.

    Raises:
        KeysideError: An error of redis-py was raised inside.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        code = getattr(error, "status_code", None)
        if code:
            raise from_reply(f"{code} {error}") from error
        pool: Any = client.connection_pool if client else None
        tls = pool is not None and issubclass(pool.connection_class, redis.SSLConnection)
        certificate = tls and bool(pool.connection_kwargs.get("ssl_certfile"))
        problem, _ = tls_problem(error, tls=tls, certificate=certificate)
        text = " ".join(str(error).split())
        raise Unreachable(f"cannot reach the server: {f'{problem} ({text})' if problem else text}") from error
    except redis.RedisError as error:
        raise from_reply(_reply_text(error)) from error


def _reply_text(error: redis.RedisError) -> str:
    """The error reply, of which redis-py takes the first word away where it knows it."""
    text = " ".join(str(error).split())
    code = getattr(error, "status_code", None)
    if code:
        return f"{code} {text}"
    return text if re.match(r"[A-Z][A-Z0-9_]+( |$)", text) else f"ERR {text}"


def read_seal(client: redis.Redis) -> Seal | None:
    """Return what the library on the server signs entries with; None if it does not, or there is no library.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    for one in command(client, "FUNCTION", "LIST", "LIBRARYNAME", library.LIBRARY_NAME, "WITHCODE"):
        text = dict(zip(map(_text, one[::2]), one[1::2], strict=True))["library_code"]
        return library.seal_of(_text(text))
    return None


def new_seal(client: redis.Redis) -> Seal:
    """Make something to sign entries with, from now on.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    seconds, micros = command(client, "TIME")
    return Seal.new(int(seconds) * 1000 + int(micros) // 1000)


def ensure_library(client: redis.Redis, *, force: bool = False, seal: Seal | None = None) -> str:
    """Load the function library unless the server has this one or a newer one.

    Args:
        client: A client of the server, or of one primary of a cluster.
        force: Load it in any case, also over a newer one.
        seal: What it is to sign entries with; None: with what the one before did, if that did.

    Returns:
        What was done: `loaded`, `upgraded`, `replaced` (by force or for the seal), `present` or `newer`.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    found = installed_version(client)
    kept = read_seal(client) if found is not None else None
    replaced = seal is not None and seal != kept
    if found is not None and not force:
        if found[0] > library.LIBRARY_VERSION:
            return "newer"
        if found == (library.LIBRARY_VERSION, library.digest()) and not replaced:
            return "present"
    command(client, "FUNCTION", "LOAD", "REPLACE", library.source(seal or kept))
    now = installed_version(client)
    if now != (library.LIBRARY_VERSION, library.digest()):
        raise ServerError("the server took the function library, but does not run it")
    if found is None:
        return "loaded"
    return "upgraded" if found[0] < library.LIBRARY_VERSION or not (force or replaced) else "replaced"


def installed_version(client: redis.Redis) -> tuple[int, str] | None:
    """Return number and digest of the library on the server; None if there is none.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    try:
        number, digest = command(client, "FCALL_RO", "KS_VERSION", 0)
    except LibraryMissing:
        return None
    return int(number), _text(digest)


def _text(raw: Any) -> str:
    return raw if isinstance(raw, str) else bytes(raw).decode("utf-8", "replace")
