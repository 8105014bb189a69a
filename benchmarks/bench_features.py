"""What does it save to gather features where they live: a transaction in hand, a reference of 256 numbers in Redis?

The fraud scenario. The reference lies in a tensor, in a hash, or in a row of one large tensor; once the transaction, 30
numbers, lies in a hash too. Asking by one call stands beside what one does otherwise: read what lies there, make an
array of it, and predict with that in hand. All take turns; each answer is checked against onnxruntime in this process.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import Book, Meter, arguments, interleaved
from raw import check
from rig import served
from scenario import REFERENCES, Fraud

import keyside
from keyside.features import Hash, Rows
from keyside.tensorstore import npy

FIELDS = [f"f{n}" for n in range(256)]
KEY, GET = "reference by key, one call", "GET, then predict"
HASH, HMGET = "reference out of a hash, one call", "HMGET, then predict"
ROWS, RANGE = "reference as a row, one call", "GETRANGE, then predict"
SMALL, HMGET_SMALL = "transaction out of a hash, reference by key, one call", "HMGET of the transaction, then predict"
PAIRS = ((KEY, GET), (HASH, HMGET), (ROWS, RANGE), (SMALL, HMGET_SMALL))


def user(n: int) -> str:
    """Return the key of the hash with reference n."""
    return f"user:{n}"


def payment(n: int) -> str:
    """Return the key of the hash with transaction n."""
    return f"payment:{n}"


def main() -> None:
    options = arguments(__doc__).parse_args()
    book = Book("Features where they live", options)
    count = max(50, int(2000 * options.scale))
    with served(options.server) as rig, keyside.Client(rig.url) as client:
        fraud = rig.load_fraud()
        references = np.concatenate([fraud.arrays(n)[1] for n in range(REFERENCES)])
        with rig.db.pipeline(transaction=False) as pipe:
            for n, row in enumerate(references):
                pipe.hset(user(n), mapping=dict(zip(FIELDS, map(repr, row.tolist()), strict=True)))
                few = fraud.arrays(n)[0][0].tolist()
                pipe.hset(payment(n), mapping=dict(zip(FIELDS[:30], map(repr, few), strict=True)))
            pipe.execute()
        table = npy.to_bytes(references)
        rig.db.set("references", table)
        front, width = len(table) - references.nbytes, references[0].nbytes
        db = rig.db

        def by_get(n: int) -> Any:
            return client.predict("fraud", [fraud.arrays(n)[0], client.get(Fraud.key(n))])

        def by_hmget(n: int) -> Any:
            found = np.array([db.hmget(user(n), FIELDS)]).astype(np.float32)
            return client.predict("fraud", [fraud.arrays(n)[0], found])

        def by_hmget_small(n: int) -> Any:
            found = np.array([db.hmget(payment(n), FIELDS[:30])]).astype(np.float32)
            return client.predict("fraud", [found, keyside.Key(Fraud.key(n))])

        def by_getrange(n: int) -> Any:
            data = db.getrange("references", front + n * width, front + (n + 1) * width - 1)
            return client.predict("fraud", [fraud.arrays(n)[0], np.frombuffer(data, np.float32)[None]])  # type: ignore[arg-type]

        contenders: dict[str, Callable[[int], Any]] = {
            KEY: lambda n: client.predict("fraud", [fraud.arrays(n)[0], keyside.Key(Fraud.key(n))]),
            GET: by_get,
            HASH: lambda n: client.predict("fraud", [fraud.arrays(n)[0], Hash(user(n), FIELDS)]),
            HMGET: by_hmget,
            ROWS: lambda n: client.predict("fraud", [fraud.arrays(n)[0], Rows("references", n)]),
            RANGE: by_getrange,
            SMALL: lambda n: client.predict("fraud", [Hash(payment(n), FIELDS[:30]), keyside.Key(Fraud.key(n))]),
            HMGET_SMALL: by_hmget_small,
        }
        turned = {name: (lambda i, ask=ask: ask(i % REFERENCES)) for name, ask in contenders.items()}
        for number in range(options.rounds):
            with Meter(rig.url, {"Redis": rig.server.pid}) as meter:
                found = interleaved(turned, count, number, slices=min(8, count // 10))
            for name, (seconds, answers) in found.items():
                check(answers, fraud.expected, np.ravel, name)
                book.note_latencies(name, seconds)
                meter.note(book, name)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    for one, two in PAIRS:
        book.remark(f"{one}: p50 over that of {two}: {book.of(one, 'p50 us').ratio(book.of(two, 'p50 us')).text()}")
    book.end()


if __name__ == "__main__":
    main()
