"""Triggers: models that run whenever something happens."""

# Timeouts are arguments here, as in the blocking client, which is made of this file.
# ruff: noqa: ASYNC109

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal

import msgspec

from keyside.clients import triggers
from keyside.clients._async.base import AsyncBase
from keyside.clients._async.subscription import AsyncSubscription, Source
from keyside.clients.triggers import On, TriggerInfo
from keyside.tensorstore import channels, commands_triggers, keys, npy
from keyside.tensorstore.command import Name, text, to_bytes
from keyside.tensorstore.commands_triggers import ListedTrigger, TriggerStats

__all__ = ["AsyncTriggers"]


class AsyncTriggers(AsyncBase):
    """Sets triggers, and hears what they say."""

    async def set_trigger(
        self,
        name: Name,
        on: On,
        run: Name,
        inputs: object,
        *,
        outputs: Name | Sequence[Name] | None = None,
        channel: Name | None = None,
        results: Name | None = None,
        maxlen: int | None = None,
        coalesce: bool = False,
        rate: tuple[int, float] | None = None,
        inflight: int | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
        on_error: Literal["publish", "pause", "drop"] = "publish",
        priority: Literal["high", "normal", "low"] = "normal",
    ) -> None:
        """Have a model run whenever something happens. One of that name is replaced, and active again.

        Names of keys, and what else is given as text in `inputs` and `outputs`, are templates: `{cam}` stands for a
        variable of the event (see `OnPublish`, `OnSet`, `OnStream`, `OnSchedule`), `{{` and `}}` for the braces
        themselves.

        Args:
            name: of the trigger, which is a key.
            on: what sets it off.
            run: the target, as for `predict`.
            inputs: one, a list by position, or a mapping by name; each the template of a tensor key, a `Key`, a
                `Value` or `Payload()` for a tensor that comes with the event, or a feature (`keyside.features`).
            outputs: templates of keys for the results; None: they come with the event, those above 1,000 elements in
                keys of a minute's life.
            channel: on which results are published; None: `ks:results:` and the name.
            results: a stream to which they are added too; `subscribe` can miss some, this cannot.
            maxlen: how many that stream keeps.
            coalesce: an event that finds a run of the same source still waiting takes its place.
            rate: how many events may start a run in how many seconds; what is more is dropped.
            inflight: how many runs may be under way; what is more is dropped.
            ttl: seconds that the output keys live.
            timeout: seconds until the deadline of each run; None: 30.
            on_error: "publish" errors like results; "pause": do so and rest from then on; "drop": count them only.
            priority: of the runs, as for `predict`.

        Raises:
            BadArg: a template, a pattern or a number is malformed, or has a variable that there is not.
            Loop: an output may set off the trigger itself.
            NoPerm: this user may not do what the trigger is to do.
        """
        words = triggers.options(
            channel=channel,
            results=results,
            maxlen=maxlen,
            coalesce=coalesce,
            rate=rate,
            inflight=inflight,
            ttl=ttl,
            on_error=on_error,
        )
        what = triggers.run(run, inputs, outputs, timeout, priority)
        command = commands_triggers.ai_triggerset(name, on.words(), words, what)
        await self._functions()
        await self._transport.call(command)

    async def trigger(self, name: Name) -> TriggerInfo:
        """Read what a trigger is.

        Raises:
            NoTrigger: there is none of that name.
        """
        await self._functions()
        found = await self._transport.call(commands_triggers.ai_triggerget(name))
        return TriggerInfo.read(found)

    async def triggers(self) -> AsyncIterator[ListedTrigger]:
        """List the triggers, in no order."""
        await self._functions()
        tag = self._transport.complete_tag()  # each node knows all
        cursor: bytes = b"0"
        listed: set[str] = set()
        while True:
            cursor, found = await self._transport.call_at(tag, commands_triggers.ai_triggerscan(cursor))
            for one in found:
                if one.name not in listed:
                    listed.add(one.name)
                    yield one
            if cursor == b"0":
                return

    async def delete_trigger(self, name: Name) -> None:
        """Delete a trigger; runs that it has started end without a result.

        Raises:
            NoTrigger: there is none of that name.
        """
        await self._functions()
        await self._transport.call(commands_triggers.ai_triggerdel(name))

    async def pause_trigger(self, name: Name, paused: bool = True) -> None:
        """Let a trigger rest, or go on.

        What happens while it rests sets nothing off; but entries of a stream wait for it.

        Args:
            name: of the trigger.
            paused: False: it goes on.

        Raises:
            NoTrigger: there is none of that name.
        """
        await self._functions()
        await self._transport.call(commands_triggers.ai_triggerpause(name, paused))

    async def trigger_stats(self, name: Name, *, reset: bool = False) -> TriggerStats:
        """Read what a trigger has done, on a cluster on all nodes together.

        Args:
            name: of the trigger.
            reset: begin its counters anew.

        Raises:
            NoTrigger: there is none of that name.
        """
        await self._functions()
        found = [await self._transport.call(commands_triggers.ai_triggerinfo(name))]
        others = self._transport.other_tags(name)
        if others:
            found += await self._transport.call_many([triggers.counters_at(tag, name) for tag in others])
        if reset:
            await self._transport.call(commands_triggers.ai_triggerinfo_reset(name))
            for tag in others:
                await self._transport.unlink((keys.NodeKeys(tag).tstats(to_bytes(name)),))
        return triggers.added(found)

    def subscribe(self, name: Name, *, channel: Name | None = None, fetch: bool = True) -> AsyncSubscription:
        """Hear the results of a trigger as they come.

        Use what is returned as a context manager, and iterate over it; from the moment on at which it is entered
        nothing is missed as long as the connection holds.

        Args:
            name: of the trigger.
            channel: on which it publishes; None: what it says itself.
            fetch: read outputs that were written to keys.

        Returns:
            A subscription, whose items are of class `Event`.

        Raises:
            NoTrigger: when it is entered: there is none of that name. Likewise NoPerm: the channel is not this user's.
        """

        async def find() -> Source:
            if channel is None:
                return await self._channel(name)
            if not self._settled:
                await self._settle()
            return self._transport, to_bytes(channel)

        return AsyncSubscription(text(name), find, self._timeout, fetch=fetch)

    async def _channel(self, name: Name) -> Source:
        found = await self.trigger(name)
        return self._transport, to_bytes(found.channel)

    async def publish(self, channel: Name, payload: object, *, sharded: bool = False) -> int:
        """Say something on a channel, such as one that sets off a trigger.

        Args:
            channel: its name.
            payload: a mapping or a list of texts, such as names of keys, which are sent as JSON; text or bytes, which
                are sent as they are; or a tensor, as `set` takes it.
            sharded: by SPUBLISH: on a cluster to the node of the channel's slot alone.

        Returns:
            How many have heard it; of a cluster, on the node that was told.

        Raises:
            BadDtype: the payload cannot be a tensor.
        """
        data = _payload(payload)
        if not self._settled:
            await self._settle()
        return await self._transport.call(channels.publish(channel, data, sharded=sharded))


def _payload(payload: object) -> bytes:
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload)
    if isinstance(payload, str):
        return payload.encode("utf-8", "surrogateescape")
    if isinstance(payload, Mapping) or (
        isinstance(payload, list | tuple) and payload and all(isinstance(item, str) for item in payload)
    ):
        return msgspec.json.encode(payload)
    header, data = npy.encode(payload)
    return header + data
