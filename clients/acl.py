"""Who may do what: ACL rules for the roles that use a server with Keyside (SECURITY.md).

A function runs with its caller's rights, so a role needs the commands of its functions on the keys that they touch. The
commands come from the functions themselves (`FunctionSpec.calls`); this module says which keys they are for. Each rule
becomes one selector: what it allows on its keys it allows on no others.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keyside.tensorstore import library
from keyside.tensorstore.errors import BadArg

__all__ = ["ROLES", "USER_NAME", "Grant", "marker", "rules", "set_user"]

ROLES = {
    "reader": "reads tensors, and what is said of models",
    "predictor": "reads and writes tensors, runs models on them",
    "model-manager": "stores and deletes models",
    "executor": "runs the jobs: `keyside executor` logs in as such a user",
    "admin": "everything",
}
"""The roles, and what each does."""

USER_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""Names that option USER takes."""

_OWN = "ks:"
# All keys that do not begin with ks:, since ACLs know no exceptions.
_ALL_OTHERS = ("[^k]*", "k", "k[^s]*", "ks", "ks[^:]*")

# What anybody needs to talk to a server, alone or in a cluster. None of it tells of keys or of other users.
_CONNECTION = (
    "ping", "echo", "hello", "auth", "quit", "reset", "select", "multi", "exec", "discard", "unwatch", "time",
    "command", "asking", "readonly", "readwrite", "acl|whoami", "client|setname", "client|getname", "client|id",
    "cluster|info", "cluster|keyslot", "cluster|myid", "cluster|nodes", "cluster|shards", "cluster|slots",
)  # fmt: skip

_READ_TENSOR = ("get", "mget", "getrange", "strlen", "exists", "type", "ttl", "pttl", "expiretime", "pexpiretime")
_WRITE_TENSOR = (
    "set", "mset", "setex", "psetex", "setnx", "setrange", "append", "getdel", "getset", "getex", "del", "unlink",
    "expire", "pexpire", "expireat", "pexpireat", "persist", "copy", "rename", "renamenx",
)  # fmt: skip
_GATHER = ("HMGET", "LLEN", "LRANGE", "ZCARD", "ZRANGE")  # what AI_PREDICT reads inputs with, besides tensors
_READ_MODEL = ("hget", "hmget", "hgetall", "hexists", "hlen", "exists", "type")

_GENERIC = frozenset({"EXISTS", "UNLINK", "PEXPIRE", "PEXPIREAT", "PERSIST", "PTTL", "RENAME", "COPY"})
_STRING = frozenset({"GET", "SET", "GETRANGE", "STRLEN", "INCR", "INCRBY", "DECRBY", "GETBIT", "SETBIT"})
_LIST = frozenset({"RPUSH", "LPOP", "LPUSH", "LLEN", "LTRIM", "LRANGE"})
# Of what functions call, the rest changes something.
_READS = frozenset({
    "EXISTS", "PTTL", "GET", "GETRANGE", "STRLEN", "GETBIT", "HGET", "HMGET", "HGETALL", "HEXISTS", "HLEN", "HSCAN",
    "HKEYS", "HVALS", "ZRANGE", "ZSCORE", "ZCARD", "ZCOUNT", "ZRANGEBYSCORE", "ZREVRANGE", "XLEN", "XRANGE",
    "XREVRANGE", "SISMEMBER", "SMEMBERS", "SCARD", "LLEN", "LRANGE",
})  # fmt: skip


def _kind(call: str) -> str:
    """The type of the values that a command of a function works on; empty: it names no key."""
    command, _, sub = call.partition(" ")
    if command in ("CLUSTER", "TIME", "PUBLISH", "SPUBLISH"):
        return ""
    if command in _GENERIC:
        return "any"
    if command in _STRING or (command == "MEMORY" and sub):
        return "string"
    if command in _LIST:
        return "list"
    kinds = {"X": "stream", "H": "hash", "Z": "zset", "S": "set"}
    if command[0] not in kinds:
        raise library.LibraryError(f"{command} is in a function, and clients/acl.py does not know what it works on")
    return kinds[command[0]]


