"""The gater's own kernels on a GPU, beside torch in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.gpu_check.mixture import GATER, make_mixture
from trt_moe import Router
from trt_moe.bundle import Bundle, shipped_bundles
from trt_moe.cuda.capture import capture_model
from trt_moe.cuda.device import open_device
from trt_moe.cuda.gater_source import GaterSource, weights_of_bundle, weights_of_module
from trt_moe.models import ImageModel, SqueezeNetLight

BUCKETS = (1, 2, 8, 32)


def make_gater(shape: tuple[int, int, int], side: tuple[int, int], experts: int) -> ImageModel:
    torch.manual_seed(experts)
    network = SqueezeNetLight(experts, shape[2], min(side))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ImageModel(network, shape[:2], side, [0.4] * shape[2], [0.3] * shape[2]).eval()


@pytest.mark.parametrize(
    ("shape", "side", "experts"),
    [
        ((28, 28, 1), (28, 28), 2),
        ((224, 224, 3), (96, 96), 3),
        ((60, 100, 3), (60, 96), 4),
        ((20, 17, 4), (40, 51), 2),
        ((480, 640, 3), (96, 96), 2),
    ],
)
def test_logits_are_those_of_torch(shape: tuple[int, int, int], side: tuple[int, int], experts: int) -> None:
    gater = make_gater(shape, side, experts)
    weights = weights_of_module(gater, shape, experts)
    assert weights is not None
    model = capture_model(
        GaterSource(weights),
        open_device(),
        name="gater",
        input_shape=shape,
        outputs=experts,
        buckets=BUCKETS,
        precision="fp32",
    )
    images = np.random.default_rng(1).integers(0, 256, (33, *shape), np.uint8)
    with torch.inference_mode():
        expected = gater(torch.from_numpy(images)).numpy()
    whole = model.logits(images)
    np.testing.assert_allclose(whole, expected, rtol=1e-3, atol=1e-4)
    for count in (1, 2, 3, 8, 31):
        # No sum depends on how many images there are, nor on which run it is.
        np.testing.assert_array_equal(model.logits(images[:count]), whole[:count])


@pytest.mark.parametrize("name", sorted(shipped_bundles()))
def test_a_shipped_gater_gives_its_golden_logits(name: str) -> None:
    bundle = Bundle.load(name)
    weights = weights_of_bundle(bundle)
    assert weights is not None
    golden = bundle.golden()
    model = capture_model(
        GaterSource(weights),
        open_device(),
        name="gater",
        input_shape=bundle.input_shape,
        outputs=len(bundle.manifest.experts),
        buckets=BUCKETS,
        precision="fp32",
    )
    np.testing.assert_allclose(model.logits(golden["images"]), golden[bundle.manifest.gater.name], rtol=1e-3, atol=1e-4)


def test_a_router_takes_the_kernels_for_a_gater_as_it_was_trained() -> None:
    mixture = make_mixture()
    modules, gater = mixture.halves(), mixture.models[GATER]
    images = np.concatenate([mixture.images, np.random.default_rng(2).integers(0, 256, (6, 224, 224, 3), np.uint8)])
    with torch.inference_mode():
        expected = gater(torch.from_numpy(images)).numpy()
    for given, precision, tolerance in ((gater, "fp32", 1e-3), (modules[GATER], "fp16", 0.05)):
        with Router(mixture.bundle(), device="cuda", modules={**modules, GATER: given}, check=False) as router:
            assert router.model(GATER).precision == precision
            result = router.predict(images)
        np.testing.assert_allclose(result.gater_logits, expected, atol=tolerance * np.abs(expected).max())
        assert result.experts[: len(mixture.images)].tolist() == list(range(len(mixture.images)))
