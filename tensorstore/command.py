"""A command to the server as a value: what to send, and what to make of the reply.

The builders are in `commands` (the functions of the library) and in `plain` (commands of the server itself).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from keyside.tensorstore.errors import KeysideError, from_reply
from keyside.tensorstore.resp import BIG_ARGUMENT, Argument, Piece, encode_many

__all__ = ["Command", "Name", "Value", "encode", "nothing", "same", "text", "to_bytes"]

T = TypeVar("T")
Name = str | bytes


class Command(Generic[T]):
    """One command.

    Attributes:
        args: its words; a `Value` among them is one word in two pieces.
        parse: makes the result of the reply, which is no error reply.
        repeatable: sending it twice does no harm, so that it may be sent again when a connection was lost.
        bulk: it or its reply may be large, so that others should not wait behind it.
    """

    __slots__ = ("args", "bulk", "parse", "repeatable")

    def __init__(
        self, args: tuple[Any, ...], parse: Callable[[Any], T], repeatable: bool = False, bulk: bool = False
    ) -> None:
        self.args = args
        self.parse = parse
        self.repeatable = repeatable
        self.bulk = bulk

    def __repr__(self) -> str:
        return f"<Command {self.args!r:.200}>"

    def encode(self) -> list[Piece]:
        """Encode it; see `encode`."""
        args = self.args
        return _encode_values(args) if Value in map(type, args) else encode_many((args,))

    def result(self, reply: Any) -> T:
        """Make the result of a reply.

        Args:
            reply: as it came; an error reply as `hiredis.ReplyError` or as the error that it stands for.

        Raises:
            KeysideError: it is an error reply, or not what this command should get.
        """
        if isinstance(reply, Exception):
            raise reply if isinstance(reply, KeysideError) else from_reply(str(reply))
        return self.parse(reply)


class Value(NamedTuple):
    """A tensor as one word of a command: its header and its elements, which are sent as they lie."""

    header: bytes
    data: memoryview


def encode(commands: Iterable[Command[Any]]) -> list[Piece]:
    """Encode commands to be sent in one write.

    Returns:
        Buffers to send one after the other; large ones are the caller's own memory.
    """
    pieces: list[Piece] = []
    plain: list[Sequence[Argument]] = []
    for command in commands:
        if Value in map(type, command.args):
            pieces += encode_many(plain)
            plain = []
            pieces += _encode_values(command.args)
        else:
            plain.append(command.args)
    return pieces + encode_many(plain) if pieces else encode_many(plain)


def _encode_values(args: Sequence[Any]) -> list[Piece]:
    pieces: list[Piece] = []
    small = b"*%d\r\n" % len(args)
    for arg in args:
        if type(arg) is Value:
            size = len(arg.header) + arg.data.nbytes
            pieces += (b"%b$%d\r\n%b" % (small, size, arg.header), arg.data)
            small = b"\r\n"
        elif type(arg) is bytes and len(arg) < BIG_ARGUMENT:
            small += b"$%d\r\n%b\r\n" % (len(arg), arg)
        else:
            # A word on its own, encoded by the one encoder there is, less its array header.
            small += b"".join(encode_many(((arg,),)))[len(b"*1\r\n") :]
    return [*pieces, small]


def encode_words(words: Iterable[bytes]) -> bytes:
    """Encode small words of a command, without the number of them that stands before all."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def to_bytes(name: Name) -> bytes:
    """Return the bytes of a key or a name; names that are no UTF-8 come back as `text` gave them."""
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def text(raw: bytes | str) -> str:
    """Return a key or a name as text."""
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def nothing(_: Any) -> None:
    """Make nothing of a reply that says no more than OK."""


def same(reply: Any) -> Any:
    """Give a reply as it is."""
    return reply
