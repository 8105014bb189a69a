"""A process of callers that check every answer while things go wrong: `python -m tests.chaos.caller CONFIG`.

Each request carries its number, and a model that gives back what it gets: so an answer tells whose it is. Orders come
on stdin: `stop` ends the load; `check [[from, to]...]` looks once more at the keys that were written, save for what was
done within those times (by `time.time`); each is answered with a line of JSON. The end of stdin ends the process.
"""

import asyncio
import contextlib
import itertools
import json
import random
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from tests.clients import connector

from keyside import Key
from keyside.tensorstore.errors import Cancelled, KeysideError, StateError, TransportError
from keyside.tensorstore.keys import SLOTS, slot_tag

LARGE_ROWS = 5_000
SLOW_TURNS = 20_000
MARGIN_S = 1.5
"""A call may end so much later than its deadline and the time in which a dead connection is noticed."""
HUNG_S = 20.0
WATCHED = 500
AGE_S = 15.0
"""Longer than a lease, or a retry, may bring back what was over."""
PX = 180_000
SLOT_STEP = 6151
"""Odd, so that all slots come up before the first comes again."""

# What right calls may end with while things go wrong.
EXPECTED = {"UNREACHABLE", "TIMEDOUT", "BUSY", "OOM", "TRYAGAIN", "INPUTLOST", "DEADLETTER", "CANCELLED", "NOLIBRARY"}

Array = np.ndarray[Any, Any]


@dataclass
class Config:
    """What a process of callers is told.

    Attributes:
        url: of the server, or of a node of a cluster.
        kind: "blocking" or "asyncio".
        number: of the process.
        seed: of what it does.
        width: calls at the same time.
        timeout: of a call, seconds.
        idle: seconds after which a silent connection is given up.
        count: of calls; then it says so, and goes on until it is told to stop.
        pause: seconds between two calls of one worker.
        slots: on a cluster: keys lie in all slots, one after the other; how many processes share them.
        only: names of operations; empty: all of them.
    """

    url: str
    kind: str = "asyncio"
    number: int = 0
    seed: int = 0
    width: int = 8
    timeout: float = 5.0
    idle: float = 1.5
    count: int = 0
    pause: float = 0.0
    slots: int = 0
    only: list[str] = field(default_factory=list)


@dataclass
class Result:
    """What has come of it; counts by what was asked and by what was said."""

    calls: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    latest: float = 0.0
    bare: int = 0
    places: list[int] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


class Wrong(Exception):
    """An answer that is not the right one."""


