"""ICNet: the image complexity predictor of IC9600, for comparison. Its weights are the user's own file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from trt_moe.console import ProgressCallback
from trt_moe.errors import BundleError
from trt_moe.models.preprocess import ImageModel
from trt_moe.models.weights import read_weights

_SIDE = 512
_CONTEXT_SIDE = 256
_BATCH = 8
_MAP_SIDE = _SIDE // 8
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The head that draws the complexity map is not needed for the score.
_UNUSED = "to_map"


class ICNet(nn.Module):
    """Complexity score of an image, from a detail branch at 512 px and a context branch at 256 px.

    Feng et al., IC9600: A Benchmark Dataset for Automatic Image Complexity Assessment, TPAMI 2022. The names of
    the parts are those of the published weights. Input float32 [N, 3, 512, 512], ImageNet-normalised; output
    float32 [N], 0 (simple) to 1 (complex).
    """

    def __init__(self) -> None:
        """Make an untrained network."""
        super().__init__()
        self.b1_1, self.b1_2 = _stages()[:2]
        self.b1_1_slam, self.b1_2_slam = _LayoutAttention(32), _LayoutAttention(32)
        self.b2_1, self.b2_2, self.b2_3, self.b2_4 = _stages()
        self.b2_1_slam, self.b2_2_slam = _LayoutAttention(32), _LayoutAttention(32)
        self.b2_3_slam, self.b2_4_slam = _LayoutAttention(16), _LayoutAttention(8)
        self.up1, self.up2 = _Convolution(128, 256, 1), _Convolution(512, 256, 1)
        self.to_score_f, self.to_score_f_slam = _Convolution(512, 512, 3), _LayoutAttention(32)
        self.head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1), nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        """Score the images."""
        detail = self.b1_2_slam(self.b1_2(self.b1_1_slam(self.b1_1(images))))
        context = self.b2_2_slam(self.b2_2(self.b2_1_slam(self.b2_1(_resize(images, _CONTEXT_SIDE)))))
        context = self.b2_4_slam(self.b2_4(self.b2_3_slam(self.b2_3(context))))
        features = torch.cat([self.up1(_resize(detail, _MAP_SIDE)), self.up2(_resize(context, _MAP_SIDE))], dim=1)
        pooled = self.to_score_f_slam(self.to_score_f(features)).mean(dim=(2, 3))
        score: Tensor = self.head(pooled)[:, 0]
        return score


def load_icnet(file: Path) -> ICNet:
    """Read the published weights, converted to safetensors.

    Raises:
        BundleError: no safetensors file (the message says how to convert a .pth), or of another network.
    """
    stored = read_weights(file)
    model = ICNet()
    try:
        model.load_state_dict({name: value for name, value in stored.items() if not name.startswith(_UNUSED)})
    except RuntimeError as error:
        found = ", ".join(sorted(stored)[:3])
        raise BundleError(
            f"{file} does not hold the weights of ICNet: it starts with {found}; expected those of IC9600, "
            "https://github.com/tinglyfeng/IC9600"
        ) from error
    return model.eval()


@torch.inference_mode()
def complexity(model: ICNet, images: NDArray[np.uint8], progress: ProgressCallback) -> NDArray[np.float64]:
    """Score uint8 [N, H, W, C] images of any size; float64 [N], 0 (simple) to 1 (complex)."""
    preprocess = ImageModel(nn.Identity(), (_SIDE, _SIDE), (_SIDE, _SIDE), _MEAN, _STD).preprocess
    scores = np.empty(len(images))
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        resized = np.stack([_resized(image) for image in images[part]])
        scores[part] = model(preprocess(torch.from_numpy(resized))).numpy()
        progress("complexity", min(start + _BATCH, len(images)), len(images))
    return scores


class _LayoutAttention(nn.Module):
    """Scales every channel by what a small network reads off its layout (SLAM in the paper)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.linear = nn.Sequential(nn.Linear(side * side, 512), nn.ReLU(), nn.Linear(512, 1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        scale: Tensor = self.linear(_resize(features, self.side).flatten(2))
        return features * scale[..., None]


class _Convolution(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(features)))


def _stages() -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """The four stages of an untrained ResNet-18, the stem in the first."""
    net = resnet18(weights=None)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
    return stem, net.layer2, net.layer3, net.layer4


def _resize(features: Tensor, side: int) -> Tensor:
    return functional.interpolate(features, (side, side), mode="bilinear", align_corners=True)


def _resized(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pixels = image[..., 0] if image.shape[2] == 1 else image[..., :3]
    picture = Image.fromarray(pixels).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return np.asarray(picture)
