"""The function library: assembled from ``lua/``, and described by the header comments in it.

``lua/lib/*.lua`` are helpers; ``lua/*.lua`` hold one function each, registered under the name of the file. A
server sees one text: helpers in the order of their ``--- @requires`` lines, then the functions. A new file
needs no entry in any list.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

from keyside.tensorstore.seals import Seal

__all__ = [
    "LIBRARY_NAME",
    "LIBRARY_VERSION",
    "FunctionSpec",
    "LibraryError",
    "Parameter",
    "Sources",
    "assemble",
    "digest",
    "functions",
    "load_order",
    "parse_header",
    "read_sources",
    "seal_of",
    "source",
]

LIBRARY_NAME = "keyside"

LIBRARY_VERSION = 4
"""Grows with every change of ``lua/`` that a client or an executor can notice."""

_FLAGS = frozenset({"no-writes", "allow-oom", "allow-stale", "no-cluster", "allow-cross-slot-keys"})


class LibraryError(ValueError):
    """The Lua files do not make a library: a fault of the package, not of its caller."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The texts of the Lua files, by name without the ending."""

    libs: Mapping[str, str]
    functions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A key or an argument of a function; a variadic one stands for its index and all that follow."""

    index: int
    variadic: bool
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """What the header of a function's file says.

    Attributes:
        name: As registered, in capitals.
        purpose: What it is for.
        keys: Its KEYS.
        argv: Its ARGV.
        returns: What it replies.
        errors: Codes of the error replies that are its own.
        flags: As in ``FUNCTION LIST``.
        calls: Commands in it and in the helpers that it names, and those of which it asks whether its caller may: what
            an ACL must allow, at most.
    """

    name: str
    purpose: str
    keys: tuple[Parameter, ...]
    argv: tuple[Parameter, ...]
    returns: str
    errors: tuple[str, ...]
    flags: tuple[str, ...]
    calls: tuple[str, ...] = ()

    @property
    def public(self) -> bool:
        """Whether any client may call it; the others are for executors."""
        return self.name.startswith("AI_")

    @property
    def readonly(self) -> bool:
        """Whether FCALL_RO may call it."""
        return "no-writes" in self.flags


@cache
def read_sources() -> Sources:
    """Read the Lua files of this package.

    Returns:
        Their texts.
    """
    root = resources.files("keyside") / "lua"

    def texts(folder: str) -> dict[str, str]:
        return {
            entry.name.removesuffix(".lua"): entry.read_text(encoding="utf-8")
            for entry in (root / folder if folder else root).iterdir()
            if entry.name.endswith(".lua") and not entry.name.startswith(".")
        }

    return Sources(libs=texts("lib"), functions=texts(""))


_REQUIRES = re.compile(r"^--- @requires +(?P<names>[\w ]+)$", re.MULTILINE)


def _requires(text: str) -> list[str]:
    return [name for match in _REQUIRES.finditer(text) for name in match["names"].split()]


def load_order(libs: Mapping[str, str]) -> list[str]:
    """Sort the helper files so that each stands after those that it requires.

    Args:
        libs: Text of each by name.

    Returns:
        The names.

    Raises:
        LibraryError: One requires a file that does not exist, or itself by way of others.
    """
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in order:
            return
        if name in path:
            raise LibraryError(f"a cycle of @requires: {' -> '.join((*path[path.index(name) :], name))}")
        if name not in libs:
            raise LibraryError(f"lua/lib/{path[-1]}.lua requires {name!r}: there is no lua/lib/{name}.lua")
        for required in _requires(libs[name]):
            visit(required, (*path, name))
        order.append(name)

    for name in sorted(libs):
        visit(name, ())
    return order


def _parts(sources: Sources) -> Iterator[str]:
    yield f"#!lua name={LIBRARY_NAME}"
    # Lua allows 200 locals to a text: a helper file that gives a table of its name keeps the others to itself.
    yield "local exported"
    for name in load_order(sources.libs):
        text = sources.libs[name]
        if re.search(rf"^local {name} = ", text, re.MULTILINE):
            yield f"do\n{text}\nexported = {name}\nend\nlocal {name} = exported"
        else:
            yield text
    # What raise() of lib/guard.lua raised becomes the error reply.
    callback = "guarded({})" if "guard" in sources.libs else "{}"
    for stem, text in sorted(sources.functions.items()):
        spec = parse_header(stem, text)
        flags = ", ".join(f"'{flag}'" for flag in spec.flags)
        # In a block: Lua allows 200 locals to a text, and the helpers of one function need not be among them.
        yield "do"
        yield text
        yield (
            f"redis.register_function{{ function_name = '{spec.name}', "
            f"callback = {callback.format(spec.name)}, flags = {{ {flags} }} }}"
        )
        yield "end"


def assemble(sources: Sources) -> tuple[str, str]:
    """Make the text for ``FUNCTION LOAD`` out of the Lua files.

    Args:
        sources: The Lua files.

    Returns:
        The text, and its digest, which ``KS_VERSION`` tells on a server that has loaded it.

    Raises:
        LibraryError: The files do not fit together.
    """
    text = "\n".join(part.rstrip("\n") for part in _parts(sources)) + "\n"
    text = text.replace("@version@", str(LIBRARY_VERSION))
    found = hashlib.sha256(text.encode()).hexdigest()[:16]
    return text.replace("@digest@", found), found


@cache
def _assembled() -> tuple[str, str]:
    return assemble(read_sources())


_SEAL = "local seal = { secret = '', since = 0 } -- @seal@"
_FOUND_SEAL = re.compile(r"^local seal = \{ secret = '([0-9a-f]+)', since = (\d+) \} -- @seal@$", re.MULTILINE)


def source(seal: Seal | None = None) -> str:
    """The library of this package, as ``FUNCTION LOAD`` takes it.

    Args:
        seal: What it is to sign entries with; None: it does not.

    Returns:
        Lua, with the shebang line.
    """
    text = _assembled()[0]
    if seal is None:
        return text
    if _SEAL not in text:
        raise LibraryError("lua/lib/seal.lua has no place for the secret")
    return text.replace(_SEAL, f"local seal = {{ secret = '{seal.secret}', since = {seal.since_ms} }} -- @seal@")


def seal_of(text: str) -> Seal | None:
    """Find what a library signs entries with.

    Args:
        text: Of it, as ``FUNCTION LIST WITHCODE`` gives it.
    """
    found = _FOUND_SEAL.search(text)
    return Seal(found[1], int(found[2])) if found else None


def digest() -> str:
    """What distinguishes the text of this library from others of the same version.

    Returns:
        16 hex digits.
    """
    return _assembled()[1]


_FIRST = re.compile(r"--- (?P<name>[A-Z][A-Z0-9_]*): (?P<text>\S.*)")
_ITEM = re.compile(r"-- (?P<table>KEYS|ARGV)\[(?P<index>[1-9]\d*)(?P<more>\.\.)?\] +(?P<name>\S+) +(?P<text>\S.*)")
_FIELD = re.compile(r"-- (?P<field>Returns|Errors|Flags): +(?P<text>\S.*)")
_CONTINUED = re.compile(r"-- {3,}(?P<text>\S.*)")


def _entries(stem: str, text: str) -> list[tuple[re.Match[str], str]]:
    """The entries of a header, each with its whole text, continued lines joined."""
    entries: list[tuple[re.Match[str], str]] = []
    for number, line in enumerate(text.splitlines()):
        if not line.startswith("--"):
            break
        continued = _CONTINUED.fullmatch(line)
        if continued and entries:
            match, so_far = entries[-1]
            entries[-1] = (match, f"{so_far} {continued['text']}")
            continue
        found = (_ITEM.fullmatch(line) or _FIELD.fullmatch(line)) if number else _FIRST.fullmatch(line)
        if found is None:
            raise LibraryError(f"lua/{stem}.lua:{number + 1}: not a line of a header: {line!r}")
        entries.append((found, found["text"]))
    return entries


def parse_header(stem: str, text: str) -> FunctionSpec:
    """Read the header comment of a function's file.

    Args:
        stem: Name of the file without its ending.
        text: The file.

    Returns:
        What it says; ``calls`` is left empty.

    Raises:
        LibraryError: It is malformed, or lacks something.
    """
    entries = _entries(stem, text)
    if not entries or entries[0][0]["name"] != stem.upper():
        raise LibraryError(f"lua/{stem}.lua does not begin with '--- {stem.upper()}: what it is for'")
    items: dict[str, list[Parameter]] = {"KEYS": [], "ARGV": []}
    fields: dict[str, str] = {}
    for match, whole in entries[1:]:
        groups = match.groupdict()
        if field := groups.get("field"):
            if field in fields:
                raise LibraryError(f"lua/{stem}.lua: {field} is there twice")
            fields[field] = whole
            continue
        known = items[groups["table"]]
        if int(groups["index"]) != len(known) + 1 or (known and known[-1].variadic):
            raise LibraryError(f"lua/{stem}.lua: {groups['table']}[{groups['index']}] is out of order")
        known.append(Parameter(int(groups["index"]), bool(groups["more"]), groups["name"], whole))
    if missing := [field for field in ("Returns", "Errors", "Flags") if field not in fields]:
        raise LibraryError(f"lua/{stem}.lua: the header lacks {', '.join(missing)}")
    flags = tuple(fields["Flags"].split()) if fields["Flags"] != "none" else ()
    if unknown := set(flags) - _FLAGS:
        raise LibraryError(f"lua/{stem}.lua: no such flag: {', '.join(sorted(unknown))}")
    return FunctionSpec(
        name=stem.upper(),
        purpose=entries[0][1],
        keys=tuple(items["KEYS"]),
        argv=tuple(items["ARGV"]),
        returns=fields["Returns"],
        errors=tuple(fields["Errors"].split()) if fields["Errors"] != "none" else (),
        flags=flags,
    )


_BODY = re.compile(r"^(?:local )?function (?P<name>[\w.]+)\(.*?^end$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"--.*$", re.MULTILINE)
_NAME = re.compile(r"(?<![\w.:])[A-Za-z_]\w*(?:\.\w+)?")
_CALL = re.compile(r"redis\.(?:p?call|acl_check_cmd)\(\s*'(?P<command>[A-Z]+)'(?:,\s*'(?P<sub>[A-Z]+)')?")
_CONTAINERS = frozenset({"ACL", "CLUSTER", "FUNCTION", "MEMORY", "OBJECT", "XGROUP", "XINFO"})


def _commands(text: str) -> set[str]:
    found = set()
    for match in _CALL.finditer(text):
        sub = match["sub"] if match["command"] in _CONTAINERS else None
        found.add(f"{match['command']} {sub}" if sub else match["command"])
    return found


def _helpers(libs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """File and body of each helper; by its name, or ``file/name`` where only its own file can name it."""
    found = {}
    for file, text in libs.items():
        exports_table = re.search(rf"^local {file} = ", text, re.MULTILINE) is not None
        for match in _BODY.finditer(_COMMENT.sub("", text)):
            private = exports_table and "." not in match["name"]
            found[f"{file}/{match['name']}" if private else match["name"]] = (file, match[0])
    return found


def _calls(text: str, helpers: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    """Commands in a text, in the helpers that it names, and in those that these name."""
    found: set[str] = set()
    seen: set[str] = set()
    todo = [("", _COMMENT.sub("", text))]
    while todo:
        file, body = todo.pop()
        found |= _commands(body)
        names = set(_NAME.findall(body))
        named = (names | {f"{file}/{name}" for name in names}) & helpers.keys() - seen
        seen |= named
        todo += [helpers[name] for name in named]
    return tuple(sorted(found))


@cache
def functions() -> dict[str, FunctionSpec]:
    """The functions of this package's library.

    Returns:
        Their headers by name, in the order of the names.
    """
    sources = read_sources()
    helpers = _helpers(sources.libs)
    specs = {}
    for stem, text in sorted(sources.functions.items()):
        spec = parse_header(stem, text)
        specs[spec.name] = replace(spec, calls=_calls(text, helpers))
    return specs
