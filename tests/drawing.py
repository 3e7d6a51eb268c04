"""Small models that draw, with random weights, as version directories: real graphs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from diffusers import UNet2DModel
from torch.export import Dim

from serving.diffusion.parameters import DiffusionParameters
from serving.diffusion.settings import UNET_FILE, DiffusionSettings, NoiseSchedule, Sample
from training.graphs.trace import trace

SIZE = 16
CLASSES = (("0", "zero"), ("1", "one"), ("2", "two"))


class _Network(torch.nn.Module):
    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Any, timestep: Any, class_labels: Any = None) -> Any:
        return self.unet(sample, timestep, class_labels=class_labels).sample


def unet(*, classes: int | None) -> Any:
    torch.manual_seed(0)
    # diffusers does not annotate it.
    make: Any = UNet2DModel
    model = make(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        layers_per_block=1,
        num_class_embeds=classes,
    )
    return model.eval()


@cache
def _traced(has_classes: bool) -> tuple[Any, onnx.ModelProto]:
    """The network of a painter, and its graph: always the same, and long to trace."""
    model = unet(classes=len(CLASSES) + 1 if has_classes else None)
    inputs = {
        "sample": torch.randn(2, model.config.in_channels, SIZE, SIZE),
        "timestep": torch.tensor([3.0, 500.0]),
    }
    if has_classes:
        inputs["class_labels"] = torch.tensor([0, 1])
    batch = Dim("batch")
    graph = trace(
        _Network(model), inputs, list(inputs), ["model_output"], {n: {0: batch} for n in inputs}
    )
    return model, graph


def write_painter(
    repository: Path, name: str, *, has_classes: bool, noise: NoiseSchedule, settings: str = ""
) -> Any:
    """A model of pixels; returns its network."""
    model, graph = _traced(has_classes)
    directory = repository / name / "1"
    directory.mkdir(parents=True)
    onnx.save(graph, directory / UNET_FILE)
    DiffusionSettings(
        noise=noise,
        sample=Sample(channels=1, height=SIZE, width=SIZE),
        classes=CLASSES if has_classes else (),
        unconditional_class=len(CLASSES) if has_classes else None,
        defaults=DiffusionParameters(
            num_inference_steps=10, guidance_scale=2.0 if has_classes else 1.0
        ),
    ).save(directory)
    (repository / name / "config.pbtxt").write_text(
        f"""
backend: "python"
max_batch_size: 16
input {{ name: "prompt" data_type: TYPE_STRING dims: [ 1 ] }}
output {{ name: "image" data_type: TYPE_UINT8 dims: [ {SIZE}, {SIZE}, 1 ] }}
model_transaction_policy {{ decoupled: true }}
parameters {{ key: "stepper" value {{ string_value: "diffusion" }} }}
parameters {{ key: "task" value {{ string_value: "text_to_image" }} }}
{settings}
"""
    )
    return model
