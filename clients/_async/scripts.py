"""Scripts in the database: TorchScript, and Python functions of the operator."""

# Timeouts are arguments here, as in the blocking client, which is made of this file.
# ruff: noqa: ASYNC109

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from keyside.clients import inputs as binding
from keyside.clients._async.inference import AsyncInference, Priority
from keyside.clients._async.models import AsyncModels
from keyside.clients.inputs import Bound
from keyside.clients.scripts import Script, read_source, script_of
from keyside.clients.versions import ModelVersion, parse_target
from keyside.tensorstore import commands_scripts
from keyside.tensorstore.command import Command, Name
from keyside.tensorstore.commands import InputSpec, Submit, terms
from keyside.tensorstore.commands_scripts import ListedScript
from keyside.tensorstore.errors import BadArg
from keyside.tensorstore.features import Feature

__all__ = ["AsyncScripts"]


class AsyncScripts(AsyncModels, AsyncInference):
    """Stores scripts, tells about them, and calls their functions."""

    async def store_script(
        self,
        name: str,
        source: str | bytes | os.PathLike[str] | None = None,
        *,
        entry_points: str | Sequence[str],
        functions: bool = False,
        device: str = "CPU",
        tag: str = "",
        run_limit_ms: int | None = None,
        wait: bool = True,
        timeout: float = 120.0,
    ) -> ModelVersion:
        """Add a version to a script. The same source with the same settings gives the version that is there already.

        Args:
            name: of the script, without @.
            source: TorchScript, or the path of a file with it; at most 256 KiB.
            entry_points: the functions that may be called, each of the form
                `def f(tensors: List[Tensor], keys: List[str], args: List[str])`.
            functions: they are Python functions that the operator has registered with `@keyside.function`.
            device: the queue whose executors shall run it.
            tag: any text.
            run_limit_ms: a call that takes longer is given up; 0: none is; None: as the executor is set.
            wait: return only once an executor has compiled it, or found the functions.
            timeout: seconds to wait for that.

        Returns:
            The version; its `target` names it to `run_script`.

        Raises:
            BadArg: an argument is out of range.
            ModelFailed: it does not compile, or an executor lacks a function; the text has the reason.
            WrongType: the name is that of a model.
            TimedOut: no executor has loaded it in time.
        """
        text, points = read_source(source, entry_points, functions=functions)
        await self._functions()
        version = await self._transport.call(
            commands_scripts.ai_scriptstore(name, device, points, source=text, tag=tag, run_limit_ms=run_limit_ms)
        )
        if wait:
            return await self.wait_ready(f"{name}@{version}", timeout=timeout)
        return await self.version(f"{name}@{version}")

    async def script(self, target: str) -> Script:
        """Read about one version of a script, with its source.

        Args:
            target: `name@3`, or `name` for the one that the bare name means.

        Raises:
            NoModel: there is no such script or version.
            WrongType: it is a model.
        """
        await self._functions()
        name, number = parse_target(target)
        source = await self._transport.call(commands_scripts.ai_scriptget(name, number))
        return script_of(await self.version(target), source)

    async def scripts(self) -> AsyncIterator[ListedScript]:
        """List the scripts: their names and the tags of their default versions; on a cluster as `models` does."""
        await self._functions()
        tag = self._transport.complete_tag()
        cursor: int = 0
        listed: set[str] = set()
        while True:
            cursor, found = await self._transport.call_at(tag, commands_scripts.ai_scriptscan(cursor))
            for script in found:
                if script.name not in listed:
                    listed.add(script.name)
                    yield script
            if not cursor:
                return

    async def delete_script(self, target: str) -> None:
        """Delete a script, or with `name@3` that version; jobs already queued still run.

        Raises:
            NoModel: there is no such script or version.
            WrongType: it is a model.
        """
        await self._functions()
        name, number = parse_target(target)
        await self._transport.call(commands_scripts.ai_scriptdel(name, number))

    async def run_script(
        self,
        target: Name,
        function: str,
        inputs: object = (),
        *,
        keys: Sequence[Name] = (),
        args: Sequence[str | bytes] = (),
        outputs: Name | Sequence[Name] | None = None,
        timeout: float | None = None,
        priority: Priority = "normal",
        user: str | None = None,
    ) -> Any:
        """Call a function of a script.

        Args:
            target: `name` (its default version) or `name@3`.
            function: one of its entry points.
            inputs: an array, or several in a list; `Key` for those that lie in the database. With `outputs` text is the
                name of a key, as for `execute`. `()`: none.
            keys: names, which the function gets as text.
            args: further texts for it.
            outputs: keys for the results; None: they are returned.
            timeout: seconds until the deadline; None: the client's.
            priority: "high" goes before what is normal, "low" behind it.
            user: as for `predict`.

        Returns:
            The array if the function gives one, else a list of them; None if they went to keys.

        Raises:
            NoModel: there is no such script.
            BadArg: it has no such function.
            RunFailed: the function failed; the text has the line.
            KeysideError: as for `predict`.
        """
        await self._functions()
        if isinstance(inputs, Mapping):
            raise BadArg("inputs of a script have no names: give a list")
        names = [] if outputs is None else binding.output_keys(outputs)
        bound = Bound([], [])
        if not isinstance(inputs, list | tuple) or len(inputs):
            bound = binding.bind(inputs) if outputs is None else binding.bind_keys(inputs)
            bound.convert(None)
        if any(isinstance(item, Feature) for item in bound.items):
            raise BadArg("inputs of a script are arrays and tensor keys; features are gathered for models and graphs")

        def make(specs: list[InputSpec | Feature]) -> Callable[[Submit], Command[bytes]]:
            given = [spec for spec in specs if isinstance(spec, InputSpec)]
            return lambda submit: commands_scripts.ai_scriptexecute(
                target, function, given, submit, keys=keys, args=args, outputs=names
            )

        transport = self._transport
        seconds = self._timeout if timeout is None else timeout
        request = binding.request(target, bound, names, seconds, transport.identity, transport.node, make=make)
        request.terms = terms(priority, user)
        found = list((await self._read(await transport.run(request))).values())
        if outputs is not None:
            return None
        return found[0] if len(found) == 1 else found
