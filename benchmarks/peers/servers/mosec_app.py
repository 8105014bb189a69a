"""mosec: raw bytes in, raw bytes out; with BENCH_BATCH, so many requests at a time by one worker instead of two."""

import os

import numpy as np
from fraud_model import load, load_for_bytes
from mosec import Server, Worker


class Raw(Worker):
    """Leaves body and answer as they are."""

    def deserialize(self, data):
        """Leave the body as it is."""
        return data

    def serialize(self, data):
        """Leave the answer as it is."""
        return data


class Fraud(Raw):
    """Runs the model."""

    def __init__(self):
        """Load it."""
        self.predict = load_for_bytes()

    def forward(self, data):
        """Run the model."""
        return self.predict(data)


class FraudBatch(Raw):
    """Runs the model on many requests at once."""

    def __init__(self):
        """Load it."""
        self.run = load()

    def forward(self, data):
        """Run the model."""
        both = np.frombuffer(b"".join(data), np.float32).reshape(len(data), 286)
        return [row.tobytes() for row in self.run(both[:, :30], both[:, 30:])]


if __name__ == "__main__":
    server = Server()
    batch = int(os.environ.get("BENCH_BATCH", "1"))
    if batch > 1:
        server.append_worker(FraudBatch, num=1, max_batch_size=batch, max_wait_time=1)  # milliseconds; the least
    else:
        server.append_worker(Fraud, num=2)
    server.run()
