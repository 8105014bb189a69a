"""Callers that check every answer: `python -m tests.load FOLDER` is one process of them.

It reads orders from stdin, `url number count` on a line, and answers each with one line of JSON. FOLDER has the models
that the server was given, as `<name>.onnx`: what each request should come to is computed here by onnxruntime.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from keyside.executor.wire import Wire, checked
from keyside.tensorstore import npy
from keyside.tensorstore.records import decode_reply

WINDOW = 64
TIMEOUT_MS = 20_000
LARGE_ROWS = 5_000

Array = np.ndarray[Any, Any]
Commands = list[tuple[Any, ...]]


class Caller:
    """One process's requests to one server.

    Args:
        sessions: by name of the model, to compute what should come out.
        number: of the process.
        count: of requests.
    """

    def __init__(self, url: str, sessions: dict[str, Any], number: int, count: int) -> None:
        self.sessions = sessions
        self.number = number
        self.count = count
        self.rng = np.random.default_rng(number)
        self.wire = Wire(url, name=f"caller-{number}", timeout=30.0)
        self.tickets = f"ks:{{0}}:mb:many{number}"
        self.waiting: dict[int, tuple[str, list[Array], str]] = {}
        self.answers: dict[int, tuple[str, list[Array], list[Array]]] = {}
        self.problems: list[str] = []

    def run(self) -> list[str]:
        """Send all requests, at most WINDOW at a time, and say what was wrong with the answers."""
        self.wire.connect()
        sent = 0
        while (sent < self.count or self.waiting) and not self.problems:
            commands: Commands = []
            accepted: dict[int, bool] = {}
            while sent < self.count and len(self.waiting) < WINDOW:
                self._request(sent, commands, accepted)
                sent += 1
            commands.append(("BLMPOP", TIMEOUT_MS / 1000 + 5, 1, self.tickets, "LEFT", "COUNT", WINDOW))
            replies = [checked(reply) for reply in self.wire.call_many(commands)]
            for index, first in accepted.items():
                if bool(replies[index]) != first:
                    self.problems.append(f"{commands[index][1]} replied {replies[index]!r}, first: {first}")
            if replies[-1] is None:
                self.problems.append(f"lost: {sorted(self.waiting)[:10]}")
                break
            self._accept(replies[-1][1])
        if self.wire.call("LLEN", self.tickets):
            self.problems.append("answered twice")
        self.wire.close()
        return self.problems + self._differences()

    def _request(self, i: int, commands: Commands, accepted: dict[int, bool]) -> None:
        model = ("echo", "mlp", "affine")[i % 3]
        inputs = self._inputs(model, i)
        large = sum(array.nbytes for array in inputs) > 30_000
        mode = self.rng.choice(
            ["KEY", "OWN", "execute"] if large else ["VALUE", "VALUE", "VALUE", "KEY", "OWN", "execute"]
        )
        tail = ("TIMEOUT", TIMEOUT_MS, "TICKET", self.tickets, str(i), "ID", f"caller{self.number}", i)
        names = [f"many:{self.number}:{i}:{n}" for n in range(len(inputs))]
        values = [npy.to_bytes(array) for array in inputs]
        output = f"many:{self.number}:{i}:out"
        count = len(inputs)
        if mode != "VALUE":
            commands += [("SET", name, value, "PX", 60_000) for name, value in zip(names, values, strict=True)]
        accepted[len(commands)] = True
        if mode == "execute":
            args = (model, "INPUTS", count, *names, "OUTPUTS", 1, output)
            commands.append(("FCALL", "AI_MODELEXECUTE", count + 1, *names, output, *args, *tail))
        else:
            given = values if mode == "VALUE" else names
            specs = [part for one in given for part in (mode, one)]
            keys = [] if mode == "VALUE" else names
            commands.append(("FCALL", "AI_PREDICT", len(keys), *keys, model, "INPUTS", count, *specs, *tail))
        if mode == "VALUE" and i % 20 == 0:  # as a client does that has lost the answer to its call
            accepted[len(commands)] = False
            commands.append(commands[-1])
        if mode in ("KEY", "execute"):  # the inputs count as of submit
            commands += [("SET", name, "spoilt") for name in names] + [("UNLINK", *names)]
        self.waiting[i] = (model, inputs, output if mode == "execute" else "")

    def _inputs(self, model: str, i: int) -> list[Array]:
        rows = int(self.rng.integers(1, 4))
        if model == "echo":
            rows = LARGE_ROWS if i % 60 == 0 else rows
            return [np.full((rows, 1), self.number * 1_000_000 + i, np.int64)]
        if model == "mlp":
            return [self.rng.standard_normal((rows, width), dtype=np.float32) for width in (30, 256)]
        rows = 3_000 if i % 60 == 2 else rows
        return [self.rng.standard_normal((rows, 4), dtype=np.float32)]

    def _accept(self, replies: list[Any]) -> None:
        fetch: Commands = []
        into: list[int] = []
        for reply in replies:
            corr, _, text = bytes(reply).partition(b" ")
            i = int(corr)
            if i not in self.waiting:
                self.problems.append(f"answered twice: {i}")
                continue
            model, inputs, output = self.waiting.pop(i)
            if text != b"OK" and text[0] < 0x80:
                self.problems.append(f"{i}: {text[:200]!r}")
                continue
            values = [output] if text == b"OK" else list(decode_reply(text).outputs.values())
            self.answers[i] = (model, inputs, [npy.decode(value) for value in values if isinstance(value, bytes)])
            for name in values:
                if isinstance(name, str):
                    fetch += [("GET", name), ("UNLINK", name)]
                    into.append(i)
        found = self.wire.call_many(fetch)[::2] if fetch else []
        for i, value in zip(into, found, strict=True):
            if value is None:
                self.problems.append(f"{i}: its output is not there")
            else:
                self.answers[i][2].append(npy.decode(bytes(value)))

    def _differences(self) -> list[str]:
        found = []
        for i, (model, inputs, outputs) in self.answers.items():
            session = self.sessions[model]
            names = [one.name for one in session.get_inputs()]
            wanted = session.run(None, dict(zip(names, inputs, strict=True)))
            for got, want in zip(outputs, wanted, strict=True):
                if model == "echo":
                    same = np.array_equal(got, want)
                else:
                    same = got.shape == want.shape and np.allclose(got, want, rtol=1e-5, atol=1e-6)
                if not same or got.dtype != want.dtype:
                    found.append(f"{i} of {model}: wrong")
        return found


def main() -> None:
    """Serve orders until stdin ends."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    folder = Path(sys.argv[1])
    sessions = {
        path.stem: onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        for path in folder.glob("*.onnx")
    }
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        url, number, count = line.split()
        caller = Caller(url, sessions, int(number), int(count))
        try:
            problems = caller.run()
        except Exception as error:
            problems = [f"{type(error).__name__}: {error}"]
        print(json.dumps({"answered": len(caller.answers), "problems": problems[:10]}), flush=True)


if __name__ == "__main__":
    main()
