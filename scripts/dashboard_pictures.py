"""Make docs/dashboard-*.png: a server of the shipped models under two minutes of load, as the
dashboards show it. Run as `python -m scripts.dashboard_pictures` in the repository's root.
"""

from __future__ import annotations

import io
import json
import random
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc

from deploy.grafana.panels import ALL
from deploy.grafana.queries import load
from deploy.grafana.render import Source, draw, save
from tests.deploy.prometheus import prometheus
from tests.support import RunningServer, call, serving

SECONDS = 130
CALM_S, BUSY_S = 40, 95
"""From the first to the second moment callers pause a quarter as long."""

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "model_repo"
PHRASES = ("2 days ago", "The meeting is on March 5, 2024.", "in 3 hours", "Switzerland", "12.50 €")
DIGITS = ("zero", "three", "seven", "nine")

Ask = Callable[[RunningServer, random.Random], None]


def digits_raw(server: RunningServer, chance: random.Random) -> None:
    rows = chance.choice((1, 1, 1, 2, 4))
    data = [chance.randrange(17) * 15 for _ in range(64 * rows)]
    tensor = {"name": "image", "shape": [rows, 1, 8, 8], "datatype": "UINT8", "data": data}
    if chance.random() < 0.02:
        tensor["shape"] = [rows, 1, 8]
    _post(server, "/v2/models/digits/infer", json.dumps({"inputs": [tensor]}).encode())


def digits_grpc(server: RunningServer, chance: random.Random) -> None:
    images = np.full((1, 1, 8, 8), chance.randrange(256), np.uint8)
    tensor = tritonclient.grpc.InferInput("image", images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        for _ in range(20):
            client.infer("digits", [tensor])
            time.sleep(_pause(0.02, chance))


def digits_picture(server: RunningServer, chance: random.Random) -> None:
    picture = (MODELS / "digits/1/example.png").read_bytes()
    _post(server, "/models/digits", picture, "image/png")


def translate(server: RunningServer, chance: random.Random) -> None:
    parameters = {"tgt_lang": "de", "num_beams": chance.choice((1, 4))}
    document = {"inputs": chance.choice(PHRASES), "parameters": parameters}
    _post(server, "/models/translator", json.dumps(document).encode())


def translate_streaming(server: RunningServer, chance: random.Random) -> None:
    target = chance.choice(("de", "fr", "es"))
    document = {"text_input": f">>{target}<< {chance.choice(PHRASES)}"}
    _post(server, "/v2/models/translator/generate_stream", json.dumps(document).encode())


def hear(server: RunningServer, chance: random.Random) -> None:
    """Somebody who speaks for a little longer or shorter."""
    with wave.open(str(MODELS / "spoken-numbers/1/example.wav")) as recording:
        frames = recording.readframes(int(recording.getnframes() * chance.uniform(0.9, 1.0)))
        spoken = io.BytesIO()
        with wave.open(spoken, "wb") as shorter:
            shorter.setparams(recording.getparams())
            shorter.writeframes(frames)
    _post(server, "/models/spoken-numbers", spoken.getvalue(), "audio/wav")


def paint(server: RunningServer, chance: random.Random) -> None:
    document = {
        "inputs": chance.choice(DIGITS),
        "parameters": {"seed": chance.randrange(99), "num_inference_steps": 10},
    }
    _post(server, "/models/digits-diffusion", json.dumps(document).encode())


# What a caller asks, seconds that it pauses between, and how many such callers there are.
CALLERS: tuple[tuple[Ask, float, int], ...] = (
    (digits_raw, 0.05, 4),
    (digits_grpc, 0.1, 2),
    (digits_picture, 0.1, 1),
    (translate, 0.3, 4),
    (translate_streaming, 0.3, 12),
    (hear, 0.5, 3),
    (paint, 2.0, 2),
)


def _post(
    server: RunningServer, path: str, body: bytes, media_type: str = "application/json"
) -> None:
    call(server.http_port, "POST", path, body, {"Content-Type": media_type})


_began = time.monotonic()


def _pause(mean_s: float, chance: random.Random) -> float:
    is_busy = CALM_S < time.monotonic() - _began < BUSY_S
    return chance.expovariate(4 / mean_s if is_busy else 1 / mean_s)


def main() -> None:
    global _began
    with (
        tempfile.TemporaryDirectory() as directory,
        serving(MODELS) as server,
        prometheus(Path(directory, "prometheus"), {"slipway": server.metrics_port}) as asked,
    ):
        time.sleep(3)
        start, _began = time.time(), time.monotonic()
        ended = threading.Event()

        def caller(ask: Ask, mean_s: float, seed: int) -> None:
            chance = random.Random(seed)
            while not ended.is_set():
                ask(server, chance)
                ended.wait(_pause(mean_s, chance))

        threads = [
            threading.Thread(target=caller, args=(ask, mean_s, seed))
            for ask, mean_s, count in CALLERS
            for seed in range(count)
        ]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS)
        source = Source(
            asked.url,
            start=start + 5,
            end=start + SECONDS,
            step=1,
            rate_interval="10s",
            variables={"instance": ALL, "version": ALL, "model": ALL, "run": ALL},
        )
        for name in sys.argv[1:] or ("overview", "generation"):
            path = ROOT / "docs" / f"dashboard-{name}.png"
            save(draw(load(name), source), path)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
        ended.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
