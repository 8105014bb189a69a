"""A request in flight of an asyncio client."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

from keyside.clients.request import Request
from keyside.tensorstore.errors import ExecutionError, InputLost, KeysideError, from_reply

if TYPE_CHECKING:
    from keyside.clients.mailbox import Mailbox

__all__ = ["AsyncPending"]


def _raise_refusal(reply: bytes) -> None:
    """Raise what a reply on the list says, if it is a refusal: it may be there before the call's own reply is read."""
    if reply[:1] >= b"\x80" or reply == b"OK":
        return
    error = from_reply(reply.decode("utf-8", "replace"))
    if not isinstance(error, ExecutionError | InputLost):
        raise error


class AsyncPending:
    """A request in flight.

    Attributes:
        request: as it is submitted.
        ends: its deadline by `time.monotonic`.
        future: gets the reply, or the error that takes its place.
        job: its id; empty as long as the server has not told it.
        error: of a value that was to be stored before the call.
        left: nobody waits for it any more.
        sent: the server has accepted it.
        noted: all that its job id is good for is to be remembered.
        reading: reads what the reply stands for, once somebody has asked for that.
        expired: its time was over, and that is being dealt with.
        refused: how often the server has said TRYAGAIN, less how often it has said so on the list too.
    """

    # As attributes of the class: most requests never have others, and making them is on everybody's way.
    job = b""
    error: KeysideError | None = None
    left = False
    sent = False
    noted = True
    reading: "asyncio.Future[Any] | None" = None
    expired = False
    refused = 0
    _accepted: "asyncio.Future[None] | None" = None

    def __init__(self, request: Request, mailbox: "Mailbox", loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.ends = time.monotonic() + request.timeout
        self.future: asyncio.Future[bytes] = loop.create_future()
        self.mailbox = mailbox

    async def accepted(self) -> None:
        """Wait until the server has accepted it.

        Raises:
            KeysideError: it was refused.
        """
        # Nobody need ever ask for the result of a job; then its error is nobody's concern.
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        if not self.sent and not self.future.done():
            self._accepted = asyncio.get_running_loop().create_future()
            self.noted = False
            await asyncio.wait((self._accepted, self.future), return_when=asyncio.FIRST_COMPLETED)
        if self.future.done() and not self.sent:
            _raise_refusal(self.future.result())

    def answer(self, reply: Any) -> None:
        """Take the reply to the call that submits it."""
        self.mailbox.submitted(self, reply)

    def accept(self, job: bytes) -> None:
        """Take note that the server has accepted it."""
        self.job = job
        self.sent = True
        self.request.before = ()  # they are on the server
        if self._accepted is not None and not self._accepted.done():
            self._accepted.set_result(None)

    def end(self, reply: bytes | KeysideError) -> None:
        """Take the reply or the error, if it still matters."""
        if self.future.done():
            return
        if isinstance(reply, KeysideError):
            self.future.set_exception(reply)
        else:
            self.future.set_result(reply)
