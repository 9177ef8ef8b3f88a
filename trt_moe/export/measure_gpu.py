"""Latency of trained models on a GPU, captured from torch in float16 as a router captures modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import nn

from trt_moe import _core
from trt_moe.cuda.capture import Source, capture_model
from trt_moe.cuda.device import open_device
from trt_moe.cuda.gater_source import GaterSource, weights_of_module
from trt_moe.cuda.torch_source import HalfModel, TorchSource
from trt_moe.errors import DeviceError
from trt_moe.export.bundle_writer import GATER
from trt_moe.export.measure import Timing, time_in_turns
from trt_moe.models import ImageModel, fused_gater


def gpu_for(wanted: Literal["cpu", "auto", "cuda"]) -> _core.CudaDevice | None:
    """Open the GPU whose latencies count; None: the CPU's do.

    Raises:
        DeviceError: "cuda" is wanted and there is none; says what was looked for.
    """
    if wanted == "cpu":
        return None
    try:
        return open_device()
    except DeviceError:
        if wanted == "cuda":
            raise
        return None


def measure_latency_on_gpu(
    device: _core.CudaDevice,
    gater: ImageModel,
    experts: int,
    classifiers: Mapping[str, ImageModel],
    input_shape: tuple[int, int, int],
    classes: int,
    iterations: int = 1000,
) -> dict[str, Timing]:
    """Time every model at batch 1, in turns, so that a busy moment falls on all; copies and the wait are included.

    Args:
        device: to measure on.
        gater: trained or not.
        experts: that it scores.
        classifiers: experts and baselines by name.
        input_shape: (height, width, channels) of the images.
        classes: that they tell apart.
        iterations: timed runs of each.

    Returns:
        By name; the gater's is "gater".
    """
    halves = {name: HalfModel(model) for name, model in classifiers.items()}
    captured = capture_alone(device, gater, experts, halves, input_shape, classes)
    image = np.random.Generator(np.random.PCG64(0)).integers(0, 256, input_shape, dtype=np.uint8)
    return time_in_turns(captured, dict.fromkeys(captured, image), iterations)


def capture_alone(
    device: _core.CudaDevice,
    gater: ImageModel,
    experts: int,
    modules: Mapping[str, nn.Module],
    input_shape: tuple[int, int, int],
    classes: int,
) -> dict[str, _core.Model]:
    """Capture models for single images, as `measure_latency_on_gpu` does; `modules`, by name, may be compiled."""

    def capture(name: str, source: Source, outputs: int, precision: str = "fp16") -> _core.Model:
        return capture_model(
            source, device, name=name, input_shape=input_shape, outputs=outputs, buckets=(1,), precision=precision
        )

    captured = {name: capture(name, TorchSource(module), classes) for name, module in modules.items()}
    weights = weights_of_module(gater, input_shape, experts)
    if weights is None:
        captured[GATER] = capture(GATER, TorchSource(HalfModel(fused_gater(gater))), experts)
    else:
        captured[GATER] = capture(GATER, GaterSource(weights), experts, "fp32")
    return captured