@dataclass(frozen=True, slots=True)
class Grant:
    """What is allowed together: these commands on these keys and channels, as ACL SETUSER writes them.

    Attributes:
        commands: In small letters, `fcall|name` for one function.
        keys: With ~, %R~ or %W~ before the pattern.
        channels: Patterns.
    """

    commands: tuple[str, ...]
    keys: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The rules of it."""
        return [*(f"+{one}" for one in self.commands), *self.keys, *(f"&{one}" for one in self.channels)]


class _Role:
    """Gathers the grants of a role.

    Args:
        functions: That it calls.
    """

    def __init__(self, functions: Iterable[str]) -> None:
        specs = library.functions()
        self.functions = tuple(functions)
        self.calls = sorted({call for name in self.functions for call in specs[name].calls})
        self.grants: list[Grant] = []
        self._covered: set[str] = set()

    def add(
        self,
        keys: Sequence[str],
        *kinds: str,
        plain: Iterable[str] = (),
        without: Iterable[str] = (),
        channels: str = "",
    ) -> None:
        """Allow on these keys the calls of the functions that work on these kinds of values, and plain commands."""
        if not keys and not channels:
            return
        reads_only = bool(keys) and all(key.startswith("%R~") for key in keys)
        calls = {call for call in self.calls if _kind(call) in kinds and call not in without}
        if reads_only:
            calls &= _READS
        self._covered |= calls
        commands = sorted({*map(_acl, calls), *plain})
        if commands:
            self.grants.append(Grant(tuple(commands), tuple(keys), (channels,) if channels else ()))

    def call(self, keys: Sequence[str], names: Iterable[str]) -> None:
        """Allow functions to be called with these KEYS.

        FCALL asks for reading and writing of each of them. In a selector of its own that gives no more than that: what
        the function then does with a key is checked again.
        """
        specs = library.functions()
        words = [f"fcall|{name.lower()}" for name in names]
        words += [f"fcall_ro|{name.lower()}" for name in names if specs[name].readonly]
        self.grants.append(Grant(tuple(sorted(words)), tuple(keys)))

    def leave_out(self, *calls: str) -> None:
        """Know that these are not granted: the functions do without."""
        self._covered |= set(calls)

    def done(self, *more: str, channels: Sequence[str] = ()) -> list[Grant]:
        """Return the grants; those without keys first, in the place that they have before the selectors.

        Raises:
            LibraryError: A function of the role has a command that no grant has.
        """
        keyless = {call for call in self.calls if not _kind(call)}
        if missing := set(self.calls) - self._covered - keyless:
            raise library.LibraryError(f"no rule of clients/acl.py has {', '.join(sorted(missing))}")
        root = Grant(tuple(sorted({*_CONNECTION, *map(_acl, keyless), *more})), (), tuple(channels))
        return [root, *self.grants]


def _acl(call: str) -> str:
    return call.lower().replace(" ", "|")


def marker(user: str) -> str:
    """Return the key that stands for a user: whoever may read it may say that he is that user."""
    return f"ks:user:{user}"


def _patterns(given: Iterable[str]) -> list[str]:
    """Patterns of keys that are the user's; * leaves out those of Keyside.

    Raises:
        BadArg: One may match keys of Keyside's own, or is none.
    """
    found: list[str] = []
    for pattern in given:
        if pattern == "*":
            found += _ALL_OTHERS
            continue
        if not pattern or re.search(r"[\s()]", pattern):
            raise BadArg(f"the pattern {pattern!r} is empty, or has spaces or parentheses, which an ACL cannot have")
        head = re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]
        if head.startswith(_OWN) or (_OWN.startswith(head) and head != pattern):
            raise BadArg(
                f"the pattern {pattern!r} may match keys that begin with {_OWN}, which are Keyside's own:"
                " begin it with other text, or give * for all keys but those"
            )
        found.append(pattern)
    return list(dict.fromkeys(found))


def _beside(pattern: str, kind: str) -> str:
    """The pattern of the private keys that lie beside the models of a pattern (`keys.tag`)."""
    tag = re.search(r"\{([^}]+)\}", pattern)
    inner = tag[1] if tag else pattern
    return "ks:{%s}:%s:*" % ("*" if pattern in _ALL_OTHERS else inner, kind)  # noqa: UP031  # braces


def _keys(sign: str, patterns: Iterable[str]) -> list[str]:
    return [f"{sign}{pattern}" for pattern in patterns]


def _own(sign: str, *kinds: str) -> list[str]:
    """Keys of Keyside's own, of these kinds, of every tag."""
    return [f"{sign}ks:{{*}}:{kind}" for kind in kinds]


