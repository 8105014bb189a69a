# Do not change this file: it is made from clients/_async/tensors.py by tools/unasync.py.
"""Tensors in the database."""

from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from keyside.clients._sync.base import Base
from keyside.tensorstore import npy, plain
from keyside.tensorstore.command import Name, text, to_bytes
from keyside.tensorstore.errors import BadArg, NoTensor, ServerError, TooBig, WrongType
from keyside.tensorstore.plain import TensorMeta

__all__ = ["Tensors"]

_LARGEST = 512 * 1024 * 1024
_HEADER_MAX = 512
_PREFIX_BYTES = 128


class Tensors(Base):
    """Reads and writes tensor keys."""

    def set(self, key: Name, value: object, *, ex: float | None = None, px: int | None = None) -> None:
        """Write a tensor; what the key held before goes, with its time to live.

        Whatever it held: this is a plain SET, which also replaces a key of another type, even a model.

        Args:
            key: where to; names that begin with `ks:{` are Keyside's own.
            value: an array of NumPy, anything with `__dlpack__` or `__array__` in the memory of the CPU, a number,
                text, or nested lists of them; any shape up to 32 dims. It must not change until the call returns.
            ex: time to live in seconds.
            px: time to live in milliseconds.

        Raises:
            BadDtype: its dtype is none that a tensor can have; the text says what to do instead.
            TooBig: it has more than 512 MiB.
            OutOfMemory: the server is at maxmemory.
        """
        header, data = npy.encode(value)
        if data.nbytes > _LARGEST - _HEADER_MAX:
            raise TooBig(f"a tensor of {data.nbytes} bytes: a key holds at most 512 MiB, split it along its first axis")
        px = None if ex is None and px is None else _ttl(ex, px)
        if not self._settled:
            self._settle()
        self._transport.store(_own(key), header, data, px)

    def get(self, key: Name) -> NDArray[Any]:
        """Read a tensor.

        Returns:
            An array in memory of its own. STRING tensors come as bytes, dtype `S`.

        Raises:
            NoTensor: there is no such key.
            WrongType: it holds something else.
            BadNpy: it holds a damaged tensor.
        """
        if not self._settled:
            self._settle()
        return self._transport.fetch(key)

    def meta(self, key: Name) -> TensorMeta:
        """Read what a tensor is, without its elements.

        Returns:
            The name of its dtype, its shape, and the size of its elements in bytes.

        Raises:
            NoTensor: there is no such key.
            WrongType: it holds something else.
            BadNpy: it holds a damaged tensor.
        """
        if not self._settled:
            self._settle()
        prefix, total = self._transport.call_many((plain.get_prefix(key, _PREFIX_BYTES), plain.strlen(key)))
        if total > len(prefix) >= 10 and prefix.startswith(npy.MAGIC):
            size = npy.header_size(prefix)
            if size > len(prefix):
                prefix, total = self._transport.call_many((plain.get_prefix(key, size), plain.strlen(key)))
        return plain.read_meta(key, prefix, total)

    def exists(self, key: Name) -> bool:
        """Whether there is a key of that name, of any type."""
        if not self._settled:
            self._settle()
        return self._transport.call(plain.exists(key))

    def delete(self, *names: Name) -> int:
        """Delete keys, of any type but models (`delete_model`).

        Returns:
            How many of them there were.

        Raises:
            WrongType: one of them is a model; then none was deleted.
        """
        if not names:
            return 0
        if not self._settled:
            self._settle()
        self._no_models(names, "delete it with delete_model")
        return self._transport.unlink(names)

    def _no_models(self, names: Sequence[Name], instead: str) -> None:
        """See that none of these keys is a model: a model that goes like any key leaves its parts behind."""
        batch = [plain.is_model(name) for name in names]
        for name, command, reply in zip(names, batch, self._transport.replies(batch), strict=True):
            try:
                found = command.result(reply)
            except WrongType:
                continue  # no hash
            if found:
                raise WrongType(f"key {text(name)!r} holds a model: {instead}")

    def copy(self, source: Name, destination: Name, *, replace: bool = False) -> bool:
        """Copy a tensor.

        Args:
            source: the key to copy.
            destination: the key to make.
            replace: whether what is at `destination` may go.

        Returns:
            Whether it was copied; False if `destination` exists and may not go.

        Raises:
            NoTensor: there is no `source`.
            WrongType: `destination` is a model, which does not go with `replace` either.
        """
        if not self._settled:
            self._settle()
        if replace:
            self._no_models((_own(destination),), "delete it with delete_model before another takes its name")
        batch = (plain.copy(source, _own(destination), replace=replace), plain.exists(source))
        copied, there = self._transport.call_many(batch)
        if not there and not copied:
            raise NoTensor(f"there is no key {text(source)!r}")
        return bool(copied)

    def rename(self, source: Name, destination: Name) -> None:
        """Rename a tensor; what was at `destination` goes.

        Raises:
            NoTensor: there is no `source`.
            WrongType: one of them is a model.
        """
        if not self._settled:
            self._settle()
        _own(destination)
        self._no_models((source, destination), "models cannot be renamed or replaced, see store and delete_model")
        try:
            self._transport.call(plain.rename(source, _own(destination)))
        except ServerError as error:
            if "no such key" in error.text:
                raise NoTensor(f"there is no key {text(source)!r}") from None
            raise

    def expire(self, key: Name, seconds: float | None) -> bool:
        """Set the time to live of a key.

        Args:
            key: any key.
            seconds: from now; None: it stays.

        Returns:
            Whether that changed anything.
        """
        if not self._settled:
            self._settle()
        return self._transport.call(plain.pexpire(key, _ttl(seconds, None)))

    def tensors(self, prefix: str = "") -> Iterator[str]:
        """List the tensor keys whose names begin with a prefix, in no order.

        The whole key space is walked in steps, on a cluster node by node. A key that is there all the time is listed
        once; one that comes or goes meanwhile, or whose slot moves to another node, may be or not.
        """
        if not self._settled:
            self._settle()
        transport = self._transport
        listed: set[bytes] = set()
        for tag in transport.tags():
            cursor, asked = 0, transport.serving(tag)
            while True:
                cursor, found = transport.call_at(tag, plain.scan_strings(cursor, prefix))
                fresh = [key for key in found if key not in listed and not key.startswith(b"ks:{")]
                if fresh:
                    batch = [plain.get_prefix(key, len(npy.MAGIC)) for key in fresh]
                    replies = transport.replies(batch)
                    for key, start in zip(fresh, replies, strict=True):
                        if start == npy.MAGIC:
                            listed.add(key)
                            yield text(key)
                if (now := transport.serving(tag)) != asked:
                    cursor, asked = 0, now  # a replica has taken over, and another server's cursor says nothing to it
                elif not cursor:
                    break


def _own(key: Name) -> bytes:
    name = to_bytes(key)
    if name.startswith(b"ks:{"):
        raise BadArg("names that begin with 'ks:{' are Keyside's own")
    return name


def _ttl(seconds: float | None, ms: int | None) -> int | None:
    if seconds is not None and ms is not None:
        raise BadArg("give the time to live in seconds or in milliseconds, not both")
    if seconds is None and ms is None:
        return None
    found = round(seconds * 1000) if seconds is not None else int(ms or 0)
    if found <= 0:
        raise BadArg("a time to live is at least one millisecond")
    return found
