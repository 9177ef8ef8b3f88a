"""A learned difficulty predictor that sees nothing but entropies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trt_moe.evaluation.cues import Floats, grey, histogram_entropy

_GRIDS = (1, 2, 4)
_LEVELS = 32
_STEP = 256 // _LEVELS


def tile_entropies(images: NDArray[np.uint8]) -> Floats:
    """Entropies in bits of the grey histograms of the image's tiles, float64 [N, 21]; fewer where the image
    has fewer pixels than a grid has tiles.

    Tiles of 1 x 1, 2 x 2 and 4 x 4 grids; 32 grey levels, since tiles of small images hold few pixels.
    """
    levels = grey(images) // _STEP
    columns = [
        histogram_entropy(tile, _LEVELS)
        for grid in _GRIDS
        if grid <= min(levels.shape[1:])
        for band in np.array_split(levels, grid, axis=1)
        for tile in np.array_split(band, grid, axis=2)
    ]
    return np.stack(columns, axis=1)
