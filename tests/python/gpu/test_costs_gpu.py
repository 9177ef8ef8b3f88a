"""Costs measured on a GPU, as training does where `latency_device` says so."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: exporting needs it")

from trt_moe.export.measure_gpu import gpu_for, measure_latency_on_gpu
from trt_moe.models import ImageModel, SqueezeNetLight, create_expert

SHAPE = (224, 224, 3)


def test_models_are_timed_alone() -> None:
    torch.manual_seed(0)
    names = {"light": "squeezenet1_1", "heavy": "deit_tiny_patch16_224"}
    classifiers = {
        name: image_model(create_expert(model, num_classes=5, image_size=224), 224) for name, model in names.items()
    }
    gpu = gpu_for("cuda")
    assert gpu is not None
    found = measure_latency_on_gpu(gpu, image_model(SqueezeNetLight(2, 3, 96), 96), 2, classifiers, SHAPE, 5, 50)
    milliseconds = {name: timing.milliseconds for name, timing in found.items()}
    assert {name: times.shape for name, times in milliseconds.items()} == {
        "light": (50,),
        "heavy": (50,),
        "gater": (50,),
    }
    assert all((times > 0).all() for times in milliseconds.values())


def image_model(network: torch.nn.Module, side: int) -> ImageModel:
    return ImageModel(network, SHAPE[:2], (side, side), [0.5] * 3, [0.5] * 3).eval()
