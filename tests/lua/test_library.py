"""The function library: how it is put together, what its headers say, and that servers agree with them."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
from redis.exceptions import ResponseError

from keyside.tensorstore import library
from keyside.tensorstore.errors import CODES
from keyside.tensorstore.library import FunctionSpec, LibraryError, Parameter

HEADER = """\
--- AI_X: does something
--   with things.
-- KEYS[1] key     a key
-- ARGV[1] first   an argument
-- ARGV[2..] more  arguments
--                 of all kinds
-- Returns: OK
-- Errors: BADARG TOOBIG
-- Flags: no-writes allow-stale

local function AI_X(KEYS, ARGV)
end
"""
SOURCES = library.read_sources()
LUA_TEXT = re.compile(r"--[^\n]*|(['\"])(?:\\.|(?!\1)[^\\\n])*\1")
STEMS = sorted(SOURCES.functions)


# --- putting it together


def test_helpers_stand_behind_what_they_require() -> None:
    libs = {"a": "--- @requires c b", "b": "--- @requires d\n--- @requires c", "c": "", "d": "--- @requires c"}
    assert library.load_order(libs) == ["c", "d", "b", "a"]


@pytest.mark.parametrize(
    ("libs", "text"),
    [
        ({"a": "--- @requires b", "b": "--- @requires c", "c": "--- @requires b"}, "b -> c -> b"),
        ({"a": "--- @requires a"}, "a -> a"),
        ({"a": "--- @requires nothing"}, "lua/lib/a.lua requires 'nothing'"),
    ],
)
def test_helpers_that_cannot_be_sorted(libs: Mapping[str, str], text: str) -> None:
    with pytest.raises(LibraryError, match=text):
        library.load_order(libs)


def test_a_header() -> None:
    assert library.parse_header("ai_x", HEADER) == FunctionSpec(
        name="AI_X",
        purpose="does something with things.",
        keys=(Parameter(1, variadic=False, name="key", text="a key"),),
        argv=(
            Parameter(1, variadic=False, name="first", text="an argument"),
            Parameter(2, variadic=True, name="more", text="arguments of all kinds"),
        ),
        returns="OK",
        errors=("BADARG", "TOOBIG"),
        flags=("no-writes", "allow-stale"),
    )


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("--- AI_X:", "--- AI_Y:", "does not begin with"),
        ("--- AI_X:", "-- AI_X:", "not a line of a header"),
        ("-- Returns: OK\n", "", "lacks Returns"),
        ("-- Errors: BADARG TOOBIG\n", "", "lacks Errors"),
        ("-- Flags: no-writes allow-stale\n", "", "lacks Flags"),
        ("allow-stale", "allow-all", "no such flag: allow-all"),
        ("ARGV[2..]", "ARGV[3..]", r"ARGV\[3\] is out of order"),
        ("ARGV[1]", "ARGV[1..]", r"ARGV\[2\] is out of order"),
        ("-- Returns: OK", "-- Returns: OK\n-- Returns: OK", "Returns is there twice"),
        ("-- Returns", "-- Return", "lua:7: not a line of a header"),
    ],
)
def test_a_malformed_header(old: str, new: str, text: str) -> None:
    with pytest.raises(LibraryError, match=text):
        library.parse_header("ai_x", HEADER.replace(old, new))


def test_the_text_is_the_same_each_time_and_its_digest_follows_it() -> None:
    assert library.assemble(SOURCES) == (library.source(), library.digest())
    assert "@digest@" not in library.source()
    assert "@version@" not in library.source()
    changed = library.Sources(SOURCES.libs, {**SOURCES.functions, "ai_x": HEADER})
    assert library.assemble(changed)[1] != library.digest()


# --- on servers


def test_the_server_has_what_the_headers_say(db: Any) -> None:
    (found,) = db.function_list(library="keyside")
    functions = dict(zip(found[::2], found[1::2], strict=True))[b"functions"]
    registered = {}
    for entry in functions:
        fields = dict(zip(entry[::2], entry[1::2], strict=True))
        registered[fields[b"name"].decode()] = {flag.decode() for flag in fields[b"flags"]}
    assert registered == {name: set(spec.flags) for name, spec in library.functions().items()}


def test_the_server_tells_which_library_it_has(db: Any) -> None:
    assert db.fcall_ro("KS_VERSION", 0) == [library.LIBRARY_VERSION, library.digest().encode()]
    assert db.fcall("ks_version", 0) == db.fcall("KS_VERSION", 0)
    with pytest.raises(ResponseError, match=r"^BADARG "):
        db.fcall("KS_VERSION", 0, "x")


def test_what_is_raised_arrives_as_it_was_said(db: Any) -> None:
    with pytest.raises(ResponseError) as caught:
        db.fcall("AI_TENSORSET", 0)
    assert str(caught.value).startswith("BADARG ")
    assert "user_function" not in str(caught.value)


# --- the files


def code_of(text: str) -> str:
    """A Lua text without comments and strings."""
    return LUA_TEXT.sub(lambda found: "" if found[0].startswith("--") else "''", text)


def parameters_of(stem: str) -> tuple[str, str]:
    """What a function calls its KEYS and its ARGV."""
    found = re.search(rf"^local function {stem.upper()}\((\w*)(?:, *(\w+))?\)$", SOURCES.functions[stem], re.MULTILINE)
    assert found, f"lua/{stem}.lua has no line 'local function {stem.upper()}(KEYS, ARGV)'"
    return found[1] or "_", found[2] or "_"


def misuse(declared: tuple[Parameter, ...], name: str, code: str) -> list[str]:
    """Where a header and the indices in the code do not fit, as far as a look at the text can tell.

    The index behind the last may be looked at, to refuse what is too many.
    """
    uses = re.findall(rf"(?<![\w.]){name}\b(?:\[(\d+)\])?", code)
    exact = {int(index) for index in uses if index}
    anyhow = "" in uses
    problems = []
    last = declared[-1] if declared else None
    for index in exact:
        behind = index > (last.index if last else 0)
        if behind and not (last and last.variadic) and index != (last.index if last else 0) + 1:
            problems.append(f"{name}[{index}] is not declared")
    for parameter in declared:
        used = parameter.index in exact or anyhow
        if parameter.variadic:
            used = anyhow or any(index >= parameter.index for index in exact)
        if not used:
            problems.append(f"{name}[{parameter.index}] is declared, but not used")
    return problems


@pytest.mark.parametrize("stem", STEMS)
def test_keys_and_arguments_are_those_of_the_header(stem: str) -> None:
    spec = library.functions()[stem.upper()]
    names = parameters_of(stem)
    code = code_of(SOURCES.functions[stem])
    body = code[code.index(f"function {stem.upper()}(") :].partition("\n")[2]
    assert misuse(spec.keys, names[0], body) + misuse(spec.argv, names[1], body) == []


@pytest.mark.parametrize(
    ("declared", "code", "problems"),
    [
        ("1", "local key = KEYS[1]\nif KEYS[2] then", []),
        ("1", "KEYS[3]", ["KEYS[3] is not declared", "KEYS[1] is declared, but not used"]),
        ("12", "f(KEYS[1])", ["KEYS[2] is declared, but not used"]),
        ("12", "f(KEYS, 1)", []),
        ("1.", "KEYS[1], KEYS[7]", []),
        ("1.", "for i = 1, #KEYS do", []),
        ("12.", "KEYS[1]", ["KEYS[2] is declared, but not used"]),
        ("", "other.KEYS[1]", []),
        ("", "KEYS[2]", ["KEYS[2] is not declared"]),
    ],
)
def test_the_check_of_keys_and_arguments(declared: str, code: str, problems: list[str]) -> None:
    count = len(declared.rstrip("."))
    parameters = tuple(
        Parameter(i, variadic=declared.endswith(".") and i == count, name="x", text="x") for i in range(1, count + 1)
    )
    assert misuse(parameters, "KEYS", code) == problems


@pytest.mark.parametrize("stem", STEMS)
def test_error_codes(stem: str) -> None:
    spec = library.functions()[stem.upper()]
    assert set(spec.errors) - CODES.keys() == set()
    raised = set(re.findall(r"\b(?:raise|fail)\(\s*'([A-Z]+)'", SOURCES.functions[stem]))
    assert raised - set(spec.errors) == set(), "raised, but not in the header"


@pytest.mark.parametrize("stem", [f"lib/{stem}" for stem in sorted(SOURCES.libs)])
def test_error_codes_of_helpers(stem: str) -> None:
    raised = re.findall(r"\b(?:raise|fail)\(\s*'([A-Z]+)'", SOURCES.libs[stem.removeprefix("lib/")])
    assert set(raised) - CODES.keys() == set()


@pytest.mark.parametrize("stem", STEMS)
def test_parameters_do_not_hide_helpers(stem: str) -> None:
    tables = {file for file, text in SOURCES.libs.items() if f"\nlocal {file} = " in text}
    assert {"args", "npy", "keys"} <= tables
    code = code_of(SOURCES.functions[stem])
    for found in re.findall(r"\bfunction\b[^(\n]*\(([^)]*)\)", code):
        assert set(re.findall(r"\w+", found)) & tables == set()


def test_what_helper_files_give_has_a_name_of_its_own() -> None:
    given: list[str] = []
    for file, text in SOURCES.libs.items():
        names = re.findall(r"^local (?:function )?(\w+)", text, re.MULTILINE)
        given += [file] if file in names else names
    assert [name for name in given if given.count(name) > 1] == []
    assert len(given) < 180, "Lua allows 200 locals"


def test_only_one_file_knows_what_private_keys_are_called() -> None:
    everything = {f"lib/{stem}": text for stem, text in SOURCES.libs.items()} | dict(SOURCES.functions)
    assert [stem for stem, text in everything.items() if re.search(r"'ks:\{' *\.\.", text)] == ["lib/keys"]


def test_commands_that_functions_call() -> None:
    functions = library.functions()
    assert {"EXISTS", "GETRANGE", "SET"} < set(functions["AI_TENSORSET"].calls)
    assert functions["AI_TENSORGET"].calls == ("EXISTS", "GETRANGE", "STRLEN")
    assert functions["KS_VERSION"].calls == ()
    assert functions["AI_TENSORGET"].readonly
    assert not functions["AI_TENSORSET"].readonly
    assert [spec.public for spec in (functions["AI_TENSORGET"], functions["KS_VERSION"])] == [True, False]
