"""The session of docs/protocol.md, section 9: nothing but redis-cli, typed as it stands there, saying what it shows."""

import os
import pty
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.executors import Executor
from tests.raw import private_keys
from tests.servers import Server

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
MARK = "\x1e"  # stands before what each command says

# What differs from one session to the next: the entry id within a ticket.
ENTRY = re.compile(r"\d{13}-\d+")


def session(markdown: str) -> list[tuple[str, str]]:
    """The commands of section 9, each with what is shown beneath it."""
    section = markdown.partition("\n## 9. ")[2].partition("\n## ")[0]
    steps: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], ""))
            elif line.startswith("> ") and steps[-1][0].endswith("\\"):
                steps[-1] = (f"{steps[-1][0]}\n{line[2:]}", "")
            else:
                command, said = steps[-1]
                steps[-1] = (command, f"{said}{line}\n")
    return steps


@pytest.fixture
def desk(server: Server, tmp_path: Path) -> Path:
    """A folder with the examples, and with a redis-cli on its PATH that knows the server."""
    cli = ROOT / ".cache/redis/bin/redis-cli"
    found = str(cli) if cli.exists() else shutil.which("redis-cli")
    assert found, "no redis-cli to test with: `make redis` gets one"
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "redis-cli"
    wrapper.write_text(f'#!/bin/sh\nexec {found} -s {server.socket} "$@"\n')
    wrapper.chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


class Shell:
    """A bash whose output goes to a terminal, for there redis-cli writes as it does for people."""

    def __init__(self, folder: Path) -> None:
        path = f"{folder / 'bin'}:{ROOT / '.venv/bin'}:{os.environ['PATH']}"
        self._terminal, inner = pty.openpty()
        self._shell = subprocess.Popen(
            ["bash", "--norc"], cwd=folder, env={**os.environ, "PATH": path, "TERM": "dumb"},
            stdin=subprocess.PIPE, stdout=inner, stderr=inner,
        )  # fmt: skip
        os.close(inner)

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.kill()
        self._shell.communicate()
        os.close(self._terminal)

    def run(self, command: str) -> str:
        """Run one command, and return what it says."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{command}\nprintf '\\036'\n".encode())
        self._shell.stdin.flush()
        said = ""
        while not said.endswith(MARK):
            said += os.read(self._terminal, 65536).decode()
        return said.removesuffix(MARK).replace("\r\n", "\n")


def test_the_session_of_the_protocol_document(executor: Executor, db: Any, desk: Path) -> None:
    steps = session((ROOT / "docs/protocol.md").read_text())
    text = " ".join(command for command, _ in steps)
    for part in ("VALUES", "-x SET", ".npy", "-x FCALL AI_MODELSTORE", "AI_MODELEXECUTE", "BLPOP", "AI_TENSORGET"):
        assert part in text
    entry = ""
    with Shell(desk) as shell:
        for command, shown in steps:
            # Who types the session would type the ticket that he got.
            said = shell.run(ENTRY.sub(entry, command))
            entry = (ENTRY.findall(said) or [entry])[-1]
            assert ENTRY.sub("ID", shown) == ENTRY.sub("ID", said), command
    np.testing.assert_array_equal(np.load(desk / "labels.npy")[:4], [0, 4, 8, 2])
    assert db.get("labels") == (desk / "labels.npy").read_bytes()
    assert private_keys(db) == set()


def test_the_picture_is_the_first_of_those_held_out() -> None:
    ((command, _),) = [step for step in session((ROOT / "docs/protocol.md").read_text()) if "VALUES \\" in step[0]]
    pixels = [float(word) for word in command.partition("VALUES")[2].replace("\\", " ").split()]
    np.testing.assert_array_equal(np.load(DIGITS / "held_out_images.npy")[0].ravel(), pixels)
    assert np.load(DIGITS / "held_out_labels.npy")[0] == 0
