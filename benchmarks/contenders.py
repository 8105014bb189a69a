"""Who is compared on the fraud scenario, all with the same requests and the same drivers."""

import abc
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from drivers import NUMBER, Caller, Load, Prepared, RedisCaller, closing, latencies, no_collector, prepare, saturate
from measure import Meter
from peers import Peer
from peers.redisai_peer import RedisAIServer, dag, probabilities
from raw import check, of_reply, predict
from rig import ROOT, Rig
from scenario import REFERENCES, Fraud, session_for

import keyside

__all__ = [
    "CLIENTS",
    "FLYING",
    "AsyncClient",
    "BlockingClient",
    "Contender",
    "HttpPeer",
    "InProcess",
    "RawSocket",
    "RedisAI",
    "Relay",
]

CLIENTS = 32
FLYING = 1000
WARM_UP = 50
WARM_UP_FROM = 9_000_000  # numbers of requests that are not measured

Answers = list[tuple[int, Any]]


class Contender(abc.ABC):
    """One way to get the answers.

    Attributes:
        name: in tables.
        url: the server in which the references are.
    """

    name: str

    def __init__(self, url: str, fraud: Fraud) -> None:
        self.url = url
        self.fraud = fraud

    @property
    def stays(self) -> bool:
        """Whether it may be up while others are measured."""
        return True

    def arrive(self) -> None:  # noqa: B027  # most are up all the time
        """Come up."""

    def leave(self) -> None:  # noqa: B027
        """Go down again."""

    def end(self) -> None:  # noqa: B027
        """Stop what it has started, for good."""

    def processes(self) -> dict[str, int]:
        """Return the pids of what serves it: Redis, and the server that runs the model."""
        return {}

    def meter(self) -> Meter:
        """Return what measures the costs of its processes."""
        return Meter(self.url, self.processes())

    def one_by_one(self, count: int, meter: Meter) -> tuple[list[float], Answers] | None:
        """Make requests, one after the other; return seconds and answers, or None if that says nothing of it."""
        return None

    def together(self, seconds: float, meter: Meter, clients: int = CLIENTS) -> Load | None:
        """Make as many requests as it answers in that time."""
        return None

    @abc.abstractmethod
    def decode(self, answer: Any) -> Any:
        """Return the probabilities in an answer."""

    def check(self, answers: Answers) -> None:
        """See that all answers are right."""
        check(answers, self.fraud.expected, self.decode, self.name)


class Driven(Contender):
    """What callers of the drivers ask."""

    @abc.abstractmethod
    def callers(self, count: int, *, blocking: bool = False) -> Sequence[Caller]:
        """Return so many clients."""

    def one_by_one(self, count: int, meter: Meter) -> tuple[list[float], Answers]:
        """See `Contender.one_by_one`."""
        callers = self.callers(1, blocking=True)
        with closing(callers):
            return _measured(callers[0].call, count, meter)

    def together(self, seconds: float, meter: Meter, clients: int = CLIENTS) -> Load:
        """See `Contender.together`."""
        callers = self.callers(clients)
        with closing(callers):
            meter.probe()
            saturate(callers, seconds / 8, WARM_UP_FROM)
            with meter:
                return saturate(callers, seconds)


class Raw(Driven):
    """Commands on raw sockets to Redis.

    Args:
        rig: the server and its executor.
        fraud: the scenario.
        where: of which server, for the name.
    """

    title: str

    def __init__(self, rig: Rig, fraud: Fraud, where: str = "") -> None:
        super().__init__(rig.url, fraud)
        self.name = self.title + where
        self._rig = rig
        self._prepared: Prepared | None = None

    @abc.abstractmethod
    def request(self, n: int) -> list[list[Any]]:
        """Return the commands of a request with input n."""

    def callers(self, count: int, *, blocking: bool = False) -> Sequence[Caller]:
        """See `Driven.callers`."""
        self._prepared = self._prepared or prepare(self.request, REFERENCES)
        return [RedisCaller(self.url, self._prepared, blocking=blocking) for _ in range(count)]

    def processes(self) -> dict[str, int]:
        """See `Contender.processes`."""
        return {"Redis": self._rig.server.pid, "server": self._rig.executor.pid}


