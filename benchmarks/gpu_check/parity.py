"""Logits and routes of the captured models against torch in float32, alone and in every kind of batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_check.mixture import EXPERTS, GATER, WEIGHTS, Images, Mixture, make_mixture
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.routers import answers, choose_engines, routes_right
from trt_moe import Router
from trt_moe.softmax import softmax

LARGEST_ERROR = 0.03
"""Of a logit over the largest: above what float16 loses (0.002, a gater in it 0.02), below how far the logits of one
image are from the next one's (0.04 at least), so that rows out of order are seen."""
LARGEST_DIFFERENCE = 0.003
"""Of a probability: ten times what float16 loses."""
BATCHES = (1, 2, 3, 5, 8, 31, 32, 33)
"""Buckets, batches that are padded, and one above the largest bucket."""


def run(work: Work) -> dict[str, Any]:
    mixture = make_mixture()
    routers = choose_engines(work, mixture)
    images = _varied(max(BATCHES), mixture.images.shape[1:])
    expected = _answers(mixture)
    models: dict[str, Any] = {}
    plans: dict[str, Any] = {}
    found = {
        "engines": routers.engines,
        "why": routers.why,
        "weights": WEIGHTS,
        "models": models,
        "gater": GATER,
        "plans": plans,
    }
    for plan in ("auto", "host-routed"):
        with routers.open(plan) as router:
            if plan == "auto":
                for name, module in mixture.models.items():
                    models[name] = _compare(router, name, module, images)
                    work.keep(found)
            plans[router.plan] = {
                "reason": router.plan_reason,
                "routes_right": routes_right(router, mixture, BATCHES),
                **_compare_answers(router, mixture, expected),
            }
            work.keep(found)
    return found


def _varied(count: int, shape: tuple[int, ...]) -> Images:
    """Noise of another colour and strength in every image, as networks that are not trained tell little else apart."""
    random = np.random.default_rng(1)
    middle = random.integers(40, 216, (count, 1, 1, shape[2]))
    half = random.integers(5, 40, (count, 1, 1, 1))
    return random.integers(middle - half, middle + half, (count, *shape)).astype(np.uint8)


def _answers(mixture: Mixture) -> NDArray[np.float32]:
    """Probabilities of each of the mixture's images, by the expert it is for."""
    models = [mixture.models[name] for name in EXPERTS]
    logits = [_in_float32(model, image[None]) for model, image in zip(models, mixture.images, strict=True)]
    return softmax(np.concatenate(logits))


def _compare_answers(router: Router, mixture: Mixture, expected: NDArray[np.float32]) -> dict[str, Any]:
    difference = max(
        float(np.abs(result.probabilities - expected[wanted]).max())
        for wanted, result in answers(router, mixture, BATCHES)
    )
    return {"passed": difference <= LARGEST_DIFFERENCE, "largest_difference_of_a_probability": difference}


def _in_float32(module: torch.nn.Module, images: Images) -> NDArray[np.float32]:
    # cuDNN would round what it multiplies to TF32, which is no more exact than float16.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits: NDArray[np.float32] = module.cuda()(torch.from_numpy(images).cuda()).cpu().numpy()
    return logits


def _compare(router: Router, name: str, module: torch.nn.Module, images: Images) -> dict[str, Any]:
    expected = _in_float32(module, images)
    found = {count: router.model(name).logits(images[:count]) for count in BATCHES}
    error = max(float(np.abs(rows - expected[:count]).max()) for count, rows in found.items())
    error /= float(np.abs(expected).max())
    return {
        "passed": error <= LARGEST_ERROR,
        "largest_error_over_largest_logit": error,
        "top1_agreement": float((found[max(BATCHES)].argmax(axis=1) == expected.argmax(axis=1)).mean()),
    }
