"""The demo: handwritten digits that were held out of training, classified inside an embedded server's reach.

Starts a server and an executor of its own, stores the model, sends every image in through three doors, compares each
prediction with onnxruntime in this process, and stops everything again. Run it with `make demo`.
"""

import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import redis

import keyside
from keyside.clients.child import Child
from keyside.clients.server import EmbeddedServer
from keyside.tensorstore import npy

DIGITS = Path(__file__).parent / "digits"
SHADES = " .:-=+*#%@"


def main() -> int:
    # Whatever server the environment names is somebody's: the demo has its own.
    for name in [name for name in os.environ if name.startswith(("KEYSIDE_", "REDIS_URL"))]:
        del os.environ[name]
    images = np.load(DIGITS / "held_out_images.npy")
    labels = np.load(DIGITS / "held_out_labels.npy")
    model = (DIGITS / "digits.onnx").read_bytes()
    expected = in_process(model, images)
    with tempfile.TemporaryDirectory(prefix="keyside-demo-") as folder:
        began = time.perf_counter()
        with (
            EmbeddedServer(Path(folder)) as server,
            executor(server.url),
            keyside.Client(server.url) as client,
        ):
            version = client.store("digits", model, backend="ONNX")
            first = client.predict("digits", images[:1])
            print(f"server, executor and model ready, first answer after {time.perf_counter() - began:.2f} s")
            print(f"stored {version.target}: {len(model):,} bytes of ONNX; {len(images)} held-out images of 8x8 pixels")
            del first
            raw = redis.Redis.from_url(server.url, protocol=2, socket_timeout=20)
            doors: dict[str, Callable[[int], Any]] = {
                "Python client, values in hand": lambda n: client.predict("digits", images[n : n + 1], outputs="dict"),
                "raw FCALL AI_PREDICT and BLPOP, as from redis-cli": lambda n: by_fcall(raw, images[n : n + 1]),
                "SET of a .npy, AI_MODELEXECUTE on keys, GET": lambda n: by_keys(raw, images[n : n + 1]),
            }
            right = [show(doors, images, labels, expected)]
            for name, door in doors.items():
                right.append(report(name, door, images, labels, expected))
            batch = time.perf_counter()
            many = client.predict_many("digits", images, outputs="dict")
            batch = time.perf_counter() - batch
            same = np.array_equal(many["label"].ravel(), expected)
            print(f"predict_many: {len(images)} images in {batch * 1000:.0f} ms, {len(images) / batch:,.0f} images/s")
            raw.close()
    print("server and executor stopped")
    if all(right) and same:
        print("every prediction equals that of onnxruntime in this process")
        return 0
    print("PREDICTIONS DIFFER from those of onnxruntime in this process")
    return 1


@contextlib.contextmanager
def executor(url: str) -> Iterator[None]:
    """Run an executor; what it logs is shown only if it fails."""
    with tempfile.TemporaryFile("w+") as log:
        child = Child([sys.executable, "-m", "keyside.executor"], env={**os.environ, "KEYSIDE_URL": url}, output=log)
        try:
            yield
        finally:
            child.signal(signal.SIGTERM)
            if child.wait(30) != 0:
                log.seek(0)
                print(log.read(), file=sys.stderr)


def in_process(model: bytes, images: Any) -> Any:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return session.run(["label"], {name: images})[0].ravel()


def by_fcall(raw: Any, image: Any) -> dict[str, Any]:
    """What any client can do: one FCALL, one BLPOP, one msgpack map."""
    ticket = raw.fcall("AI_PREDICT", 0, "digits", "INPUTS", 1, "VALUE", npy.to_bytes(image))
    reply = raw.blpop([ticket], timeout=10)[1]
    import msgpack

    return {name: npy.decode(value) for name, value in msgpack.unpackb(reply)["outputs"].items()}


def by_keys(raw: Any, image: Any) -> dict[str, Any]:
    """Tensors as keys, named by the caller."""
    raw.set("image", npy.to_bytes(image))
    ticket = raw.fcall(
        "AI_MODELEXECUTE", 3, "image", "label", "probabilities",
        "digits", "INPUTS", 1, "image", "OUTPUTS", 2, "label", "probabilities",
    )  # fmt: skip
    reply = raw.blpop([ticket], timeout=10)[1]
    if reply != b"OK":
        raise RuntimeError(reply.decode())
    return {name: npy.decode(raw.get(name)) for name in ("label", "probabilities")}


def show(doors: dict[str, Callable[[int], Any]], images: Any, labels: Any, expected: Any) -> bool:
    """Draw a few digits with what was predicted for them."""
    door = next(iter(doors.values()))
    chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in (3, 5, 8, 9, 0)]
    answers = [door(n) for n in chosen]
    scale = images.max()
    print()
    for row in range(8):
        lines = []
        for n in chosen:
            pixels = images[n].reshape(8, 8)[row]
            lines.append("".join(SHADES[round(float(p / scale) * (len(SHADES) - 1))] * 2 for p in pixels))
        print("   " + "   ".join(lines))
    for lines in (
        [f"predicted {int(answer['label'].ravel()[0])}" for answer in answers],
        [f"{float(answer['probabilities'].max()):.1%} sure" for answer in answers],
    ):
        print("   " + "   ".join(f"{line:^16}" for line in lines))
    print()
    return all(int(a["label"].ravel()[0]) == expected[n] for a, n in zip(answers, chosen, strict=True))


def report(name: str, door: Callable[[int], Any], images: Any, labels: Any, expected: Any) -> bool:
    """Send every image through one door; print accuracy and latency."""
    predicted, seconds = [], []
    for n in range(len(images)):
        start = time.perf_counter()
        answer = door(n)
        seconds.append(time.perf_counter() - start)
        predicted.append(int(answer["label"].ravel()[0]))
    accuracy = float(np.mean(np.array(predicted) == labels))
    seconds.sort()
    print(
        f"{name}: accuracy {accuracy:.1%} of {len(images)}; "
        f"p50 {statistics.median(seconds) * 1e6:.0f} us, p99 {seconds[int(len(seconds) * 0.99)] * 1e6:.0f} us"
    )
    return bool(np.array_equal(predicted, expected))


if __name__ == "__main__":
    sys.exit(main())
