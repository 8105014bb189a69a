"""Serves the triggers of a node: listens, reads, keeps time, and asks the function library to start runs.

One thread for all of it, away from the one that claims jobs: it sleeps until one of its connections has something to
say or something is due. What it starts are jobs like all others, whoever runs them.
"""

import select
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from keyside.executor.triggers.ear import Ear, Said, Topic
from keyside.executor.triggers.fire import BATCH, Answer, Shot, fire
from keyside.executor.triggers.leases import Leases, ear_of
from keyside.executor.triggers.messages import of_message
from keyside.executor.triggers.notifications import Notifications, turn_on
from keyside.executor.triggers.schedule import Schedule
from keyside.executor.triggers.streams import StreamReader
from keyside.executor.triggers.trigger import Trigger
from keyside.executor.wire import Wire
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, LibraryMissing, NoPerm, TryAgain, Unreachable

if TYPE_CHECKING:
    from keyside.executor.worker import Worker

__all__ = ["Keeper"]

LOOK_S = 0.4
SOON_S = 0.02
IDLE_S = 0.1
TURN_ON_S = 10.0
NEWS = Topic(b"SUBSCRIBE", b"ks:catalog")
REST_S = 1.0
"""How long a trigger is left alone to which the server has refused something."""
RETRIES = 20
RETRY_S = 0.1


class _Changed(Exception):
    """The node is another one, or is not served any more."""


