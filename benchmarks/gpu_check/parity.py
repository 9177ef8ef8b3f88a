"""Logits and routes of the captured models against torch in float32, alone and in every kind of batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.mixture import GATER, WEIGHTS, Images, make_mixture
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.routers import choose_engines, routes_right
from trt_moe import Router

LARGEST_ERROR = 0.05
"""Of a logit over the largest: far above what float16 loses, far below what another network gives."""
BATCHES = (1, 2, 3, 5, 8, 31, 32, 33)
"""Buckets, batches that are padded, and one above the largest bucket."""


def run(work: Work) -> dict[str, Any]:
    mixture = make_mixture()
    routers = choose_engines(work, mixture)
    noise = np.random.default_rng(1).integers(0, 256, (max(BATCHES), *mixture.images.shape[1:]), np.uint8)
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
                    models[name] = _compare(router, name, module, noise)
                    work.keep(found)
            plans[router.plan] = {"reason": router.plan_reason, "routes_right": routes_right(router, mixture, BATCHES)}
            work.keep(found)
    return found


def _compare(router: Router, name: str, module: torch.nn.Module, images: Images) -> dict[str, Any]:
    # cuDNN would round what it multiplies to TF32, which is no more exact than float16.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = module.cuda()(torch.from_numpy(images).cuda()).cpu().numpy()
    found = {count: router.model(name).logits(images[:count]) for count in BATCHES}
    error = max(float(np.abs(rows - expected[:count]).max()) for count, rows in found.items())
    error /= float(np.abs(expected).max())
    return {
        "passed": error <= LARGEST_ERROR,
        "largest_error_over_largest_logit": error,
        "top1_agreement": float((found[max(BATCHES)].argmax(axis=1) == expected.argmax(axis=1)).mean()),
    }
