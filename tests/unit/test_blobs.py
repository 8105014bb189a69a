"""Blobs: joined, checked and kept."""

import hashlib
import os
from pathlib import Path

import pytest

from keyside.executor import blobs
from keyside.tensorstore.errors import BadModel, UploadLost

DATA = bytes(range(256)) * 40
CHUNKS = [DATA[start : start + 4096] for start in range(0, len(DATA), 4096)]
DIGEST = hashlib.sha256(DATA).hexdigest()


class Source:
    """Chunks, and how often they were read."""

    def __init__(self, chunks: list[bytes | None]) -> None:
        self.chunks = chunks
        self.reads = 0

    def __call__(self, index: int) -> bytes | memoryview | None:
        self.reads += 1
        chunk = self.chunks[index]
        return chunk if chunk is None or index % 2 else memoryview(chunk)


@pytest.fixture
def source() -> Source:
    return Source([*CHUNKS])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_chunks_are_joined_and_the_digest_is_told(source: Source) -> None:
    assert blobs.fetch(source, 3, len(DATA), None) == (DATA, DIGEST)
    assert blobs.fetch(source, 3, len(DATA), DIGEST) == (DATA, DIGEST)
    assert blobs.fetch(source, 3, len(DATA), DIGEST.upper()) == (DATA, DIGEST)
    assert blobs.fetch(source, 0, 0, "") == (b"", hashlib.sha256().hexdigest())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UploadLost, match="chunk 1 of 3 is missing"):
        blobs.fetch(Source([CHUNKS[0], None, CHUNKS[2]]), 3, len(DATA), None)
    with pytest.raises(UploadLost, match="have 8,192 bytes, but 10,240 were announced"):
        blobs.fetch(Source([*CHUNKS]), 2, len(DATA), None)
    with pytest.raises(UploadLost, match="more than the 5,000 announced"):
        blobs.fetch(Source([*CHUNKS]), 3, 5000, None)
    with pytest.raises(BadModel, match=f"has SHA-256 {DIGEST}, but 0{{64}} was announced"):
        blobs.fetch(Source([*CHUNKS]), 3, len(DATA), "0" * 64)
    with pytest.raises(BadModel, match="not a SHA-256"):
        blobs.fetch(Source([*CHUNKS]), 3, len(DATA), "../../etc/passwd")


def test_a_blob_on_disk_is_not_fetched_again(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    blobs.fetch(source, 3, len(DATA), None, folder)

    again = blobs.fetch(source, 3, len(DATA), DIGEST, folder)

    assert again == (DATA, DIGEST)
    assert source.reads == 3
    assert files(folder) == [f"{DIGEST}.blob"]
    assert (folder / f"{DIGEST}.blob").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA[:-1] + b"\0", DATA + b"\0"])
def test_a_damaged_blob_on_disk_is_replaced(source: Source, tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / f"{DIGEST}.blob"
    path.write_bytes(damage)

    assert blobs.fetch(source, 3, len(DATA), DIGEST, tmp_path) == (DATA, DIGEST)
    assert source.reads == 3
    assert path.read_bytes() == DATA


def test_wrong_blobs_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(BadModel):
        blobs.fetch(Source([*CHUNKS]), 3, len(DATA), "0" * 64, tmp_path)

    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_used_does_no_harm(source: Source, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_bytes(b"")

    assert blobs.fetch(source, 3, len(DATA), None, occupied) == (DATA, DIGEST)
    (tmp_path / f"{DIGEST}.blob").mkdir()
    assert blobs.fetch(source, 3, len(DATA), DIGEST, tmp_path) == (DATA, DIGEST)


def test_the_folder_is_kept_within_its_limit(tmp_path: Path) -> None:
    digests = []
    for number in range(4):
        data = bytes([number]) * 100
        digests.append(blobs.fetch(lambda _, data=data: data, 1, 100, None, tmp_path, limit=250).digest)  # type: ignore[misc]
        os.utime(tmp_path / f"{digests[-1]}.blob", (number, number))

    assert files(tmp_path) == sorted(f"{digest}.blob" for digest in digests[2:])
    large = blobs.fetch(lambda _: bytes(300), 1, 300, None, tmp_path, limit=250)
    assert files(tmp_path) == [f"{large.digest}.blob"]
