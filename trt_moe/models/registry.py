"""Experts by name: torchvision's SqueezeNets and every image classifier of timm."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import nn

from trt_moe.errors import BundleError, InputError
from trt_moe.models.weights import read_weights

_TORCHVISION: dict[str, Callable[..., nn.Module]] = {
    "squeezenet1_0": torchvision.models.squeezenet1_0,
    "squeezenet1_1": torchvision.models.squeezenet1_1,
}


@cache
def expert_names() -> tuple[str, ...]:
    """Return every name that `create_expert` knows, sorted."""
    return tuple(sorted({*_TORCHVISION, *timm.list_models()}))


def create_expert(
    name: str,
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    all_weights: bool = False,
) -> nn.Module:
    """Build a classifier: float32 [N, in_chans, side, side] in, float32 [N, num_classes] out.

    Args:
        name: of torchvision (squeezenet1_0, squeezenet1_1) or timm.
        num_classes: size of the new head.
        in_chans: channels of the image.
        image_size: side in pixels, for those timm models that must know it (vision transformers).
        pretrained: let timm or torchvision fetch pretrained weights, or take them from their caches; the head and,
            for torchvision, the first convolution are fitted anew where they differ.
        weights: local safetensors file to start from; tensors of another shape (the head) are left out.
        options: more arguments for timm's constructor, such as patch_size, depth or drop_rate.
        all_weights: `weights` must hold every tensor, the head's too.

    Raises:
        InputError: unknown name (near matches are given), arguments the constructor refuses, or pretrained weights
            that do not exist or cannot be fetched.
        BundleError: `weights` cannot be read, or fits half of this model's tensors or fewer, or not all where it must.
    """
    if name in _TORCHVISION:
        model = _create_squeezenet(name, num_classes, in_chans, pretrained, dict(options or {}))
    elif timm.is_model(name):
        arguments: dict[str, Any] = dict(options or {})
        if image_size is not None and _takes_image_size(name):
            arguments.setdefault("img_size", image_size)
        try:
            model = timm.create_model(
                name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **arguments
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise InputError(f"timm cannot build {name} with {arguments}: {error}") from error
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise InputError(_unfetched(name, error)) from error
    else:
        raise InputError(_unknown(name))
    if weights is not None:
        _load_matching(model, Path(weights), all_weights)
    return model


def _takes_image_size(name: str) -> bool:
    """Say whether timm fixes this model's input size (then the constructor takes img_size)."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config is not None and config.fixed_input_size)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), expert_names(), n=4, cutoff=0.6)
    hint = f"near matches: {', '.join(near)}" if near else "trt_moe.models.expert_names() lists all"
    return f"no expert is called {name!r}; {hint}"


def _unfetched(name: str, error: Exception) -> str:
    return (
        f"the pretrained weights of {name} cannot be had: {error}; where there is no network, fetch them elsewhere and "
        "give the file (weights: FILE.safetensors instead of pretrained: true)"
    )


def _create_squeezenet(
    name: str, num_classes: int, in_chans: int, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    """Build torchvision's network without its last ReLU, and with another stem where the image is not RGB."""
    try:
        if pretrained:
            model = _TORCHVISION[name](weights="DEFAULT", **options)
        else:
            model = _TORCHVISION[name](num_classes=num_classes, **options)
    except TypeError as error:
        raise InputError(f"torchvision cannot build {name} with {options}: {error}") from error
    except OSError as error:
        raise InputError(_unfetched(name, error)) from error
    features, classifier = model.features, model.classifier
    if not isinstance(features, nn.Sequential) or not isinstance(classifier, nn.Sequential):
        raise InputError(f"this torchvision builds {name} in another way than 0.19 to 0.29 do")
    stem, head = features[0], classifier[1]
    if not isinstance(stem, nn.Conv2d) or not isinstance(head, nn.Conv2d):
        raise InputError(f"this torchvision builds {name} in another way than 0.19 to 0.29 do")
    if in_chans != stem.in_channels:
        features[0] = _new_conv(in_chans, stem)
    # Torchvision ends in a ReLU: a class whose logits start below zero then never learns at all.
    classifier[2] = nn.Identity()
    if pretrained:
        classifier[1] = _new_head(head.in_channels, num_classes)
    return model


def _new_conv(in_chans: int, like: nn.Conv2d) -> nn.Conv2d:
    """Make an untrained convolution like another but for the number of input channels."""
    kernel, stride = (like.kernel_size[0], like.kernel_size[1]), (like.stride[0], like.stride[1])
    conv = nn.Conv2d(in_chans, like.out_channels, kernel, stride=stride)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _new_head(features: int, num_classes: int) -> nn.Conv2d:
    """Make an untrained classifier head as torchvision starts its own."""
    conv = nn.Conv2d(features, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _load_matching(model: nn.Module, file: Path, everything: bool) -> None:
    """Copy the tensors of `file` whose name and shape fit."""
    # Those of a run of ours are of the whole model, preprocessing and all.
    stored = {name.removeprefix("model.network."): value for name, value in read_weights(file).items()}
    own = model.state_dict()
    fitting = {k: v for k, v in stored.items() if k in own and own[k].shape == v.shape}
    if len(fitting) <= len(own) / 2:
        raise BundleError(
            f"{file} fits {len(fitting)} of the {len(own)} tensors of this model; it was saved from another "
            f"architecture: it starts with {', '.join(sorted(stored)[:2])}, expected {', '.join(sorted(own)[:2])}"
        )
    # A batch norm's count of batches is of no use after training, and not every file has it.
    left = [k for k in own if k not in fitting and not k.endswith("num_batches_tracked")]
    if everything and left:
        raise BundleError(
            f"{file} lacks {', '.join(left[:2])}{', ...' if len(left) > 2 else ''} of this model in its shape, such as "
            "a head for these classes; without training (epochs: 0) it must hold all weights"
        )
    model.load_state_dict(fitting, strict=False)
