"""How far logits are off, in the measure of every tolerance in a bundle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest absolute logit error over max(1, largest absolute expected logit); inf where not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
