"""Drawing as the loop sees it: noise of all strengths, and how well it is removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import EpochRecord, Weights
from training.errors import DataError
from training.runs import RunDirectory
from training.split import Indices
from training.tasks.image_classification.images import LabelledImages, hash_images, split_images
from training.tasks.image_generation import network as unets
from training.tasks.image_generation.network import Averaged, Denoiser
from training.tasks.image_generation.pictures import save_grid
from training.tasks.image_generation.recipe import DiffusionRecipe
from training.tasks.image_generation.report import MOST_CLASSES_SHOWN, DiffusionReport, report
from training.tasks.image_generation.sampling import draw, from_pixels
from training.workload import Totals

SCORED = 128
"""Pictures that are scored together."""
NOISES = 4
"""That each validation picture is scored with."""
SHOWN_OF_EACH = 4
"""Pictures of a class that are drawn after each epoch."""
SHOWN_STEPS = 10


class DiffusionWorkload:
    loss_unit = "mean square"

    def __init__(self, recipe: DiffusionRecipe, images: LabelledImages):
        """Raises `DataError` for classes that no prompt could tell apart."""
        _require_distinct(images.labels)
        self.recipe = recipe
        self.images = images
        self.split = split_images(images)
        self.data_hash = hash_images(images)
        self.scheduler = unets.build_scheduler(recipe)

    @property
    def unconditional(self) -> int:
        """The class of what is shown without one."""
        return len(self.images.labels)

    @property
    def steps(self) -> int:
        # The last, incomplete batch is left out; another epoch's order puts others there.
        return max(1, len(self.split.train) * self.recipe.passes // self.recipe.batch_size)

    def build(self) -> Averaged:
        unet = unets.build(self.recipe, len(self.images.labels))
        return Averaged(Denoiser(unet), self.recipe.diffusion.average_decay)

    def batches(self, chance: np.random.Generator) -> list[Indices]:
        order = np.concatenate(
            [chance.permutation(self.split.train) for _ in range(self.recipe.passes)]
        )
        size = self.recipe.batch_size
        return [order[step * size : (step + 1) * size] for step in range(self.steps)]

    def loss(
        self, network: nn.Module, batch: Indices, generator: torch.Generator
    ) -> tuple[Tensor, Totals]:
        classes = torch.from_numpy(self.images.targets[batch]).to(generator.device)
        hidden = torch.rand(len(batch), generator=generator, device=generator.device)
        classes[hidden < self.recipe.diffusion.unlabelled] = self.unconditional
        errors = self._errors(network, batch, classes, generator)
        return errors.mean(), {"loss": _total(errors.detach())}

    def score(self, model: nn.Module, examples: Indices, device: torch.device) -> Totals:
        """The same noise each time, so that epochs can be told apart."""
        total = torch.zeros(2, device=device)
        generator = torch.Generator(device).manual_seed(self.recipe.seed)
        for start in range(0, len(examples), SCORED):
            batch = examples[start : start + SCORED].repeat(NOISES)
            classes = torch.from_numpy(self.images.targets[batch]).to(device)
            total = total + _total(self._errors(model, batch, classes, generator))
        return {"loss": total}

    def choose(self, history: Sequence[EpochRecord]) -> EpochRecord:
        """The last one: its average is of the steadiest weights."""
        return history[-1]

    def show(self, run: RunDirectory, model: nn.Module, epoch: int) -> None:
        """Draw a few pictures of each class, of the same noise after every epoch."""
        shown = min(self.unconditional, MOST_CLASSES_SHOWN)
        drawn = draw(
            model,
            self.scheduler,
            np.arange(shown).repeat(SHOWN_OF_EACH),
            self.recipe.shape,
            self.recipe.sampling.model_copy(update={"num_inference_steps": SHOWN_STEPS}),
            unconditional=self.unconditional,
            seed=self.recipe.seed,
            device=next(model.parameters()).device,
        )
        save_grid(run.path / f"samples-epoch-{epoch:02}.png", drawn, SHOWN_OF_EACH)

    def save(self, run: RunDirectory, weights: Weights) -> None:
        model = self.build()
        model.load_state_dict(weights)
        unet = model.average.unet
        unet.load_state_dict(unets.halve(unet.state_dict()))
        unets.save(run.checkpoint, unet, self.scheduler)

    def report(self, run: RunDirectory, history: Sequence[EpochRecord]) -> DiffusionReport:
        return report(run, self.recipe, self.images, self.split, self.choose(history))

    def _errors(
        self, network: nn.Module, batch: Indices, classes: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The mean square of what the network says wrong of each picture under random noise."""
        device = generator.device
        pictures = from_pixels(self.images.read(batch)).to(device)
        noise = torch.randn(pictures.shape, generator=generator, device=device)
        timesteps = torch.randint(
            self.scheduler.config["num_train_timesteps"],
            (len(batch),),
            generator=generator,
            device=device,
        )
        noisy = self.scheduler.add_noise(pictures, noise, timesteps)
        target = (
            noise
            if self.recipe.diffusion.prediction_type == "epsilon"
            else self.scheduler.get_velocity(pictures, noise, timesteps)
        )
        said = network(noisy, timesteps.float(), classes)
        return functional.mse_loss(said, target, reduction="none").mean(dim=(1, 2, 3))


def _require_distinct(labels: Sequence[str]) -> None:
    """A prompt may write a class in capitals or without."""
    first: dict[str, str] = {}
    for label in labels:
        twin = first.setdefault(label.casefold(), label)
        if twin != label:
            raise DataError(
                f"the classes {twin!r} and {label!r} have the same name but for capitals;"
                " rename one of the folders"
            )


def _total(errors: Tensor) -> Tensor:
    return torch.stack([errors.sum(), torch.full_like(errors[0], len(errors))])
