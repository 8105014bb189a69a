"""Floor (a): a process that takes a payload from a list, runs onnxruntime, and pushes the result. Nothing else.

`relay.py URL`: BRPOP relay:in; the value is 8 bytes of ticket, the transaction (120 bytes), the reference (1024 bytes).
BRPOP, since LPUSH and BLPOP make a stack: under load, those who came first would wait for ever.
"""

import sys

import numpy as np
from scenario import Fraud, session_for

from keyside.executor.wire import Wire


def main() -> None:
    wire = Wire(sys.argv[1], name="relay", timeout=None)
    wire.connect()
    run = session_for(Fraud().model)._sess.run  # noqa: SLF001  # as the executor does
    wire.call(b"SET", b"relay:ready", b"1")
    wire.send(((b"BRPOP", b"relay:in", 0),))
    while True:
        payload = wire.read()[1]
        if len(payload) == 4:
            return
        inputs = np.frombuffer(payload, np.float32, offset=8)
        result = run(
            ["probabilities"],
            {"transaction": inputs[:30].reshape(1, 30), "reference": inputs[30:].reshape(1, 256)},
            None,
        )[0]
        wire.send(((b"LPUSH", b"relay:" + payload[:8], result.tobytes()), (b"BRPOP", b"relay:in", 0)))
        wire.read()


if __name__ == "__main__":
    main()
