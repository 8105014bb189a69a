"""`keyside install`: the function library onto a server."""

from typing import TYPE_CHECKING

import click

from keyside.clients.cli.common import State, common, redacted, say

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
    for name, client in _primaries(url):
        with client:
            result = ensure_library(client, force=force)
        done.append({"server": name, "result": result})
        say(f"{name}: {_SAID[result].format(version=library.LIBRARY_VERSION)}")
    state.emit({"version": library.LIBRARY_VERSION, "digest": library.digest(), "servers": done}, "")


def _primaries(url: str) -> "list[tuple[str, redis.Redis]]":
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