class Relay(Raw):
    """Floor (a): a list to a process that runs the model, and a list back."""

    title = "floor (a): relay"

    def __init__(self, rig: Rig, fraud: Fraud, where: str = "") -> None:
        super().__init__(rig, fraud, where)
        self._process = subprocess.Popen([sys.executable, str(ROOT / "benchmarks/relay.py"), rig.url])
        while not rig.db.exists("relay:ready"):
            assert self._process.poll() is None, "the relay has ended"
            time.sleep(0.01)

    def end(self) -> None:
        """See `Contender.end`."""
        self._process.terminate()
        self._process.wait(10)

    def request(self, n: int) -> list[list[Any]]:
        """See `Raw.request`."""
        transaction, reference = self.fraud.arrays(n)
        return [
            ["LPUSH", "relay:in", NUMBER + transaction.tobytes() + reference.tobytes()],
            ["BLPOP", b"relay:" + NUMBER, 10],
        ]

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return np.frombuffer(answer[1], np.float32)

    def processes(self) -> dict[str, int]:
        """See `Contender.processes`."""
        return {"Redis": self._rig.server.pid, "server": self._process.pid}


class RawSocket(Raw):
    """Keyside, by FCALL and BLPOP."""

    title = "Keyside, raw socket"

    def request(self, n: int) -> list[list[Any]]:
        """See `Raw.request`."""
        return predict(self.fraud.transactions[n], Fraud.key(n))

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return of_reply(answer)


class BlockingClient(Contender):
    """Keyside, by its blocking client."""

    title = "Keyside, Client.predict"

    def __init__(self, rig: Rig, fraud: Fraud, where: str = "") -> None:
        super().__init__(rig.url, fraud)
        self.name = self.title + where
        self._rig = rig
        self.inputs: list[Any] = [[fraud.arrays(n)[0], keyside.Key(Fraud.key(n))] for n in range(REFERENCES)]

    def one_by_one(self, count: int, meter: Meter) -> tuple[list[float], Answers]:
        """See `Contender.one_by_one`."""
        inputs = self.inputs
        with keyside.Client(self.url) as client:
            return _measured(lambda i: client.predict("fraud", inputs[i % REFERENCES]), count, meter)

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return answer

    def processes(self) -> dict[str, int]:
        """See `Contender.processes`."""
        return {"Redis": self._rig.server.pid, "server": self._rig.executor.pid}


class AsyncClient(BlockingClient):
    """Keyside, by its client for asyncio; under load with many requests in flight."""

    title = "Keyside, AsyncClient"

    def one_by_one(self, count: int, meter: Meter) -> tuple[list[float], Answers]:
        """See `Contender.one_by_one`."""
        return asyncio.run(self._one_by_one(count, meter))

    async def _one_by_one(self, count: int, meter: Meter) -> tuple[list[float], Answers]:
        took: list[float] = []
        answers: Answers = []
        async with keyside.AsyncClient(self.url) as client:
            meter.probe()
            for i in range(WARM_UP):
                await client.predict("fraud", self.inputs[i])
            with no_collector(), meter:
                for i in range(count):
                    before = time.perf_counter()
                    answer = await client.predict("fraud", self.inputs[i % REFERENCES])
                    took.append(time.perf_counter() - before)
                    answers.append((i, answer))
        return took, answers

    def together(self, seconds: float, meter: Meter, clients: int = FLYING) -> Load:
        """See `Contender.together`."""
        return asyncio.run(self._together(seconds, meter, clients))

    async def _together(self, seconds: float, meter: Meter, clients: int) -> Load:
        took: list[float] = []
        answers: Answers = []
        numbers = iter(range(1 << 40))
        go = asyncio.Event()
        inputs = self.inputs
        end = 0.0
        async with keyside.AsyncClient(self.url) as client:

            async def worker(n: int) -> None:
                # Connected, warm and waiting before the timed part begins.
                await client.predict("fraud", inputs[n % REFERENCES])
                await go.wait()
                while (before := time.perf_counter()) < end:
                    i = next(numbers)
                    answers.append((i, await client.predict("fraud", inputs[i % REFERENCES])))
                    took.append(time.perf_counter() - before)

            workers = asyncio.gather(*(worker(n) for n in range(clients)))
            await asyncio.sleep(seconds / 8)
            with no_collector(), meter:
                began = time.perf_counter()
                end = began + seconds
                go.set()
                await workers
                ended = time.perf_counter()
        return Load(len(answers) / (ended - began), took, answers)


