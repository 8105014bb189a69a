"""Model files on their way to the server."""

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from keyside.tensorstore.errors import BadArg

__all__ = ["CHUNK", "Blob", "open_blob"]

CHUNK = 4 << 20
_BACKENDS = {".onnx": "ONNX", ".pt": "TORCH", ".pth": "TORCH", ".ts": "TORCH", ".pt2": "TORCH"}


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


Source = bytes | bytearray | memoryview | str | os.PathLike[str] | _Readable


class Blob:
    """A model's bytes, in memory or in a file.

    Attributes:
        size: in bytes.
        digest: SHA-256, hex.
        backend: guessed from the name of the file; empty if it says nothing.
    """

    def __init__(self, file: BinaryIO, name: str, *, owned: bool) -> None:
        self._file = file
        self._owned = owned
        self._start = file.tell()
        self.backend = _BACKENDS.get(Path(name).suffix.lower(), "")
        sha = hashlib.sha256()
        self.size = 0
        for chunk in self.chunks():
            sha.update(chunk)
            self.size += len(chunk)
        self.digest = sha.hexdigest()

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return -(-self.size // CHUNK)

    def chunks(self) -> Iterator[bytes]:
        """Read it in chunks, from the beginning."""
        self._file.seek(self._start)
        while True:
            parts: list[bytes] = []
            missing = CHUNK
            while missing and (part := self._file.read(missing)):
                parts.append(part)
                missing -= len(part)
            if parts:
                yield parts[0] if len(parts) == 1 else b"".join(parts)
            if missing:
                return

    def close(self) -> None:
        """Close the file if it was opened here."""
        if self._owned:
            self._file.close()


def open_blob(model: Source) -> Blob:
    """Open a model.

    Args:
        model: its bytes, the path of a file, or an open binary file, which is read from where it stands.

    Raises:
        BadArg: it cannot be read, or is empty.
    """
    blob = _open(model)
    if not blob.size:
        blob.close()
        raise BadArg("the model is empty")
    return blob


def _open(model: Any) -> Blob:
    if isinstance(model, bytes | bytearray | memoryview):
        return Blob(io.BytesIO(model), "", owned=True)
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        try:
            return Blob(path.open("rb"), path.name, owned=True)
        except OSError as error:
            raise BadArg(f"cannot read the model: {error}") from error
    if not callable(getattr(model, "read", None)):
        raise BadArg(f"a model is bytes, a path or an open binary file, not {type(model).__name__}")
    name = getattr(model, "name", "")
    name = name if isinstance(name, str) else ""
    seekable = getattr(model, "seekable", None)
    file = model if seekable is not None and seekable() else io.BytesIO(_read_all(model))
    if not isinstance(file.read(0), bytes):
        raise BadArg("open the model's file in binary mode")
    return Blob(file, name, owned=file is not model)


def _read_all(model: _Readable) -> bytes:
    found = model.read()
    if not isinstance(found, bytes):
        raise BadArg("open the model's file in binary mode")
    return found
