"""Models through both clients."""

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, raw
from tests.clients import Connect, connector
from tests.executors import Executor
from tests.servers import Server

from keyside import ListedModel, errors


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
def alone() -> Iterator[Server]:
    """A server without an executor."""
    with Server("redis") as server:
        server.load_library()
        yield server


@pytest.fixture
def client(connect: Connect, executor: Executor) -> Any:
    return connect(executor.url)


async def test_a_stored_model_is_ready_and_says_what_it_is(client: Any) -> None:
    version = await client.store("m", models.affine(), tag="first", batch_size=8)
    assert (version.name, version.version, version.target, version.state) == ("m", 1, "m@1", "ready")
    assert version.signature.inputs[0].name == "x"
    assert version.info.tag == "first"
    info = await client.model_info("m")
    assert info.default == 1
    assert info.versions[1] == version.info
    assert (await client.version("m")) == version
    assert (await client.version("m@1")) == version
    assert await client.get_model("m") == models.affine()


async def test_the_same_again_is_the_same_version(client: Any, db: redis_py.Redis) -> None:
    first = await client.store("m", models.affine(), options={"intra_op_num_threads": 1, "inter_op_num_threads": 1})
    before = db.info("commandstats")["cmdstat_set"]["calls"]
    again = await client.store("m", models.affine(), options={"inter_op_num_threads": 1, "intra_op_num_threads": 1})
    assert again == first
    assert db.info("commandstats")["cmdstat_set"]["calls"] - before < 5, "nothing is uploaded"
    other = await client.store("m", models.affine(), options={"intra_op_num_threads": 2})
    assert other.target == "m@2"
    assert (await client.store("m", models.affine(scale=3.0))).target == "m@3"
    assert np.array_equal(await client.predict("m@2", np.ones((1, 4), np.float32)), [[3, 3, 3, 3]])
    assert np.array_equal(await client.predict("m", np.ones((1, 4), np.float32)), [[4, 4, 4, 4]])


@pytest.mark.parametrize("how", ["bytes", "bytearray", "path", "text", "file", "half", "pipe"])
async def test_every_way_to_hand_over_a_model(client: Any, tmp_path: Path, how: str) -> None:
    blob = models.affine()
    path = tmp_path / "model.onnx"
    path.write_bytes(blob)
    if how == "file":
        with path.open("rb") as file:
            await client.store("m", file)
    elif how == "half":
        half = io.BytesIO(b"not this" + blob)
        half.seek(8)
        await client.store("m", half)
    elif how == "pipe":

        class Pipe:
            def read(self, size: int = -1) -> bytes:
                return blob

        await client.store("m", Pipe())
    else:
        made = {"bytes": blob, "bytearray": bytearray(blob), "path": path, "text": str(path)}
        await client.store("m", made[how])
    assert await client.get_model("m") == blob


@pytest.mark.parametrize("wrong", [b"", "/nonexistent/model.onnx", 3, io.StringIO("text")])
async def test_what_is_no_model_is_refused(client: Any, wrong: Any) -> None:
    with pytest.raises(errors.BadArg):
        await client.store("m", wrong)


async def test_a_torch_model_is_told_by_its_ending(connect: Connect, alone: Server, tmp_path: Path) -> None:
    alone.load_library()
    path = tmp_path / "model.pt"
    path.write_bytes(b"anything")
    version = await connect(alone.url_unix).store("m", path, wait=False)
    assert version.info.backend == "TORCH"


async def test_large_models_go_in_chunks(connect: Connect, alone: Server) -> None:
    blob = models.garbage(9_000_000)
    seen: list[tuple[int, int]] = []
    client = connect(alone.url_unix)
    version = await client.store("m", blob, wait=False, progress=lambda *step: seen.append(step))
    assert version.state == "loading"
    assert version.info.chunks == 3
    assert seen == [(4 << 20, len(blob)), (8 << 20, len(blob)), (len(blob), len(blob))]
    assert await client.get_model("m") == blob


async def test_a_model_that_cannot_be_loaded_says_why_and_the_one_before_it_serves(client: Any) -> None:
    await client.store("m", models.affine())
    with pytest.raises(errors.ModelFailed, match="m@2: BADMODEL"):
        await client.store("m", models.garbage())
    assert (await client.version("m@2")).state == "failed"
    with pytest.raises(errors.ModelFailed):
        await client.wait_ready("m@2")
    with pytest.raises(errors.ModelFailed):
        await client.predict("m@2", [[1, 2, 3, 4]])
    assert (await client.predict("m", [[1, 2, 3, 4]])).tolist() == [[3, 5, 7, 9]]
    assert (await client.version("m")).version == 1


async def test_nobody_loads_it(connect: Connect, alone: Server) -> None:
    client = connect(alone.url_unix)
    with pytest.raises(errors.TimedOut, match=r"m@1 is still loading after 0\.1 s: no executor"):
        await client.store("m", models.affine(), timeout=0.1)


async def test_the_server_refuses_the_settings_and_nothing_is_left(client: Any, db: redis_py.Redis) -> None:
    for name, options in (
        ("m@1", {}),
        ("m", {"min_batch_size": 4}),
        ("m", {"backend": "TF"}),
        ("m", {"device": "no spaces"}),
    ):
        with pytest.raises(errors.BadArg):
            await client.store(name, models.affine(), **options)
    db.set("taken", 1)
    with pytest.raises(errors.WrongType):
        await client.store("taken", models.affine())
    assert not raw.private_keys(db)


async def test_listing(client: Any) -> None:
    assert [model async for model in client.models()] == []
    await client.store("a", models.affine(), tag="x")
    await client.store("b", models.affine())
    assert sorted([model async for model in client.models()]) == [ListedModel("a", "x"), ListedModel("b", "")]


async def test_deleting(client: Any) -> None:
    await client.store("m", models.affine())
    await client.store("m", models.affine(scale=3.0))
    await client.delete_model("m@2")
    with pytest.raises(errors.NoModel):
        await client.version("m@2")
    assert (await client.predict("m", [[1, 1, 1, 1]])).tolist() == [[3, 3, 3, 3]]
    await client.delete_model("m")
    for call in (
        client.model_info("m"),
        client.get_model("m"),
        client.delete_model("m"),
        client.predict("m", [[1, 1, 1, 1]]),
        client.wait_ready("m"),
        client.model_stats("m"),
    ):
        with pytest.raises(errors.NoModel):
            await call


async def test_versions_that_are_none(client: Any) -> None:
    await client.store("m", models.affine())
    with pytest.raises(errors.NoModel):
        await client.version("m@7")
    with pytest.raises(errors.BadArg):
        await client.version("m@x")
    with pytest.raises(errors.NoModel):
        await client.get_model("m", 7)


async def test_a_key_of_another_type_is_no_model(client: Any, db: redis_py.Redis) -> None:
    db.set("text", "x")
    db.hset("hash", "a", "b")
    for name in ("text", "hash"):
        for call in (client.model_info(name), client.get_model(name), client.delete_model(name)):
            with pytest.raises(errors.WrongType):
                await call


async def test_counters(client: Any) -> None:
    await client.store("m", models.affine(), tag="t")
    for _ in range(3):
        await client.predict("m", np.zeros((2, 4), np.float32))
    stats = await client.model_stats("m")
    assert (stats.key, stats.backend, stats.device, stats.tag) == ("m", "ONNX", "CPU", "t")
    assert (stats.calls, stats.samples, stats.errors) == (3, 6, 0)
    assert stats.duration > 0
    await client.reset_stats("m")
    assert (await client.model_stats("m@1")).calls == 0
