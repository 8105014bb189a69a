"""Models in the database."""

# Timeouts are arguments here, as in the blocking client, which is made of this file.
# ruff: noqa: ASYNC109

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from keyside.clients._async.base import AsyncBase
from keyside.clients.blobs import Blob, Source, open_blob
from keyside.clients.versions import ModelVersion, meant, newest, parse_target, same_version
from keyside.tensorstore import commands, keys, plain
from keyside.tensorstore.command import Name, text, to_bytes
from keyside.tensorstore.commands import Limits, ListedModel, ModelStats
from keyside.tensorstore.errors import ModelFailed, NoModel, TimedOut, Unreachable
from keyside.tensorstore.records import ModelInfo

__all__ = ["AsyncModels"]

_POLL_S, _POLL_MAX_S = 0.01, 0.5


class AsyncModels(AsyncBase):
    """Stores models and tells about them."""

    async def store(
        self,
        name: str,
        model: Source,
        *,
        backend: str | None = None,
        device: str = "CPU",
        tag: str = "",
        batch_size: int = 0,
        min_batch_size: int = 0,
        min_batch_timeout_ms: int = 0,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout: float = 120.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> ModelVersion:
        """Add a version to a model. The same bytes with the same settings give the version that is there already.

        Args:
            name: of the model, without @.
            model: its bytes, the path of a file, or an open binary file.
            backend: ONNX or TORCH; None: told by the ending of the file, else ONNX.
            device: the queue whose executors shall run it: CPU, GPU, GPU:1 or any name that the operator gave.
            tag: any text.
            batch_size: rows that are run together, at most; 0: as the executor is set.
            min_batch_size: rows for which a batch waits.
            min_batch_timeout_ms: milliseconds that it waits for them.
            inputs: names, where the model itself has none (TORCH). Likewise `outputs`.
            outputs: see `inputs`.
            options: for the backend, such as session options.
            wait: return only once an executor has loaded the version.
            timeout: seconds to wait for that.
            progress: called with the bytes that are on the server so far and their total.

        Returns:
            The version; its `target` names it to `predict`.

        Raises:
            BadArg: an argument is out of range, or the file cannot be read.
            ModelFailed: it could not be loaded; the text has the backend's reason. The version before it still serves.
            TimedOut: no executor has loaded it in time.
        """
        await self._functions()
        blob = await self._transport.run_blocking(lambda: open_blob(model))
        try:
            settings = {
                "backend": (backend or blob.backend or "ONNX").upper(),
                "device": device.upper(),
                "tag": tag,
                "batchsize": batch_size,
                "minbatchsize": min_batch_size,
                "minbatchtimeout": min_batch_timeout_ms,
                "inputs": tuple(inputs),
                "outputs": tuple(outputs),
                "options": dict(options or {}),
            }
            version = await self._stored(name, blob.digest, settings)
            if version is None:
                version = await self._upload(name, blob, settings, progress)
            elif progress is not None:
                progress(blob.size, blob.size)
        finally:
            blob.close()
        if wait:
            return await self.wait_ready(f"{name}@{version}", timeout=timeout)
        return await self.version(f"{name}@{version}")

    async def _stored(self, name: str, digest: str, settings: Mapping[str, Any]) -> int | None:
        try:
            info = await self.model_info(name)
        except NoModel:
            return None
        return same_version(info, digest, settings)

    async def _upload(
        self,
        name: str,
        blob: Blob,
        settings: Mapping[str, Any],
        progress: Callable[[int, int], None] | None,
    ) -> int:
        upload = secrets.token_hex(8)
        key = to_bytes(name)
        sent = 0
        chunks = blob.chunks()
        try:
            for index in range(blob.count):
                chunk = await self._transport.run_blocking(lambda: next(chunks, b""))
                await self._transport.call(plain.set_chunk(keys.upload_chunk(key, upload, index), chunk))
                sent += len(chunk)
                if progress is not None:
                    progress(sent, blob.size)
            options = settings["options"]
            return await self._transport.call(
                commands.ai_modelstore(
                    name,
                    **{**settings, "options": json.dumps(options, sort_keys=True) if options else ""},
                    upload=(upload, blob.count, blob.size, blob.digest),
                )
            )
        except BaseException as error:
            # Where no answer came, the chunks may belong to a version by now; if not, they go by themselves.
            if not isinstance(error, Unreachable):
                names = [keys.upload_chunk(key, upload, index) for index in range(blob.count)]
                await self._transport.forget([plain.unlink(names)])
            raise

    async def get_model(self, name: Name, version: int | None = None) -> bytes:
        """Read the bytes of a model.

        Args:
            name: of the model.
            version: None: the default one.

        Raises:
            NoModel: there is no such model or version.
        """
        await self._functions()
        parts: list[bytes] = []
        for key in await self._transport.call(commands.ai_modelget(name, version)):
            chunk = await self._transport.call(plain.get_bytes(key))
            if chunk is None:
                raise NoModel(f"the blob of model {text(name)!r} is gone: it was deleted, evicted or moved just now")
            parts.append(bytes(chunk))
        return b"".join(parts)

    async def model_info(self, name: Name) -> ModelInfo:
        """Read all about a model: its versions, their settings, states and signatures.

        Raises:
            NoModel: there is no such model.
            WrongType: the key holds something else.
        """
        if not self._settled:
            await self._settle()
        return await self._transport.call(plain.model_hash(name))

    async def version(self, target: str) -> ModelVersion:
        """Read about one version.

        Args:
            target: `name@3`, or `name` for the one that the bare name means.

        Raises:
            NoModel: there is no such version.
        """
        name, number = parse_target(target)
        return meant(await self.model_info(name), number)

    async def models(self) -> AsyncIterator[ListedModel]:
        """List the models: their names and the tags of their default versions.

        On a cluster as one node knows them: one that has just been stored may be missing for a moment.
        """
        await self._functions()
        tag = self._transport.complete_tag()
        cursor: int = 0
        listed: set[str] = set()
        while True:
            cursor, found = await self._transport.call_at(tag, commands.ai_modelscan(cursor))
            for model in found:
                if model.name not in listed:
                    listed.add(model.name)
                    yield model
            if not cursor:
                return

    async def delete_model(self, target: str) -> None:
        """Delete a model, or with `name@3` that version; jobs already queued still run.

        Raises:
            NoModel: there is no such model or version.
        """
        await self._functions()
        name, number = parse_target(target)
        await self._transport.call(commands.ai_modeldel(name, number))

    async def wait_ready(self, target: str, *, timeout: float = 120.0) -> ModelVersion:
        """Wait until an executor has loaded a version; on a cluster all that are alive and serve its device.

        Args:
            target: `name@3`, or `name` for the newest version.
            timeout: seconds.

        Returns:
            The version. On a cluster its `missing` names the nodes that have no executor for it.

        Raises:
            NoModel: there is no such version.
            ModelFailed: it could not be loaded; the text has the backend's reason.
            TimedOut: it is still loading; the text says whether any executor is alive.
        """
        name, number = parse_target(target)
        ends = time.monotonic() + timeout
        pause = _POLL_S
        while True:
            info = await self.model_info(name)
            found = newest(info, number)
            late: Sequence[str] = ()
            if found.state == "ready":
                late, missing = await self._transport.not_ready(info.model_id(found.version), found.info.device)
                if not late:
                    return replace(found, missing=missing) if missing else found
            if found.state == "failed":
                raise ModelFailed(f"{found.target}: {found.info.reason}")
            if time.monotonic() + pause >= ends:
                if late:
                    raise TimedOut(
                        f"{found.target} is not loaded everywhere after {timeout:g} s, not by {', '.join(late)}"
                    )
                why = await self._transport.who_serves(found.info.device)
                raise TimedOut(f"{found.target} is still loading after {timeout:g} s: {why}")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _POLL_MAX_S)

    async def model_stats(self, target: str) -> ModelStats:
        """Read the counters of a version; on a cluster the sums of those of all nodes.

        Raises:
            NoModel: there is no such model or version.
        """
        await self._functions()
        name, number = parse_target(target)
        found = await self._transport.call(commands.ai_info(name, number))
        others = self._transport.other_tags(name)
        if others:
            model = await self._model_id(name, number)
            counts = await self._transport.call_many([plain.counters(tag, model) for tag in others])
            fields = ("duration", "samples", "calls", "errors")
            sums = {
                field: getattr(found, field) + sum(column)
                for field, column in zip(fields, zip(*counts, strict=True), strict=True)
            }
            found = found._replace(**sums)
        return found

    async def reset_stats(self, target: str) -> None:
        """Begin the counters of a version anew, on a cluster on all nodes.

        Raises:
            NoModel: there is no such model or version.
        """
        await self._functions()
        name, number = parse_target(target)
        await self._transport.call(commands.ai_info_reset(name, number))
        others = self._transport.other_tags(name)
        if others:
            model = await self._model_id(name, number)
            await self._transport.unlink([keys.NodeKeys(tag).stats(model) for tag in others])

    async def _model_id(self, name: str, number: int | None) -> str:
        info = await self.model_info(name)
        return info.model_id(meant(info, number).version)

    async def set_limits(
        self,
        name: Name | None,
        *,
        jobs: int | None = None,
        nbytes: int | None = None,
        rate: tuple[int, float] | None = None,
        user_rate: tuple[int, float] | None = None,
    ) -> None:
        """Bound what may be queued and how often jobs may come; what is not named is not bounded any more.

        Whoever is refused gets Busy, whose `retry_after` says when to try again. All of it is counted on each node.

        Args:
            name: of a model; None: what holds for all models of this server, on a cluster of each node. There `jobs`
                and `nbytes` are for each queue, 10,000 and 1 GiB unless they are named.
            jobs: waiting or running at a time; 0: no bound. Likewise nbytes.
            nbytes: that their inputs may hold together.
            rate: how many jobs may come in how many seconds.
            user_rate: the same for each user; then calls have to name one.

        Raises:
            NoModel: there is no such model.
        """
        await self._functions()
        command = commands.ai_limitset(name, jobs=jobs, nbytes=nbytes, rate=rate, user_rate=user_rate)
        if name is not None:
            await self._transport.call(command)
            return
        for tag in self._transport.tags():
            await self._transport.call_at(tag, command)

    async def limits(self, name: Name | None) -> Limits:
        """Read the bounds of a model, or with None those of this server, on a cluster of one node of it.

        Raises:
            NoModel: there is no such model.
        """
        await self._functions()
        return await self._transport.call(commands.ai_limitget(name))
