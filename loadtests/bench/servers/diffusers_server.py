"""diffusers' network and scheduler behind LitServe, batched as LitServe's documentation says to.

A pipeline makes as many steps for all images of a batch, so those of a batch that want as many are
drawn together.
"""

import argparse
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from fastapi import Response
from PIL import Image

MAX_BATCH_SIZE = 16
BATCH_TIMEOUT_S = 0.01


class Painter(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, checkpoint: str, settings: str, **options: Any):
        super().__init__(**options)
        self._checkpoint = checkpoint
        self._settings = json.loads(Path(settings).read_text())

    def setup(self, device: str) -> None:
        # diffusers does not annotate them.
        network: Any = UNet2DModel
        scheduler: Any = DDIMScheduler
        self._unet = network.from_pretrained(self._checkpoint, subfolder="unet").eval()
        self._scheduler = scheduler.from_config(self._settings["noise"])
        self._labels = {
            name: label for label, names in enumerate(self._settings["classes"]) for name in names
        }

    # LitServe reads this annotation, and only as an object: no `annotations` of the future here.
    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"label": self._labels[request["inputs"]], **request["parameters"]}

    def predict(self, wishes: list[dict[str, Any]]) -> list[bytes]:
        by_steps: defaultdict[int, list[int]] = defaultdict(list)
        for number, wish in enumerate(wishes):
            by_steps[wish["num_inference_steps"]].append(number)
        files: dict[int, bytes] = {}
        for steps, numbers in by_steps.items():
            images = self._drawn([wishes[number] for number in numbers], steps)
            files |= zip(numbers, map(_png, images), strict=True)
        return [files[number] for number in range(len(wishes))]

    def encode_response(self, file: bytes) -> Response:
        return Response(file, media_type="image/png")

    @torch.inference_mode()
    def _drawn(self, wishes: list[dict[str, Any]], steps: int) -> Any:
        shape = [self._settings["sample"][name] for name in ("channels", "height", "width")]
        seeds = [torch.Generator().manual_seed(wish["seed"]) for wish in wishes]
        samples = torch.stack([torch.randn(shape, generator=seed) for seed in seeds])
        without = [self._settings["unconditional_class"]] * len(wishes)
        labels = torch.tensor(without + [wish["label"] for wish in wishes])
        guidance = self._settings["defaults"]["guidance_scale"]
        self._scheduler.set_timesteps(steps)
        for timestep in self._scheduler.timesteps:
            both = samples.repeat(2, 1, 1, 1)
            plain, wanted = self._unet(both, timestep, class_labels=labels).sample.chunk(2)
            output = plain + guidance * (wanted - plain)
            samples = self._scheduler.step(output, timestep, samples).prev_sample
        return (samples / 2 + 0.5).clamp(0, 1).numpy()


def _png(image: Any) -> bytes:
    pixels = (255 * image.transpose(1, 2, 0)).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "png")
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--settings", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    api = Painter(
        options.checkpoint,
        options.settings,
        max_batch_size=MAX_BATCH_SIZE,
        batch_timeout=BATCH_TIMEOUT_S,
        api_path=f"/models/{options.model}",
    )
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
