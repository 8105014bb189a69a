"""How a client writes a tensor: a plain SET and the call that starts what waits for it, in one transaction.

Through AI_TENSORSET goes what fits into Lua; this gives the same for tensors of any size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keyside.tensorstore import plain
from keyside.tensorstore.command import Command, same
from keyside.tensorstore.errors import KeysideError, LibraryMissing, NoPerm, from_reply
from keyside.tensorstore.resp import BIG_ARGUMENT, Piece

__all__ = ["MUTE_S", "QUIET_REPLY", "Write", "is_mute", "read"]

QUIET_REPLY = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:0\r\n"
"""What the server says if all went well and nothing waited for the tensor. Nothing that it says instead is shorter."""

MUTE_S = 60.0
"""For how long a client believes that it may not call the function."""

# So begins what the function says of a trigger that could not start its run.
_WRITTEN = "the tensor '"

_MULTI = Command((b"MULTI",), same, repeatable=True)
_EXEC = Command((b"EXEC",), same, repeatable=True)
_BEGIN = b"*1\r\n$5\r\nMULTI\r\n"
_TELL = (
    b"%b*7\r\n$5\r\nFCALL\r\n$16\r\nAI_TENSORCHANGED\r\n$1\r\n1\r\n$%d\r\n%b\r\n"
    b"$2\r\nID\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n*1\r\n$4\r\nEXEC\r\n"
)


class Write(NamedTuple):
    """A tensor to be written.

    Attributes:
        key: where to.
        header: of its file.
        data: its elements.
        px: time to live in ms.
        client: id of the client.
        seq: number of this write among all that the client does: sent again, it starts nothing a second time.
    """

    key: bytes
    header: bytes
    data: memoryview
    px: int | None
    client: bytes
    seq: int

    def alone(self) -> Command[None]:
        """Return the plain SET."""
        return plain.set_value(self.key, self.header, self.data, self.px)

    def transaction(self) -> list[Command[Any]]:
        """Return the commands that write it; `read` takes their replies."""
        write = self.alone()
        words = (b"FCALL", "AI_TENSORCHANGED", 1, self.key, b"ID", self.client, self.seq)
        tell: Command[Any] = Command(words, same, repeatable=True, bulk=write.bulk)
        return [_MULTI, write, tell, _EXEC]

    def around(self) -> tuple[bytes, bytes]:
        """Encode what stands before and behind the elements in `transaction`."""
        key, client = self.key, self.client
        seq = b"%d" % self.seq
        head, tail = plain.set_around(key, self.header, self.data, self.px)
        return _BEGIN + head, _TELL % (tail, len(key), key, len(client), client, len(seq), seq)

    def pieces(self) -> list[Piece]:
        """Encode all of `transaction`: large elements as they lie, small ones in one piece with the rest."""
        head, tail = self.around()
        return [b"".join((head, self.data, tail))] if self.data.nbytes < BIG_ARGUMENT else [head, self.data, tail]


def is_mute(replies: Sequence[Any]) -> bool:
    """Whether this user may write but not call the function, so that nothing was done: a plain SET will do.

    What waits for tensors that such a user writes has to hear of them from the server's notifications.
    """
    _, written, told, done = map(_error, replies)
    return written is None and isinstance(told, NoPerm) and done is not None


def read(replies: Sequence[Any]) -> int:
    """Read the replies to a `transaction`.

    Returns:
        How many runs it has started.

    Raises:
        KeysideError: the tensor was not written; or it was, and what waits for it could not be started now, which the
            text then says.
    """
    _, written, told, done = replies
    if (refused := _error(written)) is not None:
        raise refused
    if isinstance(done, list) and len(done) == 2:
        written, told = done
        if (refused := _error(written)) is not None:
            raise refused
    elif written not in (b"OK", "OK"):  # else MULTI was refused, and each was carried out by itself
        raise _error(told) or _error(done) or KeysideError(f"EXEC: {done!r:.100}")
    refused = _error(told)
    if refused is None:
        return int(told)
    if isinstance(refused, LibraryMissing):  # a server that is used for tensors alone, or has an older library
        return 0
    if isinstance(refused, NoPerm) and not refused.text.startswith(_WRITTEN):  # may not even look what there is
        return 0
    raise refused


def _error(reply: Any) -> KeysideError | None:
    if isinstance(reply, KeysideError):
        return reply
    return from_reply(str(reply)) if isinstance(reply, Exception) else None
