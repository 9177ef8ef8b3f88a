"""The experts phase: every classifier is trained alone, on the severities that are its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from timm.layers.patch_dropout import PatchDropout
from torch import Tensor, nn

from trt_moe.bundle.writer import write_bytes
from trt_moe.data.corruptions import EVALUATION_SEED
from trt_moe.errors import InputError
from trt_moe.models import ImageModel, create_expert
from trt_moe.training.checkpoint import config_hash_of, load_checkpoint
from trt_moe.training.config import WEIGHTS_FILE, ExpertConfig, TrainConfig
from trt_moe.training.loop import (
    Progress,
    epoch_order,
    expect_finite,
    images_in_order,
    partial_path,
    run_epoch,
    run_epochs,
)
from trt_moe.training.losses import distillation_loss, soft_loss
from trt_moe.training.processes import check_batch, connect, has_batch_norm, share_network
from trt_moe.training.run_files import writing
from trt_moe.training.splits import Corrupted, Part, Parts, derived_seed, draw, every_severity

PREDICT_BATCH = 500
_EPOCH_CHECK_IMAGES = 500


@dataclass(frozen=True)
class Shape:
    """What the data set asks of a network."""

    height: int
    width: int
    channels: int
    classes: int


def build(config: TrainConfig, expert: ExpertConfig, shape: Shape, from_file: bool = False) -> ImageModel:
    """Make the untrained model behind the bundle's interface (uint8 NHWC in, logits out).

    With `from_file` a checkpoint will replace its weights, so those it would start from are neither fetched nor read.
    """
    torch.manual_seed(derived_seed("init", config.seed, expert.seed, expert.name))
    network = create_expert(
        expert.model,
        num_classes=shape.classes,
        in_chans=shape.channels,
        image_size=expert.image_size,
        pretrained=expert.pretrained and not from_file,
        weights=None if from_file else expert.weights,
        options=expert.options,
        all_weights=expert.epochs == 0,
    )
    graph_size = (expert.image_size, expert.image_size)
    return ImageModel(network, (shape.height, shape.width), graph_size, config.mean, config.std)


def checkpoint_path(folder: Path, name: str) -> Path:
    """Where the finished weights of a classifier lie."""
    return folder / f"{name}.safetensors"


def train_experts(
    config: TrainConfig,
    parts: Parts,
    shape: Shape,
    folder: Path,
    progress: Progress | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, ImageModel]:
    """Train, or load where it is done already, every teacher, expert and baseline, in this order.

    Under `torchrun` all processes call this; the first one writes and logs.

    Args:
        config: what to train.
        parts: `parts.experts` is learned from, `parts.validation` only looked at.
        shape: of the images and labels.
        folder: for the checkpoints.
        progress: called after every step.
        log: gets one line per event.

    Returns:
        Every model by name, in evaluation mode, on this process's device.

    Raises:
        InputError: a batch that the processes cannot share, or a network that cannot be built or started as the
            configuration says; nothing is trained then.
        ModelOutputError: a loss is not finite; the last epoch's checkpoint is kept.
    """
    processes = connect()
    for expert in config.classifiers():
        check_batch(processes, expert.name, expert.batch, expert.accumulate)
    # All before the first is trained, as a mistake in the last one must not show after hours.
    models = {expert.name: _untrained(config, expert, shape, folder) for expert in config.classifiers()}
    for expert in config.classifiers():
        if expert.start_from is not None:
            check_start(models[expert.name], models[expert.start_from], expert)
    if processes.is_main_process and (kept := config.weights_sha256()):
        with writing(folder / WEIGHTS_FILE):
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / WEIGHTS_FILE, json.dumps(kept).encode())
    for expert in config.classifiers():
        model, file = models[expert.name], checkpoint_path(folder, expert.name)
        if load_checkpoint(file, model, config.expert_hash(expert)) is not None:
            log(f"{expert.name}: already trained, {file}")
        else:
            if file.is_file():
                log(f"{expert.name}: {file} was made by another configuration; it is trained again and replaced")
            teacher = models[expert.teacher] if expert.teacher is not None else None
            if expert.start_from is not None:
                start_from(model, models[expert.start_from])
            train_expert(config, expert, model, parts, folder, teacher, progress, log)
        model.eval().to(processes.device)
    return models


def _untrained(config: TrainConfig, expert: ExpertConfig, shape: Shape, folder: Path) -> ImageModel:
    file, identity = checkpoint_path(folder, expert.name), config.expert_hash(expert)
    begun = identity in (config_hash_of(file), config_hash_of(partial_path(file)))
    model = build(config, expert, shape, begun).to(memory_format=torch.channels_last)
    if expert.token_drop > 0:
        _drop_tokens(model.network, 0.0)
    return model


def check_start(model: ImageModel, source: ImageModel, expert: ExpertConfig) -> None:
    """Refuse a network that cannot start from another one.

    Raises:
        InputError: a tensor of `source` has no place in `model`.
    """
    given, own = source.network.state_dict(), model.network.state_dict()
    homeless = [name for name, value in given.items() if name not in own or own[name].shape != value.shape]
    if homeless:
        raise InputError(
            f"{expert.name} starts from {expert.start_from}, but their networks differ ({homeless[0]} fits nowhere); "
            "give both the same model and options; only more blocks in a stage are possible"
        )


def start_from(model: ImageModel, source: ImageModel) -> None:
    """Copy the weights of `source`, which may see another image size or have fewer residual blocks.

    Blocks that `source` lacks keep their own start. Timm starts the last norm of a residual block at zero, so
    a deeper network begins as the very function of the shallower one (Net2Net, Chen et al. 2016).
    """
    model.network.load_state_dict(source.network.state_dict(), strict=False)


def train_expert(
    config: TrainConfig,
    expert: ExpertConfig,
    model: ImageModel,
    parts: Parts,
    folder: Path,
    teacher: ImageModel | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train one classifier, from its last finished epoch where a run was cut short.

    Raises:
        ModelOutputError: the loss is not finite; the last epoch's checkpoint is kept.
    """
    processes = connect()
    network = share_network(processes, model)
    if processes.num_processes > 1 and processes.device.type == "cpu" and has_batch_norm(network):
        log(f"{expert.name}: warning: each CPU process normalises its own images; one process gives other weights")
    optimizer = make_optimizer(model, expert.weight_decay)
    seen = every_severity(parts.validation.take(slice(_EPOCH_CHECK_IMAGES)), config.corruption, EVALUATION_SEED)

    def train_epoch(epoch: int) -> float:
        return _train_epoch(
            config, expert, model, network, optimizer, parts.experts, epoch, teacher, processes, progress, log
        )

    def check() -> list[str]:
        logits = predict(model, seen.images, config.precision)
        expect_finite(expert.name, logits, expert)
        accuracies = severity_accuracy(logits, seen)
        return [f"validation {' '.join(f'{a:.3f}' for a in accuracies)} mean {np.mean(accuracies):.4f}"]

    file = checkpoint_path(folder, expert.name)
    run_epochs(expert.name, model, optimizer, file, config.expert_hash(expert), expert.epochs, train_epoch, check, log)


