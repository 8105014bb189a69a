"""Where a worker stands: connecting, serving, standing by while its node is a replica, connecting anew, leaving.

All of it happens on the claim thread.
"""

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from keyside.executor.protocol import GROUP
from keyside.executor.wire import Wire, checked
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, LibraryMissing, ServerError, TryAgain, Unreachable

if TYPE_CHECKING:
    from keyside.executor.worker import Worker

__all__ = ["Station"]

TICK = 0.05
START_S = 30.0
STANDBY_S = 0.2
BROKEN_S = 2.0


class NotNow(Unreachable):
    """The node can be reached, and takes no jobs: it is a replica, say."""


class Station:
    """Connects one worker, and parts it from its server.

    Attributes:
        standby: why it does not serve; empty while it does, or has not begun.
        broken: what is wrong with the server, if its functions fail although they should not.
    """

    def __init__(self, worker: "Worker", gave_up: threading.Event) -> None:
        self.standby = ""
        self.broken = ""
        self._worker = worker
        self._gave_up = gave_up
        self._moved_to = b""
        self._suspect_since = 0.0

    # --- connecting

    def start(self) -> None:
        """Connect for the first time; the server may be starting as well, and the node may be a replica."""
        worker = self._worker
        give_up = time.monotonic() + START_S
        pause = 0.1
        while True:
            try:
                self._connect()
            except (NotNow, TryAgain) as error:
                self._enter_standby(error)
                return
            except Unreachable as error:
                if time.monotonic() > give_up or worker.stopping.wait(pause):
                    raise
                pause = min(pause * 2, 5.0)
                worker.log.warning("waiting for the server", error=str(error))
            else:
                return

    def _connect(self) -> None:
        """Arrive at the node, and serve it.

        Raises:
            NotNow: it is no primary.
            KeysideError: it cannot be reached, or refuses.
        """
        worker = self._worker
        wire = worker.wire
        if not (self.standby and wire.connected):
            wire.connect()
        worker.chart.look(wire)
        now = worker.chart.now
        if now.role == "replica":
            primary = now.primary
            raise NotNow(f"its node is a replica of {primary.address if primary else 'another'}")
        if now.role == "none":
            raise NotNow("its node owns no slots")
        try:
            self.install(wire)
            self.register()
        except ServerError as error:
            if "READONLY" not in str(error):
                raise
            raise NotNow("its node is a replica") from error

    def install(self, wire: Wire) -> None:
        """Load the function library where that is needed."""
        done = self._worker.seals.install(wire)
        if done != "present":
            self._worker.log.info("function library", state=done)

    def register(self) -> None:
        """Show that this executor is there; that makes its queues, and tells which node the server is."""
        self._belong_to(self._worker.watchdog.beat(self._worker.wire))

    def _belong_to(self, tag: bytes) -> None:
        """Serve the queues of a node from now on."""
        self._moved_to = b""
        self._worker.belong_to(tag)

    def moved(self, tag: bytes) -> None:
        """Serve the queues of another node tag as soon as the claim under way is over; called by the watchdog."""
        self._moved_to = tag

    def follow(self) -> None:
        """Serve the queues that `moved` has named, if it has."""
        if self._moved_to:
            self._belong_to(self._moved_to)

    @property
    def moving(self) -> bool:
        """Whether the claim under way is for queues of the past."""
        return bool(self._moved_to)

    def restore(self) -> None:
        """Load the library again, which has gone."""
        worker = self._worker
        try:
            worker.line.settle()
            self.install(worker.wire)
        except KeysideError as error:
            worker.log.warning("function library cannot be loaded", error=str(error))
            self.reconnect()

    def reconnect(self) -> None:
        """Connect again, and go on with what was held; or stand by, and let go of it."""
        worker = self._worker
        worker.claiming = False
        worker.line.lost()
        worker.park()
        pause = 0.05
        while not worker.stopping.wait(pause):
            try:
                self._connect()
                worker.line.flush()
                self._own_pending()
            except NotNow as error:
                self._enter_standby(error)
                return
            except KeysideError:
                worker.line.lost()
                pause = min(pause * 2, 2.0)
            else:
                worker.log.info("connected again")
                return

    def _own_pending(self) -> None:
        """Accept what a claim had brought when the connection broke before its reply was read."""
        worker = self._worker
        now = time.monotonic()
        for stream, queue in worker.claims.streams.items():
            # By the line: what the queue before has set off may not be answered yet.
            command = (b"XREADGROUP", b"GROUP", GROUP, worker.consumer, b"COUNT", 1000, b"STREAMS", stream, b"0")
            reply = checked(worker.line.call_many((command,))[0])
            entries = [entry for _, found in reply or () for entry in found if (queue, entry[0]) not in worker.held]
            worker.accept(queue, entries, now)

    # --- standing by

    def _enter_standby(self, error: KeysideError) -> None:
        """Take no jobs, and let go of those that are held: they are run by whoever serves the new primary."""
        worker = self._worker
        self.standby = error.text
        worker.log.info("standby", reason=error.text, dropped=len(worker.held))
        worker.wire.close()
        worker.let_go()

    def stand_by(self) -> None:
        """Wait until the node is a primary, and then serve it; or until the worker is to stop."""
        worker = self._worker
        while not worker.stopping.wait(STANDBY_S):
            try:
                self._connect()
            except NotNow as error:
                self.standby = error.text
            except TryAgain as error:
                self.standby = error.text
                self.suspect(worker.wire)
            except KeysideError as error:
                worker.log.debug("standby", error=str(error))
                worker.wire.close()
            else:
                self.standby = ""
                self.sound()
                worker.take_up()
                worker.log.info("the node is a primary: serving it")
                return

    # --- a server whose functions are broken

    def sound(self) -> None:
        """The functions of the node work."""
        if self.broken:
            self._worker.log.info("the functions of the node work again")
        self._suspect_since, self.broken = 0.0, ""

    def suspect(self, wire: Wire) -> None:
        """A function said that a key of the node's own is not there: find out whether that is so.

        On Valkey one command in a script that names keys of two slots makes all scripts fail until the server is
        restarted. No function of ours does that; a script of somebody else's may.
        """
        now = self._worker.chart.now
        tags = {self._worker.node.tag, now.tag_of(now.my_id)} if now.role == "primary" else set()
        names = [
            name for tag in tags if tag for node in (keys.NodeKeys(tag),) for name in (node.catalog, node.executors)
        ]
        try:
            replies = wire.call_many([(b"EXISTS", name) for name in names])
        except Unreachable:
            return
        if not now.clustered or not names or not all(isinstance(reply, int) for reply in replies):
            self._suspect_since = 0.0  # slots are on the move, then
            return
        self._suspect_since = self._suspect_since or time.monotonic()
        if self.broken or time.monotonic() - self._suspect_since < BROKEN_S:
            return
        self.broken = (
            "scripts on the node fail: they say that its own keys are not local, though it owns their slots. A script "
            "that used keys of two slots in one command has broken them (a fault of the server): restart the server, "
            "or fail over to a replica"
        )
        self._worker.log.error("the server must be restarted", reason=self.broken)

    # --- leaving

    def drain(self) -> None:
        """End what was claimed, as far as the time for it goes, and leave."""
        worker = self._worker
        worker.draining = True
        worker.log.info("stopping", held=len(worker.held))
        drain_s = worker.settings.drain_s
        deadline = time.monotonic() + drain_s
        patience = threading.Timer(drain_s, self._gave_up.set)
        patience.daemon = True
        patience.start()
        try:
            with contextlib.suppress(LibraryMissing):  # flush loads it again
                while worker.line.ahead:
                    worker.serve_ahead()
            worker.line.flush()
            while worker.held and time.monotonic() < deadline:
                worker.wait(TICK)
        except KeysideError as error:
            worker.log.warning("not everything was delivered", error=str(error))
        patience.cancel()
        self._gave_up.set()
        left = len(worker.held)
        worker.stop_threads()
        if not self.standby:
            self._sign_off()
        worker.close()
        worker.log.info("stopped", left=left)

    def _sign_off(self) -> None:
        worker = self._worker
        try:
            if not worker.wire.connected:
                worker.wire.connect()
            worker.wire.call(b"FCALL", b"KS_LEAVE", 0, worker.consumer, *worker.queues)
        except KeysideError as error:
            worker.log.warning("could not sign off", error=str(error))
