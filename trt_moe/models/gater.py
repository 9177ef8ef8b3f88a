"""The gater: a SqueezeNet-like network small enough to cost a few percent of any expert."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trt_moe.errors import InputError
from trt_moe.models.preprocess import ImageModel

GATER_SIDE = 96
"""The gater sees images at this side, or at the bundle's own where that is smaller."""


class Fire(nn.Module):
    """SqueezeNet's block with batch norm: 1x1 squeeze, then 1x1 and 3x3 expand side by side.

    Input [N, inputs, H, W], output [N, 2 * expand, H, W].
    """

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * expand)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Squeeze, expand both ways, concatenate."""
        x = self.activation(self.squeeze(x))
        x = self.norm(torch.cat([self.expand1(x), self.expand3(x)], dim=1))
        y: Tensor = self.activation(x)
        return y

    def fused(self) -> nn.Sequential:
        """Return the same in two convolutions, for inference, where every kernel counts.

        The 1x1 expansion becomes a 3x3 one with zeros around it, beside the other, and the batch norm a part of both;
        as Ding et al., RepVGG, CVPR 2021, do.
        """
        both = copy.deepcopy(self.expand3).eval()
        both.out_channels = self.norm.num_features
        both.weight = nn.Parameter(torch.cat([pad(self.expand1.weight, (1, 1, 1, 1)), self.expand3.weight]))
        assert self.expand1.bias is not None and self.expand3.bias is not None
        both.bias = nn.Parameter(torch.cat([self.expand1.bias, self.expand3.bias]))
        fused = fuse_conv_bn_eval(both, copy.deepcopy(self.norm).eval())
        return nn.Sequential(copy.deepcopy(self.squeeze), nn.ReLU(), fused, nn.ReLU())


class SqueezeNetLight(nn.Module):
    """Scores the experts of a bundle for every image.

    Input float32 [N, channels, side, side], normalised; output float32 [N, experts]. The head starts at
    zero, so an untrained gater has no preference. Inputs larger than 32 px pass one more Fire block at a
    lower resolution, so that the cost stays about that of its first convolution.
    """

    def __init__(self, experts: int, channels: int = 3, side: int = GATER_SIDE, width: int = 16) -> None:
        """Build for `experts` >= 2; `width` is the number of channels of the first convolution (even).

        Raises:
            InputError: fewer than two experts, or a width or side that leaves no pixels.
        """
        super().__init__()
        if experts < 2 or channels < 1 or side < 8 or width < 2 or width % 2:
            raise InputError(
                f"a gater needs experts >= 2, channels >= 1, side >= 8 and an even width >= 2; "
                f"got {experts}, {channels}, {side}, {width}"
            )
        blocks: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Fire(width, width // 2, width // 2),
            nn.MaxPool2d(2),
            Fire(width, width // 2, width),
        ]
        features = 2 * width
        if side > 32:
            blocks += [nn.MaxPool2d(2), Fire(features, width, 2 * width)]
            features = 4 * width
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(features, experts)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Score: higher means that the expert suits the image better."""
        scores: Tensor = self.head(self.features(x).mean(dim=(2, 3)))
        return scores

    def fused(self) -> SqueezeNetLight:
        """Return a copy for inference that scores the same, to rounding: two convolutions a block, no batch norm."""
        fused = copy.deepcopy(self).eval()
        first, norm, *rest = fused.features
        if isinstance(first, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers = (layer.fused() if isinstance(layer, Fire) else layer for layer in rest)
            fused.features = nn.Sequential(fuse_conv_bn_eval(first, norm), *layers)
        return fused.eval()


def fused_gater(gater: ImageModel) -> ImageModel:
    """Return a copy of a gater for inference, see `SqueezeNetLight.fused`; it learns no more."""
    assert isinstance(gater.network, SqueezeNetLight)
    fused = copy.deepcopy(gater).eval()
    fused.network = gater.network.fused()
    return fused
