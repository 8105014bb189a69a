"""The example client in Node.js: a second implementation of docs/protocol.md, run against a real executor."""

import fcntl
import filecmp
import hashlib
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import redis as redis_py

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "node"
DIGITS = ROOT / "examples" / "digits"

# How npm says that it cannot talk to its registry: besides a missing node, the one reason to skip.
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EHOSTUNREACH")

Node = Callable[..., str]


@pytest.fixture(scope="module")
def node() -> Node:
    """Runs a script beside the example's files, with its dependencies installed; gives what it printed."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    package = (EXAMPLE / "package.json").read_bytes()
    folder = ROOT / ".cache" / f"node-{hashlib.sha256(package).hexdigest()[:12]}"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:  # other workers of this test run need it as well
        fcntl.flock(lock, fcntl.LOCK_EX)
        ignored = shutil.ignore_patterns("node_modules")
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True, ignore=ignored, copy_function=_renew)
        if not (folder / "node_modules" / ".package-lock.json").exists():  # which npm writes last
            _install(folder)

    def run(*arguments: str) -> str:
        done = subprocess.run(["node", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def _renew(source: str, target: str) -> None:
    """Copy a file, unless it is there as it is: somebody may be reading it."""
    if not Path(target).exists() or not filecmp.cmp(source, target, shallow=False):
        shutil.copy2(source, target)


def _install(folder: Path) -> None:
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--fetch-retries=1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=80)
    if done.returncode:
        shutil.rmtree(folder / "node_modules", ignore_errors=True)
        told = [line for line in done.stderr.splitlines() if any(word in line for word in UNREACHABLE)]
        if told:
            pytest.skip(f"the npm registry cannot be reached: {told[0]}")
        pytest.fail(f"npm install failed: {done.stderr}")


@pytest.fixture
def store(executor: Any) -> Iterator[redis_py.Redis]:
    with redis_py.Redis.from_url(executor.url, protocol=2) as client:
        yield client


def script(body: str) -> list[str]:
    """A script with the client's names at hand, `keyside` connected to its first argument, and `args`."""
    text = f"""
        import {{ readFile }} from 'node:fs/promises';
        import {{ Keyside, tensor }} from './keyside.mjs';
        const [url, ...args] = process.argv.slice(1);
        const keyside = await Keyside.connect(url);
        const code = (promise) => promise.then(() => 'not refused', (error) => error.code ?? String(error));
        try {{ {body} }} finally {{ await keyside.close(); }}
    """
    return ["--input-type=module", "--eval", text]


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def load(client: redis_py.Redis, key: str) -> Any:
    value: Any = client.get(key)
    return np.load(io.BytesIO(value), allow_pickle=False)


def test_the_example_classifies_the_held_out_digits(executor: Any, store: redis_py.Redis, node: Node) -> None:
    images, labels = np.load(DIGITS / "held_out_images.npy"), np.load(DIGITS / "held_out_labels.npy")
    session = onnxruntime.InferenceSession(DIGITS / "digits.onnx", providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"image": images})

    lines = node("main.mjs", executor.url, str(DIGITS)).splitlines()

    right = np.sum(label == labels)
    assert lines == [
        "digits is version 1",
        f"one by one: {np.sum(label[:64] == labels[:64])} of 64 are right",
        f"in one call: {right} of 450 are right",
        f"on keys: {right} of 450 are right",
        "three pixels: BADSHAPE",
    ]
    np.testing.assert_array_equal(load(store, "digits:label"), label)
    np.testing.assert_allclose(load(store, "digits:probabilities"), probabilities, rtol=1e-5, atol=1e-6)
    assert list(store.scan_iter(match="tmp:*")) == []


ARRAYS = {
    "float16": np.array([1.5, -0.0, np.nan, np.inf], "<f2"),
    "float32": np.linspace(-1, 1, 6, dtype="<f4").reshape(2, 3),
    "float64": np.array([[np.pi, -np.inf], [5e-324, np.nan]]),
    "int8": np.array([-128, 127], "i1"),
    "int16": np.array([-32768, 32767], "<i2"),
    "int32": np.array([-(2**31), 2**31 - 1], "<i4"),
    "int64": np.array([-(2**63), 2**63 - 1], "<i8"),
    "uint8": np.array([0, 255], "u1"),
    "uint16": np.array([0, 65535], "<u2"),
    "uint32": np.array([0, 2**32 - 1], "<u4"),
    "uint64": np.array([0, 2**64 - 1], "<u8"),
    "bool": np.array([[True], [False]]),
    "string": np.array([text.encode() for text in ("", "Grüße", "a\0b")]),
    "0-d": np.array(7, "<i8"),
    "empty": np.zeros((0, 3), "<f4"),
    "32 dimensions": np.ones((1,) * 32, "<f4"),
}


