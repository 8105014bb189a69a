"""What does `predict_many` of 10,000 rows take over floor (c), onnxruntime in this process in batches of 256?

With the model of about 1 ms a row of bench_batching; and, for what moving the data alone costs, with the fraud model,
which computes next to nothing.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from measure import Book, arguments, turns
from numpy.typing import NDArray
from rig import served, upload
from scenario import Fraud, dense_of, session_for

import keyside

BATCH = 256


class Case:
    """A model and its rows.

    Attributes:
        name: of the model.
        blob: the model.
        rows: inputs by name.
    """

    def __init__(self, name: str, blob: bytes, rows: dict[str, NDArray[np.float32]]) -> None:
        self.name = name
        self.blob = blob
        self.rows = rows
        self.count = len(next(iter(rows.values())))
        self._session = session_for(blob)
        self.expected = self.in_process()

    def in_process(self) -> Any:
        """Run all rows here."""
        parts = []
        for start in range(0, self.count, BATCH):
            feed = {name: rows[start : start + BATCH] for name, rows in self.rows.items()}
            parts.append(self._session.run(None, feed)[0])
        return np.concatenate(parts)


def main() -> None:
    options = arguments(__doc__).parse_args()
    book = Book("predict_many", options)
    rng = np.random.default_rng(13)
    count = max(2 * BATCH, int(10_000 * options.scale))

    def rows(width: int) -> NDArray[np.float32]:
        return rng.standard_normal((count, width), dtype=np.float32)

    blob, told = dense_of(1.0)
    book.remark(told)
    cases = [
        Case("dense", blob, {"x": rows(256)}),
        Case("fraud", Fraud().model, {"transaction": rows(30), "reference": rows(256)}),
    ]
    with served(options.server) as rig, keyside.Client(rig.url) as client:
        contenders: dict[str, tuple[Case, Callable[[], Any]]] = {}
        for case in cases:
            upload(rig.url, case.name, case.blob)
            contenders[f"{case.name}: floor (c), batches of {BATCH}"] = (case, case.in_process)
            run_there = partial(client.predict_many, case.name, case.rows, batch=BATCH)
            contenders[f"{case.name}: predict_many"] = (case, run_there)
        for number in range(options.rounds):
            for name in turns(list(contenders), number):
                case, run = contenders[name]
                run()
                with book.probed(name, rig.url):
                    before = time.perf_counter()
                    found = run()
                    took = time.perf_counter() - before
                assert np.allclose(found, case.expected, rtol=1e-3, atol=1e-4), name
                book.note(name, "ms", took * 1e3)
                book.note(name, "rows /s", case.count / took)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    book.over("many.time", "dense: predict_many", f"dense: floor (c), batches of {BATCH}", "ms")
    moved = book.of("fraud: predict_many", "ms").ratio(book.of(f"fraud: floor (c), batches of {BATCH}", "ms"))
    book.remark(f"{count:,} rows. Fraud model, which computes next to nothing: {moved.text()} of floor (c)")
    book.end()


if __name__ == "__main__":
    main()
