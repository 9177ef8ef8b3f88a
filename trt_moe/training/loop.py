"""One epoch of optimizer steps, whatever is trained: order of images, learning rate, pieces, finite losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from trt_moe.errors import InputError, ModelOutputError
from trt_moe.training.checkpoint import load_checkpoint, save_checkpoint
from trt_moe.training.config import ExpertConfig, GaterConfig, JointConfig
from trt_moe.training.processes import connect
from trt_moe.training.schedule import one_cycle
from trt_moe.training.splits import Corrupted, derived_seed

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""
Fetch = Callable[[int, int], tuple[Tensor, Tensor]]
"""Called as fetch(step, piece); returns images uint8 [n, H, W, C] and what the loss compares with, int64 [n]."""
LossOf = Callable[[Tensor, Tensor, float], Tensor]
"""Called as loss_of(uint8 images [n, H, W, C], targets int64 [n], share of all steps done in 0..1)."""

_LOG_STEPS = 50
_NAMED_IMAGES = 8


@dataclass(frozen=True)
class Order:
    """Which images one process sees when, in an epoch.

    Attributes:
        chosen: int64 [steps, pieces, n], positions in the part.
        mirrored: bool [steps, pieces, n].
    """

    chosen: NDArray[np.int64]
    mirrored: NDArray[np.bool_]


def epoch_order(
    count: int, batch: int, seed: int, flip: bool, pieces: int = 1, process: int = 0, processes: int = 1
) -> Order:
    """Shuffle `count` images into steps of `batch`, half of them mirrored, and take one process's share.

    The order depends on the seed alone: all processes' shares together are the steps of a single process. A
    short rest is left out; where there are fewer images than one batch, they are the only step.

    Raises:
        InputError: too few images for every process and piece to get one.
    """
    if count < pieces * processes:
        raise InputError(f"{count} images for {processes} processes x {pieces} accumulated pieces; use fewer of them")
    generator = np.random.Generator(np.random.PCG64(derived_seed("order", seed)))
    order = generator.permutation(count)
    mirrored = generator.random(count) < 0.5 * flip
    size = min(batch, count) // (pieces * processes) * pieces * processes
    steps = count // size
    shape = (steps, pieces, processes, size // (pieces * processes))
    return Order(
        order[: steps * size].reshape(shape)[:, :, process], mirrored[: steps * size].reshape(shape)[:, :, process]
    )


def images_in_order(images: Corrupted, order: Order) -> Fetch:
    """Serve images that were drawn in the order of the epoch, with their labels."""
    size = order.chosen.shape[2]

    def fetch(step: int, piece: int) -> tuple[Tensor, Tensor]:
        start = (step * order.chosen.shape[1] + piece) * size
        rows = slice(start, start + size)
        return mirror(images.images[rows], order.mirrored[step, piece]), torch.from_numpy(images.labels[rows])

    return fetch


def mirror(images: NDArray[np.uint8], mirrored: NDArray[np.bool_]) -> Tensor:
    """Mirror some of the images, uint8 [n, H, W, C]."""
    return torch.from_numpy(np.where(mirrored[:, None, None, None], images[:, :, ::-1], images))


def partial_path(file: Path) -> Path:
    """Where `run_epochs` keeps an unfinished model and its optimizer, beside the file of the finished one."""
    return file.with_suffix(".partial.safetensors")


def run_epochs(
    what: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    file: Path,
    config_hash: str,
    epochs: int,
    train_epoch: Callable[[int], float],
    check: Callable[[], Sequence[str]],
    log: Callable[[str], None],
    finish: Callable[[], None] | None = None,
) -> None:
    """Go through the epochs, from the last finished one where a run was cut short.

    The first process keeps model and optimizer beside `file` after every epoch, and the model in `file` at the
    end.

    Args:
        what: name for messages.
        model: whose state is kept.
        optimizer: of its parameters.
        file: for the finished weights.
        config_hash: of all that decides them.
        epochs: how many.
        train_epoch: called with the epoch's number from 0; returns its mean loss.
        check: called after every epoch by the first process; returns what to log in its line, then lines under it, and
            raises where the model is not worth keeping.
        log: gets these.
        finish: called after the last epoch, and changes the model once more before it is kept.
    """
    main = connect().is_main_process
    partial = partial_path(file)
    done = load_checkpoint(partial, model, config_hash, optimizer) or 0
    if done:
        log(f"{what}: goes on after epoch {done} of {epochs}")
    for epoch in range(done, epochs):
        started = time.perf_counter()
        loss = train_epoch(epoch)
        if main:
            # Before it is kept: weights that the last step drove off show in no loss yet.
            checked, *under = check()
            save_checkpoint(partial, model, config_hash, epoch + 1, optimizer)
            seconds = time.perf_counter() - started
            log(f"{what}: epoch {epoch + 1}/{epochs} loss {loss:.4f} {checked} in {seconds:.0f} s")
            for line in under:
                log(f"  {line}")
    if finish is not None:
        finish()
    if main:
        save_checkpoint(file, model, config_hash, epochs)
        partial.unlink(missing_ok=True)


def run_epoch(
    what: str,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: ExpertConfig | GaterConfig | JointConfig,
    epoch: int,
    order: Order,
    fetch: Fetch,
    loss_of: LossOf,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
    indices: NDArray[np.int64] | None = None,
) -> float:
    """Train for one epoch.

    Args:
        what: name for progress and messages.
        network: whose gradients are clipped; from `share_network` where processes work together.
        optimizer: of its parameters.
        settings: epochs, learning_rate, warmup and clip.
        epoch: number of this one, from 0.
        order: its steps and pieces.
        fetch: gives images and targets.
        loss_of: mean loss of a piece.
        progress: called after every step.
        log: gets the loss of some steps.
        indices: positions in the training split by positions in the order, for messages; None: they are not known.

    Returns:
        The mean loss of a step, over all processes.

    Raises:
        ModelOutputError: a loss or a gradient is not finite; the step is not taken.
    """
    steps, pieces, _ = order.chosen.shape
    total = steps * settings.epochs
    device = next(network.parameters()).device
    losses = 0.0
    for step in range(steps):
        done = epoch * steps + step
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(done, total, settings.learning_rate, settings.warmup)
        optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=device)
        for piece in range(pieces):
            images, targets = fetch(step, piece)
            with _synchronised(network, piece == pieces - 1):
                loss = loss_of(images.to(device), targets.to(device), done / total) / pieces
                loss.backward()
            mean += loss.detach()
        # Enqueued before the loss is waited for, so that this is the only wait of a step.
        norm = nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        value = _over_processes(network, mean)
        for name, number in (("loss", value), ("the gradient's norm", float(norm))):
            if not math.isfinite(number):
                raise ModelOutputError(
                    f"{what}: {name} is {number} at epoch {epoch + 1}, step {step + 1} of {steps} "
                    f"({_named(order.chosen[step].ravel(), indices)}); {_kept_after(epoch)}. Lower learning_rate (now "
                    f"{settings.learning_rate})"
                )
        optimizer.step()
        losses += value
        if progress is not None:
            progress(what, done + 1, total)
        if log is not None and epoch == 0 and step % _LOG_STEPS == 0:
            log(f"{what}: step {step} loss {value:.4f}")
    return float(losses / steps)


def _named(rows: NDArray[np.int64], indices: NDArray[np.int64] | None) -> str:
    """Some images of a batch, for messages."""
    of = "this phase" if indices is None else "the training split"
    shown = rows[:_NAMED_IMAGES] if indices is None else indices[rows[:_NAMED_IMAGES]]
    return f"batch of images {', '.join(map(str, shown))}, ... of {of}, counted from 0"


def _kept_after(epochs: int) -> str:
    """What is left of a run that stops after so many whole epochs, for messages."""
    return f"the checkpoint of epoch {epochs} is kept" if epochs else "nothing is kept yet, it was the first epoch"


def expect_finite(what: str, logits: NDArray[np.float32], settings: ExpertConfig | GaterConfig | JointConfig) -> None:
    """Refuse a model that its last steps drove off.

    Raises:
        ModelOutputError: a logit on validation images is not finite.
    """
    if not np.isfinite(logits).all():
        raise ModelOutputError(
            f"{what}: logits on validation images are not finite after this epoch; it is not kept. Lower learning_rate "
            f"(now {settings.learning_rate})"
        )


def _synchronised(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Average gradients over processes after the last piece of a step only."""
    if last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[None] = network.no_sync()
    return waiting


def _over_processes(network: nn.Module, value: Tensor) -> float:
    """Mean of a scalar over the processes that train this network together."""
    if isinstance(network, DistributedDataParallel):
        distributed.all_reduce(value)
        value = value / distributed.get_world_size()
    return float(value)
