"""The blocking client is what is made of the asyncio one."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import keyside

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unasync() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unasync", ROOT / "tools" / "unasync.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_there_is_what_would_be_made() -> None:
    done = subprocess.run(
        [sys.executable, "tools/unasync.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_generated_file_says_so() -> None:
    for path in (ROOT / "clients" / "_sync").glob("*.py"):
        assert path.read_text().startswith("# Do not change this file: it is made from clients/_async/"), path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("async def f() -> None:\n    await g()\n", "def f() -> None:\n    g()\n"),
        ("async with a as b:\n    pass\n", "with a as b:\n    pass\n"),
        ("async for x in AsyncIterator:\n    pass\n", "for x in Iterator:\n    pass\n"),
        ("x = [y async for y in z]\n", "x = [y for y in z]\n"),
        ("x = (await a, await b)\n", "x = (a, b)\n"),
        ('"""Give an AsyncClient.\n\nAsyncHandle\n"""\n', '"""Give a Client.\n\nHandle\n"""\n'),
        ('x = "AsyncClient"\n', 'x = "Client"\n'),
        ("f: Callable[[bytes], Awaitable[Any]]\n", "f: Callable[[bytes], Any]\n"),
        ("async_thing = awaited\n", "async_thing = awaited\n"),
        ("asyncio.sleep(1)\n", "time.sleep(1)\n"),
    ],
)
def test_one_by_one(unasync: ModuleType, source: str, expected: str) -> None:
    assert unasync.convert(source) == expected


def test_both_clients_have_the_same_methods() -> None:
    def methods(cls: type) -> dict[str, list[str]]:
        public = [(name, found) for name, found in inspect.getmembers(cls, callable) if not name.startswith("_")]
        return {name: list(inspect.signature(found).parameters) for name, found in public}

    assert methods(keyside.AsyncClient) == methods(keyside.Client)
    assert methods(keyside.AsyncHandle) == methods(keyside.Handle)


def test_every_public_method_is_documented() -> None:
    for cls in (keyside.Client, keyside.AsyncClient, keyside.Handle, keyside.AsyncHandle):
        for name, found in inspect.getmembers(cls, callable):
            if not name.startswith("_"):
                assert found.__doc__, f"{cls.__name__}.{name}"
