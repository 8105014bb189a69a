"""The program of docs/events.md, as it is printed there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.executors import Executor

ROOT = Path(__file__).parents[2]


def test_the_program_on_the_page_runs(executor: Executor, db: Any) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/events.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=os.environ | {"KEYSIDE_URL": executor.url}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"image:7 \[\d\] label:7", lines[0])
    assert re.fullmatch(r"\[\d\]", lines[1])
    assert lines[2:] == ["2", "reader set image:{n} digits active"]
    assert db.ttl("label:8") > 0
    db.config_set("notify-keyspace-events", "")
