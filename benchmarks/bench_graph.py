"""What does a graph save over separate calls?

A script scales a row, a model scores it, and where the score passes a test a second and a third model refine it. As a
stored graph that is one call. A client that knows no graphs calls the script, then the models, each by itself, and
decides in between; or it scales the row by itself and calls the three models. `Client`, one request at a time, in short
turns; all rows pass the test, and beside it those that do not. Every answer is compared with NumPy's.
"""

import sys
from typing import Any

import numpy as np
from measure import Book, arguments, interleaved
from rig import Rig, served, store
from tests import models

import keyside

WIDTH, ROWS = 16, 64
GRAPH, STOPPED = "a graph of a script and 3 models, one call", "the same, stopped by its test after the first model"
CALLS, MODELS = "the script and 3 models, 4 calls", "3 models, 3 calls; the client scales"
SOURCE = """
def scale(tensors: List[Tensor], keys: List[str], args: List[str]):
    return tensors[0] / float(args[0])
"""
DIVISOR, LIMIT = 10.0, 2.0
STEPS = {"scores": (2.0, 1.0), "refines": (3.0, -1.0), "finishes": (0.5, 4.0)}


class Cascade:
    """The scenario."""

    def __init__(self, rig: Rig, client: keyside.Client) -> None:
        self.client = client
        self.rig = rig
        rng = np.random.default_rng(5)
        self.passing = [6 + 4 * rng.random((1, WIDTH), np.float32) for _ in range(ROWS)]
        self.failing = [4 * rng.random((1, WIDTH), np.float32) for _ in range(ROWS)]

    def fill(self) -> None:
        """Store script, models and graph."""
        for name, numbers in STEPS.items():
            store(self.rig.db, name, models.affine(*numbers, width=WIDTH))
        self.client.store_script("prep", SOURCE, entry_points=["scale"])
        g = self.client.graph("cascade")
        row = g.script("prep", "scale", g.input("row", "FLOAT", (-1, WIDTH)), args=[DIVISOR])
        score = g.run("scores", row)
        answer = g.when(score.max() > LIMIT, then=lambda: g.run("finishes", g.run("refines", score)), otherwise=score)
        g.output("answer", answer)
        self.client.store_graph(g)

    def graph(self, number: int) -> Any:
        """One call, and all of it runs."""
        return self.client.predict("cascade", self.passing[number % ROWS])

    def stopped(self, number: int) -> Any:
        """One call that needs only the first model."""
        return self.client.predict("cascade", self.failing[number % ROWS])

    def calls(self, number: int) -> Any:
        """The script and the models, call by call."""
        return self._models(self.client.run_script("prep", "scale", [self.passing[number % ROWS]], args=[str(DIVISOR)]))

    def models(self, number: int) -> Any:
        """The models, call by call."""
        return self._models(self.passing[number % ROWS] / np.float32(DIVISOR))

    def _models(self, row: Any) -> Any:
        score = self.client.predict("scores", row)
        if score.max() > LIMIT:
            return self.client.predict("finishes", self.client.predict("refines", score))
        return score

    def check(self, answers: list[tuple[int, Any]], rows: list[Any], name: str) -> None:
        """Compare answers with NumPy's."""
        for number, answer in answers:
            expected = rows[number % ROWS] / np.float32(DIVISOR)
            for n, (scale, offset) in enumerate(STEPS.values()):
                if n == 1 and not expected.max() > LIMIT:
                    break
                expected = expected * np.float32(scale) + np.float32(offset)
            np.testing.assert_allclose(answer, expected, rtol=1e-6, err_msg=name)


def main() -> None:
    options = arguments(__doc__).parse_args()
    book = Book("A graph over separate calls", options)
    requests = max(100, int(3000 * options.scale))
    with served(options.server) as rig, keyside.Client(rig.url) as client:
        cascade = Cascade(rig, client)
        cascade.fill()
        assert all((row / 10 * 2 + 1).max() <= LIMIT for row in cascade.failing)
        ones = {GRAPH: cascade.graph, CALLS: cascade.calls, MODELS: cascade.models, STOPPED: cascade.stopped}
        interleaved(ones, max(20, requests // 10), 0)
        for number in range(options.rounds):
            with book.probed(GRAPH, rig.url):
                found = interleaved(ones, requests, number)
            for name, (seconds, answers) in found.items():
                cascade.check(answers, cascade.failing if name == STOPPED else cascade.passing, name)
                book.note_latencies(name, seconds)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    book.over("graph.calls", GRAPH, CALLS, "p50 us")
    alone = book.of(GRAPH, "p50 us").ratio(book.of(MODELS, "p50 us"))
    book.remark(f"Over 3 calls of `predict` alone, without the script's: {alone.text()}")
    book.remark(f"Rows of {WIDTH} numbers; models of one multiplication and one addition: what is compared is the way")
    book.end()


if __name__ == "__main__":
    main()
