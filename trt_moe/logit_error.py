"""How far logits are off, in the measure of every tolerance in a bundle.

That is the largest absolute logit error over max(1, largest absolute expected logit); inf where one is not finite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def image_errors(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of every image, float64 [N], for logits [N, K]."""
    finite = np.atleast_1d(np.isfinite(found).all(axis=1))
    scale = max(1.0, float(np.abs(expected).max()))
    errors = np.abs(np.where(finite[:, None], found, 0.0) - expected).max(axis=1).astype(np.float64)
    return np.where(finite, errors / scale, np.inf)


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Of all of them."""
    return float(image_errors(found, expected).max())
