"""The blocking transport of a cluster: requests that find their way, and the replies to them."""

import contextlib
import time
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

from keyside.clients.nodes_sync import SyncNodes
from keyside.clients.packed import Packed
from keyside.clients.request import MARGIN_S, Request, accepted, pauses
from keyside.clients.spread_sync import Spread
from keyside.clients.topology import Node
from keyside.clients.transport_sync import SyncPending, refused
from keyside.clients.way import ASK_S, FREE_SLICE_S, LATE_S, SLICE_S, Way, asked, bare_device, passing, redirected
from keyside.tensorstore import commands, keys, plain
from keyside.tensorstore.command import Command
from keyside.tensorstore.errors import KeysideError, NoModel, TimedOut, TryAgain, Unreachable

__all__ = ["SyncCluster"]

T = TypeVar("T")
_CONNECT_S = 2.0
_PAUSE_S = 0.1
_REFUSED = (b"TRYAGAIN ", b"NOMODEL ")


class SyncCluster(SyncNodes):
    """Sends requests to the nodes that they concern; see `SyncNodes`."""

    # --- requests

    def run(self, request: Request) -> bytes:
        """Submit a request and wait for its reply.

        Raises:
            KeysideError: it was refused, it failed, or there was no answer.
        """
        return self.go(self.way(request))

    def go(self, way: Way) -> bytes:
        """Send a request on its way and return its reply; like `run`."""
        return self._pursue(way, lambda node, asking: self._attempt(way, node, asking=asking))

    def way(self, request: Request) -> Way:
        """Return the way of a request; that begins when `go` sends it."""
        self._know_device(request)
        return Way(self.plan.topology, time.monotonic() + request.timeout, request=request)

    def _know_device(self, request: Request) -> None:
        """Find out which device a request needs that may run on any node."""
        topology = self.plan.topology
        if request.keyed or topology.single:
            return
        if topology.device(request.target) is None:
            with contextlib.suppress(NoModel):  # the call itself says it better
                record = self._record(request.target, time.monotonic() + request.timeout)
                topology.learn(request.target, bare_device(record.device.encode()))
        self._look_if_due()

    def run_packed(self, request: Packed) -> bytes:
        """Submit a request that is encoded already, and wait for its reply; like `run`."""
        topology = self.plan.topology
        ends = time.monotonic() + request.timeout
        request.keyed, request.remake = topology.single, None
        node = topology.owner(keys.slot(b"{%b}" % request.tag))
        way = Way(topology, ends, request=request)
        if node is None:
            return self._pursue(way, lambda node, asking: self._attempt(way, node, asking=asking))
        way.placed(node)
        try:
            return self._ask_node(request, way, node)
        except KeysideError as error:
            failed = error
        return self._pursue(way, lambda node, asking: self._attempt(way, node, asking=asking), failed)

    def _ask_node(self, request: Packed, way: Way, node: Node) -> bytes:
        limit = min(request.timeout + MARGIN_S, SLICE_S)
        pool = self._pool(node)
        wire = pool.take(min(limit, _CONNECT_S))
        with self._counted(node):
            try:
                reply = wire.ask(request.data, LATE_S, limit)
            except KeysideError:
                pool.close_free()
                raise
            except BaseException:
                if job := wire.said:
                    self.forget((commands.ai_cancel(request.ticket(request.tag), job),))
                raise
        said = wire.said
        try:
            if isinstance(said, KeysideError):
                refused(wire, said)
                raise said
        finally:
            pool.give(wire)
        return self._answer(way, said, reply[1] if type(reply) is list else reply)

    @contextlib.contextmanager
    def _counted(self, node: Node) -> Generator[None, None, None]:
        with self._flying:
            node.flying += 1
        try:
            yield
        finally:
            with self._flying:
                node.flying -= 1

    def _answer(self, way: Way, job: bytes, reply: Any) -> bytes:
        """Return what came on the ticket of an accepted request, or look further for it."""
        request = way.submitted
        ticket = request.ticket(request.tag)
        if job:
            self.plan.learn(request, job)
        job = job or way.job
        rescued = False
        long = time.monotonic() + SLICE_S
        try:
            if isinstance(reply, KeysideError) and not redirected(reply):
                raise reply
            while isinstance(reply, KeysideError) or reply is None or (reply.startswith(_REFUSED) and way.tries > 1):
                # Its slot moved while we waited, or it takes long, or that was said to an attempt before.
                if time.monotonic() >= way.ends + MARGIN_S:
                    return self.give_up(request, ticket, job)
                moved = isinstance(reply, KeysideError) or time.monotonic() > long
                until = way.ends + MARGIN_S
                if way.free and reply is None:
                    self.plan.look_if_due(self._look)
                    if way.stranded(job):
                        rescued, reply = self._take_back(ticket, job)
                        if rescued or reply is not None:
                            break
                if way.free:
                    until = min(until, time.monotonic() + FREE_SLICE_S)
                reply = self._collect(ticket, until, job, moved=moved)
        except KeysideError as error:
            if passing(error):
                # Whoever has its slot now may never have heard of it: sent again under its number it runs once.
                way.doubt = True
            raise
        except BaseException:
            if job:
                self.forget((commands.ai_cancel(ticket, job),))
            raise
        if rescued:
            raise way.taken_back()
        found: bytes = reply
        return found

    def _take_back(self, ticket: bytes, job: bytes) -> tuple[bool, bytes | None]:
        """Take a job back that waits where no executor is left.

        Returns:
            Whether it may be sent elsewhere, as it is queued no more, and has no reply; and that, if it has one.
        """
        try:
            _, late = self.last_words((commands.ai_cancel(ticket, job), plain.lpop(ticket)))
        except KeysideError:
            return False, None  # nobody knows; it is asked again
        return late is None, late

    def _attempt(self, way: Way, node: Node, *, asking: bool) -> bytes:
        request = way.submitted
        seconds = way.ends - time.monotonic()
        patience = min(max(seconds, 0.001) + MARGIN_S, SLICE_S)
        ticket = request.ticket(request.tag)
        waiting = plain.blpop(ticket, min(patience, FREE_SLICE_S) if way.free else patience)
        batch: list[Command[Any]] = [*request.before, request.submit(seconds, ticket), waiting]
        job = b""
        pool = self._pool(node)
        wire = pool.take(min(patience, _CONNECT_S))
        limit = patience + LATE_S
        try:
            with self._counted(node):
                wire.send(asked(batch) if asking else batch)
                try:
                    job = accepted(self._read(wire, batch[:-1], asking=asking, limit=limit))
                    way.job = job or way.job
                except KeysideError as error:
                    if wire.connected and asking:
                        wire.close()  # two replies for each
                    refused(wire, error)
                    raise
                (reply,) = self._read(wire, (waiting,), asking=asking, limit=limit)
        except Unreachable:
            pool.close_free()
            raise
        except KeysideError as error:
            if way.free or not passing(error):
                self.drop(request.temporaries)
            raise
        except BaseException:
            wire.close()
            if job:
                self.forget((commands.ai_cancel(ticket, job),))
            raise
        finally:
            pool.give(wire)
        if not job:
            self.drop(request.temporaries)
        return self._answer(way, job, reply if isinstance(reply, KeysideError) else waiting.result(reply))

    def _collect(self, ticket: bytes, until: float, job: bytes, *, moved: bool = False) -> bytes | None:
        """Wait for a reply wherever the ticket is now.

        Args:
            ticket: where the reply comes.
            until: when to give up, by `time.monotonic`.
            job: the id of the job, if that is known.
            moved: the ticket was found to be elsewhere already.

        Returns:
            The reply; None: it has not come in time.

        Raises:
            KeysideError: a node that was waited on is gone, or is no primary any more; or the slot is now where
                nobody knows of the job, as after a failover that has lost it.
        """
        way = Way(self.plan.topology, until, slot=keys.slot(ticket))
        pause = pauses()
        while (left := until - time.monotonic()) > 0:
            try:
                node, asking = way.next()
                gone = moved and bool(job) and not self._is_queued(job)
                seconds = min(left, _PAUSE_S if gone else ASK_S if asking else SLICE_S)
                waiting = plain.blpop(ticket, seconds)
                pool = self._pool(node)
                wire = pool.take(min(left + LATE_S, _CONNECT_S))
                try:
                    wire.send(asked((waiting,)) if asking else (waiting,))
                    (reply,) = self._read(wire, (waiting,), asking=asking, limit=seconds + LATE_S)
                except BaseException:
                    wire.close()
                    raise
                pool.give(wire)
                found = waiting.result(reply)
            except KeysideError as error:
                moved = True
                if not redirected(error):
                    self.plan.topology.stale = True
                    raise
                wait = way.failed(error)
                time.sleep(wait and max(wait, pause()))
                self._refresh(until)
                continue
            if found is not None:
                return found
            if gone:
                raise Unreachable(f"node {node.address} has neither the job {job.decode()} nor its reply")
            moved = True  # it takes long: is it still there?
        return None

    def _is_queued(self, job: bytes) -> bool:
        try:
            return bool(self.last_words((plain.is_queued(job),))[0])
        except KeysideError:
            return False

    # --- requests whose reply is asked for later

    def begin(self, request: Request) -> SyncPending:
        """Submit a request and return once a node has accepted it.

        Raises:
            KeysideError: it was refused, or the nodes are gone.
        """
        way = self.way(request)
        try:
            job = self._submit(way)
        except KeysideError:
            self.drop([*request.temporaries, request.ticket(request.tag)])
            raise
        if not job:
            self.drop(request.temporaries)
        else:
            self.plan.learn(request, job)
        pending = SyncPending(request, request.ticket(request.tag), job, way.ends, way.refusals)
        pending.where = "" if way.node is None else way.node.address
        return pending

    def _submit(self, way: Way) -> bytes:
        request = way.submitted

        def submit(node: Node, asking: bool) -> bytes:
            ticket = request.ticket(request.tag)
            batch: list[Command[Any]] = [*request.before, request.submit(way.ends - time.monotonic(), ticket)]
            try:
                return accepted(self._trade(node, batch, way.ends, asking=asking))
            except (TryAgain, NoModel):
                way.refusals += 1
                raise

        return self._pursue(way, submit)

    def _submit_again(self, pending: SyncPending) -> None:
        """Send a request once more: whoever has its slot now may never have heard of it."""
        request = pending.request
        if request.temporaries:
            time.sleep(_PAUSE_S)  # they were taken over
            self._refresh(pending.ends)
            return
        way = Way(self.plan.topology, pending.ends, request=request)
        way.doubt, way.slot = True, keys.slot(pending.ticket)
        try:
            pending.job = self._submit(way) or pending.job
            pending.where = pending.where if way.node is None else way.node.address
        except KeysideError:
            if time.monotonic() < pending.ends:
                time.sleep(_PAUSE_S)
        pending.refusals += way.refusals

    def wait(self, pending: SyncPending, timeout: float | None) -> bytes:
        """Wait for the reply, at most some seconds and at most until its deadline.

        Raises:
            TimedOut: it has not come; if the deadline has not passed, the job goes on.
            KeysideError: the job ended with that error.
        """
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        with pending.lock:
            last = pending.ends + MARGIN_S
            while pending.reply is None:
                try:
                    owner = self.plan.topology.owner(keys.slot(pending.ticket))
                    moved = owner is not None and owner.address != pending.where
                    found = self._collect(pending.ticket, min(last, until), pending.job, moved=moved)
                except KeysideError as error:
                    if self.closed or not passing(error) or time.monotonic() >= min(last, until):
                        raise
                    self._submit_again(pending)
                    continue
                if found is not None and found.startswith(_REFUSED) and pending.refusals:
                    pending.refusals -= 1  # that was said to an attempt before the one that was accepted
                    continue
                if found is not None:
                    pending.reply = found
                elif time.monotonic() >= last:
                    try:
                        pending.reply = self.give_up(pending.request, pending.ticket, pending.job, pending.ends)
                    except KeysideError as error:
                        pending.reply = error
                else:
                    raise TimedOut(f"no reply within {timeout:g} s; the job goes on")
        if isinstance(pending.reply, KeysideError):
            raise pending.reply
        return pending.reply

    # --- many requests

    def node_count(self) -> int:
        """How many nodes may take requests."""
        return len(self.plan.topology.nodes)

    def call_off(self, ways: Iterable[Way]) -> None:
        """Take requests back for whose replies other threads wait."""
        said = b"CANCELLED the caller cancelled the job"
        for way in ways:
            if way.request is not None and way.job:
                ticket = way.request.ticket(way.request.tag)
                with contextlib.suppress(KeysideError):
                    if self.call(commands.ai_cancel(ticket, way.job)):
                        self.forget((plain.rpush(ticket, said), plain.pexpire(ticket, 10_000)))

    def run_many(self, requests: Iterable[Request], window: int) -> Generator[tuple[int, bytes], None, None]:
        """Submit requests to all nodes that serve them; like `SyncTransport.run_many`."""
        spread = Spread(self, window)
        try:
            yield from spread.run(requests)
        finally:
            spread.end()
