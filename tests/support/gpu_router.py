"""Routers of a tiny bundle on a GPU, by torch modules, and the check of their answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_bundle import TinyBundle
from tests.support.tiny_modules import tiny_modules
from trt_moe import Result, Router


def open_router(tiny: TinyBundle, plan: str = "auto", **options: Any) -> Router:
    """A router of the tiny bundle on the GPU; its golden check has passed."""
    return Router(tiny.path, device="cuda", precision="fp32", modules=tiny_modules(tiny), plan=plan, **options)


def check(result: Result, tiny: TinyBundle, images: NDArray[np.uint8]) -> None:
    """Compare routes, probabilities and the gater's logits with those worked out by hand."""
    routes = tiny.routes(images)
    assert result.experts.tolist() == routes.tolist()
    logits = np.stack([tiny.expert_logits(int(k), image[None])[0] for k, image in zip(routes, images, strict=True)])
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(result.probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-4)
    np.testing.assert_allclose(result.gater_logits, tiny.gater_logits(images), atol=1e-3)
