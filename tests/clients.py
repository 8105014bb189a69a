"""Both Python clients behind one face, so that one suite tests both."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import keyside

__all__ = ["Blocking", "Connect", "connector"]

Connect = Callable[..., Any]
"""Makes a client of a URL; its methods are awaited, whichever it is."""


class Blocking:
    """A blocking client or handle, called on threads, so that its methods can be awaited."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return repr(self.inner)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found
        if name == "subscribe":
            return lambda *args, **kwargs: _Heard(found(*args, **kwargs))
        if inspect.isgeneratorfunction(found):
            return lambda *args, **kwargs: _listed(found, args, kwargs)

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await asyncio.to_thread(found, *args, **kwargs)
            return Blocking(result) if isinstance(result, keyside.Handle) else result

        return call


class _Heard:
    """A blocking subscription, likewise."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @property
    def breaks(self) -> int:
        return int(self.inner.breaks)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.inner.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Any]:
        items, end = iter(self.inner), object()
        while (item := await asyncio.to_thread(next, items, end)) is not end:
            yield item

    async def next(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        return await asyncio.to_thread(self.inner.next, timeout)

    async def close(self) -> None:
        await asyncio.to_thread(self.inner.close)


async def _listed(function: Callable[..., Any], args: Any, kwargs: Any) -> AsyncIterator[Any]:
    for item in await asyncio.to_thread(lambda: list(function(*args, **kwargs))):
        yield item


async def connector(kind: str) -> AsyncIterator[Connect]:
    """Gives a function that makes clients of a kind, "blocking" or "asyncio"; they are closed at the end."""
    made: list[Any] = []

    def connect(url: Any = None, **options: Any) -> Any:
        cls: Any = keyside.Client if kind == "blocking" else keyside.AsyncClient
        make = cls if url is None or isinstance(url, str) else cls.from_redis
        client = make(url, **options)
        made.append(client if kind == "asyncio" else Blocking(client))
        return made[-1]

    try:
        yield connect
    finally:
        for client in made:
            await client.close()