class Caller:
    """The workers of one process."""

    def __init__(self, config: Config, client: Any) -> None:
        self.config = config
        self.client = client
        self.result = Result()
        self.stopping = False
        self._numbers = itertools.count()
        self._places = itertools.count()
        # Keys that nobody may write any more: since when, and what they hold, the mark or nothing.
        self.watched: deque[tuple[str, float, int | None]] = deque()
        self.suspects: list[tuple[str, float, str]] = []
        self.looked = 0
        self._kinds: dict[str, tuple[int, Callable[[int, random.Random], Awaitable[None]]]] = {
            "value": (30, self._value),
            "large value": (3, self._large_value),
            "keys": (20, self._keys),
            "large keys": (2, self._large_keys),
            "captured": (6, self._captured),
            "own": (6, self._own),
            "many": (4, self._many),
            "cancel": (5, self._cancel),
            "short": (5, self._short),
            "refused": (3, self._refused),
        }

    # --- the load

    async def run(self) -> None:
        """Call until told to stop."""
        await asyncio.gather(*(self._worker() for _ in range(self.config.width)))

    async def _worker(self) -> None:
        names = self.config.only or list(self._kinds)
        weights = [self._kinds[name][0] for name in names]
        while not self.stopping:
            n = next(self._numbers)
            if n == self.config.count and n:
                say({"done": True})
            rng = random.Random(self.config.seed * 1_000_003 + self.config.number * 10_007 + n)
            name = rng.choices(names, weights)[0]
            await self._ask(name, n, rng)
            if self.config.pause:
                await asyncio.sleep(self.config.pause * rng.random())

    async def _ask(self, name: str, n: int, rng: random.Random) -> None:
        result = self.result
        result.calls[name] += 1
        began = time.monotonic()
        # What is to be done in so many calls one after the other, each in its time.
        task = asyncio.ensure_future(self._kinds[name][1](n, rng))
        await asyncio.wait((task,), timeout=4 * self.config.timeout + HUNG_S)
        took = time.monotonic() - began
        if not task.done():
            result.hung.append(f"{name} {n} after {took:.0f} s")
            task.cancel()
            return
        try:
            task.result()
        except Wrong as error:
            result.wrong.append(f"{now()} {name} {n}: {error}")
        except KeysideError as error:
            result.codes[error.code] += 1
            if error.code == "ERR" or "internal" in error.text:
                result.strange.append(f"{now()} {name} {n}: {error}")
            elif error.code not in EXPECTED:
                result.odd.append(f"{now()} {name} {n}: {error}")
        except Exception as error:  # a client says KeysideError, or there is something to mend
            text = "".join(traceback.format_exception(error)[-3:])
            result.bare += 1
            result.strange.append(f"{name} {n}: {type(error).__name__}: {error}: {text}")
        else:
            result.right[name] += 1

    async def _timed(self, call: Awaitable[Any], deadline: float | None = None, jobs: int = 1) -> Any:
        """Await one call, and take note of whether it ended in its time."""
        self.result.jobs += jobs
        limit = self.config.timeout if deadline is None else deadline
        began = time.monotonic()
        try:
            return await call
        finally:
            over = time.monotonic() - began - limit - 0.5
            self.result.latest = max(self.result.latest, over)
            if over > self.config.idle + MARGIN_S:
                self.result.late.append(f"{over:.1f} s after {limit:g} s")

    # --- what is asked

    def _mine(self, n: int) -> int:
        return self.config.number * 1_000_000_000 + n * 10

    def _x(self, n: int, rows: int = 1) -> Array:
        return np.full((rows, 1), self._mine(n), np.int64)

    def _key(self, n: int, rng: random.Random, what: str) -> str:
        tag = "chaos"
        if self.config.slots:
            count = next(self._places)
            self.result.places = [count + 1]
            place = count * self.config.slots + self.config.number % self.config.slots
            tag = slot_tag(place * SLOT_STEP % SLOTS).decode()
        return f"chaos:{{{tag}}}:{self.config.number}:{n}:{what}"

    async def _value(self, n: int, rng: random.Random) -> None:
        x = self._x(n, rng.randint(1, 3))
        same(await self._timed(self.client.predict("echo", x)), x)

    async def _large_value(self, n: int, rng: random.Random) -> None:
        x = self._x(n, LARGE_ROWS)
        same(await self._timed(self.client.predict("echo", x)), x)

    async def _keys(self, n: int, rng: random.Random, rows: int = 1) -> None:
        base, x = self._key(n, rng, ""), self._x(n, rows)
        source, target = base + "x", base + "y"
        await self.client.set(source, x, px=PX)
        await self._timed(self.client.execute("echo", source, target))
        same(await self.client.get(target), x)
        await self._mark(target, n)
        await self.client.delete(source)

    async def _large_keys(self, n: int, rng: random.Random) -> None:
        await self._keys(n, rng, LARGE_ROWS)

    async def _mark(self, key: str, n: int) -> None:
        """Whoever writes an answer twice writes over this."""
        await self.client.set(key, np.full((1, 1), -1 - self._mine(n), np.int64), px=PX)
        await self._watch(key, -1 - self._mine(n))

    async def _watch(self, key: str, mark: int | None) -> None:
        """Look at a key once more when a good while has passed, and then let go of it."""
        self.watched.append((key, time.time(), mark))
        if len(self.watched) > WATCHED and time.time() - self.watched[0][1] > AGE_S:
            await self._look(*self.watched.popleft())

    async def _look(self, key: str, since: float, mark: int | None) -> None:
        try:
            if mark is None:
                problem = "written although its job was cancelled" if await self.client.exists(key) else ""
            else:
                held = await self.client.get(key)
                right = held.shape == (1, 1) and held[0, 0] == mark
                problem = "" if right else "written again after its answer was read"
                await self.client.delete(key)
        except (TransportError, StateError):
            return  # it is not known
        except KeysideError as error:
            problem = str(error)
        self.looked += 1
        if problem:
            self.suspects.append((key, since, problem))

    async def _captured(self, n: int, rng: random.Random) -> None:
        rows = LARGE_ROWS if rng.randrange(5) == 0 else 2
        x, key = self._x(n, rows), self._key(n, rng, "c")
        await self.client.set(key, x, px=PX)
        handle = await self._timed(self.client.submit("echo", Key(key)))
        await self.client.set(key, self._x(n + 1, rows), px=PX)  # the input counts as of submit
        same(await self._timed(handle.result(), jobs=0), x)
        await self.client.delete(key)

    async def _own(self, n: int, rng: random.Random) -> None:
        x, key = self._x(n, LARGE_ROWS if rng.randrange(5) == 0 else 2), self._key(n, rng, "o")
        await self.client.set(key, x, px=60_000)
        same(await self._timed(self.client.predict("echo", Key(key, "own"))), x)
        self.looked += 1
        if await self.client.exists(key):
            self.suspects.append((key, time.time(), "the temporary is still there"))

    async def _many(self, n: int, rng: random.Random) -> None:
        x = self._mine(n) + np.arange(8, dtype=np.int64).reshape(8, 1)
        same(await self._timed(self.client.predict_many("echo", x, batch=2, window=3), jobs=4), x)

    async def _cancel(self, n: int, rng: random.Random) -> None:
        base = self._key(n, rng, "")
        x = np.array([[SLOW_TURNS + n % 997]], np.int64)
        await self.client.set(base + "x", x, px=PX)
        handle = await self._timed(self.client.submit("slow", base + "x", base + "y"))
        await asyncio.sleep(0.02 * rng.random())
        if await handle.cancel():
            await self._watch(base + "y", None)
            try:
                await self._timed(handle.result(), jobs=0)
            except Cancelled:
                return
            raise Wrong("cancelled, and yet it has a result")
        await self._timed(handle.result(), jobs=0)
        same(await self.client.get(base + "y"), x)
        await self.client.delete(base + "x", base + "y")

    async def _short(self, n: int, rng: random.Random) -> None:
        x = np.array([[SLOW_TURNS + n % 997]], np.int64)
        timeout = rng.choice([0.01, 0.05, 0.3])
        same(await self._timed(self.client.predict("slow", x, timeout=timeout), timeout), x)

    async def _refused(self, n: int, rng: random.Random) -> None:
        """What cannot be right is refused with its code, if anything is said at all."""
        client = self.client
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("BADSHAPE", lambda: client.predict("echo", np.zeros((1, 2), np.int64))),
            ("BADDTYPE", lambda: client.predict("echo", np.zeros((1, 1), np.float32))),
            ("NOMODEL", lambda: client.predict("nothing", self._x(n))),
            ("NOTENSOR", lambda: client.execute("echo", "chaos:{a}:none", "chaos:{a}:y")),
        ]
        wanted, call = rng.choice(calls)
        try:
            await self._timed(call())
        except KeysideError as error:
            if error.code == wanted:
                return
            raise
        raise Wrong(f"not refused: {wanted}")

    # --- afterwards

    async def check(self, unsure: list[tuple[float, float]]) -> dict[str, Any]:
        """Look at the keys that nobody should have written since."""
        while self.watched:
            await self._look(*self.watched.popleft())
        doubled = [
            f"{key}: {problem}"
            for key, since, problem in self.suspects
            if not any(first <= since <= last for first, last in unsure)
        ]
        return {"looked": self.looked, "doubled": doubled[:20], "unsure": len(self.suspects) - len(doubled)}