# --- the roles


def _reader(keys: list[str], read: list[str], models: list[str]) -> list[Grant]:
    role = _Role((
        "AI_TENSORGET", "AI_MODELGET", "AI_MODELSCAN", "AI_SCRIPTGET", "AI_SCRIPTSCAN", "AI_INFO", "AI_NODE",
        "AI_LIMITGET", "KS_VERSION", *_SEE_TRIGGERS,
    ))  # fmt: skip
    tensors = list(dict.fromkeys((*keys, *read)))
    role.add(_keys("%R~", tensors), "string", "any", plain=_READ_TENSOR)
    _see_models(role, models)
    role.leave_out("UNLINK")  # RESETSTAT of AI_INFO and AI_TRIGGERINFO
    role.call(_keys("~", (*tensors, *models)), role.functions)
    return role.done()


# What is said of triggers; to set one is for admins, since executors do for it what others may not.
_SEE_TRIGGERS = ("AI_TRIGGERSCAN", "AI_TRIGGERGET", "AI_TRIGGERINFO")


def _see_models(role: _Role, models: list[str], *queues: str) -> None:
    """What is said of models and of the node, for all to see who use it; and what else may be done with queues."""
    role.add(_keys("%R~", models), "hash", plain=_READ_MODEL)
    role.add(_own("%R~", "catalog", "models", "stats:*"), "hash", "any")
    role.add(_own("%R~", "executors"), "zset", "any")
    role.add(_own("%R~", "executor:*", "limits"), "string", "any")
    role.add(_own("%R~", "queued:*"), "hash", "any")
    role.add(_own("%R~", "triggers", "onset", "tstats:*"), "hash", "any")
    role.add(_own("%R~", "inflight:*"), "zset", "any")
    # The lengths of queues, for which any right to the key will do; never their entries.
    role.add(_own("%W~", "jobs:*"), plain=("exists", "xlen", *queues))
    role.leave_out("XLEN", *(one.upper() for one in queues))
    role.leave_out("XRANGE")  # AI_NODE and AI_CANCEL do without where they may not


def _predictor(keys: list[str], read: list[str], models: list[str], any_ticket: bool) -> list[Grant]:
    role = _Role((
        "AI_PREDICT", "AI_MODELEXECUTE", "AI_SCRIPTEXECUTE", "AI_CANCEL", "AI_TENSORSET", "AI_TENSORGET",
        "AI_MODELSCAN", "AI_SCRIPTSCAN", "AI_INFO", "AI_NODE", "AI_LIMITGET", "KS_VERSION",
        "AI_DAGEXECUTE", "AI_DAGEXECUTE_RO", "AI_TENSORCHANGED", *_SEE_TRIGGERS,
    ))  # fmt: skip
    own, reads, temporary = _keys("~", keys), _keys("%R~", read), _own("~", "tmp:*")
    role.add((*own,), "string", "any", plain=(*_READ_TENSOR, *_WRITE_TENSOR))
    role.add((*reads,), "string", "any", plain=_READ_TENSOR)
    role.add((*own, *reads), plain=(one.lower() for one in _GATHER))
    role.leave_out(*_GATHER)
    role.add(temporary, "string", "any", plain=("set", "pexpire", "unlink", "del"))
    # A capture is written, never read: that is for executors.
    role.add(
        (*own, *reads, *temporary, *_own("%W~", "cap:*")), "any",
        without=("EXISTS", "UNLINK", "PEXPIRE", "PTTL", "PERSIST", "PEXPIREAT"),
    )  # fmt: skip
    role.add(_own("%W~", "cap:*"), "any", without=("COPY", "RENAME", "UNLINK"))
    role.add(_own("~", "seen:*", "bytes:*", "held:*"), "string", "any", without=("COPY", "RENAME"))
    # Who may count what he submits could count otherwise, by hand: bounds are for those who mean well.
    role.add(_own("~", "queued:*"), "hash", plain=("pexpireat", "unlink"))
    role.add(_own("~", "rate:*"), plain=("get", "incr", "pexpire", "pttl", "unlink"))
    # Whoever sets a tensor starts the runs of triggers that wait for it. Their errors he may count, not publish.
    role.add(_own("~", "tstats:*", "latest:*"), "hash", plain=("pexpireat", "pttl"))
    role.add(_own("~", "inflight:*"), "zset", plain=("pexpireat", "pttl"))
    role.add(_own("~", "own:*"), plain=("incr", "pexpire"))
    role.add(_own("~", "out:*"), plain=("get", "mget", "getrange", "strlen", "unlink", "del", "exists"))
    tickets = ("t:*", "mb:*", "ticket:*") if any_ticket else ("t:*", "mb:*")
    role.add(
        _own("~", *tickets), "list", "any", plain=("blpop", "blmpop", "lpop", "lmpop", "llen", "unlink", "del"),
        without=("COPY", "RENAME", "LRANGE"),
    )  # fmt: skip
    _see_models(role, models, "xadd", "xack", "xdel")
    role.call((*own, *_keys("~", read), *temporary, *_keys("~", models)), role.functions)
    # A DAG without keys of the caller's is at home where its reply goes.
    role.call(_own("~", "t:*", "mb:*"), ("AI_DAGEXECUTE", "AI_DAGEXECUTE_RO"))
    return role.done()


