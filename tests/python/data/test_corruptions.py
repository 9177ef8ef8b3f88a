"""Corruptions: reproducible image by image, with the strength they state."""

import numpy as np
import pytest

from trt_moe.data import SEVERITIES, corrupt
from trt_moe.errors import InputError


def _images(count=6, height=28, width=28, channels=1):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def test_severity_zero_is_the_image_itself_in_new_memory():
    images = _images()
    out = corrupt(images, 0)
    np.testing.assert_array_equal(out, images)
    assert not np.shares_memory(out, images)


def test_an_image_does_not_depend_on_its_batch():
    images, severity = _images(40), np.arange(40) % SEVERITIES
    whole = corrupt(images, severity, seed=3)
    for i in (0, 5, 17, 39):
        alone = corrupt(images[i : i + 1], int(severity[i]), seed=3, indices=[i])
        np.testing.assert_array_equal(alone[0], whole[i])
    reverse = corrupt(images[::-1], severity[::-1].copy(), seed=3, indices=np.arange(40)[::-1])
    np.testing.assert_array_equal(reverse[::-1], whole)


@pytest.mark.parametrize("change", [{"seed": 1}, {"indices": [7]}, {"severity": 4}])
def test_seed_index_and_severity_each_change_the_noise(change):
    image = np.full((1, 28, 28, 1), 128, np.uint8)
    base = {"severity": 5, "seed": 0, "indices": [6]}
    assert (corrupt(image, **base) != corrupt(image, **{**base, **change})).any()


def test_the_noise_never_changes_between_versions():
    image = np.full((1, 2, 2, 1), 128, np.uint8)
    assert corrupt(image, 5, seed=0, indices=[0], kind="noise").ravel().tolist() == [0, 0, 122, 235]


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.06), (2, 0.12)])
def test_noise_has_the_stated_sigma(severity, sigma):
    image = np.full((200, 28, 28, 1), 128, np.uint8)
    difference = (corrupt(image, severity, kind="noise").astype(float) - 128) / 255
    assert difference.mean() == pytest.approx(0, abs=1e-3)
    assert difference.std() == pytest.approx(sigma, rel=0.01)


def test_blur_spreads_a_point_as_the_gaussian_says_and_keeps_a_flat_image():
    image = np.zeros((1, 33, 33, 1), np.uint8)
    image[0, 16, 16] = 255
    scale = 33 / 32
    blurred = corrupt(image, 5, kind="blur")[0, ..., 0]
    weights = np.exp(-((np.arange(33) - 16) ** 2) / (2 * (2.0 * scale) ** 2))
    weights /= weights.sum()
    np.testing.assert_allclose(blurred, np.rint(255 * np.outer(weights, weights)), atol=1)
    flat = np.full((1, 28, 28, 3), 200, np.uint8)
    np.testing.assert_array_equal(corrupt(flat, 5, kind="blur"), flat)


def test_larger_images_are_blurred_with_a_larger_kernel():
    small, large = (np.zeros((1, side, side, 1), np.uint8) for side in (32, 64))
    small[0, :16], large[0, :32] = 255, 255
    edge_small = corrupt(small, 5, kind="blur")[0, :, 16, 0].astype(int)
    edge_large = corrupt(large, 5, kind="blur")[0, :, 32, 0].astype(int)
    assert ((edge_small > 10) & (edge_small < 245)).sum() * 2 == pytest.approx(
        ((edge_large > 10) & (edge_large < 245)).sum(), abs=2
    )


def test_channels_get_noise_of_their_own_and_any_height_and_width_work():
    out = corrupt(np.full((2, 20, 30, 3), 128, np.uint8), [5, 5], kind="noise")
    assert out.shape == (2, 20, 30, 3)
    assert (out[..., 0] != out[..., 1]).mean() > 0.9


def test_an_empty_batch_stays_empty():
    assert corrupt(np.empty((0, 28, 28, 1), np.uint8), 3).shape == (0, 28, 28, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((1, 4, 4, 1), np.float32), "severity": 0}, "expected uint8"),
        ({"images": np.zeros((4, 4, 1), np.uint8), "severity": 0}, "rank 3"),
        ({"images": np.zeros((1, 4, 4, 1), np.uint8), "severity": 6}, "0..5"),
        ({"images": np.zeros((1, 4, 4, 1), np.uint8), "severity": -1}, "0..5"),
        ({"images": np.zeros((1, 4, 4, 1), np.uint8), "severity": 1.5}, "integer"),
        ({"images": np.zeros((1, 4, 4, 1), np.uint8), "severity": [1, 2]}, "integers"),
        ({"images": np.zeros((1, 4, 4, 1), np.uint8), "severity": 1, "indices": [1, 2]}, "indices"),
        ({"images": np.zeros((1, 4, 4, 1), np.uint8), "severity": 1, "indices": [-1]}, "indices"),
        ({"images": np.zeros((1, 4, 4, 1), np.uint8), "severity": 1, "seed": -1}, "seed"),
        ({"images": np.zeros((1, 4, 4, 1), np.uint8), "severity": 1, "kind": "fog"}, "kind"),
        ({"images": np.zeros((1, 4, 4, 1), np.uint8), "severity": 1, "blur_sigma": [0.0]}, "blur_sigma"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        corrupt(**arguments)
