"""RedisAI, where there is a module: the C module that Keyside is measured against, in a Redis server of its own.

One request is one AI.DAGEXECUTE_RO: LOAD the reference, which lies there as an AI tensor, set the transaction, run the
model, get the result. Nothing is kept.
"""

from pathlib import Path
from typing import Any

import hiredis
import numpy as np
from numpy.typing import NDArray
from rig import Server
from scenario import REFERENCES, Fraud

from keyside.executor.wire import Wire
from keyside.tensorstore.errors import KeysideError
from peers.base import Absent

__all__ = ["RedisAIServer", "dag", "model_store", "probabilities", "tensor_set", "version"]

VARIABLE = "KEYSIDE_REDISAI_MODULE"
# As everywhere: one thread for a run. And one for the queue, its default.
MODULE_ARGUMENTS = ("THREADS_PER_QUEUE", "1", "INTRA_OP_PARALLELISM", "1", "INTER_OP_PARALLELISM", "1")
CHUNK = 64 << 20  # of a model in AI.MODELSTORE; below its own limit of 511 MiB

Command = list[Any]


def model_store(name: str, model: bytes) -> Command:
    """Return the command that stores an ONNX model, without names of inputs and outputs: it takes none for ONNX."""
    chunks = [model[start : start + CHUNK] for start in range(0, len(model), CHUNK)]
    return ["AI.MODELSTORE", name, "ONNX", "CPU", "BLOB", *chunks]


def tensor_set(key: str, array: NDArray[np.float32]) -> Command:
    """Return the command that sets a FLOAT tensor."""
    return ["AI.TENSORSET", key, "FLOAT", *array.shape, "BLOB", array.astype("<f4").tobytes()]


def dag(transaction: NDArray[np.float32], reference: str, model: str = "fraud") -> Command:
    """Return the one command of a request: a transaction in hand, a reference by its key."""
    return [
        "AI.DAGEXECUTE_RO", "LOAD", 1, reference,
        "|>", *tensor_set("transaction", transaction),
        "|>", "AI.MODELEXECUTE", model, "INPUTS", 2, "transaction", reference, "OUTPUTS", 1, "probabilities",
        "|>", "AI.TENSORGET", "probabilities", "BLOB",
    ]  # fmt: skip


def probabilities(reply: Any) -> NDArray[np.float32]:
    """Return the probabilities in the reply to `dag`: one element for each of its three steps.

    Raises:
        AssertionError: a step failed, or the reply has another form; the text has RedisAI's reason.
    """
    assert not isinstance(reply, hiredis.ReplyError), f"RedisAI says {reply}"
    assert isinstance(reply, list), f"not the reply to a DAG: {reply!r}"
    # The steps after one that fails say NA, so the first error has the reason.
    for step in reply:
        assert not isinstance(step, hiredis.ReplyError), f"RedisAI says {step}"
    assert len(reply) == 3, f"not the reply to a DAG: {reply!r}"
    assert isinstance(reply[2], bytes), f"not the reply to a DAG: {reply!r}"
    return np.frombuffer(reply[2], "<f4")


def version(modules: Any) -> str:
    """Return the version of RedisAI in the reply to MODULE LIST, such as 1.2.7."""
    for module in modules:
        fields = dict(zip(module[::2], module[1::2], strict=False))
        if fields.get(b"name") == b"ai":
            number = int(fields[b"ver"])
            return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    return "of unknown version"


class RedisAIServer:
    """A Redis server with the module.

    Args:
        module: redisai.so, as given by the user; None: it was not given.
    """

    def __init__(self, module: Path | str | None) -> None:
        self._module = None if module is None else Path(module)
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """The server."""
        assert self._server is not None, "not started"
        return self._server

    @property
    def url(self) -> str:
        """Its address over the unix socket; empty before it is started."""
        return "" if self._server is None else self._server.url_unix

    def _found(self) -> Path:
        if self._module is None:
            raise Absent(f"no module given: --redisai-module FILE, or {VARIABLE}")
        if not self._module.is_file():
            raise Absent(f"--redisai-module: there is no file {self._module}")
        return self._module.resolve()

    def start(self, fraud: Fraud) -> str:
        """Start it, and store the model and the references.

        Returns:
            The version of the module.

        Raises:
            Absent: there is no module, or it does not load, or it does not take the model; the text has the reason.
        """
        module = self._found()
        # By MODULE LOAD, not --loadmodule: so there is a server that can say why a module does not load.
        self._server = Server("redis", enable_module_command="yes")
        try:
            self._server.start()
            return self._fill(module, fraud)
        except (AssertionError, KeysideError) as error:
            lines = [line for line in self._server.log().splitlines() if module.name in line or "Module" in line]
            self.stop()
            raise Absent(f"{module.name} does not work: {error}{'; ' + lines[-1] if lines else ''}") from error

    def _fill(self, module: Path, fraud: Fraud) -> str:
        wire = Wire(self.url, name="bench")
        wire.connect()
        try:
            wire.call("MODULE", "LOAD", str(module), *MODULE_ARGUMENTS)
            wire.call(*model_store("fraud", fraud.model))
            for n in range(REFERENCES):
                wire.call(*tensor_set(Fraud.key(n), fraud.arrays(n)[1]))
            return version(wire.call("MODULE", "LIST"))
        finally:
            wire.close()

    def stop(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.stop()
            self._server = None
