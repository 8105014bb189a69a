"""Ray Serve: raw bytes in, raw bytes out. `ray_app.py PORT`."""

import signal
import sys
import threading

import ray
from fraud_model import load_for_bytes
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Fraud:
    """Runs the model."""

    def __init__(self):
        """Load it."""
        self.predict = load_for_bytes()

    async def __call__(self, request: Request) -> Response:
        """Run it on the body."""
        return Response(self.predict(await request.body()), media_type="application/octet-stream")


def main():
    """Serve until SIGTERM."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=True)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Fraud.bind(), route_prefix="/predict")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
