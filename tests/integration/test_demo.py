"""The demo, as `make demo` runs it."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def running(mark: str) -> list[str]:
    """Commands of the processes that have inherited a variable, wherever they have moved; zombies have none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # another user's, or it has ended
            continue
    return found


def test_the_demo_runs_and_leaves_nothing(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    # A server that the environment names is not the demo's.
    variables = {"TMPDIR": str(tmp_path), "DEMO_MARK": mark, "KEYSIDE_URL": "unix:///nonexistent/socket"}
    variables["PATH"] = f"{ROOT / '.cache/redis/bin'}:{os.environ['PATH']}"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "demo.py")],
        cwd=tmp_path, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    seen = 0
    ends = time.monotonic() + 80
    try:
        while process.poll() is None and time.monotonic() < ends:
            seen = max(seen, len(running(mark)))
            time.sleep(0.1)
    finally:
        process.kill()
        output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "every prediction equals that of onnxruntime in this process" in output, output
    assert output.count("accuracy 97.1% of 450") == 4, output
    assert '{"trigger":"hand","run":"CPU/' in output, "what redis-cli has heard"
    assert seen >= 3, "the demo itself, its server and its executor"
    assert not running(mark)
    assert not list(tmp_path.glob("keyside*"))