def test_tensors_pass_through_node_unchanged(executor: Any, store: redis_py.Redis, node: Node) -> None:
    for name, array in ARRAYS.items():
        store.set(name, npy(array))
    copy = "for (const key of args) await keyside.set(`${key}:copy`, await keyside.get(key));"

    node(*script(copy), executor.url, *ARRAYS)

    assert {name: store.get(name) for name in ARRAYS} == {name: store.get(f"{name}:copy") for name in ARRAYS}


THREE = npy(np.ones(3, "<f4"))
MALFORMED = {
    "empty": b"",
    "text": b"hello",
    "short": THREE[:-1],
    "long": THREE + b"\0",
    "cut header": THREE[:40],
    "big-endian": npy(np.ones(3, ">f4")),
    "Fortran order": npy(np.asfortranarray(np.ones((2, 3)))),
    "complex": npy(np.ones(3, "<c8")),
    "negative dim": THREE.replace(b"(3,)", b"(-3,)"),
    "version 2": THREE.replace(b"NUMPY\x01", b"NUMPY\x02"),
}


def test_node_refuses_what_is_not_a_tensor(executor: Any, store: redis_py.Redis, node: Node) -> None:
    for name, value in MALFORMED.items():
        store.set(name, value)
    read = "for (const key of args) console.log(key, await code(keyside.get(key)));"
    lines = node(*script(read), executor.url, *MALFORMED).splitlines()
    assert list(MALFORMED) == [line.partition(" TypeError: ")[0] for line in lines]


def test_errors_reach_node_with_their_codes(executor: Any, store: redis_py.Redis, node: Node) -> None:
    store.hset("hash", "field", "value")
    calls = """
        const image = tensor('FLOAT', [1, 64], new Float32Array(64));
        const integers = tensor('INT64', [1, 64], new BigInt64Array(64));
        await keyside.storeModel('digits', 'ONNX', 'CPU', await readFile(args[0]));
        await keyside.predict('digits', [image]);
        await keyside.set('image', image);
        const refused = [
          keyside.predict('nothing', [image]),
          keyside.predict('digits', { picture: image }),
          keyside.predict('digits', [integers]),
          keyside.predict('digits', ['missing']),
          keyside.execute('digits', ['hash'], ['label', 'probabilities']),
          keyside.execute('digits', ['image'], ['label', 'hash']),
          keyside.execute('digits', ['image'], ['label']),
          keyside.storeModel('digits', 'ONNX', 'no such device!', Buffer.from('x')),
        ];
        for (const reason of await Promise.all(refused.map(code))) console.log(reason);
    """
    printed = node(*script(calls), executor.url, str(DIGITS / "digits.onnx"))
    expected = "NOMODEL BADINPUT BADDTYPE NOTENSOR WRONGTYPE WRONGTYPE BADINPUT BADARG"
    assert expected.split() == printed.split()


def test_keys_go_in_by_name_and_outputs_keep_their_order(executor: Any, store: redis_py.Redis, node: Node) -> None:
    store.set("images", npy(np.load(DIGITS / "held_out_images.npy")[:300]))
    call = """
        await keyside.storeModel('digits', 'ONNX', 'CPU', await readFile(args[0]));
        const outputs = await keyside.predict('digits', { image: 'images' });
        for (const [name, { dtype, shape }] of outputs) console.log(`${name} ${dtype} ${shape}`);
    """
    printed = node(*script(call), executor.url, str(DIGITS / "digits.onnx"))
    assert printed == "label INT64 300\nprobabilities FLOAT 300,10\n"
    assert store.exists("images") == 1


def test_outputs_too_large_for_a_reply_are_fetched_and_taken_away(
    executor: Any, store: redis_py.Redis, node: Node
) -> None:
    call = """
        await keyside.storeModel('digits', 'ONNX', 'CPU', await readFile(args[0]));
        const images = tensor('FLOAT', [5000, 64], new Float32Array(320_000));
        const outputs = await keyside.predict('digits', [images]);
        for (const [name, { dtype, shape }] of outputs) console.log(`${name} ${dtype} ${shape}`);
    """
    printed = node(*script(call), executor.url, str(DIGITS / "digits.onnx"))
    assert printed == "label INT64 5000\nprobabilities FLOAT 5000,10\n"
    assert list(store.scan_iter(match="ks:{*}:out:*")) == list(store.scan_iter(match="tmp:*")) == []


def test_a_call_that_nobody_answers_ends_and_is_taken_back(db: redis_py.Redis, url: str, node: Node) -> None:
    call = """
        await keyside.storeModel('digits', 'ONNX', 'CPU', Buffer.from('not looked at'));
        const image = tensor('FLOAT', [1, 64], new Float32Array(64));
        console.log(await code(keyside.predict('digits', [image], { timeout: 50 })));
    """
    assert node(*script(call), url) == "TIMEDOUT\n"
    # What is left is the request to load the model.
    assert db.xlen("ks:{0}:jobs:CPU") == 1
    db.flushall()