class InProcess(Contender):
    """Floor (c): onnxruntime here, with both tensors at hand."""

    name = "floor (c): onnxruntime in this process"

    def one_by_one(self, count: int, meter: Meter) -> tuple[list[float], Answers]:
        """See `Contender.one_by_one`."""
        session = session_for(self.fraud.model)
        feeds = [dict(zip(("transaction", "reference"), self.fraud.arrays(n), strict=True)) for n in range(REFERENCES)]
        return _measured(lambda i: session.run(None, feeds[i % REFERENCES])[0], count, meter)

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return answer


class HttpPeer(Driven):
    """Another model server; see `peers`."""

    def __init__(self, rig: Rig, fraud: Fraud, peer: Peer) -> None:
        super().__init__(rig.url, fraud)
        self._rig = rig
        self.peer = peer
        self.name = peer.name
        self._up = False

    @property
    def stays(self) -> bool:
        """See `Contender.stays`."""
        return self.peer.resident

    def arrive(self) -> None:
        """See `Contender.arrive`."""
        if not self._up:
            self.peer.start(self.fraud.model)
            self._up = True

    def leave(self) -> None:
        """Go down, unless it may stay."""
        if not self.stays:
            self.end()

    def end(self) -> None:
        """Go down."""
        self._up = False
        self.peer.stop()

    def callers(self, count: int, *, blocking: bool = False) -> Sequence[Caller]:
        """See `Driven.callers`."""
        return self.peer.callers(self.url, self.fraud, count, blocking=blocking)

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return self.peer.read(answer)

    def processes(self) -> dict[str, int]:
        """See `Contender.processes`."""
        return {"Redis": self._rig.server.pid, "server": self.peer.pid}


class RedisAI(Driven):
    """The module; its one process is Redis and the server of the model."""

    name = "RedisAI"

    def __init__(self, fraud: Fraud, module: Path | str | None) -> None:
        super().__init__("", fraud)
        self._server = RedisAIServer(module)
        self._prepared: Prepared | None = None
        self.told = ""

    def arrive(self) -> None:
        """See `Contender.arrive`."""
        if not self.url:
            version = self._server.start(self.fraud)
            self.told = f"{self.name} {version}, one thread, AI.DAGEXECUTE_RO; its one process counts as Redis"
            self.url = self._server.url

    def end(self) -> None:
        """See `Contender.end`."""
        self.url = ""
        self._server.stop()

    def callers(self, count: int, *, blocking: bool = False) -> Sequence[Caller]:
        """See `Driven.callers`."""
        if self._prepared is None:
            transactions = [self.fraud.arrays(n)[0] for n in range(REFERENCES)]
            self._prepared = prepare(lambda n: [dag(transactions[n], Fraud.key(n))], REFERENCES)
        return [RedisCaller(self.url, self._prepared, blocking=blocking) for _ in range(count)]

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return probabilities(answer)

    def processes(self) -> dict[str, int]:
        """See `Contender.processes`."""
        return {"Redis": self._server.server.pid}


def _measured(one: Callable[[int], Any], count: int, meter: Meter) -> tuple[list[float], Answers]:
    meter.probe()
    latencies(one, WARM_UP, WARM_UP_FROM)
    with meter:
        return latencies(one, count)
