# Do not change this file: it is made from clients/_async/inference.py by tools/unasync.py.
"""Runs models."""

import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from keyside.clients import inputs as binding
from keyside.clients._sync.base import Base
from keyside.clients._sync.handle import Handle
from keyside.clients.forms import Forms
from keyside.clients.inputs import Bound
from keyside.clients.request import Request
from keyside.clients.rounds import Rounds
from keyside.clients.transport_sync import SyncTransport
from keyside.tensorstore import plain
from keyside.tensorstore.command import Name, text
from keyside.tensorstore.commands import INLINE, read_reply, terms
from keyside.tensorstore.errors import BadArg, NoModel, NoTensor
from keyside.tensorstore.records import Signature

__all__ = ["Inference"]

Priority = Literal["high", "normal", "low"]

_SIGNATURE_S = 5.0
_HEADER_BYTES = 128
_LARGE_BYTES = 4 << 20
"""What goes into one request of rows that do not fit into the call anyway."""


class Inference(Base):
    """Runs models on values in hand, on tensor keys, or on both."""

    def __init__(self, transport: SyncTransport, timeout: float) -> None:
        super().__init__(transport, timeout)
        self._signatures: dict[Name, tuple[float, Signature | None]] = {}
        self._forms = Forms()

    @overload
    def predict(
        self,
        target: Name,
        inputs: object,
        *,
        timeout: float | None = None,
        outputs: Literal["auto"] = "auto",
        move: bool = False,
        priority: Priority = "normal",
        user: str | None = None,
    ) -> Any: ...

    @overload
    def predict(
        self,
        target: Name,
        inputs: object,
        *,
        timeout: float | None = None,
        outputs: Literal["dict"],
        move: bool = False,
        priority: Priority = "normal",
        user: str | None = None,
    ) -> dict[str, NDArray[Any]]: ...

    def predict(
        self,
        target: Name,
        inputs: object,
        *,
        timeout: float | None = None,
        outputs: Literal["auto", "dict"] = "auto",
        move: bool = False,
        priority: Priority = "normal",
        user: str | None = None,
    ) -> Any:
        """Run a model and return what it gives.

        Args:
            target: `name` (its default version), `name@3` (a version) or an alias.
            inputs: a mapping is inputs by name; a tuple or list with an array, a `Key` or one of `keyside.features` in
                it is inputs by position; anything else is the one input. So a plain list of numbers is one array.
                Arrays are sent as they are; plain numbers and lists of them become the dtype that the model takes.
            timeout: seconds until the deadline; None: the client's.
            outputs: "dict": always a dict.
            move: on a cluster, input keys in another slot than the first are copied there for the call. Each is read at
                a time of its own, shortly before the call: together they are no snapshot.
            priority: "high" goes before what is normal, "low" behind it.
            user: on whose behalf, for limits per user: as a user whose ACL lets him say so.

        Returns:
            The array if the model has one output, else a dict from names to arrays in the model's order.

        Raises:
            NoModel: there is no such target.
            NoFeature: what an input is to be gathered from does not exist, and has no default.
            BadInput: number or names of the inputs do not fit the model. Likewise BadDtype, BadShape.
            Busy: the server takes no more now; `retry_after` says when it may.
            RunFailed: the model failed on them.
            TimedOut: there was no answer in time.
            Unreachable: the server could not be reached.
        """
        if outputs not in ("auto", "dict"):
            raise BadArg(f"outputs is 'auto' or 'dict', not {outputs!r}")
        if not self._library:
            self._functions()
        transport = self._transport
        words = terms(priority, user) if user is not None or priority != "normal" else ()
        packed = None if words else transport.packer.pack(target, inputs, self._timeout if timeout is None else timeout)
        if packed is None:
            bound = self._bind(target, binding.bind(inputs), (), move=move)
            reply = transport.run(self._request(target, bound, (), timeout, words))
        else:
            reply = transport.run_packed(packed)
        if outputs == "dict":
            return self._read(reply)
        array = self._forms.read(target, reply)
        if array is not None:
            return array
        found = self._read(reply)
        if len(found) != 1:
            return found
        self._forms.learn(target, reply)
        return _single(found)

    def execute(
        self,
        target: Name,
        inputs: object,
        outputs: Name | Sequence[Name],
        *,
        timeout: float | None = None,
        move: bool = False,
        priority: Priority = "normal",
        user: str | None = None,
    ) -> None:
        """Run a model on tensors in the database and leave the results there.

        Args:
            target: as for `predict`.
            inputs: the name of a tensor key, or several by position or by name; `Key`, arrays and
                what is gathered (`keyside.features`) may be among them.
            outputs: the name of a key, or as many as the model has outputs; they may hold tensors, and nothing else.
            timeout: seconds until the deadline; None: the client's.
            move: on a cluster, input keys in another slot than the outputs are copied there, as for `predict`.
            priority: as for `predict`.
            user: as for `predict`.

        Raises:
            CrossSlot: on a cluster, the keys are in different slots.
            NoTensor: an input does not exist.
            WrongType: a key holds something else than a tensor.
            KeysideError: as for `predict`.
        """
        self._functions()
        names = binding.output_keys(outputs)
        bound = self._bind(target, binding.bind_keys(inputs), names, move=move)
        request = self._request(target, bound, names, timeout, terms(priority, user))
        read_reply(self._transport.run(request))

    def submit(
        self,
        target: Name,
        inputs: object,
        outputs: Name | Sequence[Name] | None = None,
        *,
        timeout: float | None = None,
        move: bool = False,
        priority: Priority = "normal",
        user: str | None = None,
    ) -> Handle:
        """Submit a job and return once the server has accepted it.

        A result that comes back by the handle is kept until 10 s after the deadline, and outputs above 32 KiB for only
        60 s after the run, whatever the deadline: for longer than that, name keys for them.

        Args:
            target: as for `predict`.
            inputs: as for `predict`, or with `outputs` as for `execute`.
            outputs: keys for the results; None: they come back as the handle's result.
            timeout: seconds until the deadline; None: the client's.
            move: as for `execute`.
            priority: as for `predict`.
            user: as for `predict`.

        Returns:
            A handle to wait for the result or to cancel the job.

        Raises:
            KeysideError: the server refuses the job, as for `predict`.
        """
        self._functions()
        names = [] if outputs is None else binding.output_keys(outputs)
        bound = binding.bind(inputs) if outputs is None else binding.bind_keys(inputs)
        bound = self._bind(target, bound, names, move=move)
        request = self._request(target, bound, names, timeout, terms(priority, user))
        pending = self._transport.begin(request)
        return Handle(self._transport, pending, self._result)

    def predict_many(
        self,
        target: Name,
        rows: object,
        *,
        batch: int = 256,
        window: int = 64,
        timeout: float | None = None,
        outputs: Literal["auto", "dict"] = "auto",
        priority: Priority = "normal",
        user: str | None = None,
    ) -> Any:
        """Run a model on many rows, several requests at a time.

        Where the server takes no more now, the rest waits as long as it advises, and fewer are in flight from then on.

        Args:
            target: as for `predict`.
            rows: an array [n, ...], or several of as many rows, by name or position as for `predict`.
            batch: rows in one request, at most; fewer where they would not fit into one call.
            window: requests in flight.
            timeout: seconds until the deadline of each request, and for which it may be refused; None: the client's.
            outputs: "dict": always a dict.
            priority: as for `predict`.
            user: as for `predict`.

        Returns:
            As of `predict`, the results in the order of the rows.

        Raises:
            Busy: a request was refused for so long.
            KeysideError: as for `predict`, of the first request that fails; the others are cancelled.
        """
        if batch < 1 or window < 1:
            raise BadArg("batch and window are at least 1")
        self._functions()
        bound = self._bind(target, binding.bind(rows), ())
        count = binding.count_rows(bound)
        size = _slice_rows(bound, batch)
        parts: dict[int, dict[str, NDArray[Any]]] = {}
        seconds = self._timeout if timeout is None else timeout
        words = terms(priority, user)

        def part(number: int) -> Request:
            items: list[object] = [item[number * size : (number + 1) * size] for item in bound.items]  # type: ignore[index]
            return self._request(target, Bound(items, bound.names), (), timeout, words)

        rounds = Rounds(max(1, -(-count // size)), part, window, seconds)
        while rounds.left:
            with closing(self._transport.run_many(rounds, rounds.window)) as replies:
                for index, reply in replies:
                    number = rounds.took(index, reply)
                    if number is not None:
                        parts[number] = self._read(reply)
            if pause := rounds.end():
                time.sleep(pause)
        found = {
            name: np.concatenate([parts[index][name] for index in range(len(parts))])
            if len(parts) > 1
            else parts[0][name]
            for name in parts[0]
        }
        return _single(found) if outputs == "auto" else found

    def _request(
        self, target: Name, bound: Bound, outputs: Sequence[bytes], timeout: float | None, words: tuple[Any, ...]
    ) -> Request:
        transport = self._transport
        seconds = self._timeout if timeout is None else timeout
        request = binding.request(target, bound, outputs, seconds, transport.identity, transport.node)
        request.terms = words
        return request

    def _bind(self, target: Name, bound: Bound, outputs: Sequence[bytes], *, move: bool = False) -> Bound:
        """Make arrays of plain values: for that one has to know what the model takes; and fetch what shall be moved."""
        if bound.needs_signature:
            bound.convert(self._signature(target))
        if move and not self._transport.node:
            places = binding.strangers(bound, outputs)
            names = [bound.items[place].name for place in places]  # type: ignore[attr-defined]
            values = self._transport.call_many([plain.get_bytes(name) for name in names])
            for place, name, value in zip(places, names, values, strict=True):
                if value is None:
                    raise NoTensor(f"there is no key {text(name)!r}")
                bound.items[place] = binding.Moved(b"", memoryview(value))
        return bound

    def _signature(self, target: Name) -> Signature | None:
        known = self._signatures.get(target)
        now = time.monotonic()
        if known is None or known[0] < now:
            try:
                record = self._transport.record(target)
            except NoModel:
                return None  # the call itself says it better
            known = (now + _SIGNATURE_S, record.signature)
            if len(self._signatures) >= 1000:
                self._signatures.clear()
            if record.signature is not None:
                self._signatures[target] = known
        return known[1]

    def _result(self, reply: bytes) -> Any:
        found = read_reply(reply)
        return None if found is None else _single(self._read(reply))

    def _read(self, reply: bytes) -> dict[str, NDArray[Any]]:
        """Return the outputs of a reply; those that lie in keys are fetched and deleted."""
        found = read_reply(reply)
        if found is None:
            return {}
        staged = [value for value in found.outputs.values() if isinstance(value, str)]
        fetched: dict[str, NDArray[Any]] = {}
        if staged:
            fetched = dict(zip(staged, self._transport.collect(staged), strict=True))
        return {
            name: fetched[value] if isinstance(value, str) else plain.array(value)
            for name, value in found.outputs.items()
        }


def _single(found: dict[str, NDArray[Any]]) -> Any:
    return next(iter(found.values())) if len(found) == 1 else found


def _slice_rows(bound: Bound, batch: int) -> int:
    """Return how many rows go into one request, so that each value fits into the call where that can be."""
    largest: int = max(item[:1].nbytes for item in bound.items)  # type: ignore[index]
    if not largest:
        return batch
    room = INLINE - _HEADER_BYTES if largest <= INLINE - _HEADER_BYTES else _LARGE_BYTES
    return max(1, min(batch, room // largest))
