"""`keyside cluster`: a cluster on this machine with executors beside each node, for development."""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from keyside.clients.cli.common import CLUSTER_DIR, State, common, need, option, say
from keyside.clients.cli.executor import read_settings, setting_options
from keyside.clients.cli.keeper import Keeper, KeptExecutor, Unclean, variables

if TYPE_CHECKING:
    from keyside.clients.cluster_dev import DevCluster

__all__ = ["cluster"]

DEFAULT_PORT = 6400  # next to that of `keyside up`


@click.command()
@option("--primaries", type=click.IntRange(1, 64), metavar="N", help="How many shards.  [default: 3]")
@option("--replicas", type=click.IntRange(0, 64), metavar="N", help="How many replicas in all.  [default: 3]")
@option(
    "--port-base", type=click.IntRange(1024, 65000), metavar="PORT",
    help=f"TCP port of the first node on 127.0.0.1; the others follow.  [default: {DEFAULT_PORT}]",
)  # fmt: skip
@option(
    "--data-dir", twin="KEYSIDE_CLUSTER_DIR", metavar="DIR", default=CLUSTER_DIR, show_default=True,
    help="Where the nodes keep their data; the same directory brings the same cluster back.",
)  # fmt: skip
@option(
    "--executors", type=click.IntRange(0, 64), metavar="N", default=1, show_default=True,
    help="How many executors for each node.",
)  # fmt: skip
@option(
    "--server-bin", metavar="PATH",
    help="The servers' program. [default: valkey-server or redis-server on PATH, else the bundled one]",
)  # fmt: skip
@setting_options
@common
def cluster(
    state: State, /, primaries: int | None, replicas: int | None, port_base: int | None, data_dir: str,
    executors: int, server_bin: str | None, **given: Any,
) -> None:  # fmt: skip
    """Start a cluster on this machine with executors for each node, and keep all of it running: for development.

    Three primaries and three replicas, unless you say otherwise. The executors of a replica stand by, and serve when it
    is promoted. What dies is started again; kill a node to see what a failover is like. Ctrl-C or SIGTERM ends all in
    order: the executors finish what they have claimed, then the nodes stop; once more does not wait for the executors.
    """
    need("keyside cluster", "local", "structlog", "prometheus_client", "onnxruntime")
    from keyside.clients.cluster_dev import DevCluster, read_note

    for name in ("name", "http_port"):
        if given.pop(name) is not None:
            raise click.UsageError(f"--{name.replace('_', '-')}: each executor of a cluster needs another")
    settings = read_settings("unix://", given)
    known = read_note(data_dir)  # a cluster that is there is taken as it is
    made = DevCluster(
        data_dir,
        primaries=known.get("primaries", 3) if primaries is None else primaries,
        replicas=known.get("replicas", 3) if replicas is None else replicas,
        port_base=known.get("port_base", DEFAULT_PORT) if port_base is None else port_base,
        server_bin=server_bin,
        say=say,
    )
    keeper = Keeper(settings.drain_s)
    try:
        with keeper.listening():
            say(
                f"starting {len(made.nodes)} nodes of {made.binary} ({made.binary.path}, from {made.binary.source}) "
                f"on ports {made.ports} and {made.data_dir}"
            )
            with keeper.interruptible():
                made.start()
            keeper.servers = list(made.nodes)
            kept = _executors(made, executors, variables(given))
            if kept:
                each = "an executor" if executors == 1 else f"{executors} executors"
                say(f"starting {each} for each node; what they log is in its folder")
            keeper.start(kept)
            _announce(state, made, kept)
            keeper.keep(made.look)
    except KeyboardInterrupt:
        say("stopped before all was up")
    finally:
        keeper.servers = made.stop_order()
        orderly = keeper.stop()
    if not orderly:
        raise Unclean("not all ended as it should: what was said about it is above")
    say("stopped")


def _executors(made: "DevCluster", count: int, environment: dict[str, str]) -> list[KeptExecutor]:
    # Those of the primaries first: they are waited for.
    nodes = sorted(made.nodes, key=lambda node: made.role(node) != "primary")
    return [
        KeptExecutor(
            node.url,
            # A name or a port for all of them, from the environment, would be in their way.
            {**environment, "KEYSIDE_NAME": f"{node.port}-{i}", "KEYSIDE_HTTP_PORT": "0"},
            label=f"executor {node.port}-{i}",
            log=node.data_dir / f"executor-{i}.log",
            awaited=made.role(node) == "primary",
        )
        for node in nodes
        for i in range(1, count + 1)
    ]


def _announce(state: State, made: "DevCluster", kept: list[KeptExecutor]) -> None:
    """Say how to connect."""
    pids = {node: [one.pid for one in kept if one.url == node.url] for node in made.nodes}
    facts = {
        "url": made.url,
        "server": str(made.binary),
        "data_dir": str(made.data_dir),
        "pid": os.getpid(),
        "nodes": [
            {
                "address": node.name,
                "role": made.role(node),
                "url": node.url,
                "url_tcp": node.url_tcp,
                "data_dir": str(node.data_dir),
                "pid": node.pid,
                "executor_pids": pids[node],
            }
            for node in made.nodes
        ],
    }
    lines = [
        "",
        "The cluster is up. To connect:",
        "",
        f"  redis-cli -c -p {made.nodes[0].port}",
        f"  python:   import keyside; client = keyside.Client({made.url!r})",
        f"  keyside:  export KEYSIDE_URL={made.url}    then: keyside status",
        "",
        *(
            ["With fewer than three primaries no failover happens: nobody can decide on it."]
            if made.primaries < 3
            else []
        ),
        "Ctrl-C stops it.",
    ]
    state.emit(facts, "\n".join(lines))
    sys.stdout.flush()