def _train_epoch(
    config: TrainConfig,
    expert: ExpertConfig,
    model: ImageModel,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    part: Part,
    epoch: int,
    teacher: ImageModel | None,
    processes: Accelerator,
    progress: Progress | None,
    log: Callable[[str], None],
) -> float:
    """One pass over the part; returns the mean loss."""
    # Everything random in an epoch starts from the epoch's own seed: a resumed run repeats it exactly.
    seed = derived_seed("epoch", config.seed, expert.seed, expert.name, epoch)
    torch.manual_seed(seed + processes.process_index)
    order = epoch_order(
        len(part.labels), expert.batch, seed, config.flip,
        expert.accumulate, processes.process_index, processes.num_processes,
    )  # fmt: skip
    images = draw(part, expert.severities, config.corruption, seed, order.chosen.ravel())
    distilled = teacher is not None and _set_distilled(model.network)
    if expert.token_drop > 0:
        _drop_tokens(model.network, expert.token_drop if epoch < expert.token_drop_epochs else 0.0)
    model.train()

    def loss_of(pixels: Tensor, labels: Tensor, _: float) -> Tensor:
        with autocast(config.precision, pixels.device.type):
            output = network(_channels_last(model.preprocess(pixels)))
            with torch.no_grad():
                target = teacher(pixels).float() if teacher is not None else None
        student, pupil = (output[0].float(), output[1].float()) if distilled else (output.float(), None)
        loss = distillation_loss(student, labels, target, expert.distill_weight, expert.temperature)
        if pupil is not None and target is not None:
            loss = loss + soft_loss(pupil, target, expert.temperature)
        return loss

    return run_epoch(
        expert.name, network, optimizer, expert, epoch, order, images_in_order(images, order), loss_of, progress, log,
        part.indices,
    )  # fmt: skip


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; biases, norms and tokens (fewer than two dimensions, or one row) are not decayed."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for parameter in model.parameters():
        (free if parameter.squeeze().ndim < 2 else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


@torch.no_grad()
def predict(model: nn.Module, images: NDArray[np.uint8], precision: str = "fp32") -> NDArray[np.float32]:
    """Logits float32 [N, K] for uint8 [N, H, W, C], in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for start in range(0, len(images), PREDICT_BATCH):
        pixels = torch.from_numpy(images[start : start + PREDICT_BATCH]).to(device)
        with autocast(precision, device.type):
            rows.append(model(pixels).float().cpu().numpy())
    return np.concatenate(rows)


def severity_accuracy(logits: NDArray[np.float32], images: Corrupted) -> list[float]:
    """Share of right answers at each severity."""
    right = logits.argmax(1) == images.labels
    return [float(right[images.severities == s].mean()) for s in np.unique(images.severities)]


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """Bfloat16 inside, where the config says so; `device` is "cpu" or "cuda"."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _set_distilled(network: nn.Module) -> bool:
    """Ask timm's distilled transformers for both heads in training; False where there is one head."""
    setter = getattr(network, "set_distilled_training", None)
    if setter is None:
        return False
    setter(True)
    return True


def _drop_tokens(network: nn.Module, rate: float) -> None:
    """Let a timm transformer see a random part of each image's tokens while it trains, to train faster.

    Raises:
        InputError: this network has no tokens to drop.
    """
    prefix = getattr(network, "num_prefix_tokens", None)
    if not isinstance(prefix, int) or not hasattr(network, "patch_drop"):
        raise InputError(f"token_drop needs a vision transformer of timm, not {type(network).__name__}")
    # Timm's own patch_drop_rate would also drop the distillation token, which comes second.
    network.patch_drop = PatchDropout(rate, num_prefix_tokens=prefix) if rate > 0 else nn.Identity()
