"""The gater phase: a small network learns from the frozen experts' logits which expert an image needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trt_moe.errors import InputError
from trt_moe.models import ImageModel, SqueezeNetLight
from trt_moe.models.gater import GATER_SIDE
from trt_moe.routing_rule import route
from trt_moe.training.checkpoint import load_checkpoint
from trt_moe.training.config import COST_FREE, Method, TrainConfig, digest
from trt_moe.training.experts import Shape, make_optimizer, predict
from trt_moe.training.logits import Judged
from trt_moe.training.loop import Fetch, Order, Progress, epoch_order, expect_finite, mirror, run_epoch, run_epochs
from trt_moe.training.losses import (
    balance_loss,
    benefit_loss,
    check_costs,
    gate_entropy,
    gumbel_loss,
    likelihood_loss,
    regret_loss,
)
from trt_moe.training.processes import connect
from trt_moe.training.routing import (
    collapse_warning,
    explained_variance,
    frontier_score,
    gater_frontier,
    routing_lines,
)
from trt_moe.training.splits import derived_seed

_EPOCH_CHECK_IMAGES = 6000


@dataclass(frozen=True)
class TrainedGater:
    """One gater and what validation says about it.

    Attributes:
        method: one of `trt_moe.training.config.Method`.
        seed: of initialisation and order.
        model: uint8 images in, cost-free scores out: route = argmax(score - latency weight * cost).
        frontier: mean accuracy over the frontier, see `frontier_score`; the larger the better.
        r2: explained variance of the dearest expert's benefit, by calibrated losses.
    """

    method: Method
    seed: int
    model: ImageModel
    frontier: float
    r2: float


def build_gater(config: TrainConfig, shape: Shape, seed: int = 0) -> ImageModel:
    """Make an untrained gater that sees the image at 96 px, or at its own size where that is smaller."""
    torch.manual_seed(derived_seed("gater", config.seed, seed))
    size = (min(GATER_SIDE, shape.height), min(GATER_SIDE, shape.width))
    network = SqueezeNetLight(len(config.experts), shape.channels, min(size), config.gater.width)
    return ImageModel(network, (shape.height, shape.width), size, config.mean, config.std)


def gater_path(folder: Path, method: Method, seed: int) -> Path:
    """Where the finished weights of a gater lie."""
    return folder / f"gater-{method}-{seed}.safetensors"


def train_gaters(
    config: TrainConfig,
    shape: Shape,
    training: Judged,
    validation: Judged,
    costs: NDArray[np.float64],
    folder: Path,
    progress: Progress | None = None,
    log: Callable[[str], None] = print,
    only_load: bool = False,
) -> list[TrainedGater]:
    """Train every method with every seed, or load it where it is done; best by validation first.

    Args:
        config: methods, seeds, latency weight.
        shape: of the images.
        training: what the gaters learn from, by calibrated experts: one that is too sure has larger losses than one
            that is right less often, and would not be chosen.
        validation: what they are ranked by, calibrated alike.
        costs: measured latency of every expert divided by the largest, [K].
        folder: for the checkpoints.
        progress: called after every step.
        log: gets the routing table of every epoch, and a warning where all images go to one expert at the end.
        only_load: train none.

    Raises:
        InputError: negative latency weight, costs that do not fit the experts, or with `only_load` a gater that is not
            trained for these settings.
        ModelOutputError: the loss is not finite.
    """
    check_costs(torch.tensor(costs), len(config.experts), config.latency_weight)
    learned_from = hashlib.sha256(training.logits.tobytes()).hexdigest()
    rounded = [round(float(cost), 12) for cost in costs]
    gaters = []
    for method in config.gater.methods:
        identities = [digest([settings, rounded, learned_from]) for settings in config.gater_hashes(method)]
        for seed in config.gater.seeds:
            model = build_gater(config, shape, seed)
            file = gater_path(folder, method, seed)
            if any(load_checkpoint(file, model, identity) is not None for identity in identities):
                log(f"gater {method} {seed}: already trained, {file}")
            elif only_load:
                raise stale(config, file)
            else:
                train_gater(
                    config, method, seed, model, training, validation, costs, file, identities[0], progress, log
                )
            scores = predict(model.to(connect().device), validation.images.images)
            frontier = frontier_score(gater_frontier(scores, validation.right, costs, 0.0), costs)
            r2 = explained_variance(scores, validation.losses, config.gater.loss_clip)
            log(f"gater {method} {seed}: frontier {frontier:.4f} R2 {r2:.3f}")
            gaters.append(TrainedGater(method, seed, model.eval(), frontier, r2))
    return sorted(gaters, key=lambda gater: -gater.frontier)


def stale(config: TrainConfig, file: Path) -> InputError:
    """Say that a checkpoint on top of the experts is not what the configuration would give."""
    return InputError(
        f"{file} was made with another latency_weight, gater or joint section, or other costs, than {config.source} "
        "gives now; nothing was changed. Take the settings of the run, or train again with `trt-moe train`"
    )


def train_gater(
    config: TrainConfig,
    method: Method,
    seed: int,
    model: ImageModel,
    training: Judged,
    validation: Judged,
    costs: NDArray[np.float64],
    file: Path,
    identity: str,
    progress: Progress | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train one gater, from its last finished epoch where a run was cut short, and keep it in `file`.

    Afterwards its scores are free of costs, whatever the method.

    Raises:
        ModelOutputError: the loss is not finite; the last epoch's checkpoint is kept.
    """
    settings = config.gater
    device = connect().device
    optimizer = make_optimizer(model.to(device), settings.weight_decay)
    weights = torch.tensor(costs, dtype=torch.float32, device=device)
    losses = torch.from_numpy(training.losses).to(device)
    what = f"gater {method} {seed}"
    names = [expert.name for expert in config.experts]

    def loss_of(pixels: Tensor, chosen: Tensor, share: float) -> Tensor:
        return _loss(config, method, model(pixels), losses[chosen], weights, share)

    # While costs are in the loss they are not in the routing rule.
    in_training = config.latency_weight if method in COST_FREE else 0.0

    def train_epoch(epoch: int) -> float:
        epoch_seed = derived_seed("gater epoch", config.seed, seed, epoch)
        torch.manual_seed(epoch_seed)
        model.train()
        order = epoch_order(len(training.images.labels), settings.batch, epoch_seed, config.flip)
        fetch = _fetch_from(training, order)
        return run_epoch(what, model, optimizer, settings, epoch, order, fetch, loss_of, progress)

    def check() -> list[str]:
        some = validation.thinned(_EPOCH_CHECK_IMAGES)
        scores = predict(model, some.images.images)
        expect_finite(what, scores, settings)
        routes = route(scores, costs, in_training)
        return routing_lines(routes, some.right, costs, some.images.severities, names)

    def finish() -> None:
        if method not in COST_FREE:
            _free_of_costs(model, weights, config.latency_weight)

    run_epochs(what, model, optimizer, file, identity, settings.epochs, train_epoch, check, log, finish)
    routes = route(predict(model, validation.images.images), costs, config.latency_weight)
    warning = collapse_warning(routes, validation.losses, costs, config.latency_weight, names)
    if warning is not None:
        log(f"{what}: warning: {warning}")


