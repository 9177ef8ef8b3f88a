"""Measurements and trial runs of models that are being packed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle import Bundle, Latency, LatencyTable
from trt_moe.console import ProgressCallback
from trt_moe.errors import EngineBuildError, InputError, ModelOutputError
from trt_moe.export.reference import run_onnx
from trt_moe.logit_error import relative_error

BATCH_TOLERANCE = 1e-3
"""Largest accepted relative difference between the logits of an image alone and in a batch."""

_EXPORT_AGAIN = (
    "export it again with a dynamic batch dimension (torch.onnx.export(..., dynamic_shapes={...: {0: Dim('N')}}))"
)
_SEED = 0


def time_models(
    bundle: Bundle, precision: str, iterations: int, threads: int | None, progress: ProgressCallback
) -> tuple[LatencyTable, dict[str, float]]:
    """Time every model of a bundle for single images, in turns so that a busy moment falls on all.

    Returns:
        The table for the manifest, and the mean of each model in milliseconds.
    """
    from trt_moe.export.measure import time_in_turns
    from trt_moe.model import Model

    entries = [*bundle.models(), *bundle.baselines]
    # A router runs its gater in fp32 whatever the precision of the experts.
    precisions = {entry.name: "fp32" if entry.name == bundle.gater.name else precision for entry in entries}
    models = {
        name: Model.load(bundle, name, precision=precision, threads=threads) for name, precision in precisions.items()
    }
    image = noise_images(1, bundle.input_shape)[0]
    timings = time_in_turns(
        {name: model.core for name, model in models.items()},
        dict.fromkeys(models, image),
        iterations,
        lambda done, total: progress(f"timing models in {precision}", done, total),
    )
    expert = models[bundle.experts[-1].name]
    table = LatencyTable(
        device=expert.device,
        backend="openvino",
        precision=expert.precision,
        threads=expert.core.threads,
        models={name: Latency(**timing.summary()) for name, timing in timings.items()},
    )
    return table, {name: float(timing.milliseconds.mean()) for name, timing in timings.items()}


def check_runs(file: Path, shape: tuple[int, int, int], batch: int | None, what: str) -> tuple[str, ...]:
    """Run a wrapped model on single images and on a batch; gives what is odd about its answers, for people.

    Args:
        file: the wrapped model.
        shape: (height, width, channels) of the bundle's images.
        batch: number of images that the model said it takes before it was wrapped; None: any.
        what: start of the messages.

    Raises:
        InputError: it does not run.
        EngineBuildError: it needs its batch size, or a batch gives other logits than its images alone, or fails.
        ModelOutputError: the logits are not finite, or are probabilities.
    """
    images = noise_images(3, shape)
    try:
        alone = np.concatenate([run_onnx(file, image[None]) for image in images])
    except Exception as error:
        if batch not in (None, 1):
            raise EngineBuildError(f"{what}: works for batches of {batch} images only; {_EXPORT_AGAIN}") from error
        reason = str(error).splitlines()[0][:300]
        raise InputError(f"{what}: does not run on uint8 {shape} images ({reason})") from error
    if not np.isfinite(alone).all():
        raise ModelOutputError(f"{what}: gives logits that are not finite; check its weights and preprocessing")
    if alone.min() >= 0 and np.allclose(alone.sum(axis=1), 1, atol=1e-3):
        raise ModelOutputError(
            f"{what}: gives probabilities (0 or more, and 1 in sum) where a bundle holds logits; the router's softmax "
            "would flatten them. Export the network again without its softmax"
        )
    try:
        together = run_onnx(file, images)
        agrees = together.shape == alone.shape and relative_error(together, alone) < BATCH_TOLERANCE
    except Exception:
        agrees = False
    if not agrees and batch is None:
        raise EngineBuildError(
            f"{what}: says that it takes any number of images, but in a batch of 3 they get other logits than alone; "
            "look for a batch size that is fixed inside its graph (a Reshape to [1, ...]), and for what mixes the "
            "images of a batch (batch norm that was exported in training mode), and export it again without"
        )
    if not agrees:
        raise EngineBuildError(f"{what}: works for single images only; {_EXPORT_AGAIN}")
    if alone.min() >= 0 and alone.max() <= 1:
        return ("gives values from 0 to 1 only, as a sigmoid does: as logits they tell classes hardly apart",)
    return ()


def noise_images(count: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Reproducible uint8 [count, H, W, C] noise."""
    # Brightness differs from image to image, so that not all go to one expert.
    rng = np.random.default_rng(_SEED)
    level = np.linspace(0.2, 1.0, count)[:, None, None, None]
    noise: NDArray[np.float64] = rng.integers(0, 256, (count, *shape)) * level
    return noise.astype(np.uint8)
