import numpy as np

from trt_moe.study.difficulty import tile_entropies


def test_only_the_tile_with_texture_has_entropy():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    images[1, :2, 6:] = np.array([[0, 64], [128, 192]])[..., None]
    entropies = tile_entropies(images)
    assert entropies.shape == (2, 21)
    assert (entropies[0] == 0).all()
    # One of 1 x 1, the upper right of 2 x 2, the last of the first row of 4 x 4.
    assert np.flatnonzero(entropies[1]).tolist() == [0, 2, 8]
    assert entropies[1, 8] == 2  # four levels, equally often


def test_image_smaller_than_the_grids():
    assert tile_entropies(np.zeros((1, 3, 9, 3), np.uint8)).tolist() == [[0] * 5]
