"""The training loop: one, in plain sight, on as many devices as asked for.

A run can be killed after any instruction and resumed. Everything random in an epoch is drawn from
the recipe's seed and the epoch's number, so the resumed run makes the same weights, bit for bit,
as one that was never interrupted on the same machine and number of devices.
"""

from __future__ import annotations

import math
import os
from functools import partial

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn import functional
from tqdm import tqdm

from training.augmentation import augment
from training.checkpoint import (
    EpochRecord,
    State,
    chosen_epoch,
    copy_weights,
    flatten_optimizer,
    load_state,
    restore_optimizer,
    save_metrics,
    save_model,
    save_state,
)
from training.data import LabelledImages
from training.data.split import Indices, Split
from training.errors import TrainingError
from training.evaluate import compute_logits
from training.models.image_classifier import ImageClassifier, ImageClassifierConfig
from training.plot import plot_history
from training.recipe import Model, Optimizer, Recipe
from training.runs import RunDirectory

STATISTICS_FROM = 2048
"""Pictures from which the mean and deviation of pixels are taken."""

# Streams of random numbers that must not repeat one another.
_ORDER, _VIEWS, _DROPOUT = range(3)


def fit(
    recipe: Recipe,
    images: LabelledImages,
    split: Split,
    run: RunDirectory,
    devices: int,
) -> State:
    """Train to the recipe's last epoch, from the run's last saved state if there is one.

    Raises `TrainingError` when the loss is no longer a number.
    """
    if recipe.batch_size % devices:
        raise TrainingError(
            f"batch_size {recipe.batch_size} cannot be shared equally by {devices} devices;"
            f" set it to a multiple of {devices} with --set batch_size=..."
        )
    try:
        fabric = Fabric(devices=devices, strategy="ddp_spawn" if devices > 1 else "auto")
        config = configure(recipe.model, images, split)
        fabric.launch(
            partial(_fit, recipe=recipe, config=config, images=images, split=split, run=run)
        )
    except MisconfigurationException as error:
        raise TrainingError(f"--devices {devices}: {error}") from error
    except ProcessRaisedException as error:
        raise _from_process(error) from None
    state = load_state(run)
    assert state is not None, "training ended without saving. This is a bug."
    return state


