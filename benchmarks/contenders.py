"""Who is compared on the fraud scenario, all with the same requests and the same drivers."""

import abc
import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from drivers import Caller, Load, RedisCaller, latencies, saturate
from peers import Peer
from processes import cpu_seconds
from rig import connected
from scenario import REFERENCES, Fraud, session_for

import keyside
from keyside.tensorstore import npy
from keyside.tensorstore.records import decode_reply

__all__ = [
    "CLIENTS",
    "FLYING",
    "AsyncClient",
    "BlockingClient",
    "Contender",
    "HttpPeer",
    "InProcess",
    "RawSocket",
    "Relay",
]

CLIENTS = 32
FLYING = 1000

Answers = list[tuple[int, Any]]


class Contender(abc.ABC):
    """One way to get the answers.

    Attributes:
        name: in tables.
        serves: whether it has a process of its own, besides Redis.
    """

    name: str
    serves: ClassVar[bool] = True

    def __init__(self, url: str, fraud: Fraud) -> None:
        self.url = url
        self.fraud = fraud

    def arrive(self) -> None:  # noqa: B027  # most are up all the time
        """Come up."""

    def leave(self) -> None:  # noqa: B027
        """Go down again."""

    def one_by_one(self, count: int) -> tuple[list[float], Answers] | None:
        """Make requests, one after the other; return seconds and answers, or None if that says nothing of it."""
        return None

    def together(self, seconds: float) -> Load | None:
        """Make as many requests as it answers in that time."""
        return None

    @abc.abstractmethod
    def decode(self, answer: Any) -> Any:
        """Return the probabilities in an answer."""

    def cpu_seconds(self) -> float:
        """Return the CPU time of the processes that run the model."""
        return 0.0

    def check(self, answers: Answers) -> None:
        """See that all answers are right."""
        for i, answer in answers:
            got, want = np.ravel(self.decode(answer)), self.fraud.expected[i % REFERENCES]
            assert np.allclose(got, want, rtol=1e-4, atol=1e-5), f"{self.name}: request {i}: {got} is not {want}"


class Raw(Contender):
    """Commands on raw sockets to Redis."""

    def __init__(self, url: str, fraud: Fraud, pid: int) -> None:
        super().__init__(url, fraud)
        self._pid = pid

    @abc.abstractmethod
    def request(self, i: int) -> list[list[Any]]:
        """Return the commands of request i."""

    def one_by_one(self, count: int) -> tuple[list[float], Answers]:
        """See `Contender.one_by_one`."""
        wire = connected(self.url)
        try:
            return _warm(lambda i: wire.call_many(self.request(i))[-1], count)
        finally:
            wire.close()

    def together(self, seconds: float) -> Load:
        """See `Contender.together`."""
        return _saturate([RedisCaller(self.url, self.request) for _ in range(CLIENTS)], seconds)

    def cpu_seconds(self) -> float:
        """See `Contender.cpu_seconds`."""
        return cpu_seconds(self._pid)


class Relay(Raw):
    """Floor (a): a list to a process that runs the model, and a list back."""

    name = "floor (a): relay"

    def request(self, i: int) -> list[list[Any]]:
        """See `Raw.request`."""
        transaction, reference = self.fraud.arrays(i % REFERENCES)
        ticket = b"%08d" % i
        return [
            ["LPUSH", "relay:in", ticket + transaction.tobytes() + reference.tobytes()],
            ["BLPOP", b"relay:" + ticket, 10],
        ]

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return np.frombuffer(answer[1], np.float32)


class RawSocket(Raw):
    """Keyside, by FCALL and BLPOP."""

    name = "Keyside, raw socket"

    def request(self, i: int) -> list[list[Any]]:
        """See `Raw.request`."""
        n = i % REFERENCES
        return predict(self.fraud.transactions[n], Fraud.key(n), i)

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return of_reply(answer)


def predict(transaction: bytes, reference: str, number: int, target: str = "fraud") -> list[list[Any]]:
    """Return the commands of one request to the fraud model: a value in hand and a key."""
    ticket = f"ks:{{0}}:t:bench:{number}"
    return [
        ["FCALL", "AI_PREDICT", 1, reference, target, "INPUTS", 2, "VALUE", transaction, "KEY", reference,
         "TICKET", ticket],
        ["BLPOP", ticket, 10],
    ]  # fmt: skip


def of_reply(answer: Any) -> Any:
    """Return the one array in Keyside's reply to a request."""
    assert answer is not None, "no answer"
    value = next(iter(decode_reply(answer[1]).outputs.values()))
    assert isinstance(value, bytes)
    return npy.decode(value)


