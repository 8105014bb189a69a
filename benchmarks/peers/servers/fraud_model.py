"""The model, for all peers: both tensors as bytes in, the probabilities as an array out."""

import os

import numpy as np
import onnxruntime


def load():
    """Return a function that runs the model on arrays [n, 30] and [n, 256]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])

    def run(transaction, reference):
        return session.run(None, {"transaction": transaction, "reference": reference})[0]

    return run


def load_for_bytes():
    """Return a function from the bytes of both tensors to those of the probabilities."""
    run = load()

    def of_bytes(body):
        both = np.frombuffer(body, np.float32)
        return run(both[:30].reshape(1, 30), both[30:].reshape(1, 256)).tobytes()

    return of_bytes