def _fetch_from(training: Judged, order: Order) -> Fetch:
    """Serve images with their positions, by which their losses are found."""

    def fetch(step: int, piece: int) -> tuple[Tensor, Tensor]:
        chosen = order.chosen[step, piece]
        return mirror(training.images.images[chosen], order.mirrored[step, piece]), torch.from_numpy(chosen)

    return fetch


def _loss(config: TrainConfig, method: Method, scores: Tensor, losses: Tensor, costs: Tensor, share: float) -> Tensor:
    """Loss of one batch: scores [n, K], the experts' losses [n, K], costs [K], share of the training done."""
    settings = config.gater
    if method == "benefit":
        return benefit_loss(scores, losses, settings.loss_clip)
    if method == "regret":
        return regret_loss(scores, losses, costs, settings.loss_clip)
    first, last = settings.temperature
    temperature = first * (last / first) ** share
    routed = gumbel_loss if method == "gumbel" else likelihood_loss
    loss = routed(scores, losses, costs, config.latency_weight, temperature)
    if settings.balance > 0:
        loss = loss + settings.balance * balance_loss(scores)
    if settings.entropy > 0:
        loss = loss - settings.entropy * gate_entropy(scores)
    return loss


def _free_of_costs(model: ImageModel, costs: Tensor, latency_weight: float) -> None:
    """Shift the head so that subtracting latency_weight * cost gives the trained routes."""
    head = model.network.head
    if not isinstance(head, nn.Linear):
        raise TypeError("the gater's head is not a linear layer")
    with torch.no_grad():
        head.bias.add_(latency_weight * costs)
