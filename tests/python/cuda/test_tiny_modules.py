"""The torch modules that the tests on the GPU run are the tiny bundle's models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.tiny_modules import tiny_modules


def test_they_give_the_logits_of_the_bundle(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny", experts=3, classes=4, channels=3)
    images = tiny.random(20)
    modules = tiny_modules(tiny, nan=["expert-1"])
    found = {name: module(torch.from_numpy(images)).numpy() for name, module in modules.items()}
    np.testing.assert_allclose(found["gater"], tiny.gater_logits(images), atol=1e-4)
    for index in (0, 2):
        np.testing.assert_allclose(found[f"expert-{index}"], tiny.expert_logits(index, images), atol=1e-4)
    assert np.isnan(found["expert-1"]).all()
