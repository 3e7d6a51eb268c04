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
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException
from tqdm import tqdm

from training.checkpoint import (
    EpochRecord,
    State,
    copy_weights,
    flatten_optimizer,
    load_state,
    restore_optimizer,
    save_metrics,
    save_state,
)
from training.errors import TrainingError
from training.metrics import Endpoint, RunMetrics, served
from training.plot import plot_history
from training.recipe import Optimizer, Recipe
from training.runs import RunDirectory
from training.workload import Shows, Totals, Workload

# Streams of random numbers that must not repeat one another.
_ORDER, _VIEWS, _DROPOUT = range(3)


def fit(
    workload: Workload, run: RunDirectory, devices: int, scraped: Endpoint | None = None
) -> State:
    """Train to the recipe's last epoch, from the run's last saved state if there is one.

    Raises `TrainingError` when the loss is no longer a number, or metrics cannot be served.
    """
    batch_size = workload.recipe.batch_size
    if batch_size % devices:
        raise TrainingError(
            f"batch_size {batch_size} cannot be shared equally by {devices} devices;"
            f" set it to a multiple of {devices} with --set batch_size=..."
        )
    try:
        fabric = Fabric(devices=devices, strategy="ddp_spawn" if devices > 1 else "auto")
        fabric.launch(partial(_run, workload=workload, run=run, scraped=scraped))
    except MisconfigurationException as error:
        raise TrainingError(f"--devices {devices}: {error}") from error
    except ProcessRaisedException as error:
        raise _from_process(error) from None
    state = load_state(run)
    assert state is not None, "training ended without saving. This is a bug."
    return state


def _run(fabric: Fabric, workload: Workload, run: RunDirectory, scraped: Endpoint | None) -> None:
    """What each process does. Only the first writes, and is scraped."""
    metrics = RunMetrics(scraped.run if scraped else "", workload.recipe.epochs)
    with served(metrics, scraped if fabric.is_global_zero else None):
        _fit(fabric, workload, run, metrics)


def _fit(fabric: Fabric, workload: Workload, run: RunDirectory, metrics: RunMetrics) -> None:
    recipe = workload.recipe
    _compute_deterministically()
    torch.manual_seed(recipe.seed)
    model = workload.build()
    optimizer = _optimizer(model, recipe.optimizer)
    state = load_state(run)
    if state is not None:
        model.load_state_dict(state.model)
    network, stepper = fabric.setup(model, optimizer)
    if state is not None:
        restore_optimizer(optimizer, state.optimizer)

    history = list(state.history) if state is not None else []
    chosen = state.chosen if state is not None else {}
    progress = tqdm(
        total=recipe.epochs * workload.steps,
        initial=len(history) * workload.steps,
        unit="step",
        disable=not fabric.is_global_zero,
    )
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        progress.set_description(f"epoch {epoch}/{recipe.epochs}")
        batches = workload.batches(np.random.default_rng((recipe.seed, epoch, _ORDER)))
        torch.manual_seed(_seed(recipe, epoch, _DROPOUT, fabric.global_rank))
        views = torch.Generator(fabric.device)
        views.manual_seed(_seed(recipe, epoch, _VIEWS, fabric.global_rank))
        totals: Totals = {}
        rate = 0.0
        metrics.begin(epoch, totals)

        network.train()
        for step, batch in enumerate(batches):
            rate = learning_rate(recipe, epoch - 1 + step / len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate
            mine = batch[fabric.global_rank :: fabric.world_size]
            loss, measured = workload.loss(network, mine, views)
            stepper.zero_grad()
            fabric.backward(loss)
            fabric.clip_gradients(
                network, stepper, max_norm=recipe.optimizer.clip_norm, error_if_nonfinite=False
            )
            stepper.step()

            _add(totals, measured)
            progress.update()
            metrics.stepped(len(batch), rate)

        trained = _means(fabric, totals)
        _average_running_statistics(fabric, model)
        network.eval()
        shard = workload.split.validation[fabric.global_rank :: fabric.world_size]
        with torch.no_grad():
            validated = _means(fabric, workload.score(model, shard, fabric.device))
        if not math.isfinite(trained["loss"] + validated["loss"]):
            raise TrainingError(
                f"the loss is not a number in epoch {epoch}; lower optimizer.learning_rate"
            )
        record = EpochRecord(epoch, rate, trained, validated)
        history.append(record)
        metrics.validated(record)
        weights = copy_weights(model.state_dict())
        if workload.choose(history) is record:
            chosen = weights
        scores = {name: f"{value:.4f}" for name, value in validated.items() if name != "loss"}
        progress.set_postfix({"loss": f"{trained['loss']:.3f}", **scores})
        if fabric.is_global_zero:
            save_state(run, State(tuple(history), weights, chosen, flatten_optimizer(optimizer)))
            save_metrics(run, history)
            if isinstance(workload, Shows):
                workload.show(run, model, epoch)
    progress.close()
    if fabric.is_global_zero:
        save_metrics(run, history)
        workload.save(run, chosen)
        plot_history(run.curves, history, workload.loss_unit)


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


def _optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Decay pulls weights towards zero; for a bias or a scale, zero is nothing special.
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    free = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2))


def _add(totals: Totals, measured: Totals) -> None:
    for name, value in measured.items():
        totals[name] = totals[name] + value if name in totals else value


def _average_running_statistics(fabric: Fabric, model: nn.Module) -> None:
    """Each process normalised its own part of the batches; the model is evaluated with the mean."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            fabric.all_reduce(buffer, reduce_op="mean")


def _means(fabric: Fabric, totals: Totals) -> dict[str, float]:
    """Each measure over the examples of all processes."""
    means = {}
    for name, value in totals.items():
        everywhere = fabric.all_reduce(value, reduce_op="sum")
        assert isinstance(everywhere, Tensor)
        total, count = everywhere.tolist()
        means[name] = total / count
    return means


def _from_process(error: ProcessRaisedException) -> Exception:
    """Our own error out of the traceback that torch hands over from another process."""
    last_line = str(error).strip().splitlines()[-1]
    name, _, sentence = last_line.partition(": ")
    ours = name == f"{TrainingError.__module__}.{TrainingError.__qualname__}"
    return TrainingError(sentence) if ours else error
