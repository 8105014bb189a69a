"""`keyside dead`: jobs that were given up, on every primary of a cluster."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from keyside.clients.cli.common import State, clean, common, say, table

if TYPE_CHECKING:
    import redis

__all__ = ["dead"]

PAGE = 100


@click.group()
def dead() -> None:
    """Show, retry and drop dead letters: jobs that were given up.

    A job ends there when the executors that ran it died or stalled, one after the other. Its caller has been told
    (DEADLETTER). Each node keeps its last 1,000.
    """


_model = click.option("--model", metavar="NAME[@VERSION]", help="Only those of this model.")
_all = click.option("--all", "every", is_flag=True, help="All of them (of the model, with --model).")
_ids = click.argument("ids", nargs=-1, metavar="[ID]...")


@dead.command("ls")
@_model
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="At most so many.")
@common
def list_letters(state: State, model: str | None, limit: int) -> None:
    """List them, the newest first."""
    found: list[_Letter] = []
    with _nodes(state) as nodes:
        for node in nodes:
            found += itertools.islice(node.letters(model), limit + 1)
    found.sort(key=lambda one: -int(one.facts["when"]))
    if len(found) > limit:
        say(f"the newest {limit} of them: --limit shows more")
    found = found[:limit]
    rows = [(one.id, _when(one.facts), one.facts["model"], one.facts["op"], one.facts["deliveries"],
             one.facts["reason"]) for one in found]  # fmt: skip
    text = table(("ID", "WHEN", "MODEL", "WHAT", "DELIVERIES", "REASON"), rows) if rows else ""
    state.emit([one.data() for one in found], text)
    if not found:
        say("no dead letters")


@dead.command("show")
@click.argument("id_", metavar="ID")
@common
def show(state: State, id_: str) -> None:
    """Show one: why it died, and what it was to run on."""
    with _nodes(state) as nodes:
        letter = _find(nodes, id_)
    data = letter.data()
    facts = letter.facts
    lines = [
        f"{letter.id}: {facts['op']} {facts['model']}, job {facts['job']}",
        f"  given up    {_when(facts)}, after {facts['deliveries']} deliveries",
        f"  reason      {facts['reason']}",
        f"  executors   {', '.join(facts['executors']) or 'not known'}",
    ]
    lines += [f"  input {n}     {_shown(one)}" for n, one in enumerate(data.get("inputs", ()), 1)]
    if facts["op"] == "run":
        lines.append(f"  outputs     {', '.join(data.get('outputs', ())) or 'in the reply'}")
        lines.append(f"  again with  keyside dead retry {letter.id}")
    else:
        lines.append("  the version is marked as failed: to load it again, store it again (keyside model put)")
    state.emit(data, clean("\n".join(lines)))


@dead.command("retry")
@_ids
@_all
@_model
@click.option("--timeout", type=click.FloatRange(0.001, 86400), default=30.0, show_default=True, metavar="SECONDS",
              help="Until the new deadline.")  # fmt: skip
@click.option("--wait/--no-wait", default=True, help="Return only when they have ended. [default: wait]")
@common
def retry(
    state: State, ids: tuple[str, ...], every: bool, model: str | None, timeout: float, wait: bool
) -> None:  # fmt: skip
    """Run jobs again; what ends well, or is accepted with --no-wait, is no dead letter any more.

    Outputs go to the keys that the first caller named; he was told of its end, and is not told again. A large input was
    copied when the job was submitted, and its copy stays for an hour: later the job ends with INPUTLOST.
    """
    from keyside.clients.admin import command
    from keyside.tensorstore.errors import KeysideError

    done: list[dict[str, Any]] = []
    with _nodes(state) as nodes:
        for letter in _chosen(nodes, ids, every=every, model=model):
            said: dict[str, Any] = {"id": letter.id, "model": letter.facts["model"]}
            done.append(said)
            try:
                ticket = command(letter.node.client, "FCALL", "AI_DEADRETRY", 0, letter.raw_id,
                                 "TIMEOUT", max(1, int(timeout * 1000)))  # fmt: skip
            except KeysideError as error:
                said["error"] = str(error)
                say(f"{letter.id}: {error}")
                continue
            said["ticket"] = _text(ticket)
            if not wait:
                say(f"{letter.id}: submitted; BLPOP {_text(ticket)} {timeout:g}")
                continue
            said["reply"] = _wait(letter.node.client, ticket, timeout)
            say(f"{letter.id}: {said['reply']}")
    state.emit(done, "")
    if any("error" in one or one.get("reply", "OK") != "OK" for one in done):
        raise click.exceptions.Exit(1)


@dead.command("drop")
@_ids
@_all
@_model
@common
def drop(state: State, ids: tuple[str, ...], every: bool, model: str | None) -> None:
    """Drop them."""
    from keyside.clients.admin import command

    dropped = 0
    with _nodes(state) as nodes:
        letters = _chosen(nodes, ids, every=every, model=model)
        for node in nodes:
            here = [one.raw_id for one in letters if one.node is node]
            for start in range(0, len(here), PAGE):
                dropped += int(command(node.client, "FCALL", "AI_DEADDEL", 0, *here[start : start + PAGE]))
    say(f"dropped: {dropped}")
    state.emit({"dropped": dropped}, "")


# --- nodes and their letters


@dataclasses.dataclass(eq=False)
class _Node:
    """A server that has dead letters of its own.

    Attributes:
        client: of it.
        tag: stands before the ids of its letters; empty where there is only one server.
    """

    client: "redis.Redis"
    tag: str

    def letters(self, model: str | None) -> Iterator["_Letter"]:
        from keyside.clients.admin import command

        cursor = "0"
        while True:
            options = ("MODEL", model) if model else ()
            cursor, page = command(self.client, "FCALL_RO", "AI_DEADSCAN", 0, cursor, "COUNT", PAGE, *options)
            for flat in page:
                yield _Letter(self, _facts(flat))
            cursor = _text(cursor)
            if cursor == "0":
                return

    def letter(self, raw_id: str) -> "_Letter | None":
        from keyside.clients.admin import command

        flat = command(self.client, "FCALL_RO", "AI_DEADGET", 0, raw_id)
        return None if flat is None else _Letter(self, _facts(flat))


@dataclasses.dataclass(eq=False)
class _Letter:
    """One of them: where it is, and what its node says of it."""

    node: _Node
    facts: dict[str, Any]

    @property
    def raw_id(self) -> str:
        """As its node calls it."""
        return str(self.facts["id"])

    @property
    def id(self) -> str:
        """As it is called here: on a cluster with the tag of its node."""
        return f"{self.node.tag}/{self.raw_id}" if self.node.tag else self.raw_id

    def data(self) -> dict[str, Any]:
        """For JSON."""
        data = {**self.facts, "id": self.id}
        if "inputs" in data:
            data["inputs"] = [_input(*one) for one in data["inputs"]]
        return data


@contextlib.contextmanager
def _nodes(state: State) -> Iterator[list[_Node]]:
    """The server, or every primary of its cluster."""
    from keyside.clients.admin import command, connect, connect_cluster
    from keyside.clients.cli.node import node_keys

    url = state.server_url()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(connect(url))
        if not command(client, "INFO", "cluster").get("cluster_enabled"):
            yield [_Node(client, "")]
            return
        clients = [client]
        if url.startswith("unix:"):
            say("this node of the cluster only: a redis:// address reaches all of them")
        else:
            clients = [stack.enter_context(one) for _, one in sorted(connect_cluster(url).items())]
        yield [_Node(one, node_keys(one).tag.decode()) for one in clients]


def _chosen(nodes: Sequence[_Node], ids: Sequence[str], *, every: bool, model: str | None) -> list[_Letter]:
    if every == bool(ids) or (model and not every):
        raise click.UsageError(
            "give the ids (keyside dead ls), or --all, with --model if only those of one model are meant"
        )
    if ids:
        return [_find(nodes, one) for one in ids]
    return [letter for node in nodes for letter in node.letters(model)]


def _find(nodes: Sequence[_Node], text: str) -> _Letter:
    """Return a letter by its id; the tag of its node may be left out where that is clear.

    Raises:
        BadArg: there is none, or more than one.
    """
    from keyside.tensorstore.errors import BadArg

    tag, _, raw_id = text.rpartition("/")
    asked = [node for node in nodes if not tag or node.tag == tag]
    found = [letter for node in asked if (letter := node.letter(raw_id)) is not None]
    if not found:
        raise BadArg(f"no dead letter {text!r}: keyside dead ls lists them")
    if len(found) > 1:
        raise BadArg(f"more than one node has a dead letter {text!r}: {', '.join(one.id for one in found)}")
    return found[0]


def _wait(client: "redis.Redis", ticket: Any, timeout: float) -> str:
    """Wait for a reply; return `OK`, or the error."""
    from keyside.clients.admin import command

    end = time.monotonic() + timeout + 1  # a live executor answers TIMEDOUT by itself
    while (left := end - time.monotonic()) > 0:
        popped = command(client, "BLPOP", ticket, f"{min(max(left, 0.01), 5.0):.3f}")  # less than the socket's
        if popped is not None:
            reply: bytes = popped[1]
            return "OK" if reply[:1] >= b"\x80" else _text(reply)
    return "TIMEDOUT no executor has answered"


def _facts(flat: Sequence[Any]) -> dict[str, Any]:
    facts = dict(zip(map(_text, flat[::2]), flat[1::2], strict=True))
    for name, value in facts.items():
        if isinstance(value, bytes):
            facts[name] = _text(value)
        elif name in ("executors", "outputs"):
            facts[name] = [_text(one) for one in value]
    return facts


def _input(how: Any, value: Any, there: int = 1) -> dict[str, Any]:
    from keyside.tensorstore import npy
    from keyside.tensorstore.errors import BadNpy

    how = _text(how)
    if how != "VALUE":
        return {"how": how, "key": _text(value), "there": bool(there)}
    try:
        header = npy.read_header(value)
    except BadNpy as error:
        return {"how": how, "bytes": len(value), "error": str(error)}
    return {"how": how, "bytes": len(value), "dtype": str(header.dtype), "shape": list(header.shape)}


def _shown(one: dict[str, Any]) -> str:
    if "key" not in one:
        return f"a value, {one.get('dtype', 'no tensor')} {one.get('shape', '')}, {one['bytes']} bytes"
    what = "a copy of the input" if one["how"] == "CAPTURE" else "read when it runs"
    return f"{one['key']} ({what}{'' if one['there'] else '; gone'})"


def _when(facts: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(facts["when"]) / 1000))


def _text(raw: Any) -> str:
    from keyside.clients.cli.node import text

    return text(raw)
