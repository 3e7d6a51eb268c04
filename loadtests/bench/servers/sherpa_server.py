"""sherpa-onnx behind a batching queue, on a graph of the same layers and sizes as Slipway's."""

import argparse
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import fastapi
import sherpa_onnx
import soundfile
import uvicorn
from batching_queue import Queue
from sherpa_graph import BANDS, write_graph

MAX_BATCH_SIZE = 4
"""With the graphs compared here larger ones are slower, as they are in the bare loop."""


class Engine:
    """Greedy, in float32; each of the workers hears a batch on one core."""

    def __init__(self, graph: Path, tokens: Path):
        self._recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
            str(graph), str(tokens), num_threads=1, feature_dim=BANDS
        )

    def start(self, recordings: Sequence[bytes]) -> Sequence[bytes]:
        return recordings

    def finish(self, recordings: Sequence[bytes]) -> list[str]:
        streams = [self._stream(recording) for recording in recordings]
        self._recognizer.decode_streams(streams)
        return [stream.result.text for stream in streams]

    def _stream(self, recording: bytes) -> Any:
        samples, rate = soundfile.read(BytesIO(recording), dtype="float32")
        stream = self._recognizer.create_stream()
        stream.accept_waveform(rate, samples)
        return stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", type=Path, required=True, help="a published model's directory")
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    [graph] = options.graph.glob("*/model.onnx")
    queue = Queue(Engine(*write_graph(graph, options.out)), os.cpu_count() or 1, MAX_BATCH_SIZE)
    app = fastapi.FastAPI(lifespan=queue.lifespan)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post(f"/models/{options.model}")
    async def transcribe(request: fastapi.Request) -> dict[str, str]:
        return {"text": await queue.ask(await request.body())}

    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", loop="uvloop")


if __name__ == "__main__":
    main()
