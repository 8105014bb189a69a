"""How long from `keyside up` to the first answer?

On an empty data directory: start, store the fraud model, ask once. On one that has the model: start, ask once. The
asking process has imported all that it needs, as an application would have that waits for its server.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import Book, arguments, ping_us
from rig import find_binary
from scenario import Fraud

import keyside

EMPTY, AGAIN = "empty data directory", "data directory with the model"


def start(book: Book, name: str, data: Path, binary: Path, fraud: Fraud) -> None:
    """Start everything, ask once, and stop it."""
    transaction, reference = fraud.arrays(0)
    command = [
        str(Path(sys.executable).parent / "keyside"), "--json", "up", "--data-dir", str(data), "--port", "0",
        "--server-bin", str(binary),
    ]  # fmt: skip
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"keyside up ended with {process.wait(10)}"
            url = json.loads(line)["url"]
            up = time.perf_counter()
            with keyside.Client(url) as client:
                if name == EMPTY:
                    client.store("fraud", fraud.model)
                stored = time.perf_counter()
                answer = client.predict("fraud", [transaction, reference])
                answered = time.perf_counter()
            book.note(name, "up s", up - began)
            if name == EMPTY:
                book.note(name, "store s", stored - up)
            book.note(name, "first answer ms", (answered - stored) * 1e3)
            book.note(name, "all s", answered - began)
            book.note(name, "PING us", ping_us(url))
        finally:
            process.terminate()
            process.wait(30)
    assert np.allclose(answer[0], fraud.expected[0], rtol=1e-4, atol=1e-5)


def main() -> None:
    options = arguments(__doc__).parse_args()
    book = Book("Cold start", options)
    fraud = Fraud()
    with tempfile.TemporaryDirectory(prefix="ks-") as scratch:
        data = Path(scratch) / "data"
        binary = find_binary(options.server, Path(scratch))
        for number in range(options.rounds):
            start(book, EMPTY, data, binary, fraud)
            start(book, AGAIN, data, binary, fraud)
            shutil.rmtree(data)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    book.judge("start.seconds", book.of(EMPTY, "all s"))
    book.end()


if __name__ == "__main__":
    main()
