# Do not change this file: it is made from clients/_async/handle.py by tools/unasync.py.
"""A job that was submitted and whose result is asked for later."""

from collections.abc import Callable
from typing import Any

from keyside.clients.transport_sync import SyncPending, SyncTransport

__all__ = ["Handle"]


class Handle:
    """A job that the server has accepted."""

    def __init__(
        self,
        transport: SyncTransport,
        pending: SyncPending,
        read: Callable[[bytes], Any],
    ) -> None:
        self._transport = transport
        self._pending = pending
        self._read = read

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.job_id}>"

    @property
    def job_id(self) -> str:
        """Id of the job, as AI_CANCEL takes it; empty if the answer that told it was lost with a connection."""
        return self._pending.job.decode("ascii", "replace")

    def done(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self._transport.arrived(self._pending)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result. It may be asked for any number of times, and by several callers at once.

        Ask in time: the server keeps the result until 10 s after the job's deadline, and outputs above 32 KiB for only
        60 s after the run, whatever the deadline. What has been returned once, the handle keeps.

        Args:
            timeout: seconds to wait at most; None: until the job's own deadline.

        Returns:
            As of `predict`; None if the results went to keys.

        Raises:
            TimedOut: it has not come; if the job's own deadline has not passed, it goes on. Or the job has ended, but
                its result was asked for too late.
            InputLost: an output was asked for too late, or the server has evicted it.
            KeysideError: the job failed.
        """
        return self._transport.result(self._pending, self._read, timeout)

    def cancel(self) -> bool:
        """Take the job back.

        Returns:
            Whether it will write nothing any more; False if it had ended already.
        """
        return self._transport.cancel(self._pending)
