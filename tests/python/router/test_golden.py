"""The check of compiled models against golden logits, by what they compute in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.tiny_bundle import write_tiny_bundle
from trt_moe.bundle import Bundle
from trt_moe.errors import ModelOutputError
from trt_moe.golden import check_golden, noise_images, same_in_any_batch
from trt_moe.logit_error import relative_error


@pytest.mark.parametrize(
    ("precision", "limit"), [("fp32", "0.0001"), ("fp16", "0.02"), ("bf16", "0.05"), ("int8", "0.05")]
)
def test_each_precision_has_its_tolerance(tmp_path: Path, precision: str, limit: str) -> None:
    bundle = Bundle.load(write_tiny_bundle(tmp_path / "tiny").path)
    golden = bundle.golden()
    scale = max(1.0, np.abs(golden["expert-0"]).max())

    def model(error: float) -> Any:
        def logits(images: Any) -> Any:
            off = np.zeros_like(golden["expert-0"])
            off[-1, -1] = error * scale
            return golden["expert-0"] + off

        return SimpleNamespace(name="expert-0", precision=precision, device="a device", logits=logits)

    check_golden(bundle, golden, [model(0.9 * float(limit))])
    with pytest.raises(ModelOutputError, match=f"expert-0 in {precision} on a device is .* at most {limit} is allowed"):
        check_golden(bundle, golden, [model(1.1 * float(limit))])


class DependsOnTheBatch:
    """A model whose logits differ in their last bits between batch sizes, or not."""

    def __init__(self, differs: bool) -> None:
        self.core = SimpleNamespace(buckets=[1, 4], threads=1)
        self.differs = differs

    def logits(self, images: Any) -> Any:
        return np.full((len(images), 2), 1.0 + (1e-6 if self.differs and len(images) > 2 else 0), np.float32)


@pytest.mark.parametrize("differs", [False, True])
def test_a_model_that_answers_otherwise_in_batches_is_found(differs: bool) -> None:
    model: Any = DependsOnTheBatch(differs)
    assert same_in_any_batch(model, noise_images((4, 4, 1))) is not differs


def test_errors_are_relative_to_the_largest_logit_of_either_sign() -> None:
    assert relative_error(np.float32([[-9]]), np.float32([[-10]])) == pytest.approx(0.1)
    assert relative_error(np.float32([[0.4]]), np.float32([[0.2]])) == pytest.approx(0.2)
    assert relative_error(np.float32([[np.nan]]), np.float32([[1]])) == float("inf")
