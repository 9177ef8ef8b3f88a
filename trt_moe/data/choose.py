"""Which of many images stand for all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly(total: int, most: int) -> NDArray[np.int64]:
    """At most so many of `total` indices, evenly spread: images of folders lie sorted by class."""
    return np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64))
