"""The joint phase: gater and experts are tuned together under the latency-aware loss, from where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trt_moe.models import ImageModel, Mixture
from trt_moe.routing_rule import route
from trt_moe.training.checkpoint import checkpoint_hash, load_checkpoint
from trt_moe.training.config import JointConfig, TrainConfig, digest
from trt_moe.training.experts import autocast, checkpoint_path, make_optimizer, predict
from trt_moe.training.gater import TrainedGater, gater_path, stale
from trt_moe.training.logits import UNIFORM, Judged
from trt_moe.training.loop import Progress, epoch_order, expect_finite, images_in_order, run_epoch, run_epochs
from trt_moe.training.losses import expert_losses, gumbel_loss, gumbel_noise
from trt_moe.training.processes import check_batch, connect
from trt_moe.training.routing import collapse_warning, routing_lines
from trt_moe.training.splits import Part, derived_seed, draw

_EPOCH_CHECK_IMAGES = 3000


@dataclass(frozen=True)
class Tuned:
    """What the joint phase made: a gater, and every expert by name."""

    gater: ImageModel
    experts: dict[str, ImageModel]
    file: Path


def train_joint(
    config: TrainConfig,
    settings: JointConfig,
    best: TrainedGater,
    models: Mapping[str, ImageModel],
    part: Part,
    validation: Judged,
    costs: NDArray[np.float64],
    folder: Path,
    progress: Progress | None = None,
    log: Callable[[str], None] = print,
    only_load: bool = False,
) -> Tuned | None:
    """Tune copies of gater and experts together; under `torchrun` all processes call this.

    The loss is that of the gumbel method with the experts' own gradients. Norms keep their statistics and
    nothing is dropped out: an expert that learned from clean images would else be normalised by all severities.

    Args:
        config: experts by rising cost, latency weight.
        settings: of this phase.
        best: the gater to start from.
        models: experts to start from, by name.
        part: images to learn from, best those that the experts have not seen: on their own they are too sure.
        validation: judged by the experts as they are.
        costs: relative to the dearest expert [K].
        folder: for the checkpoints.
        progress: called after every step.
        log: gets the routing tables before and after.
        only_load: do not train.

    Returns:
        What was tuned, where that has the better utility on `validation`; else None (and in all processes but
        the first).

    Raises:
        InputError: a batch that the processes cannot share, or with `only_load` nothing is trained for these settings.
        ModelOutputError: the loss is not finite; the last epoch's checkpoint is kept.
    """
    processes = connect()
    check_batch(processes, "joint", settings.batch, settings.accumulate)
    names = [expert.name for expert in config.experts]
    experts = [copy.deepcopy(models[name]) for name in names]
    mixture = Mixture(copy.deepcopy(best.model), experts).to(processes.device).eval()
    file = checkpoint_path(folder, "joint")
    started_from = [gater_path(folder, best.method, best.seed), *(checkpoint_path(folder, name) for name in names)]
    identity = digest(
        [
            settings.model_dump(mode="json", exclude_defaults=True),
            [config.latency_weight, config.seed, [round(float(cost), 12) for cost in costs]],
            [checkpoint_hash(origin) for origin in started_from],
        ]
    )
    if load_checkpoint(file, mixture, identity) is not None:
        log(f"joint: already trained, {file}")
    elif only_load:
        raise stale(config, file)
    else:
        _tune(config, settings, mixture, part, validation, costs, file, identity, progress, log)
    if not processes.is_main_process:
        return None
    scores = predict(best.model, validation.images.images)
    before, after = _rate(scores, validation, config, costs), _rate(*_judge(mixture, config, validation), config, costs)
    for when, (_, lines) in (("before", before), ("after", after)):
        for line in lines:
            log(f"  {when}: {line}")
    better = after[0] > before[0]
    log(
        f"joint: validation utility {before[0]:.4f} before, {after[0]:.4f} after: "
        + ("kept" if better else "not better, gater and experts stay as they were")
    )
    return Tuned(mixture.gater, dict(zip(names, experts, strict=True)), file) if better else None


def utility(routes: NDArray[np.int64], judged: Judged, costs: NDArray[np.float64], latency_weight: float) -> float:
    """Return minus the mean cross-entropy of the routed expert and its weighted cost, in nats."""
    chosen = judged.losses[np.arange(len(routes)), routes]
    return -float(chosen.mean() + latency_weight * costs[routes].mean())


def _tune(
    config: TrainConfig,
    settings: JointConfig,
    mixture: Mixture,
    part: Part,
    validation: Judged,
    costs: NDArray[np.float64],
    file: Path,
    identity: str,
    progress: Progress | None,
    log: Callable[[str], None],
) -> None:
    processes = connect()
    optimizer = make_optimizer(mixture, settings.weight_decay)
    network = processes.prepare_model(mixture)
    weights = torch.tensor(costs, dtype=torch.float32, device=processes.device)
    labels = torch.from_numpy(part.labels).to(processes.device)

    def train_epoch(epoch: int) -> float:
        seed = derived_seed("joint epoch", config.seed, epoch)
        # By image, so that neither processes nor pieces change what is drawn.
        noise = gumbel_noise(len(part.labels), len(weights), seed).to(processes.device)

        def loss_of(pixels: Tensor, chosen: Tensor, _: float) -> Tensor:
            with autocast(config.precision, pixels.device.type):
                scores, logits = network(pixels)
            # Scores are free of costs whatever the method: the router subtracts the costs, so the gates do too.
            gated = scores - config.latency_weight * weights
            losses = expert_losses(logits, labels[chosen])
            return gumbel_loss(gated, losses, weights, config.latency_weight, settings.temperature, noise[chosen])

        order = epoch_order(
            len(part.labels), settings.batch, seed, config.flip,
            settings.accumulate, processes.process_index, processes.num_processes,
        )  # fmt: skip
        images = draw(part, UNIFORM, config.corruption, seed, order.chosen.ravel())
        mixture.eval()
        served = images_in_order(images, order)

        def fetch(step: int, piece: int) -> tuple[Tensor, Tensor]:
            return served(step, piece)[0], torch.from_numpy(order.chosen[step, piece])

        return run_epoch(
            "joint", network, optimizer, settings, epoch, order, fetch, loss_of, progress, log, part.indices
        )

    some = validation.thinned(_EPOCH_CHECK_IMAGES)

    def check() -> list[str]:
        scores, judged = _judge(mixture, config, some)
        for outputs in (scores, judged.logits):
            expect_finite("joint", outputs, settings)
        return _rate(scores, judged, config, costs)[1]

    run_epochs("joint", mixture, optimizer, file, identity, settings.epochs, train_epoch, check, log)


def _judge(mixture: Mixture, config: TrainConfig, judged: Judged) -> tuple[NDArray[np.float32], Judged]:
    """Return the gater's scores, and the images judged by the experts as they are now."""
    pixels = judged.images.images
    logits = [predict(expert, pixels, config.precision) for expert in mixture.experts]
    return predict(mixture.gater, pixels), Judged(judged.images, np.stack(logits, axis=1))


def _rate(
    scores: NDArray[np.float32], judged: Judged, config: TrainConfig, costs: NDArray[np.float64]
) -> tuple[float, list[str]]:
    """Return the utility of routing by the scores, and what a log says of it."""
    names = [expert.name for expert in config.experts]
    weight, severities = config.latency_weight, judged.images.severities
    routes = route(scores, costs, weight)
    lines = routing_lines(routes, judged.right, costs, severities, names)
    warning = collapse_warning(routes, judged.losses, costs, weight, names)
    if warning is not None:
        lines.append(f"warning: {warning}")
    return utility(routes, judged, costs, weight), lines
