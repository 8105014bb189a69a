"""mosec: raw bytes in, raw bytes out."""

from fraud_model import load_for_bytes
from mosec import Server, Worker


class Fraud(Worker):
    """Runs the model."""

    def __init__(self):
        """Load it."""
        self.predict = load_for_bytes()

    def deserialize(self, data):
        """Leave the body as it is."""
        return data

    def forward(self, data):
        """Run the model."""
        return self.predict(data)

    def serialize(self, data):
        """Leave the answer as it is."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Fraud, num=2)
    server.run()
