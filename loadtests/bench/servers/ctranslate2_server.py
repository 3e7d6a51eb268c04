"""CTranslate2 behind LitServe, or behind a batching queue that keeps all of its workers busy."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import fastapi
import litserve
import uvicorn
from batching_queue import Queue
from marian_text import MarianText

MAX_BATCH_SIZE = 32
BATCH_TIMEOUT_S = 0.01


class Engine:
    """Greedy, in float32; `workers` batches at a time, which share the cores."""

    def __init__(self, converted: str, checkpoint: Path, max_new_tokens: int, workers: int):
        self.workers = workers
        self._text = MarianText(checkpoint)
        self._max_new_tokens = max_new_tokens
        self._translator = ctranslate2.Translator(
            converted,
            device="cpu",
            compute_type="float32",
            inter_threads=workers,
            intra_threads=max(1, (os.cpu_count() or 1) // workers),
        )

    def start(self, texts: Sequence[str]) -> list[Any]:
        """What will hold the answers; see `finish`."""
        started: list[Any] = self._translator.translate_batch(
            [self._text.encode(text) for text in texts],
            beam_size=1,
            max_decoding_length=self._max_new_tokens,
            asynchronous=True,
        )
        return started

    def finish(self, started: list[Any]) -> list[str]:
        return [self._text.decode(each.result().hypotheses[0]) for each in started]


class Batched(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, options: argparse.Namespace, **litserve_options: Any):
        super().__init__(**litserve_options)
        self._options = options

    def setup(self, device: str) -> None:
        self._engine = _engine(self._options)

    # LitServe reads this annotation, and only as an object: no `annotations` of the future here.
    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["inputs"])

    def predict(self, texts: list[str]) -> list[str]:
        return self._engine.finish(self._engine.start(texts))

    def encode_response(self, text: str) -> list[dict[str, str]]:
        return [{"translation_text": text}]


def queued(options: argparse.Namespace) -> fastapi.FastAPI:
    engine = _engine(options)
    queue = Queue(engine, engine.workers, MAX_BATCH_SIZE // engine.workers)
    app = fastapi.FastAPI(lifespan=queue.lifespan)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post(f"/models/{options.model}")
    async def translate(body: dict[str, Any]) -> list[dict[str, str]]:
        return [{"translation_text": await queue.ask(str(body["inputs"]))}]

    return app


def _engine(options: argparse.Namespace) -> Engine:
    return Engine(options.converted, options.checkpoint, options.max_new_tokens, options.workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--converted", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--behind", choices=["litserve", "queue"], required=True)
    options = parser.parse_args()
    if options.behind == "queue":
        uvicorn.run(
            queued(options), host="127.0.0.1", port=options.port, log_level="warning", loop="uvloop"
        )
        return
    api = Batched(
        options,
        max_batch_size=MAX_BATCH_SIZE,
        batch_timeout=BATCH_TIMEOUT_S,
        api_path=f"/models/{options.model}",
    )
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
