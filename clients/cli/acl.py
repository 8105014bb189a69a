"""`keyside acl`: users with the rights of a role."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from keyside.clients.acl import ROLES
from keyside.clients.cli.common import State, common, redacted, say, table
from keyside.tensorstore.errors import BadArg, KeysideError, ServerError

if TYPE_CHECKING:
    import redis

__all__ = ["acl"]

_F = TypeVar("_F", bound=Callable[..., Any])

_SIGNED_FOR = ("predictor", "model-manager")


@click.group()
def acl() -> None:
    r"""Users with the rights of a role, as ACL rules for Redis and Valkey.

    \b
    reader         reads tensors, and what is said of models
    predictor      reads and writes tensors, runs models on them
    model-manager  stores and deletes models
    executor       runs the jobs: `keyside executor` logs in as such a user
    admin          everything

    A pattern is that of a Redis ACL, such as alice:*; a lone * means all keys but those of Keyside itself.
    """


def _role_options(command: _F) -> _F:
    """The options that say what a user is to be."""
    for option in reversed((
        click.argument("role", type=click.Choice(list(ROLES))),
        click.option("--user", metavar="NAME", help="Name of the user.  [default: that of the role]"),
        click.option("--keys", metavar="PATTERN", multiple=True, help="Tensor keys to read and write; repeatable."),
        click.option("--read", metavar="PATTERN", multiple=True, help="Tensor keys to read only; repeatable."),
        click.option("--models", metavar="PATTERN", multiple=True, help="Models to use; repeatable."),
        click.option("--blobs", is_flag=True, help="May read the blobs of those models too."),
        click.option("--any-ticket", is_flag=True, help="May wait on tickets that the server chose."),
        click.option("--password-file", metavar="FILE", help="Its first line is the password; - for stdin."),
        click.option("--nopass", is_flag=True, help="No password is needed."),
    )):  # fmt: skip
        command = option(command)
    return command


def _command(role: str, given: dict[str, Any]) -> list[str]:
    from keyside.clients.acl import rules, set_user

    user, file, nopass = given.pop("user") or role, given.pop("password_file"), given.pop("nopass")
    if file and nopass:
        raise click.UsageError("--password-file and --nopass exclude each other")
    return set_user(user, rules(role, user=user, **given), _password(file) if file else None, nopass=nopass)


def _password(file: str) -> str:
    first = sys.stdin.readline() if file == "-" else Path(file).read_text(encoding="utf-8").partition("\n")[0]
    password = first.rstrip("\r\n")
    if not password:
        raise BadArg(f"there is no password in the first line of {'stdin' if file == '-' else file}")
    return password


@acl.command("print")
@_role_options
@common
def print_(state: State, role: str, **given: Any) -> None:
    """Print the command that makes a user, for redis-cli.

    Without --password-file and --nopass it leaves the passwords as they are; with them a password is in it as SHA-256.
    """
    words = _command(role, given)
    state.emit(words, shlex.join(words))


@acl.command()
@_role_options
@click.option(
    "--sign/--no-sign", default=True, help="Turn signed jobs on (`keyside install --sign`).  [default: --sign]"
)
@common
def apply(state: State, role: str, sign: bool, **given: Any) -> None:
    """Make a user, or change it, on the server or on all nodes of a cluster, replicas included.

    Without --password-file and --nopass the passwords stay as they are. If the server has an ACL file, it is
    saved there. For predictors and model managers it turns on signed jobs: else they could write jobs by hand.
    """
    from keyside.clients.admin import command

    words = _command(role, given)
    url = state.server_url()
    done = []
    with_file = True
    for name, client in _nodes(url):
        with client:
            command(client, *words)
            try:
                command(client, "ACL", "SAVE")
            except ServerError:
                with_file = False
        done.append(name)
        say(f"{name}: user {words[2]} is a {role}")
    if not with_file:
        say("the server has no ACL file (aclfile in its configuration): the user is gone after a restart")
    if sign and role in _SIGNED_FOR:
        from keyside.clients.cli.install import install_all

        for name, result in install_all(url, sign=True):
            if result == "newer":
                say(f"{name}: a newer function library is there: turn on signed jobs with a newer keyside")
    state.emit({"user": words[2], "role": role, "servers": done, "saved": with_file}, "")


@acl.command()
@click.argument("user")
@click.option("--key", metavar="KEY", multiple=True, help="A tensor key: may it be read, written?")
@click.option("--model", metavar="NAME", multiple=True, help="A model: may it be used, stored?")
@common
def check(state: State, user: str, key: tuple[str, ...], model: tuple[str, ...]) -> None:
    """Show what a user may do: the functions that it may call, and what it may do to given keys and models."""
    from keyside.clients.acl import marker
    from keyside.tensorstore import library

    with state.connect() as client:

        def may(*words: object) -> bool:
            return _may(client, user, words)

        rows: list[tuple[str, bool]] = []
        for name, spec in library.functions().items():
            if spec.public:
                rows.append((name, may("FCALL", name, 0) or (spec.readonly and may("FCALL_RO", name, 0))))
        rows += [(f"USER {user}", may("GET", marker(user)))]
        for one in key:
            rows += [(f"read {one}", may("GET", one)), (f"write {one}", may("SET", one, ""))]
        for one in model:
            rows += [
                (f"use model {one}", may("HGET", one, "type")),
                (f"store model {one}", may("HSET", one, "type", "")),
            ]
        rows += [
            ("be an executor", may("FCALL", "KS_COMPLETE", 0)),
            ("read queues", may("XRANGE", "ks:{0}:jobs:CPU", "-", "+")),
            ("read the library", may("FUNCTION", "LIST")),
            ("list keys", may("SCAN", 0)),
            ("administer", may("CONFIG", "GET", "*")),
        ]
    state.emit(dict(rows), table(("", "may"), [(what, "yes" if yes else "no") for what, yes in rows]))


def _may(client: "redis.Redis", user: str, words: tuple[object, ...]) -> bool:
    from keyside.clients.admin import command
    from keyside.clients.cli.node import text

    try:
        return text(command(client, "ACL", "DRYRUN", user, *words)) == "OK"
    except KeysideError as error:
        if "not found" in str(error):
            raise BadArg(f"the server has no user {user!r}") from None
        raise


def _nodes(url: str) -> "list[tuple[str, redis.Redis]]":
    """Clients of the server, or of all nodes of its cluster."""
    from keyside.clients.admin import command, connect, connect_cluster

    client = connect(url)
    if not command(client, "INFO", "cluster").get("cluster_enabled"):
        return [(redacted(url), client)]
    if url.startswith("unix:"):
        say("this node of the cluster only: a redis:// address reaches all of them")
        return [(url, client)]
    client.close()
    return sorted(connect_cluster(url, replicas=True).items())