def _fit(
    fabric: Fabric,
    recipe: Recipe,
    config: ImageClassifierConfig,
    images: LabelledImages,
    split: Split,
    run: RunDirectory,
) -> None:
    """What each process does. Only the first writes."""
    _compute_deterministically()
    torch.manual_seed(recipe.seed)
    model = ImageClassifier(config)
    optimizer = _optimizer(model, recipe.optimizer)
    state = load_state(run)
    if state is not None:
        model.load_state_dict(state.model)
    network, stepper = fabric.setup(model, optimizer)
    if state is not None:
        restore_optimizer(optimizer, state.optimizer)

    history = list(state.history) if state is not None else []
    chosen = state.chosen if state is not None else {}
    steps = max(1, len(split.train) // recipe.batch_size)
    progress = tqdm(
        total=recipe.epochs * steps,
        initial=len(history) * steps,
        unit="step",
        disable=not fabric.is_global_zero,
    )
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        progress.set_description(f"epoch {epoch}/{recipe.epochs}")
        order = np.random.default_rng((recipe.seed, epoch, _ORDER)).permutation(split.train)
        torch.manual_seed(_seed(recipe, epoch, _DROPOUT, fabric.global_rank))
        views = torch.Generator(fabric.device)
        views.manual_seed(_seed(recipe, epoch, _VIEWS, fabric.global_rank))
        totals = torch.zeros(3, device=fabric.device)
        rate = 0.0

        network.train()
        for step in range(steps):
            # The last, incomplete batch is left out; another epoch's order puts others there.
            batch = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            mine = batch[fabric.global_rank :: fabric.world_size]
            pictures = torch.from_numpy(images.read(mine)).to(fabric.device)
            targets = torch.from_numpy(images.targets[mine]).to(fabric.device)

            rate = learning_rate(recipe, epoch - 1 + step / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            logits = network(augment(pictures, recipe.augmentation, views))
            loss = functional.cross_entropy(
                logits, targets, label_smoothing=recipe.optimizer.label_smoothing
            )
            stepper.zero_grad()
            fabric.backward(loss)
            fabric.clip_gradients(
                network, stepper, max_norm=recipe.optimizer.clip_norm, error_if_nonfinite=False
            )
            stepper.step()

            totals += _totals(loss.detach() * len(mine), logits, targets)
            progress.update()

        train_loss, train_accuracy = _means(fabric, totals)
        _average_running_statistics(fabric, model)
        network.eval()
        shard = split.validation[fabric.global_rank :: fabric.world_size]
        validation_loss, validation_accuracy = _means(fabric, _score(model, images, shard))
        if not math.isfinite(train_loss + validation_loss):
            raise TrainingError(
                f"the loss is not a number in epoch {epoch}; lower optimizer.learning_rate"
            )
        record = EpochRecord(
            epoch, rate, train_loss, train_accuracy, validation_loss, validation_accuracy
        )
        history.append(record)
        weights = copy_weights(model.state_dict())
        if chosen_epoch(history, len(split.validation)) is record:
            chosen = weights
        progress.set_postfix(loss=f"{train_loss:.3f}", validation=f"{validation_accuracy:.4f}")
        if fabric.is_global_zero:
            save_state(run, State(tuple(history), weights, chosen, flatten_optimizer(optimizer)))
            save_metrics(run, history)
    progress.close()
    if fabric.is_global_zero:
        save_metrics(run, history)
        save_model(run.checkpoint, config, chosen)
        plot_history(run.curves, history)


def configure(settings: Model, images: LabelledImages, split: Split) -> ImageClassifierConfig:
    """The network that fits these data; mean and deviation are those of the training part."""
    every = math.ceil(len(split.train) / STATISTICS_FROM)
    pixels = images.read(split.train[::every]) / 255.0
    return ImageClassifierConfig(
        channels=pixels.shape[1],
        height=pixels.shape[2],
        width=pixels.shape[3],
        classes=len(images.labels),
        mean=tuple(pixels.mean(axis=(0, 2, 3)).tolist()),
        # Pictures of one flat colour deviate by nothing, and nothing must not be divided by.
        std=tuple(np.maximum(pixels.std(axis=(0, 2, 3)), 1 / 255).tolist()),
        **settings.model_dump(),
    )


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """At this many epochs from the start; a fraction is part of an epoch."""
    peak, schedule = recipe.optimizer.learning_rate, recipe.schedule
    if epoch < schedule.warmup_epochs:
        # Not from zero: the first step shall move already.
        return peak * (epoch + 1) / (schedule.warmup_epochs + 1)
    done = (epoch - schedule.warmup_epochs) / (recipe.epochs - schedule.warmup_epochs)
    cosine = 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * (schedule.final_fraction + (1.0 - schedule.final_fraction) * cosine)


def _compute_deterministically() -> None:
    # CUDA's matrix products repeat exactly only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _seed(recipe: Recipe, epoch: int, stream: int, rank: int) -> int:
    """One number for torch, as unrelated to its neighbours as numpy can make it."""
    sequence = np.random.SeedSequence((recipe.seed, epoch, stream, rank))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _optimizer(model: ImageClassifier, settings: Optimizer) -> torch.optim.Optimizer:
    # Decay pulls weights towards zero; for a bias or a scale, zero is nothing special.
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    free = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _score(model: ImageClassifier, images: LabelledImages, indices: Indices) -> Tensor:
    if not len(indices):
        return torch.zeros(3, device=model.scale.device)
    logits = compute_logits(model, images, indices)
    targets = torch.from_numpy(images.targets[indices]).to(logits.device)
    loss = functional.cross_entropy(logits, targets, reduction="sum")
    return _totals(loss, logits, targets)


def _totals(loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """The summed loss, the right answers and the pictures."""
    right = (logits.argmax(dim=1) == targets).sum()
    return torch.stack([loss, right.float(), torch.full_like(loss, len(targets))])


def _average_running_statistics(fabric: Fabric, model: ImageClassifier) -> None:
    """Each process normalised its own part of the batches; the model is evaluated with the mean."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            fabric.all_reduce(buffer, reduce_op="mean")


def _means(fabric: Fabric, totals: Tensor) -> tuple[float, float]:
    """Loss and accuracy over the pictures of all processes."""
    everywhere = fabric.all_reduce(totals, reduce_op="sum")
    assert isinstance(everywhere, Tensor)
    loss, right, pictures = everywhere.tolist()
    return loss / pictures, right / pictures


def _from_process(error: ProcessRaisedException) -> Exception:
    """Our own error out of the traceback that torch hands over from another process."""
    last_line = str(error).strip().splitlines()[-1]
    name, _, sentence = last_line.partition(": ")
    ours = name == f"{TrainingError.__module__}.{TrainingError.__qualname__}"
    return TrainingError(sentence) if ours else error
