"""Brings versions of models into memory.

Reads what the model key says, fetches the blob, loads it, and tells the server how that went.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from keyside.executor import blobs
from keyside.executor.backends import base
from keyside.executor.backends.base import LoadedModel
from keyside.executor.cache import ModelRef
from keyside.executor.limits import own_run_limit
from keyside.executor.model import Model
from keyside.executor.peers import Peers
from keyside.executor.protocol import Job
from keyside.executor.settings import Settings
from keyside.executor.sharing import Sharing, fingerprint
from keyside.executor.topology import Chart
from keyside.tensorstore import keys
from keyside.tensorstore.errors import BadModel, KeysideError, ModelFailed, NoModel, TryAgain, Unreachable, UploadLost
from keyside.tensorstore.records import ModelInfo, VersionInfo

__all__ = ["Loader"]


class Loader:
    """Loads for the model cache, on its threads; each has a connection of its own.

    On a cluster it reads from the home of a model, which is the owner of its slot.

    Args:
        new_peers: makes connections.
        consumer: this executor in the job streams.
        chart: who owns which slots.
    """

    def __init__(
        self, settings: Settings, new_peers: Callable[[str], Peers], consumer: bytes, chart: Chart | None = None
    ) -> None:
        self._settings = settings
        self._new_peers = new_peers
        self._chart = chart or Chart()
        self._consumer = consumer
        self._local = threading.local()
        self._loading: dict[int, tuple[ModelRef]] = {}  # by thread; a new object for each load
        self._sharing = Sharing()
        self._log = structlog.get_logger()

    @property
    def busy(self) -> bool:
        """Whether a model is being loaded."""
        return bool(self._loading)

    @property
    def under_way(self) -> list[tuple[ModelRef]]:
        """What is being loaded, each in a tuple of its own, for whoever looks how long that takes."""
        return list(self._loading.values())

    def load(self, ref: ModelRef) -> Model:
        """Load a version.

        Raises:
            KeysideError: it cannot be had or cannot be loaded; the text is for callers.
        """
        me = threading.get_ident()
        self._loading[me] = (ref,)
        try:
            return self._load(ref)
        finally:
            self._loading.pop(me, None)

    def _load(self, ref: ModelRef) -> Model:
        key = str(ref.context)
        info, uid, (blob, digest) = self._read_patiently(ref, key)
        backend = base.find(info.backend)
        settings = self._settings
        run_limit_s, info = own_run_limit(info)

        def make() -> LoadedModel:
            return backend.load(
                blob,
                device=info.device,
                inputs=info.inputs,
                outputs=info.outputs,
                options=info.options,
                allow_code=settings.allow_code,
                threads=settings.threads,
            )

        loaded = self._sharing.get(fingerprint(info, digest), make)
        model = Model(
            key,
            uid,
            info,
            loaded,
            max_batch=settings.max_batch,
            min_wait_ms=settings.min_batch_timeout_ms,
        )
        model.digest = digest
        if info.state == "loading" and not self._chart.now.is_mine(keys.slot(_raw(key))):
            self._tell_home(_raw(key), uid, info, model)
        model.run_limit_s = settings.run_limit_s if run_limit_s is None else run_limit_s
        return model

    def _tell_home(self, key: bytes, uid: str, info: VersionInfo, model: Model) -> None:
        """A version is here before its home has loaded it, where maybe nobody serves its device."""
        try:
            self._peers().call(
                key, b"FCALL", b"KS_PUBLISH", 1, key, info.device, self._consumer, b"-", uid, info.version,
                b"ready", model.digest, model.signature.to_json(), b"",
            )  # fmt: skip
        except KeysideError as error:
            self._log.warning("home not told", model=model.title, error=str(error))

    def publish(self, job: Job, model: Model | None, error: KeysideError | None) -> None:
        """Tell the server how a load job ended: from now on the version serves, or it is marked as failed.

        Raises:
            TryAgain: the model has moved to another node.
            Unreachable: the server is gone; the job will be delivered again.
        """
        uid = job.model.rpartition(b"-")[0]
        state, digest, signature, reason = b"failed", "", "", ""
        if model is not None:
            state, digest, signature = b"ready", model.digest, model.signature.to_json()
        elif error is not None:
            reason = str(error)
        # Here, not at the model's home, if that is another node now: the job is here.
        reply = self._peers().own().call(
            b"FCALL", b"KS_PUBLISH", 1, job.key, job.queue, self._consumer, job.id, uid, job.version,
            state, digest, signature, reason,
        )  # fmt: skip
        name = f"{job.key.decode(errors='replace')}@{job.version}"
        if reply == 1 and error is None:
            self._log.info("model ready", model=name)
        elif reply == 1:
            self._log.warning("model failed to load", model=name, reason=reason)

    def _peers(self) -> Peers:
        peers: Peers | None = getattr(self._local, "peers", None)
        if peers is None:
            peers = self._local.peers = self._new_peers("loader")
        return peers

    def _read_patiently(self, ref: ModelRef, key: str) -> tuple[VersionInfo, str, blobs.Blob]:
        # The connection was idle for long, perhaps; a cluster may have a failover, or the slot on its way; and the
        # upload has another name as soon as another executor has loaded it.
        pauses = [0.0, 0.1, 0.3, 0.6] if self._chart.now.clustered else [0.0]
        for pause in pauses:
            try:
                return self._read(ref, key)
            except Unreachable:
                self._peers().close()
            except (TryAgain, UploadLost):
                pass
            time.sleep(pause)
        return self._read(ref, key)

    def _read(self, ref: ModelRef, key: str) -> tuple[VersionInfo, str, blobs.Blob]:
        info, uid = self._describe(ref)
        if info.size > self._settings.memory_budget:
            raise BadModel(
                f"the model has {info.size:,} bytes, more than this executor's memory budget of "
                f"{self._settings.memory_budget:,} (KEYSIDE_MEMORY_BUDGET)"
            )
        return info, uid, self._fetch(key, uid, info)

    def _describe(self, ref: ModelRef) -> tuple[VersionInfo, str]:
        uid, _, version = ref.id.rpartition("-")
        number = int(version)
        name = str(ref.context)
        raw = _raw(name)
        for key in (raw, keys.gone(raw, uid)):
            try:
                fields = _pairs(self._peers().call(raw, b"HGETALL", key))
            except (Unreachable, TryAgain):
                raise
            except KeysideError:
                continue
            if fields.get(b"uid") != uid.encode():
                continue
            # What a deleted model leaves behind has the layout of a model.
            info = ModelInfo.from_hash(name, {**fields, b"type": b"model"}).versions.get(number)
            if info is not None:
                return info, uid
        raise NoModel(f"model {name!r} version {number} was deleted before it could be loaded")

    def _fetch(self, key: str, uid: str, info: VersionInfo) -> blobs.Blob:
        if info.state == "failed":
            raise ModelFailed(f"model '{key}@{info.version}' failed to load: {info.reason}")
        raw = _raw(key)
        peers = self._peers()

        def read(index: int) -> Any:
            if info.digest:
                return peers.call(raw, b"GET", keys.blob_chunk(raw, uid, info.digest, index))
            return peers.call(raw, b"GET", keys.upload_chunk(raw, info.upload, index))

        return blobs.fetch(read, info.chunks, info.size, info.digest or info.expected, self._settings.cache_dir)


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
