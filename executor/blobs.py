"""Blobs of models: joined from their chunks, checked, and kept on disk by digest."""

import contextlib
import hashlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from keyside.tensorstore.errors import BadModel, UploadLost

__all__ = ["Blob", "fetch", "prune"]

DEFAULT_LIMIT: Final = 16 << 30

_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SUFFIX: Final = ".blob"
_logger = logging.getLogger(__name__)


class Blob(NamedTuple):
    """A model's file, and the SHA-256 of it in hex."""

    data: bytes
    digest: str


def fetch(
    read_chunk: Callable[[int], bytes | memoryview | None],
    chunks: int,
    size: int,
    digest: str | None,
    cache_dir: Path | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
) -> Blob:
    """Return a blob, from disk if it is there, else from its chunks.

    Args:
        read_chunk: returns chunk i, or None if there is none.
        chunks: how many there are.
        size: bytes that they have together.
        digest: the SHA-256 that the blob must have; None or empty where nobody knows it yet.
        cache_dir: where blobs are kept; None keeps none.
        limit: bytes that may be kept there; the blobs unused for longest go first.

    Raises:
        UploadLost: a chunk is missing, or there are more or fewer bytes than there should be.
        BadModel: the digest is another.
    """
    digest = (digest or "").lower()
    if digest and not _DIGEST.fullmatch(digest):
        raise BadModel(f"{digest[:80]!r} is not a SHA-256 in hex")
    if digest and cache_dir is not None:
        cached = _read_cached(cache_dir / (digest + _SUFFIX), digest, size)
        if cached is not None:
            return Blob(cached, digest)
    data, found = _join(read_chunk, chunks, size)
    if digest and found != digest:
        raise BadModel(f"the blob has SHA-256 {found}, but {digest} was announced: upload it again")
    if cache_dir is not None:
        _write_cached(cache_dir, found, data)
        prune(cache_dir, limit, keep=found)
    return Blob(data, found)


def _join(read_chunk: Callable[[int], bytes | memoryview | None], chunks: int, size: int) -> tuple[bytes, str]:
    # BytesIO hands out the buffer that it has filled, without a copy: chunk and blob are never there twice.
    joined = io.BytesIO()
    sha = hashlib.sha256()
    got = 0
    for index in range(chunks):
        chunk = read_chunk(index)
        if chunk is None:
            raise UploadLost(f"chunk {index} of {chunks} is missing: upload the model again")
        got += len(chunk)
        if got > size:
            raise UploadLost(f"chunks 0 to {index} have {got:,} bytes, more than the {size:,} announced")
        joined.write(chunk)
        sha.update(chunk)
    if got != size:
        raise UploadLost(f"the chunks have {got:,} bytes, but {size:,} were announced: upload the model again")
    return joined.getvalue(), sha.hexdigest()


def _read_cached(path: Path, digest: str, size: int) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _logger.warning("cannot read %s: %s", path, error)
        return None
    if len(data) == size and hashlib.sha256(data).hexdigest() == digest:
        with contextlib.suppress(OSError):  # a cache that may be read but not written is still a cache
            os.utime(path)  # the order in which prune goes
        return data
    _logger.warning("%s is damaged; fetching the model again", path)
    _unlink(path)
    return None


def _write_cached(cache_dir: Path, digest: str, data: bytes) -> None:
    """Keep a blob; a disk that is full or read-only only costs the next start some time."""
    temporary: Path | None = None
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The name appears only with all of the data behind it, however many executors share the folder.
        descriptor, name = tempfile.mkstemp(dir=cache_dir, prefix=".part-")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(cache_dir / (digest + _SUFFIX))
    except OSError as error:
        _logger.warning("cannot keep a model in %s: %s", cache_dir, error)
        if temporary is not None:
            _unlink(temporary)


def prune(cache_dir: Path, limit: int, *, keep: str = "") -> None:
    """Remove blobs, those unused for longest first, until `limit` bytes are left; never that of `keep`."""
    found: list[tuple[float, int, Path]] = []
    try:
        for path in cache_dir.glob("*" + _SUFFIX):
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    except OSError:
        return  # another executor prunes too
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if path.name != keep + _SUFFIX:
            _unlink(path)
            total -= size


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _logger.warning("cannot remove %s: %s", path, error)
