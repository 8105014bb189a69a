"""MLServer: base64 in the JSON of the V2 protocol."""

import base64

import numpy as np
from fraud_model import load_for_bytes
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput


class FraudModel(MLModel):
    """Runs the model."""

    async def load(self):
        """Load it."""
        self.run = load_for_bytes()
        return True

    async def predict(self, payload):
        """Run it on the one input."""
        body = base64.b64decode(payload.inputs[0].data[0])
        probabilities = np.frombuffer(self.run(body), np.float32).tolist()
        output = ResponseOutput(name="probabilities", shape=[1, 2], datatype="FP32", data=probabilities)
        return InferenceResponse(model_name=self.name, outputs=[output])
