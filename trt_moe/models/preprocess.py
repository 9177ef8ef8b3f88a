"""Preprocessing and calibration as parts of the network, so that no runtime can disagree with training about them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_moe.errors import InputError


class ImageModel(nn.Module):
    """A float network behind the bundle's interface.

    Input `images` uint8 [N, H, W, C]; output `logits` float32 [N, K]. Inside: cast, permute, scale and
    bias (that is (x / 255 - mean) / std), a bilinear resize where the network wants another size, the network,
    and a division by the temperature that makes its probabilities as sure as it is right.
    """

    scale: Tensor
    bias: Tensor
    temperature: Tensor | None
    """What calibrated logits were divided by, a scalar; None: logits are as the network answers them."""

    def __init__(
        self,
        network: nn.Module,
        input_size: tuple[int, int],
        graph_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Wrap `network`, which takes float32 [N, C, *graph_size] with C = len(mean).

        Raises:
            InputError: mean and std of different lengths, or a std that is not positive.
        """
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise InputError(f"mean and std need one value per channel, std > 0; got {list(mean)} and {list(std)}")
        self.network = network
        self.graph_size = graph_size
        self.resize = input_size != graph_size
        shape = (1, len(mean), 1, 1)
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]).reshape(shape))
        self.register_buffer("bias", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).reshape(shape))
        # No part of a checkpoint. A tensor, as torch.compile treats the second number that it meets unlike the first.
        self.register_buffer("temperature", None, persistent=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Turn uint8 [N, H, W, C] into float32 [N, C, *graph_size], as the network sees it."""
        x = images.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.bias
        if self.resize:
            x = functional.interpolate(x, self.graph_size, mode="bilinear", align_corners=False)
        return x

    def calibrate(self, logits: Tensor) -> Tensor:
        """Turn what the network answers, of any float type, into calibrated logits in float32."""
        logits = logits.float()
        return logits if self.temperature is None else logits / self.temperature

    def with_temperature(self, temperature: float) -> ImageModel:
        """Return a copy that divides its logits."""
        model = copy.deepcopy(self)
        model.temperature = self.scale.new_tensor(temperature)
        return model

    def forward(self, images: Tensor) -> Tensor:
        """Answer with logits float32 [N, K]."""
        return self.calibrate(self.network(self.preprocess(images)))
