"""The session of docs/features.md: nothing but redis-cli, typed as it stands there, saying what it shows."""

from pathlib import Path

from tests.executors import Executor
from tests.integration.test_redis_cli import ENTRY, ROOT, Shell, desk, session

__all__ = ["desk"]


def test_the_session_of_the_document(executor: Executor, desk: Path) -> None:
    text = (ROOT / "docs/features.md").read_text()
    steps = session("\n## 9. " + text.partition("\n## By hand\n")[2])
    assert len(steps) > 10
    entry = ""
    with Shell(desk) as shell:
        for command, shown in steps:
            said = shell.run(ENTRY.sub(entry, command))
            entry = (ENTRY.findall(said) or [entry])[-1]
            assert ENTRY.sub("ID", shown) == ENTRY.sub("ID", said), command