def _model_manager(keys: list[str], read: list[str], models: list[str], blobs: bool) -> list[Grant]:
    role = _Role((
        "AI_MODELSTORE", "AI_MODELDEL", "AI_MODELGET", "AI_MODELSCAN", "AI_SCRIPTSTORE", "AI_SCRIPTDEL", "AI_SCRIPTGET",
        "AI_SCRIPTSCAN", "AI_INFO", "AI_NODE", "AI_LIMITSET", "AI_LIMITGET", "KS_VERSION",
    ))  # fmt: skip
    del keys, read
    role.add(_keys("~", models), "hash", "any", plain=_READ_MODEL, without=("COPY", "RENAME"))
    chunks = [_beside(pattern, kind) for kind in ("up", "blob") for pattern in models]
    role.add(_keys("~" if blobs else "%W~", dict.fromkeys(chunks)), "string", "any", plain=("set", "unlink", "strlen"))
    role.add(_keys("~", dict.fromkeys(_beside(pattern, "gone") for pattern in models)), "hash", "any")
    role.add(_own("~", "catalog", "models", "stats:*"), "hash", "any", without=("PEXPIRE", "PERSIST"))
    role.add(_own("~", "revs", "dropped"), "zset", "any", without=("PEXPIRE", "PERSIST"))
    _see_models(role, models, "xadd", "xack", "xdel")
    role.call(_keys("~", models), role.functions)
    return role.done(channels=("ks:catalog",))


def _executor(keys: list[str], read: list[str], models: list[str]) -> list[Grant]:
    specs = library.functions()
    names = [name for name, spec in specs.items() if not spec.public or spec.readonly or name == "AI_CANCEL"]
    role = _Role(names)
    own = ("ks:*", *dict.fromkeys((*keys, *read, *models))) if keys or read or models else ("*",)
    role.add(
        _keys("~", own), "string", "any", "hash", "zset", "list", "stream", "set",
        plain=(
            *_READ_TENSOR, "set", "unlink", "del", "copy", "rename", "pexpire", "pexpireat", "persist", "hget", "hmget",
            "hgetall", "hscan", "hvals", "hlen", "scard", "zrange", "zscore", "zcard", "llen", "rpush", "exists",
            "watch", "xreadgroup", "xread", "xrange", "xrevrange", "xlen", "xack", "xadd", "xdel", "xclaim",
            "xautoclaim", "xpending", "smembers", "sscan", "zscan", "xinfo|consumers", "xinfo|groups",
            "xinfo|stream", "xgroup|create", "xgroup|createconsumer", "xgroup|delconsumer",
            *(f"fcall|{name.lower()}" for name in names),
            *(f"fcall_ro|{name.lower()}" for name in names if specs[name].readonly),
        ),
    )  # fmt: skip
    # Triggers listen on channels of users, and publish there.
    channels = ("ks:*", "__key*__:*", *dict.fromkeys((*keys, *read, *models))) if own != ("*",) else ("*",)
    return role.done(
        "function|list", "function|load", "info", "client|unblock", "client|no-evict", "subscribe", "psubscribe",
        "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe", "publish", "spublish", "role", "wait",
        "multi", "exec", "unwatch", "cluster|myid", "cluster|slots", "readonly", "asking",
        channels=channels,
    )  # fmt: skip


