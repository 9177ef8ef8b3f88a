"""The check of compiled models against the logits their bundle recorded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle import Bundle
from trt_moe.errors import ModelOutputError
from trt_moe.model import Model


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest absolute logit error over max(1, largest absolute expected logit); inf where not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))


def check_golden(bundle: Bundle, models: list[Model]) -> None:
    """Compare each model's logits on the golden images with the recorded ones.

    Raises:
        BundleError: the golden file is damaged.
        ModelOutputError: a model is further off than the tolerance for its precision.
    """
    golden = bundle.manifest.golden
    if golden is None:
        return
    arrays = bundle.golden()
    for model in models:
        if model.name not in arrays:
            continue
        error = relative_error(model.logits(arrays["images"]), arrays[model.name])
        limit = golden.tolerance[model.precision]  # type: ignore[index]
        if error > limit:
            raise ModelOutputError(
                f"{bundle.path}: {model.name} in {model.precision} on {model.device} is {error:.3g} off the bundle's "
                f"golden logits; at most {limit:g} is allowed. Try precision='fp32', copy the bundle again, or pass "
                "check=False to run it all the same"
            )


def answers_vary_with_batch(model: Model, bundle: Bundle) -> bool:
    """Whether some golden image gets other logits in a batch than alone, to the last bit; False if it has none."""
    if bundle.manifest.golden is None:
        return False
    images = bundle.golden()["images"]
    full = np.resize(images, (model.core.threads * max(model.core.buckets), *images.shape[1:]))
    alone = np.concatenate([model.logits(image[None]) for image in images])
    batched = model.logits(full)
    return not np.array_equal(batched, np.resize(alone, batched.shape))
