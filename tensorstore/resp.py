"""The wire codec: RESP2 commands out, replies in, without copies of what is large. No I/O happens here.

A command becomes a list of buffers for ``writev`` or ``writelines``: small arguments joined, large ones as
they are. Replies are parsed by hiredis, except that a large bulk string at top level, such as the answer to
GET of a tensor, is received straight into memory of its own: the kernel's copy is the only one.
"""

import operator
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import hiredis
import numpy as np

__all__ = [
    "BIG_ARGUMENT",
    "BIG_REPLY",
    "NOT_READY",
    "Argument",
    "Piece",
    "ReplyReader",
    "encode",
    "encode_many",
]

Piece = bytes | bytearray | memoryview
Argument = Piece | str | int | float | tuple[Piece, ...]

BIG_ARGUMENT = 64 * 1024
"""Arguments of at least this many bytes are passed through as they are."""

BIG_REPLY = 32 * 1024
"""Bulk strings of more bytes than this, at top level, come as memoryviews of their own memory."""


class _NotReady:
    """The type of ``NOT_READY``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NOT_READY"

    def __bool__(self) -> bool:
        return False


NOT_READY: Final = _NotReady()
"""What ``ReplyReader.gets`` returns when no whole reply has arrived."""


# --- commands


def encode(args: Sequence[Argument]) -> list[Piece]:
    """Encode one command.

    Args:
        args: Its words. Text becomes UTF-8, numbers their shortest decimal form. A tuple of buffers is one
            word that lies in pieces, such as the header and the elements of a tensor.

    Returns:
        Buffers to send one after the other. Large ones are the caller's own: they must not change until sent.

    Raises:
        TypeError: An argument has another type.
    """
    return encode_many((args,))


def encode_many(commands: Iterable[Sequence[Argument]]) -> list[Piece]:
    """Encode commands to be sent in one write.

    Args:
        commands: As for ``encode``.

    Returns:
        Buffers to send one after the other.

    Raises:
        TypeError: An argument has another type.
    """
    pieces: list[Piece] = []
    small: list[bytes] = []
    for args in commands:
        # exact types: a subclass may print itself in another way, as NumPy's numbers and bool do
        if _PLAIN.issuperset(map(type, args)):
            packed = _pack(tuple(args))
            if len(packed) < BIG_ARGUMENT:
                small.append(packed)
                continue
        _encode_any(args, small, pieces)
    if small:
        pieces.append(b"".join(small) if len(small) > 1 else small[0])
    return pieces


# The stub of hiredis describes a tuple of one.
_pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

_PLAIN = frozenset((bytes, str, int, float))


def _encode_any(args: Sequence[Argument], small: list[bytes], pieces: list[Piece]) -> None:
    """Encode a command whose arguments may be large; ``small`` waits to be joined, and is left so."""
    small.append(b"*%d\r\n" % len(args))
    for arg in args:
        word = [_data(piece) for piece in arg] if isinstance(arg, tuple) else [_data(arg)]
        small.append(b"$%d\r\n" % sum(map(len, word)))
        for data in word:
            if len(data) < BIG_ARGUMENT:
                small.append(bytes(data))
            else:
                if small:
                    pieces.append(b"".join(small))
                    small.clear()
                pieces.append(data)
        small.append(b"\r\n")


def _data(arg: Argument) -> Piece:
    """Bring an argument into the form of bytes, without a copy of what is that already."""
    if isinstance(arg, bytes | bytearray):
        return arg
    if isinstance(arg, str):
        return arg.encode()
    if isinstance(arg, memoryview):
        if arg.c_contiguous and arg.nbytes:
            return arg if arg.ndim == 1 and arg.itemsize == 1 else arg.cast("B")
        return arg.tobytes()
    if isinstance(arg, float):
        return float.__repr__(arg).encode()
    if hasattr(arg, "__index__") and not isinstance(arg, bool):
        return b"%d" % operator.index(arg)
    raise TypeError(f"an argument is bytes, str, int, float or memoryview, not {type(arg).__name__}")


# --- replies

_SCRATCH_BYTES = 64 * 1024
_NEWLINE = ord("\n")
_BIG = re.compile(rb"\$[1-9][0-9]{4,18}\r\n")

# Where a bulk string begins that may be large, or the end of what has arrived may be the beginning of one.
_BIG_HEADER = re.compile(rb"\$(?:([1-9][0-9]{4,18})\r\n|(?:[1-9][0-9]{0,18})?\r?\Z)")


class ReplyReader:
    r"""Takes bytes as they arrive, gives replies.

    It has the two methods that ``asyncio.BufferedProtocol`` needs; a blocking reader uses them as well::

        while (reply := reader.gets()) is NOT_READY:
            reader.buffer_updated(sock.recv_into(reader.get_buffer()))

    Replies are ``bytes``, ``int``, ``None``, lists of them, ``hiredis.ReplyError`` instances (returned, not
    raised), and, for bulk strings at top level of more than ``BIG_REPLY`` bytes, writable ``memoryview``s.
    """

    __slots__ = (
        "_at_start",
        "_error",
        "_filled",
        "_held",
        "_hiredis",
        "_large",
        "_replies",
        "_scratch",
        "_view",
    )

    def __init__(self) -> None:
        self._hiredis = hiredis.Reader(notEnoughData=NOT_READY)
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._held = 0  # bytes at the start of the scratch that may be half a header
        self._at_start = True  # hiredis holds no part of a reply
        self._large: memoryview | None = None  # the large bulk being received, its CR LF included
        self._filled = 0
        self._replies: deque[Any] = deque()
        self._error: hiredis.ProtocolError | None = None

    @property
    def idle(self) -> bool:
        """Whether every reply has been taken and none has begun to arrive."""
        return self._at_start and not self._held and self._large is None and not self._replies

    @property
    def waiting(self) -> bool:
        """Whether ``gets`` has something to give."""
        return bool(self._replies) or self._error is not None

    @property
    def large(self) -> memoryview | None:
        """Memory for the rest of a large bulk string, if one is being received: what ``get_buffer`` gives then."""
        return None if self._large is None else self._large[self._filled :]

    def get_buffer(self, sizehint: int = -1) -> memoryview:  # noqa: ARG002  # the protocol's signature
        """Say where to put the next bytes.

        Args:
            sizehint: Ignored.

        Returns:
            Memory to receive into, never empty.
        """
        if self._large is not None:
            return self._large[self._filled :]
        return self._view[self._held :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that were put into the memory from ``get_buffer``.

        Args:
            nbytes: How many.
        """
        if self._error is not None or nbytes <= 0:
            return
        try:
            if self._large is not None:
                self._fill(nbytes)
            else:
                self._take(self._held + nbytes)
        except hiredis.ProtocolError as error:
            # whole replies before it are still good: gets() raises when it comes to the bad one
            self._error = error
            self._large = None
            self._held = 0

    def receive(self, nbytes: int) -> Any:
        """Take bytes that have come and the first reply that they complete: ``buffer_updated`` and ``gets`` in one.

        For a reader that was ``idle`` and has had no other use since, and for replies that are small: a large bulk
        string comes as ``bytes``, at the price of a copy.

        Args:
            nbytes: How many, from the beginning of the memory that ``get_buffer`` gives then.

        Returns:
            The reply, or ``NOT_READY``. ``gets`` gives those behind it.

        Raises:
            hiredis.ProtocolError: What came is not RESP. The connection is of no more use.
        """
        reader = self._hiredis
        reader.feed(self._scratch, 0, nbytes)  # type: ignore[arg-type]  # any buffer will do
        reply = reader.gets(False)
        if reply is NOT_READY:
            self._at_start = False
        elif reader.has_data():
            self._collect()
        else:
            self._at_start = True
        return reply

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes that were received elsewhere, at the price of a copy.

        Args:
            data: Any part of the stream.
        """
        view = memoryview(data)
        while view:
            buffer = self.get_buffer()
            count = min(len(view), len(buffer))
            buffer[:count] = view[:count]
            self.buffer_updated(count)
            view = view[count:]

    def gets(self) -> Any:
        """Take the next reply.

        Returns:
            The reply, or ``NOT_READY``.

        Raises:
            hiredis.ProtocolError: What came is not RESP. The connection is of no more use.
        """
        if self._replies:
            return self._replies.popleft()
        if self._error is not None:
            raise self._error
        return NOT_READY

    def _fill(self, nbytes: int) -> None:
        large = self._large
        assert large is not None  # noqa: S101  # for the type checker; the caller looked
        self._filled += nbytes
        if self._filled < len(large):
            return
        if bytes(large[-2:]) != b"\r\n":
            raise hiredis.ProtocolError("a bulk string does not end in CR LF")
        self._large = None
        self._replies.append(large[:-2])

    def _take(self, end: int) -> None:
        """Parse the first ``end`` bytes of the scratch."""
        held, self._held = self._held, 0
        scratch, at = self._scratch, 0
        if self._at_start and not held and scratch[end - 1] == _NEWLINE and not _BIG.search(scratch, 0, end):
            # No large bulk begins here, nor does half the header of one end it: the usual case.
            self._parse(0, end)
            return
        search = 0
        while found := _BIG_HEADER.search(scratch, search, end):
            size = int(found[1] or 0)
            if found[1] and size <= BIG_REPLY:
                search = found.end()
                continue
            # Whether this is a header at top level or just bytes within a reply is known once all before it
            # is parsed.
            start = found.start()
            self._parse(at, start)
            at = start
            if not self._at_start:
                search = found.end() if found[1] else end
                continue
            if not found[1]:
                self._view[: end - start] = bytes(self._view[start:end])
                self._held = end - start
                return
            at = search = self._open(size, found.end(), end)
        self._parse(at, end)

    def _open(self, size: int, at: int, end: int) -> int:
        """Begin a large bulk with what of it is in the scratch; return where that ends."""
        try:
            # Two more bytes: so CR LF arrives with the rest, and costs no read of its own.
            large = np.empty(size + 2, np.uint8).data
        except (MemoryError, ValueError) as error:
            raise hiredis.ProtocolError(f"no memory for a bulk string of {size} bytes") from error
        count = min(size + 2, end - at)
        large[:count] = self._view[at : at + count]
        self._large, self._filled = large, 0
        self._fill(count)
        return at + count

    def _parse(self, at: int, end: int) -> None:
        """Let hiredis have a part of the scratch."""
        if at == end:
            return
        self._hiredis.feed(self._scratch, at, end - at)  # type: ignore[arg-type]  # any buffer will do
        try:
            self._collect()
        except MemoryError as error:  # an array that says it has thousands of millions of elements
            raise hiredis.ProtocolError("no memory for a reply that says it is so large") from error

    def _collect(self) -> None:
        """Take the replies that hiredis has."""
        reader = self._hiredis
        while (reply := reader.gets(False)) is not NOT_READY:
            self._replies.append(reply)
            # With nothing left over, the last reply ended where the part did. Asking hiredis again would not
            # tell: an array that has only its first elements leaves nothing over either.
            if not reader.has_data():
                self._at_start = True
                return
        self._at_start = False
