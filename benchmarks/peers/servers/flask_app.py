"""Flask: raw bytes in, raw bytes out."""

from flask import Flask, Response, request
from fraud_model import load_for_bytes

predict = load_for_bytes()
app = Flask(__name__)


@app.post("/predict")
def answer():
    """Run the model on the body."""
    return Response(predict(request.get_data(cache=False)), mimetype="application/octet-stream")
