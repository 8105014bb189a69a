"""Triton by pytriton. `pytriton_app.py HTTP_PORT GRPC_PORT METRICS_PORT`."""

import sys

import numpy as np
from fraud_model import load
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main():
    """Serve until SIGTERM."""
    run = load()

    @batch
    def predict(transaction, reference):
        return {"probabilities": run(transaction, reference)}

    http, grpc, metrics = map(int, sys.argv[1:])
    config = TritonConfig(
        http_address="127.0.0.1", grpc_address="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=metrics
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="fraud",
            infer_func=predict,
            inputs=[
                Tensor(name="transaction", dtype=np.float32, shape=(30,)),
                Tensor(name="reference", dtype=np.float32, shape=(256,)),
            ],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(2,))],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()


if __name__ == "__main__":
    main()