def same(got: Any, wanted: Array) -> None:
    """An answer is the right one, bit by bit."""
    if not isinstance(got, np.ndarray) or got.dtype != wanted.dtype or not np.array_equal(got, wanted):
        text = f"{got.dtype}{list(got.shape)} {got.ravel()[:3]}" if isinstance(got, np.ndarray) else repr(got)
        raise Wrong(f"{text} instead of {list(wanted.shape)} {wanted.ravel()[:3]}")


def now() -> str:
    """The time of day, as executors log it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


async def serve(config: Config) -> None:
    """Make the client, call, and take orders."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(config.width + 8))
    orders: asyncio.Queue[str] = asyncio.Queue()

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(orders.put_nowait, line.strip())
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(orders.put_nowait, "")

    threading.Thread(target=listen, daemon=True).start()
    async for connect in connector(config.kind):
        caller = Caller(config, connect(config.url, timeout=config.timeout, idle_timeout=config.idle))
        load = asyncio.ensure_future(caller.run())
        while order := await orders.get():
            word, _, rest = order.partition(" ")
            if word == "stop":
                caller.stopping = True
                await load
                say(vars(caller.result))
            elif word == "check":
                say(await caller.check(json.loads(rest)))
        caller.stopping = True
        load.cancel()


def say(what: dict[str, Any]) -> None:
    """Answer an order."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Config(**json.loads(sys.argv[1]))))
