"""A network behind FastAPI, as one would write it: a route in the thread pool, no batches."""

import argparse
from pathlib import Path

import fastapi
import numpy as np
import uvicorn
from bare_session import BareSession
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel


class Numbers(BaseModel):
    x: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--shape", type=int, nargs="+", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    session = BareSession(options.graph, options.threads)
    shape = (1, *options.shape)
    app = fastapi.FastAPI()

    @app.post("/predict")
    def predict(numbers: Numbers) -> dict[str, list[float]]:
        y = session.run(np.array(numbers.x, np.float32).reshape(shape))
        return {"y": y[0].tolist()}

    @app.post("/raw")
    async def raw(request: fastapi.Request) -> fastapi.Response:
        x = np.frombuffer(await request.body(), np.float32).reshape(shape)
        y = await run_in_threadpool(session.run, x)
        return fastapi.Response(y.tobytes(), media_type="application/octet-stream")

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        log_level="warning",
        loop="uvloop",
        http="httptools",
    )


if __name__ == "__main__":
    main()