class BlockingClient(Contender):
    """Keyside, by its blocking client."""

    name = "Keyside, Client.predict"
    serves = False

    def one_by_one(self, count: int) -> tuple[list[float], Answers]:
        """See `Contender.one_by_one`."""
        with keyside.Client(self.url) as client:

            def one(i: int) -> Any:
                n = i % REFERENCES
                return client.predict("fraud", [self.fraud.arrays(n)[0], keyside.Key(Fraud.key(n))])

            return _warm(one, count)

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return answer


class AsyncClient(BlockingClient):
    """Keyside, by its client for asyncio, with many requests in flight."""

    name = f"Keyside, AsyncClient, {FLYING:,} in flight"
    serves = True

    def __init__(self, url: str, fraud: Fraud, pid: int) -> None:
        super().__init__(url, fraud)
        self._pid = pid

    def one_by_one(self, count: int) -> tuple[list[float], Answers]:
        """See `Contender.one_by_one`."""
        return asyncio.run(self._one_by_one(count))

    async def _one_by_one(self, count: int) -> tuple[list[float], Answers]:
        took: list[float] = []
        answers: Answers = []
        async with keyside.AsyncClient(self.url) as client:
            for i in range(-100, count):
                before = time.perf_counter()
                answer = await self._predict(client, i)
                if i >= 0:
                    took.append(time.perf_counter() - before)
                    answers.append((i, answer))
        return took, answers

    async def _predict(self, client: keyside.AsyncClient, i: int) -> Any:
        n = i % REFERENCES
        return await client.predict("fraud", [self.fraud.arrays(n)[0], keyside.Key(Fraud.key(n))])

    def together(self, seconds: float) -> Load:
        """See `Contender.together`."""
        return asyncio.run(self._together(seconds))

    async def _together(self, seconds: float) -> Load:
        took: list[float] = []
        answers: Answers = []
        async with keyside.AsyncClient(self.url) as client:
            await asyncio.gather(*(self._predict(client, i) for i in range(FLYING)))
            numbers = iter(range(1 << 40))
            began = time.perf_counter()

            async def worker() -> None:
                while (before := time.perf_counter()) < began + seconds:
                    i = next(numbers)
                    answers.append((i, await self._predict(client, i)))
                    took.append(time.perf_counter() - before)

            await asyncio.gather(*(worker() for _ in range(FLYING)))
            return Load(len(answers) / (time.perf_counter() - began), took, answers)

    def cpu_seconds(self) -> float:
        """See `Contender.cpu_seconds`."""
        return cpu_seconds(self._pid)


class InProcess(Contender):
    """Floor (c): onnxruntime here, with both tensors at hand."""

    name = "floor (c): onnxruntime in this process"
    serves = False

    def one_by_one(self, count: int) -> tuple[list[float], Answers]:
        """See `Contender.one_by_one`."""
        session = session_for(self.fraud.model)

        def one(i: int) -> Any:
            transaction, reference = self.fraud.arrays(i % REFERENCES)
            return session.run(None, {"transaction": transaction, "reference": reference})[0]

        return _warm(one, count)

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return answer


class HttpPeer(Contender):
    """Another model server; see `peers`."""

    def __init__(self, url: str, fraud: Fraud, peer: Peer) -> None:
        super().__init__(url, fraud)
        self.peer = peer
        self.name = peer.name
        self._up = False

    def arrive(self) -> None:
        """See `Contender.arrive`."""
        if not self._up:
            self.peer.start(self.url, self.fraud.model)
            self._up = True

    def leave(self) -> None:
        """Go down, unless it may stay."""
        if not self.peer.resident:
            self.end()

    def end(self) -> None:
        """Go down."""
        self._up = False
        self.peer.stop()

    def one_by_one(self, count: int) -> tuple[list[float], Answers]:
        """See `Contender.one_by_one`."""
        return _warm(self.peer.one(self.fraud), count)

    def together(self, seconds: float) -> Load:
        """See `Contender.together`."""
        return _saturate(self.peer.callers(self.fraud, CLIENTS), seconds)

    def decode(self, answer: Any) -> Any:
        """See `Contender.decode`."""
        return self.peer.read(answer)

    def cpu_seconds(self) -> float:
        """See `Contender.cpu_seconds`."""
        return self.peer.cpu_seconds()


def _warm(one: Callable[[int], Any], count: int) -> tuple[list[float], Answers]:
    latencies(one, 100, 9_000_000)
    return latencies(one, count)


def _saturate(callers: Sequence[Caller], seconds: float) -> Load:
    try:
        return saturate(callers, seconds)
    finally:
        for caller in callers:
            caller.close()
