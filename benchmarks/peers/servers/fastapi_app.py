"""FastAPI: raw bytes in, raw bytes out."""

from fastapi import FastAPI, Request, Response
from fraud_model import load_for_bytes

predict = load_for_bytes()
app = FastAPI()


@app.post("/predict")
async def answer(request: Request) -> Response:
    """Run the model on the body."""
    return Response(predict(await request.body()), media_type="application/octet-stream")
