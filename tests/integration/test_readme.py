"""The README's example runs as printed."""

import contextlib
import io
import os
import re
from pathlib import Path

import pytest
from tests.executors import Executor

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_example_runs_as_printed(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].strip().splitlines()) <= 24
    monkeypatch.setenv("KEYSIDE_URL", executor.url)
    monkeypatch.chdir(ROOT)
    assert os.environ["KEYSIDE_URL"] == executor.url
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks[0], "README.md", "exec"), {})
    lines = printed.getvalue().splitlines()
    assert lines[0] == "digits@1"
    assert re.fullmatch(r"\[\d \d \d\]", lines[1])
    assert re.fullmatch(r"\[\d\]", lines[2])
    assert float(lines[3]) > 0.95
