"""`keyside trigger`: models that run whenever something happens."""

import re
import shlex
from dataclasses import dataclass
from typing import Any

import click

from keyside.clients.cli.common import State, clean, common, option, say, table

__all__ = ["trigger"]

_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
_RATE = re.compile(r"(\d+)/(\d+(?:\.\d+)?)")
_COUNTERS = ("fired", "done", "errors", "dropped", "coalesced", "inflight")


@click.group()
def trigger() -> None:
    """Set, show, list, watch and remove triggers."""


@trigger.command("add")
@click.argument("name")
@click.option("--on-publish", metavar="CHANNEL", help="A message on a channel.")
@click.option("--sharded", is_flag=True, help="The channel is one of SPUBLISH.")
@click.option("--on-set", metavar="PATTERN", help="A tensor key that fits, such as frame:{cam}, is written.")
@click.option("--notify", is_flag=True, help="Also when a client without Keyside writes it.")
@click.option("--on-stream", metavar="KEY", help="An entry comes into a stream.")
@click.option("--group", metavar="NAME", help="Consumer group that reads it. [default: one of its own]")
@click.option("--from", "start", metavar="ID", default="$", show_default=True, help="Entry behind which that begins.")
@click.option("--every", type=float, metavar="SECONDS", help="Time and again, for each --key or member of --members.")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="One of the keys that --every goes through.")
@click.option("--members", metavar="KEY", help="Set, list or sorted set of them.")
@click.option("--run", "target", required=True, metavar="TARGET", help="What to run: NAME or NAME@VERSION.")
@click.option(
    "-i", "--input", "inputs", multiple=True, required=True, metavar="[NAME=]WHAT",
    help="A template of a key such as frame:{cam}; payload; value:{field}; ref:KEY or own:KEY; or 'spec:HASH ...'.",
)  # fmt: skip
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="KEY", help="Template of a key. [default: in the event]"
)
@click.option("--channel", metavar="CHANNEL", help="Of the results. [default: ks:results:NAME]")
@click.option("--results", metavar="KEY", help="A stream to which results are added too.")
@click.option("--maxlen", type=click.IntRange(1), metavar="N", help="How many that keeps.")
@click.option("--coalesce", is_flag=True, help="An event takes the place of one of the same source that still waits.")
@click.option("--rate", metavar="N/SECONDS", help="How many events may start a run in how long.")
@click.option("--inflight", type=click.IntRange(1), metavar="N", help="How many runs may be under way.")
@click.option("--ttl", type=float, metavar="SECONDS", help="Time to live of the output keys.")
@click.option("--run-timeout", type=float, metavar="SECONDS", help="Until the deadline of each run. [default: 30]")
@click.option("--on-error", type=click.Choice(("publish", "pause", "drop")), default="publish", show_default=True,
              help="What to do with errors.")  # fmt: skip
@click.option("--priority", type=click.Choice(("high", "normal", "low")), default="normal", show_default=True,
              help="Of the runs.")  # fmt: skip
@common
def add(
    state: State, name: str, target: str, inputs: tuple[str, ...], outputs: tuple[str, ...], rate: str | None,
    run_timeout: float | None, **settings: Any,
) -> None:  # fmt: skip
    """Have a model run whenever something happens; a trigger of that name is replaced.

    \b
      keyside trigger add digits --on-publish images --run digits --input payload
      keyside trigger add boxes --on-set 'frame:{cam}' --run detector -i 'frame:{cam}' -o 'boxes:{cam}'
      keyside trigger add score --on-stream orders --run fraud -i 'value:{tx}' -i 'ref:user:{user}' --results scores
      keyside trigger add rescore --every 60 --members users --run churn -i 'features:{member}' -o 'churn:{member}'
    """  # noqa: D301  # click wants the character
    on = _source(settings)
    with state.client() as client:
        client.set_trigger(
            name,
            on,
            target,
            _inputs(inputs),
            outputs=list(outputs) or None,
            rate=_rate(rate),
            timeout=run_timeout,
            **settings,
        )
        info = client.trigger(name)
    say(f"{name}: {_when(info)} runs {info.target}, results on {info.channel}")
    state.emit(_data(info), "")


