"""Make the blocking client out of the asyncio one: clients/_async/ -> clients/_sync/.

python tools/unasync.py           write clients/_sync/
python tools/unasync.py --check   say whether it is as it would be written; exit code 1 if not
"""

import argparse
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "clients" / "_async"
TARGET = ROOT / "clients" / "_sync"

BANNER = """# Do not change this file: it is made from clients/_async/{name} by tools/unasync.py.
"""

NAMES = {
    "AsyncIterator": "Iterator",
    "AsyncIterable": "Iterable",
    "AsyncTransport": "SyncTransport",
    "AsyncPending": "SyncPending",
    "AsyncBase": "Base",
    "AsyncCluster": "SyncCluster",
    "AsyncClient": "Client",
    "AsyncDag": "Dag",
    "AsyncGraphs": "Graphs",
    "AsyncHandle": "Handle",
    "AsyncLine": "SyncLine",
    "AsyncListener": "Listener",
    "AsyncInference": "Inference",
    "AsyncModels": "Models",
    "AsyncScripts": "Scripts",
    "AsyncSubscription": "Subscription",
    "AsyncTensors": "Tensors",
    "AsyncTriggers": "Triggers",
    "AsyncWaiting": "Waiting",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "_async": "_sync",
    "aclosing": "closing",
    "anext": "next",
    "asyncio": "time",
    "cluster_async": "cluster_sync",
    "lines_async": "lines_sync",
    "transport_async": "transport_sync",
}
WORDS = {"asyncio client: the source of both": "blocking client", "an asyncio": "a blocking", "an Async": "a Async"}
CLASSES = re.compile(rf"\b(?:{'|'.join(name for name in NAMES if name.startswith('Async'))})\b")
ONLY_ASYNC = re.compile(r"# Timeouts are arguments.*\n# ruff: noqa: ASYNC109\n")
AWAITABLE = re.compile(r"\bAwaitable\[([^\[\]]+)\]")


def convert(text: str) -> str:
    """Return the blocking twin of a module."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    lines = text.splitlines(keepends=True)
    edits: list[tuple[int, int, int, str]] = []
    for index, token in enumerate(tokens):
        row, column = token.start
        if token.type == tokenize.NAME:
            if token.string in ("async", "await"):
                following = tokens[index + 1]
                edits.append((row, column, following.start[1] if following.start[0] == row else token.end[1], ""))
            elif token.string in NAMES:
                edits.append((row, column, token.end[1], NAMES[token.string]))
        elif token.type == tokenize.STRING and token.start[0] == token.end[0]:
            edits.append((row, column, token.end[1], _prose(token.string)))
    for row, start, end, new in sorted(edits, reverse=True):
        line = lines[row - 1]
        lines[row - 1] = line[:start] + new + line[end:]
    # Docstrings of several lines: as text, after the tokens' places have been used.
    made = ONLY_ASYNC.sub("", _prose("".join(lines)))
    return AWAITABLE.sub(r"\1", made).replace("import Awaitable, Callable", "import Callable")


def _prose(text: str) -> str:
    for old, new in WORDS.items():
        text = text.replace(old, new)
    return CLASSES.sub(lambda match: NAMES[match[0]], text)


def build() -> dict[Path, str]:
    """Return every file of the target folder and its text."""
    made = {}
    for source in sorted(SOURCE.glob("*.py")):
        text = BANNER.format(name=source.name) + convert(source.read_text(encoding="utf-8"))
        made[TARGET / source.name] = _ruff(text, TARGET / source.name)
    return made


def _ruff(text: str, path: Path) -> str:
    """Sort imports, take out those that have become doubles, and format."""
    ruff = [sys.executable, "-m", "ruff"]
    for step in (["check", "--select", "I,F401,F811,RUF022", "--fix-only", "--quiet"], ["format", "--quiet"]):
        command = [*ruff, *step, "--stdin-filename", str(path), "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=ROOT)  # noqa: S603
        if done.returncode:
            raise SystemExit(f"{path.name}: {done.stderr or done.stdout}")
        text = done.stdout
    return text


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description="clients/_async/ -> clients/_sync/")
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if anything differs")
    check = parser.parse_args().check
    made = build()
    there = {path: path.read_text(encoding="utf-8") for path in TARGET.glob("*.py")}
    wrong = sorted(path for path in made.keys() | there.keys() if made.get(path) != there.get(path))
    if check:
        for path in wrong:
            sys.stderr.write(f"{path.relative_to(ROOT)} is not what tools/unasync.py makes: run it\n")
        return 1 if wrong else 0
    TARGET.mkdir(exist_ok=True)
    for path in wrong:
        if path in made:
            path.write_text(made[path], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