class Keeper(threading.Thread):
    """Serves the triggers of one worker's node until it is stopped."""

    def __init__(self, worker: "Worker") -> None:
        super().__init__(name="triggers", daemon=True)
        self._worker = worker
        self._own: Wire = worker.new_wire("triggers")
        self._ear = Ear(worker.new_wire("trigger-ear"))
        self._over = threading.Event()
        self._node = keys.NodeKeys()
        self._leases = Leases(worker.consumer)
        self._always = (NEWS, Topic(b"SUBSCRIBE", ear_of(worker.consumer)))
        self._notifications = Notifications(self._own.database, worker.consumer)
        self._triggers: dict[bytes, Trigger] = {}
        self._by_topic: dict[Topic, list[Trigger]] = {}
        self._marks: dict[bytes, int] = {}
        self._streams: dict[bytes, StreamReader] = {}
        self._schedules: dict[bytes, Schedule] = {}
        self._shots: list[tuple[Shot, int]] = []
        self._shoot_at = 0.0
        self._next_look = 0.0
        self._next_turn_on = 0.0
        self._said: set[str] = set()
        self._resting: dict[bytes, float] = {}

    def stop(self) -> None:
        """End the thread."""
        self._over.set()

    def run(self) -> None:
        """Serve until stopped."""
        pause = SOON_S
        while not self._over.is_set():
            if not self._serves:
                self._over.wait(IDLE_S)
                continue
            try:
                self._begin()
                while not self._over.is_set():
                    self._turn()
                    pause = SOON_S
            except _Changed:
                pass
            except LibraryMissing as error:
                self._worker.log.debug("triggers wait for the function library", error=str(error))
            except (KeysideError, OSError) as error:
                self._complain(error)
            except Exception:
                self._worker.log.exception("triggers are not served")
            self._end()
            self._over.wait(pause)
            pause = min(pause * 2, 1.0)

    @property
    def _serves(self) -> bool:
        worker = self._worker
        return worker.serves and not worker.standby and not worker.stopping.is_set() and not worker.halted

    def _complain(self, error: Exception) -> None:
        text = str(error)
        if isinstance(error, NoPerm) and text not in self._said:
            self._said.add(text)
            self._worker.log.warning("triggers are not served: the user of the executor lacks a right", error=text)
        else:
            self._worker.log.debug("triggers are not served for a moment", error=text)

    def _begin(self) -> None:
        self._node = self._worker.node
        self._own.connect()
        self._ear.connect()
        self._ear.listen_to(self._always)
        self._leases.of(self._node)
        self._next_look = self._next_turn_on = 0.0

    def _end(self) -> None:
        """Let others serve what this executor did, as far as the server can be told."""
        try:
            if self._own.connected:
                self._leases.release(self._own, set(self._leases.mine))
                for reader in self._streams.values():
                    reader.leave(self._own)
        except KeysideError as error:
            self._worker.log.debug("leases of triggers left to end", error=str(error))
        for reader in self._streams.values():
            reader.close()
        self._streams.clear()
        self._schedules.clear()
        self._notifications.forget()
        self._shots.clear()
        self._triggers, self._by_topic, self._marks = {}, {}, {}
        self._leases.mine.clear()
        self._ear.close()
        self._own.close()

    # --- a turn

    def _turn(self) -> None:
        if not self._serves or self._worker.node is not self._node:
            raise _Changed
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._look(now)
        for said in self._ear.hear():
            self._heard(said, now)
        self._shoot(now)
        self._notifications.turn(self._own, self._led, now)
        server_ms = self._worker.watchdog.now_ms()
        for name, schedule in self._schedules.items():
            self._apart(name, now, partial(schedule.turn, self._own, now, server_ms))
        for name, reader in self._streams.items():
            self._apart(name, now, partial(self._read, reader, now, server_ms))
        self._wait()

    def _read(self, reader: StreamReader, now: float, server_ms: float) -> None:
        if reader.fileno() >= 0:
            reader.take()
        reader.turn(self._own, now, server_ms)
        if reader.unsure:
            self._next_look = min(self._next_look, now + SOON_S)

    def _apart(self, name: bytes, now: float, turn: Callable[[], None]) -> None:
        """Do what one trigger needs; where the server refuses that, it rests for a while, and the others go on."""
        if self._rests(name, now):
            return
        try:
            turn()
        except (Unreachable, TryAgain, LibraryMissing):
            raise
        except KeysideError as error:
            self._resting[name] = now + REST_S
            self._once(f"trigger {_text(name)!r} is not served for now: {error}")

    def _rests(self, name: bytes, now: float) -> float:
        """Return for how many seconds a trigger rests; 0: it does not."""
        return max(0.0, self._resting.get(name, 0.0) - now)

    def _wait(self) -> None:
        """Sleep until there is something to do."""
        now = time.monotonic()
        due = min(
            self._next_look - now,
            self._notifications.due(now),
            self._shoot_at - now if self._shots else LOOK_S,
            *(max(one.due(now), self._rests(name, now)) for name, one in self._schedules.items()),
            *(max(one.due(now), self._rests(name, now)) for name, one in self._streams.items()),
        )
        waiter = select.poll()
        awake = (reader.fileno() for name, reader in self._streams.items() if not self._rests(name, now))
        for descriptor in (self._ear.fileno(), *awake):
            if descriptor >= 0:
                waiter.register(descriptor, select.POLLIN)
        waiter.poll(max(0.0, due) * 1000)

    # --- which triggers

    @property
    def _led(self) -> list[Trigger]:
        return [self._triggers[name] for name in self._leases.mine if name in self._triggers]

    def _look(self, now: float) -> None:
        """See which triggers there are, and which of them are this executor's to serve."""
        listed = self._own.call(b"FCALL_RO", b"KS_TRIGGERS", 0)
        found = {}
        for name, raw in listed:
            trigger = Trigger.read(bytes(name), bytes(raw))
            if trigger is None:
                self._once(f"the record of trigger {_text(name)!r} is unreadable: set it again")
            elif not trigger.paused:
                found[trigger.name] = trigger
        self._triggers = found
        fresh = self._leases.hold(self._own, [name for name, one in found.items() if one.kind != "stream"])
        mark = self._listen(now, fresh)
        self._marks.update(dict.fromkeys(fresh, mark))
        self._follow_schedules()
        self._follow_streams()

    def _listen(self, now: float, fresh: set[bytes]) -> int:
        by_topic: dict[Topic, list[Trigger]] = {}
        for trigger in self._led:
            if trigger.kind == "publish":
                how = b"SSUBSCRIBE" if trigger.sharded else b"SUBSCRIBE"
                by_topic.setdefault(Topic(how, trigger.source), []).append(trigger)
            elif trigger.kind == "set":
                by_topic.setdefault(self._notifications.topic(trigger), []).append(trigger)
                if now >= self._next_turn_on or trigger.name in fresh:
                    self._next_turn_on = now + TURN_ON_S
                    turn_on(self._own)
        self._by_topic = by_topic
        return self._ear.listen_to((*self._always, *by_topic), mark=bool(fresh))

    def _follow_schedules(self) -> None:
        led = {trigger.name: trigger for trigger in self._led if trigger.kind == "schedule"}
        for name, schedule in list(self._schedules.items()):
            if led.get(name) != schedule.trigger:
                del self._schedules[name]
        for name, trigger in led.items():
            if name not in self._schedules:
                self._schedules[name] = Schedule(trigger, self._node, self._worker.consumer)

    def _follow_streams(self) -> None:
        wanted = {name: one for name, one in self._triggers.items() if one.kind == "stream"}
        for name, reader in list(self._streams.items()):
            if wanted.get(name) != reader.trigger:
                reader.leave(self._own)
                del self._streams[name]
        for name, trigger in wanted.items():
            if name not in self._streams:
                wire = self._worker.new_wire("trigger-stream")
                self._streams[name] = StreamReader(trigger, self._node, self._worker.consumer, wire)
            self._streams[name].confirm()

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._worker.log.warning(text)

    # --- messages

    def _heard(self, said: Said, now: float) -> None:
        if said.topic == NEWS:
            self._next_look = min(self._next_look, now + SOON_S)
            return
        for trigger in self._by_topic.get(said.topic, ()):
            if said.mark < self._marks.get(trigger.name, 0):
                continue  # from before this executor had the lease: whoever had it has seen to it
            if trigger.kind == "set":
                self._notifications.note(trigger, said.channel, said.payload, now)
                continue
            source, variables = of_message(said.channel, said.payload)
            self._shots.append((Shot(trigger, source, trigger.wants(variables)), RETRIES))

    def _shoot(self, now: float) -> None:
        """Start the runs of messages; what could not be asked for at all is asked for again, for a while."""
        if not self._shots or now < self._shoot_at:
            return
        shots, self._shots = self._shots, []
        lost = 0
        while shots:
            part, shots = shots[:BATCH], shots[BATCH:]
            try:
                answers = fire(self._own, self._worker.consumer, [shot for shot, _ in part])
            except Unreachable:
                # Some of the first may have begun; none is begun twice.
                self._lost(lost + len(part) + len(shots))
                raise
            for (shot, tries), answer in zip(part, answers, strict=True):
                if answer.settled:
                    self._note(answer)
                elif tries:
                    self._shots.append((shot, tries - 1))
                else:
                    lost += 1
        if self._shots:
            self._shoot_at = now + RETRY_S
        if lost:
            self._lost(lost)

    def _lost(self, messages: int) -> None:
        self._worker.metrics.event("trigger_messages_lost", messages)
        self._worker.log.warning("messages of triggers may have been lost: the server was away", messages=messages)

    def _note(self, answer: Answer) -> None:
        if answer.status == "FAILED":
            self._worker.log.debug("event of a trigger refused", error=answer.text)


def _text(raw: Sequence[int] | bytes) -> str:
    return bytes(raw).decode("utf-8", "replace")