def _source(settings: dict[str, Any]) -> Any:
    """Take what belongs to the source of events out of the options, and make that source."""
    import keyside

    took = {
        word: settings.pop(word)
        for word in (
            "on_publish",
            "sharded",
            "on_set",
            "notify",
            "on_stream",
            "group",
            "start",
            "every",
            "keys",
            "members",
        )
    }
    given = [word for word in ("on_publish", "on_set", "on_stream", "every") if took[word] is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --on-publish, --on-set, --on-stream and --every")
    for word, of in (("sharded", "on_publish"), ("notify", "on_set"), ("group", "on_stream"), ("members", "every")):
        if took[word] and given[0] != of:
            raise click.UsageError(f"--{word} goes with --{of.replace('_', '-')}")
    if given[0] == "on_publish":
        return keyside.OnPublish(took["on_publish"], sharded=took["sharded"])
    if given[0] == "on_set":
        return keyside.OnSet(took["on_set"], notify=took["notify"])
    if given[0] == "on_stream":
        return keyside.OnStream(took["on_stream"], group=took["group"], start=took["start"])
    return keyside.OnSchedule(took["every"], keys=took["keys"] or None, members=took["members"])


@dataclass(frozen=True)
class _Spec:
    """An input that was written as it stands in AI_PREDICT."""

    words: tuple[bytes, ...]


def _inputs(given: tuple[str, ...]) -> Any:
    found: dict[str, Any] = {}
    for index, text in enumerate(given):
        match = _NAMED.fullmatch(text)
        name, what = (match[1], match[2]) if match else (f"#{index}", text)
        if name in found:
            raise click.UsageError(f"input {name} is given twice")
        found[name] = _input(what)
    named = [not name.startswith("#") for name in found]
    if any(named) and not all(named):
        raise click.UsageError("give all inputs a name, or none")
    return found if all(named) else list(found.values())


def _input(what: str) -> Any:
    import keyside

    kind, colon, rest = what.partition(":")
    if what == "payload":
        return keyside.Payload()
    if colon and kind == "value":
        return keyside.Value(rest)
    if colon and kind in ("ref", "own"):
        return keyside.Key(rest, mode=kind)  # type: ignore[arg-type]  # one of these two
    if colon and kind == "spec":
        return _Spec(tuple(word.encode("utf-8", "surrogateescape") for word in shlex.split(rest)))
    return rest if colon and kind == "key" else what


def _rate(text: str | None) -> tuple[int, float] | None:
    if text is None:
        return None
    match = _RATE.fullmatch(text)
    if match is None:
        raise click.UsageError(f"--rate takes a number of events and of seconds, such as 10/1, not {text!r}")
    return int(match[1]), float(match[2])


@trigger.command("ls")
@common
def list_triggers(state: State) -> None:
    """List the triggers."""
    with state.client() as client:
        found = sorted(client.triggers())
    rows = [(one.name, one.on, one.source, one.target, one.state) for one in found]
    state.emit(
        [one._asdict() for one in found], table(("NAME", "ON", "SOURCE", "TARGET", "STATE"), rows) if rows else ""
    )
    if not found:
        say("no triggers: set one with keyside trigger add")


@trigger.command("show")
@click.argument("name")
@common
def show(state: State, name: str) -> None:
    """Show what a trigger is, and what it has done."""
    with state.client() as client:
        info, stats = client.trigger(name), client.trigger_stats(name)
    rows: list[tuple[str, object]] = [("state", info.state), ("on", _when(info)), ("run", " ".join(info.run))]
    rows += [("channel", info.channel)] + ([("results", info.results)] if info.results else [])
    rows += [("on error", info.on_error)]
    rows += [
        (key, _plain(key, value))
        for key, value in info.options.items()
        if key not in ("every", "keys", "members", "created")
    ]
    rows += _stats_rows(stats)
    width = max(len(key) for key, _ in rows)
    text = "\n".join([info.name, *(f"  {key.ljust(width)}  {value}" for key, value in rows)])
    state.emit(_data(info) | {"stats": stats._asdict()}, clean(text))


@trigger.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@common
def remove(state: State, names: tuple[str, ...]) -> None:
    """Delete triggers; runs that they have started end without a result."""
    with state.client() as client:
        for name in names:
            client.delete_trigger(name)
    say(f"deleted: {', '.join(names)}")
    state.emit({"deleted": list(names)}, "")


@trigger.command("stats")
@click.argument("name")
@click.option("--reset", is_flag=True, help="Begin the counters anew.")
@common
def stats(state: State, name: str, reset: bool) -> None:
    """Show what a trigger has done, on a cluster on all nodes together."""
    with state.client() as client:
        found = client.trigger_stats(name, reset=reset)
    text = "\n".join(f"{key}: {value}" for key, value in _stats_rows(found))
    state.emit(found._asdict(), clean(text))


@trigger.command("pause")
@click.argument("name")
@common
def pause(state: State, name: str) -> None:
    """Let a trigger rest. Entries of a stream wait for it; all else that happens meanwhile sets nothing off."""
    _pause(state, name, True)


@trigger.command("resume")
@click.argument("name")
@common
def resume(state: State, name: str) -> None:
    """Let a trigger go on."""
    _pause(state, name, False)


def _pause(state: State, name: str, paused: bool) -> None:
    with state.client() as client:
        client.pause_trigger(name, paused)
    say(f"{name}: {'paused' if paused else 'active'}")
    state.emit({"name": name, "state": "paused" if paused else "active"}, "")


@trigger.command("watch")
@click.argument("name")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many results. [default: never]")
@option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="End, with an error, if none comes for so long.")
@common
def watch(state: State, name: str, count: int | None, timeout: float | None) -> None:
    """Write the results of a trigger as they come, one to a line."""
    with state.client() as client, client.subscribe(name) as events:
        say(f"listening to {name}")
        seen = 0
        while count is None or seen < count:
            event = events.next(timeout)
            state.emit(_event_data(event), clean(_event_text(event)))
            seen += 1


