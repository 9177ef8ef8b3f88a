import io

import numpy as np
import pytest
from PIL import Image

from trt_moe.data import corrupt
from trt_moe.evaluation import cues


def columns(*values, height=8):
    """One grey image whose columns have these values."""
    return np.broadcast_to(np.array(values, np.uint8), (height, len(values)))[None, :, :, None].copy()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_flat_image_has_no_structure(channels):
    images = np.full((2, 5, 6, channels), 90, np.uint8)
    for cue in (cues.entropy, cues.log_laplacian_variance, cues.edge_density):
        assert cue(images).tolist() == [0, 0]


def test_entropy_is_in_bits():
    assert cues.entropy(columns(0, 0, 255, 255)).tolist() == [1]
    assert cues.entropy(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)).tolist() == [8]


def test_histograms_of_images_do_not_mix():
    images = np.concatenate([columns(0, 0, 0, 0), columns(255, 255, 255, 255), columns(0, 1, 2, 3)])
    assert cues.entropy(images).tolist() == [0, 0, 2]


def test_laplacian_of_one_bright_pixel():
    image = np.zeros((1, 5, 5, 1), np.uint8)
    image[0, 2, 2] = 10
    # -40 there and 10 at each of four neighbours: mean 0, variance (1600 + 4 * 100) / 25.
    assert cues.log_laplacian_variance(image)[0] == pytest.approx(np.log1p(80))


def test_edges_are_the_two_columns_at_a_step():
    assert cues.edge_density(columns(0, 0, 0, 0, 200, 200, 200, 200)).tolist() == [0.25]
    assert cues.edge_density(columns(0, 0, 0, 0, 20, 20, 20, 20)).tolist() == [0]
    turned = columns(0, 0, 0, 0, 200, 200, 200, 200).transpose(0, 2, 1, 3)
    assert cues.edge_density(turned).tolist() == [0.25]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_size_is_that_of_the_file(channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=75)
    assert cues.jpeg_size(image[None]).tolist() == [len(file.getvalue())]


def test_grey_is_luma_without_alpha():
    image = np.array([[[[255, 0, 0, 7], [0, 255, 0, 7], [0, 0, 255, 7]]]], np.uint8)
    assert cues.grey(image).tolist() == [[[76, 150, 29]]]
    assert cues.grey(image[..., :3]).tolist() == [[[76, 150, 29]]]


@pytest.mark.parametrize("name", cues.CUES)
def test_parts_give_what_the_whole_gives(name, monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (7, 9, 8, 3)).astype(np.uint8)
    whole = cues.measure(cues.CUES[name], images)
    monkeypatch.setattr(cues, "_CHUNK_PIXELS", 2 * images[0].size)
    np.testing.assert_array_equal(cues.measure(cues.CUES[name], images), whole)
    assert cues.measure(cues.CUES[name], images[:0]).shape == (0,)


def test_blur_lowers_the_laplacian_variance_and_noise_raises_it():
    images = np.kron(np.random.default_rng(2).integers(0, 256, (4, 7, 7, 1)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    clean = cues.log_laplacian_variance(images)
    assert (cues.log_laplacian_variance(corrupt(images, 5, kind="blur")) < clean).all()
    assert (cues.log_laplacian_variance(corrupt(images, 5, kind="noise")) > clean).all()