def _waiting(patterns: Iterable[str], *, probe: bool) -> Grant:
    """To be told what happens to these keys; and to one of one's own, to see whether the server tells at all."""
    watched = [*dict.fromkeys(patterns), *(("ks:{*}:tmp:*",) if probe else ())]
    told = [f"__keyspace@*__:{pattern}" for pattern in watched]
    return Grant(("ssubscribe", "subscribe", "sunsubscribe", "unsubscribe"), (), (*told, "ks:{*}:moved"))


def rules(
    role: str,
    *,
    user: str,
    keys: Iterable[str] = (),
    read: Iterable[str] = (),
    models: Iterable[str] = (),
    blobs: bool = False,
    any_ticket: bool = False,
) -> list[Grant]:
    """Return what a user of a role may do.

    Args:
        role: One of `ROLES`.
        user: Its name, 1 to 64 of letters, digits and `_.:-`.
        keys: Patterns of the tensor keys that it reads and writes; an executor without patterns gets all.
        read: Patterns of those that it only reads.
        models: Patterns of the names of the models that it may use.
        blobs: Whether it may read what it knows of models too: their blobs.
        any_ticket: Whether it may wait on tickets that the server chose. Their names can be guessed.

    Returns:
        What is allowed without keys, then one grant for each selector.

    Raises:
        BadArg: There is no such role, or the role needs patterns, or one is none.
    """
    if role not in ROLES:
        raise BadArg(f"no role {role!r}: it is one of {', '.join(ROLES)}")
    if not USER_NAME.fullmatch(user):
        raise BadArg(f"the name {user!r} is not 1 to 64 letters, digits and _.:-")
    mine, reads, names = _patterns(keys), _patterns(read), _patterns(models)
    if role == "admin":
        return [Grant(("@all",), ("~*",), ("*",))]
    if role == "executor":
        return _executor(mine, reads, names)
    if not names and (role != "reader" or not (mine or reads)):
        raise BadArg(f"a {role} needs --models PATTERN{', or --keys PATTERN' if role == 'reader' else ''}: * for all")
    if role == "reader":
        found = _reader(mine, reads, names)
    elif role == "predictor":
        found = _predictor(mine, reads, names, any_ticket)
    else:
        found = _model_manager(mine, reads, names, blobs)
    if blobs and role != "model-manager":
        chunks = dict.fromkeys(_beside(pattern, kind) for kind in ("up", "blob") for pattern in names)
        found.append(Grant(("get", "strlen", "exists"), tuple(_keys("%R~", chunks))))
        if role == "predictor":
            found.append(Grant(("fcall_ro|ai_modelget", "fcall_ro|ai_scriptget"), tuple(_keys("%R~", names))))
    if (mine or reads) and role != "model-manager":
        found.append(_waiting((*mine, *reads), probe=role == "predictor"))
    found.append(Grant(("get",), (f"%R~{marker(user)}",)))
    return found


def set_user(user: str, grants: Sequence[Grant], password: str | None = None, *, nopass: bool = False) -> list[str]:
    """Return the command that makes a user, or changes what it may do.

    Args:
        user: Its name.
        grants: What it may do, as `rules` returns it: in place of what it could before.
        password: Of it, instead of those that it had; only its SHA-256 is in the command.
        nopass: It needs no password. With neither, the passwords that it had go on.
    """
    if password is None and not nopass:
        begin = ["on", "nocommands", "resetkeys", "resetchannels", "clearselectors"]
    else:
        begin = ["reset", "on", "nopass" if password is None else "#" + hashlib.sha256(password.encode()).hexdigest()]
    root, *others = grants
    selectors = [f"({' '.join(grant.words())})" for grant in others]
    return ["ACL", "SETUSER", user, *begin, *root.words(), *selectors]