def _event_data(event: Any) -> dict[str, Any]:
    from keyside.clients.cli import values

    return {
        "trigger": event.trigger,
        "run": event.run,
        "source": event.source,
        "target": event.target,
        "outputs": {name: values.to_json(array) for name, array in event.outputs.items()},
        "keys": dict(event.keys),
        "error": None if event.error is None else str(event.error),
        "ms": event.ms,
    }


def _event_text(event: Any) -> str:
    from keyside.clients.cli import values

    if event.error is not None:
        return f"{event.source}: {event.error}"
    shown = []
    for name, array in event.outputs.items():
        key = event.keys.get(name, "")
        where = f" in {key}" if key and not key.startswith("ks:{") else ""
        shown.append(f"{name}={' '.join(values.to_text(array).split())}{where}")
    shown += [f"{name} in {key}" for name, key in event.keys.items() if name not in event.outputs]
    return f"{event.source}: {', '.join(shown)}"


def _when(info: Any) -> str:
    if info.on == "schedule":
        of = f"members of {info.options['members']}" if "members" in info.options else "keys"
        return f"every {int(info.options.get('every') or 0) / 1000:g} s for {of}"
    return {"publish": "a message on", "set": "a tensor set at", "stream": "an entry of"}[info.on] + f" {info.source}"


def _plain(key: str, value: object) -> object:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "yes" if key in ("sharded", "notify", "coalesce") else value


def _data(info: Any) -> dict[str, Any]:
    names = ("name", "state", "on", "source", "target", "run", "channel", "results", "on_error")
    return {name: getattr(info, name) for name in names} | dict(info.options)


def _stats_rows(found: Any) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [(name, getattr(found, name)) for name in _COUNTERS]
    return rows + ([("last error", found.last_error)] if found.last_error else [])
