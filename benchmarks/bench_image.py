"""What does the way through Redis add to an image model: 600 KB in, about 20 ms of compute?

`Client.predict` with the image in hand, and with the image in a key, over floor (c): onnxruntime in this process.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from graphs import image
from measure import Book, Meter, arguments, interleaved
from raw import check
from rig import served, upload
from scenario import session_for

import keyside

IMAGES = 4
FLOOR, HAND, KEY = (
    "floor (c): onnxruntime in this process",
    "Client.predict, image in hand",
    "Client.predict, image in a key",
)


def main() -> None:
    options = arguments(__doc__).parse_args()
    book = Book("Image model", options)
    images = np.random.default_rng(12).random((IMAGES, 1, 3, 224, 224), dtype=np.float32)
    blob = image()
    session = session_for(blob)
    expected = np.array([session.run(None, {"x": one})[0] for one in images])
    count = max(5, int(60 * options.scale))
    with served(options.server) as rig, keyside.Client(rig.url) as client:
        upload(rig.url, "image", blob)
        for n, one in enumerate(images):
            client.set(f"image:{n}", one)
        contenders: dict[str, Callable[[int], Any]] = {
            FLOOR: lambda i: session.run(None, {"x": images[i % IMAGES]})[0],
            HAND: lambda i: client.predict("image", images[i % IMAGES]),
            KEY: lambda i: client.predict("image", keyside.Key(f"image:{i % IMAGES}")),
        }
        for number in range(options.rounds):
            with Meter(rig.url) as meter:
                found = interleaved(contenders, count, number, slices=min(6, count))
            for name, (seconds, answers) in found.items():
                check(answers, expected, np.ravel, name)
                book.note_latencies(name, seconds)
                meter.note(book, name)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    book.over("image.p50", HAND, FLOOR, "p50 us")
    book.remark(f"From a key: {book.of(KEY, 'p50 us').ratio(book.of(FLOOR, 'p50 us')).text()} of floor (c)")
    book.end()


if __name__ == "__main__":
    main()
