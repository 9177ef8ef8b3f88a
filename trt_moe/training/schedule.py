"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math


def one_cycle(step: int, total: int, peak: float, warmup: float) -> float:
    """Cosine up from peak / 25 over the first `warmup` share of the steps, then cosine down to about 0."""
    rising = max(1.0, warmup * total)
    if step < rising:
        low, high, share = peak / 25, peak, step / rising
    else:
        low, high, share = peak, peak * 1e-4, (step - rising) / max(1.0, total - rising)
    return low + (high - low) * (1 - math.cos(math.pi * min(1.0, share))) / 2
