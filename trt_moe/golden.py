"""The check of compiled models against the logits their bundle recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle import Bundle
from trt_moe.errors import ModelOutputError
from trt_moe.logit_error import relative_error
from trt_moe.model import Model

_COARSE = "Try precision='fp32' (--precision fp32). "


def check_golden(bundle: Bundle, golden: dict[str, NDArray[Any]], models: list[Model]) -> None:
    """Compare each model's logits on the golden images with the recorded ones.

    Args:
        bundle: where the tolerances are.
        golden: `bundle.golden()`.
        models: the compiled ones.

    Raises:
        ModelOutputError: a model is further off than the tolerance for its precision.
    """
    assert bundle.manifest.golden is not None
    tolerance = {str(precision): limit for precision, limit in bundle.manifest.golden.tolerance.items()}
    for model in models:
        error = relative_error(model.logits(golden["images"]), golden[model.name])
        # Both have some eight bits to tell values apart.
        limit = tolerance["bf16" if model.precision == "int8" else model.precision]
        if error > limit:
            raise ModelOutputError(
                f"{bundle.path}: {model.name} in {model.precision} on {model.device} is {error:.3g} off the bundle's "
                f"golden logits; at most {limit:g} is allowed. {'' if model.precision == 'fp32' else _COARSE}Copy the "
                "bundle again; Router(check=False) runs it all the same"
            )


def noise_images(shape: tuple[int, int, int], count: int = 4) -> NDArray[np.uint8]:
    """Uniform noise, uint8 [count, H, W, C], for bundles without golden images."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def same_in_any_batch(model: Model, images: NDArray[np.uint8]) -> bool:
    """Whether each image gets the same logits, to the last bit, alone and in every bucket on every thread count."""
    alone = np.concatenate([model.logits(image[None]) for image in images])
    for bucket in model.core.buckets:
        # So many that the fair share of each worker is this bucket; two at least, since one takes the latency lane.
        count = max(2, model.core.threads * bucket)
        batched = model.logits(np.resize(images, (count, *images.shape[1:])))
        if not np.array_equal(batched, np.resize(alone, batched.shape), equal_nan=True):
            return False
    return True
