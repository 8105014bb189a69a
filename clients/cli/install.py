"""`keyside install`: the function library onto a server."""

from typing import TYPE_CHECKING

import click

from keyside.clients.cli.common import State, common, redacted, say
from keyside.tensorstore.errors import Unreachable

if TYPE_CHECKING:
    import redis

__all__ = ["install"]

_SAID = {
    "loaded": "function library {version} loaded",
    "upgraded": "function library {version} loaded over another",
    "replaced": "function library {version} loaded again",
    "present": "function library {version} is there already",
    "newer": "the server has a newer function library, which stays: upgrade keyside here, or use --force",
}


@click.command()
@click.option("--force", is_flag=True, help="Load this version also over the same or a newer one.")
@common
def install(state: State, force: bool) -> None:
    """Load the function library into a server, or into every primary of a cluster.

    An older library is replaced, a newer one is left as it is. An executor does the same when it starts.
    """
    from keyside.clients.admin import ensure_library
    from keyside.tensorstore import library

    url = state.server_url()
    done = []
    failed = []
    for name, client in _primaries(state, redacted(url)):
        try:
            with client:
                result = ensure_library(client, force=force)
        except Unreachable as error:
            if name == redacted(url):
                raise
            failed.append(name)
            say(f"{name}: {error}")
            continue
        done.append({"server": name, "result": result})
        say(f"{name}: {_SAID[result].format(version=library.LIBRARY_VERSION)}")
    state.emit({"version": library.LIBRARY_VERSION, "digest": library.digest(), "servers": done, "failed": failed}, "")
    if failed:
        raise Unreachable(f"not loaded on {', '.join(failed)}: call it again once they answer")


def _primaries(state: State, name: str) -> "list[tuple[str, redis.Redis]]":
    """Clients of the servers that functions have to be loaded into, with their names."""
    from keyside.clients.cli.nodes import client_of, read_nodes

    with state.connect() as client:
        nodes = [node for node in read_nodes(client) if node.primary]
        if not nodes[0].id:
            return [(name, client_of(client, nodes[0]))]
        # A primary that is down and was replaced has no slots.
        return [(node.address, client_of(client, node)) for node in nodes if node.slots or node.state == "ok"]
