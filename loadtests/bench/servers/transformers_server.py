"""`transformers.generate` behind LitServe, batched as LitServe's documentation says to."""

import argparse
from typing import Any

import litserve
import torch
from transformers import MarianMTModel, MarianTokenizer

MAX_BATCH_SIZE = 32
BATCH_TIMEOUT_S = 0.01


class Translator(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, checkpoint: str, max_new_tokens: int, **options: Any):
        super().__init__(**options)
        self._checkpoint = checkpoint
        self._max_new_tokens = max_new_tokens

    def setup(self, device: str) -> None:
        self._tokenizer = MarianTokenizer.from_pretrained(self._checkpoint)
        model: Any = MarianMTModel.from_pretrained(self._checkpoint, dtype=torch.float32)
        self._model = model.eval()
        # Only max_new_tokens is to count, and not the checkpoint's own limit beside it.
        self._model.generation_config.max_length = None

    # LitServe reads this annotation, and only as an object: no `annotations` of the future here.
    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["inputs"])

    def predict(self, texts: list[str]) -> list[str]:
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs, max_new_tokens=self._max_new_tokens, num_beams=1, do_sample=False
            )
        answers: list[str] = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return answers

    def encode_response(self, text: str) -> list[dict[str, str]]:
        return [{"translation_text": text}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-new-tokens", type=int, required=True)
    options = parser.parse_args()
    api = Translator(
        options.checkpoint,
        options.max_new_tokens,
        max_batch_size=MAX_BATCH_SIZE,
        batch_timeout=BATCH_TIMEOUT_S,
        api_path=f"/models/{options.model}",
    )
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
