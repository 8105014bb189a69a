"""The demo: handwritten digits that were held out of training, classified inside an embedded server's reach.

Starts a server and an executor of its own, stores the model, sends every image in through three doors, publishes them
one by one on a channel on which a trigger listens, compares each prediction with onnxruntime in this process, and stops
everything again. Run it with `make demo`.
"""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
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
            right.append(stream(client, raw, images, labels, expected))
            right.append(by_hand(raw, server.socket_path, images, expected))
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


def stream(client: keyside.Client, raw: Any, images: Any, labels: Any, expected: Any) -> bool:
    """Publish every image on a channel; a trigger runs the model, and the predictions come back on another channel."""
    client.set_trigger("reader", keyside.OnPublish("images"), "digits", keyside.Payload())
    wait_for_listener(raw, "images")
    predicted, seconds = [], []
    with client.subscribe("reader") as events:
        for n in range(len(images)):
            start = time.perf_counter()
            client.publish("images", images[n : n + 1])
            event = events.next(10)
            seconds.append(time.perf_counter() - start)
            if event.error is not None:
                raise event.error
            predicted.append(int(event.outputs["label"].ravel()[0]))
    accuracy = float(np.mean(np.array(predicted) == labels))
    print()
    print(
        f"published one by one on channel `images`, predictions from channel `ks:results:reader`: "
        f"accuracy {accuracy:.1%} of {len(images)}; p50 {statistics.median(seconds) * 1e6:.0f} us"
    )
    return bool(np.array_equal(predicted, expected))


def by_hand(raw: Any, socket: Path, images: Any, expected: Any) -> bool:
    """The same with nothing but redis-cli, or valkey-cli: a trigger, a subscriber, and a message."""
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    cli = [program or "redis-cli", "-s", str(socket)]
    number = int(np.flatnonzero(expected == 3)[0])
    image = npy.to_bytes(images[number : number + 1])
    trigger = ["FCALL", "AI_TRIGGERSET", "1", "hand", "ON", "PUBLISH", "strip", "RUN", "digits",
               "INPUTS", "1", "VALUE", "{payload}"]  # fmt: skip
    for words in (trigger, ["SUBSCRIBE", "ks:results:hand"], ["-x", "PUBLISH", "strip", "<", "three.npy"]):
        print("   $", "redis-cli", " ".join(f"'{word}'" if "{" in word else word for word in words))
    if program is None:
        print("   (there is no redis-cli here to do so)")
        return True
    subprocess.run([*cli, *trigger], check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen([*cli, "SUBSCRIBE", "ks:results:hand"], stdout=subprocess.PIPE, text=True) as subscriber:
        try:
            wait_for_listener(raw, "strip")
            wait_for_listener(raw, "ks:results:hand")
            subprocess.run([*cli, "-x", "PUBLISH", "strip"], input=image, check=True, stdout=subprocess.DEVNULL)
            assert subscriber.stdout is not None
            said = next(line for line in subscriber.stdout if line.startswith("{"))
        finally:
            subscriber.kill()
    print("  ", said.strip() if len(said) < 160 else f"{said[:157]}...")
    return bool(json.loads(said)["outputs"]["label"]["values"] == [3])


def wait_for_listener(raw: Any, channel: str) -> None:
    """Wait until somebody listens to a channel: executors begin to when they have heard of the trigger."""
    ends = time.monotonic() + 20
    while not raw.pubsub_numsub(channel)[0][1]:
        if time.monotonic() > ends:
            raise TimeoutError(f"nobody listens to {channel}")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
