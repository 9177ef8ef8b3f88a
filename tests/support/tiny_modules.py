"""The models of a tiny bundle as torch modules, for GPUs without TensorRT."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from tests.support.tiny_bundle import EXPERT_SCALE, GATER_SCALE, TinyBundle, linear_weights


class Brightness(nn.Module):
    """Linear in the mean brightness of an image, or of its left half; uint8 [N, H, W, C] to float32 [N, outputs]."""

    weight: Tensor
    bias: Tensor

    def __init__(self, outputs: int, scale: float, left: bool, nan: bool) -> None:
        super().__init__()
        weight, bias = (torch.from_numpy(values) for values in linear_weights(outputs, scale))
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.full_like(bias, torch.nan) if nan else bias)
        self.left = left

    def forward(self, images: Tensor) -> Tensor:
        if self.left:
            images = images[:, :, : images.shape[2] // 2]
        brightness = (images.float() / 255).mean(dim=(1, 2, 3))
        return brightness[:, None] * self.weight + self.bias


def tiny_modules(tiny: TinyBundle, nan: Collection[str] = ()) -> dict[str, nn.Module]:
    """The gater and the experts by name; those in `nan` give no number."""
    modules: dict[str, nn.Module] = {"gater": Brightness(tiny.experts, GATER_SCALE, False, "gater" in nan)}
    for index in range(tiny.experts):
        name = f"expert-{index}"
        modules[name] = Brightness(tiny.classes, EXPERT_SCALE * (index + 1), True, name in nan)
    return modules
