"""How fast is a prediction on the fraud scenario, next to what Redis and onnxruntime alone allow?

Contenders, interleaved in every round: floor (a), a bare relay through Redis lists; Keyside by a raw socket; Keyside by
`Client.predict`; Keyside by `AsyncClient`, 1,000 in flight; onnxruntime in this process. Every answer is checked after the
timed part. Prints a Markdown table; `--json FILE` keeps everything.
"""

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import Figures, closed_loop, cpu_seconds, latencies, ping_us, steal_ticks, summary
from scenario import REFERENCES, Fraud, session_for

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.executors import Executor  # noqa: E402  # one way to start servers and executors, shared with the tests
from tests.servers import Server  # noqa: E402

import keyside  # noqa: E402
from keyside.executor.wire import Wire  # noqa: E402
from keyside.tensorstore import npy  # noqa: E402
from keyside.tensorstore.records import decode_reply  # noqa: E402


class Bench:
    def __init__(self, kind: Any, scale: float) -> None:
        self.fraud = Fraud()
        self.server = Server(kind)
        self.figures: dict[str, dict[str, Figures]] = {}
        self.scale = scale

    def count(self, number: int) -> int:
        return max(50, int(number * self.scale))

    def note(self, contender: str, quantity: str, value: float) -> None:
        self.figures.setdefault(contender, {}).setdefault(quantity, Figures()).values.append(value)

    # --- requests

    def predict(self, i: int) -> list[list[Any]]:
        n = i % REFERENCES
        ticket = f"ks:{{0}}:t:bench:{i}"
        return [
            ["FCALL", "AI_PREDICT", 1, Fraud.key(n), "fraud", "INPUTS", 2, "VALUE", self.fraud.transactions[n],
             "KEY", Fraud.key(n), "TICKET", ticket],
            ["BLPOP", ticket, 10],
        ]  # fmt: skip

    def relay(self, i: int) -> list[list[Any]]:
        transaction, reference = self.fraud.arrays(i % REFERENCES)
        ticket = b"%08d" % i
        return [
            ["LPUSH", "relay:in", ticket + transaction.tobytes() + reference.tobytes()],
            ["BLPOP", b"relay:" + ticket, 10],
        ]

    def check(self, contender: str, answers: list[tuple[int, Any]], decode: Any) -> None:
        for i, answer in answers:
            got = decode(answer)
            want = self.fraud.expected[i % REFERENCES]
            assert np.allclose(got, want, rtol=1e-5, atol=1e-6), f"{contender}: request {i}: {got} is not {want}"

    @staticmethod
    def of_reply(answer: Any) -> Any:
        return npy.decode(decode_reply(answer[1]).outputs["probabilities"])

    @staticmethod
    def of_relay(answer: Any) -> Any:
        return np.frombuffer(answer[1], np.float32)

    # --- a round

    def round(self, number: int) -> None:
        url = self.server.url_unix
        stolen, all_ticks = steal_ticks()
        self.note("machine", "PING us", ping_us(url))
        wire = Wire(url, name="one")
        wire.connect()
        raw = {"floor (a) relay": (self.relay, self.of_relay, self.relay_process.pid), "raw socket": (self.predict, self.of_reply, self.executor.pid)}
        order = list(raw.items())
        if number % 2:
            order.reverse()
        for name, (request, decode, _) in order:
            latencies(lambda i, request=request: wire.call_many(request(i))[-1], 100, 9_000_000)
            seconds, answers = latencies(lambda i, request=request: wire.call_many(request(i))[-1], self.count(2000))
            self.check(name, list(enumerate(answers)), decode)
            self.note(name, "p50 us", statistics.median(seconds) * 1e6)
            self.note(name, "p99 us", statistics.quantiles(seconds, n=100)[98] * 1e6)
        wire.close()
        self.client_round()
        for name, (request, decode, pid) in order:
            server, other = cpu_seconds(self.server.pid), cpu_seconds(pid)
            rate, seconds, answers = closed_loop(url, request, 32, self.count(10_000))
            self.check(name, answers, decode)
            self.note(name, "32 clients /s", rate)
            self.note(name, "32 clients p99 ms", statistics.quantiles(seconds, n=100)[98] * 1e3)
            self.note(name, "server CPU us", (cpu_seconds(self.server.pid) - server) / len(answers) * 1e6)
            self.note(name, "executor CPU us", (cpu_seconds(pid) - other) / len(answers) * 1e6)
        asyncio.run(self.async_round())
        self.in_process_round()
        stolen_now, all_now = steal_ticks()
        self.note("machine", "steal %", 100 * (stolen_now - stolen) / max(1, all_now - all_ticks))

    def client_round(self) -> None:
        with keyside.Client(self.server.url_unix) as client:

            def one(i: int) -> Any:
                n = i % REFERENCES
                return client.predict("fraud", [self.fraud.arrays(n)[0], keyside.Key(Fraud.key(n))])

            latencies(one, 100)
            seconds, answers = latencies(one, self.count(2000))
        self.check("Client.predict", list(enumerate(answers)), lambda answer: answer)
        self.note("Client.predict", "p50 us", statistics.median(seconds) * 1e6)
        self.note("Client.predict", "p99 us", statistics.quantiles(seconds, n=100)[98] * 1e6)

    async def async_round(self) -> None:
        count, flying = self.count(10_000), 1000
        answers: list[tuple[int, Any]] = []
        async with keyside.AsyncClient(self.server.url_unix) as client:
            numbers = iter(range(count))

            async def worker() -> None:
                for i in numbers:
                    n = i % REFERENCES
                    answers.append((i, await client.predict("fraud", [self.fraud.arrays(n)[0], keyside.Key(Fraud.key(n))])))

            began = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(flying)))
            self.note("AsyncClient, 1000 in flight", "32 clients /s", count / (time.perf_counter() - began))
        self.check("AsyncClient", answers, lambda answer: answer)

    def in_process_round(self) -> None:
        session = session_for(self.fraud.model)

        def one(i: int) -> Any:
            transaction, reference = self.fraud.arrays(i % REFERENCES)
            return session.run(None, {"transaction": transaction, "reference": reference})[0]

        seconds, _ = latencies(one, self.count(2000))
        self.note("onnxruntime in process", "p50 us", statistics.median(seconds) * 1e6)

    # --- all rounds

    def run(self, rounds: int) -> None:
        with self.server, self.server.client() as db:
            self.server.load_library()
            for i, reference in enumerate(self.fraud.references):
                db.set(Fraud.key(i), reference)
            self.relay_process = subprocess.Popen([sys.executable, str(ROOT / "benchmarks/relay.py"), self.server.url_unix])
            with Executor(self.server) as self.executor:
                db.fcall("AI_MODELSTORE", 1, "fraud", "ONNX", "CPU", "BLOB", self.fraud.model)
                while db.hget("fraud", "1:state") != b"ready" or not db.exists("relay:ready"):
                    time.sleep(0.01)
                for number in range(rounds):
                    self.round(number)
                    print(f"round {number + 1} of {rounds}", file=sys.stderr)
                db.lpush("relay:in", b"stop")
                self.relay_process.wait(10)

    def table(self) -> str:
        quantities = ["p50 us", "p99 us", "32 clients /s", "32 clients p99 ms", "server CPU us", "executor CPU us"]
        rows = [["contender", *quantities]]
        for contender, found in self.figures.items():
            if contender != "machine":
                rows.append([contender, *(found[q].text(".1f" if "ms" in q else ".0f") if q in found else "" for q in quantities)])
        floor = self.figures["floor (a) relay"]
        lines = [summary(rows), ""]
        for contender in ("raw socket", "Client.predict"):
            ratio = self.figures[contender]["p50 us"].ratio(floor["p50 us"])
            lines.append(f"- {contender}: p50 over floor (a): {ratio.text('.2f')}")
        rate = self.figures["raw socket"]["32 clients /s"].ratio(floor["32 clients /s"])
        lines.append(f"- raw socket, 32 clients: throughput over floor (a): {rate.text('.2f')}")
        machine = self.figures["machine"]
        lines.append(f"- machine: PING p50 {machine['PING us'].text()} us, steal {machine['steal %'].text('.1f')} %")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=0.5, help="share of the requests of a full run")
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory():
        bench = Bench(options.server, options.scale)
        bench.run(options.rounds)
    print(f"{options.server}, {options.rounds} rounds, scale {options.scale}; median [least-most] of rounds\n")
    print(bench.table())
    if options.json:
        values = {c: {q: f.values for q, f in found.items()} for c, found in bench.figures.items()}
        about = {"python": platform.python_version(), "machine": platform.machine(), "command": sys.argv}
        options.json.write_text(json.dumps({"about": about, "figures": values}, indent=1))


if __name__ == "__main__":
    main()
