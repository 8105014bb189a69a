"""`keyside install`: the function library onto a server."""

import contextlib
from typing import TYPE_CHECKING

import click

from keyside.clients.cli.common import State, common, redacted, say
from keyside.tensorstore.errors import Unreachable

if TYPE_CHECKING:
    import redis

__all__ = ["install", "install_all", "primaries"]

_SAID = {
    "loaded": "function library {version} loaded",
    "upgraded": "function library {version} loaded over another",
    "replaced": "function library {version} loaded again",
    "present": "function library {version} is there already",
    "newer": "the server has a newer function library, which stays: upgrade keyside here, or use --force",
}


@click.command()
@click.option("--force", is_flag=True, help="Load this version also over the same or a newer one.")
@click.option(
    "--sign", is_flag=True, help="Sign jobs from now on, so that executors run none that was written by hand."
)
@click.option("--new-secret", is_flag=True, help="Sign with a new secret, should the one before be known.")
@common
def install(state: State, force: bool, sign: bool, new_secret: bool) -> None:
    """Load the function library into a server, or into every primary of a cluster.

    An older library is replaced, a newer one is left as it is. An executor does the same when it starts. If jobs
    were signed before, they still are, with the same secret.
    """
    from keyside.tensorstore import library

    done = install_all(state.server_url(), force=force, sign=sign, new_secret=new_secret)
    for name, result in done:
        say(f"{name}: {_SAID[result].format(version=library.LIBRARY_VERSION)}")
    servers = [{"server": name, "result": result} for name, result in done]
    state.emit({"version": library.LIBRARY_VERSION, "digest": library.digest(), "servers": servers}, "")


def install_all(
    url: str, *, force: bool = False, sign: bool = False, new_secret: bool = False
) -> list[tuple[str, str]]:
    """Load the function library into a server, or into every primary of a cluster, all with the same secret.

    Returns:
        Name of each server, and what was done there.

    Raises:
        KeysideError: A server refuses or is gone.
    """
    from keyside.clients.admin import ensure_library, new_seal, read_seal

    servers = primaries(url)
    with contextlib.ExitStack() as stack:
        for _, client in servers:
            stack.enter_context(client)
        # What moves from node to node must be believed there too.
        seals = []
        for _, client in () if new_secret else servers:
            with contextlib.suppress(Unreachable):  # that is said below, once the others have the library
                seals += [found] if (found := read_seal(client)) else []
        seal = max(seals, key=lambda one: one.since_ms, default=None)
        if seal is None and (sign or new_secret):
            seal = new_seal(servers[0][1])
        return [(name, ensure_library(client, force=force, seal=seal)) for name, client in servers]


def primaries(url: str) -> "list[tuple[str, redis.Redis]]":
    """Clients of the servers that functions have to be loaded into, with their names."""
    from keyside.clients.admin import connect
    from keyside.clients.cli.nodes import answers, client_of, read_nodes, takes_writes

    with connect(url) as client:
        nodes = read_nodes(client)
        if not nodes[0].id:
            return [(redacted(url), connect(url))]
        wanted = [(node, client_of(client, node)) for node in nodes if node.primary]
    # One without slots may get some soon; or it is down and was replaced; or it is a replica since a moment ago.
    found = [(node.address, client) for node, client in wanted if node.slots or takes_writes(client)]
    return sorted(found, key=lambda one: not answers(one[1]))  # what does not answer shall not keep it from the others
