"""Real latencies of single images: router and bare models in turn, in one run on one machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.manifest import MIXTURE
from trt_moe.console import ProgressCallback
from trt_moe.router import Router

_WARMUP = 20


@dataclass(frozen=True)
class Latencies:
    """Measured on n images.

    Attributes:
        milliseconds: by contestant ("mixture" or a model's name): float64 [n].
        routes: int64 [n], where the router sent them.
        labels: int64 [n], what it answered.
    """

    milliseconds: dict[str, NDArray[np.float64]]
    routes: NDArray[np.int64]
    labels: NDArray[np.int64]


def measure(
    router: Router,
    images: NDArray[np.uint8],
    models: Sequence[str],
    progress: ProgressCallback,
    what: str = "latencies",
) -> Latencies:
    """Time `router.predict` on every image alone, and the bare models on the same image.

    The mixture's time is wall time around the Python call: gater, routing, expert and all overhead. The
    models' times are bare inference by the C++ clock, which favours the strategies compared with the
    mixture. Contestants take turns image by image, in a new random order each time, so that neither a busy
    moment nor what ran just before favours one of them.

    Args:
        router: holds the models.
        images: uint8 [n, H, W, C].
        models: names of gater, experts and baselines to time.
        progress: called as progress(what, done, total).
        what: label of the progress.
    """
    loaded = {name: router.model(name) for name in models}
    milliseconds = {name: np.empty(len(images)) for name in (MIXTURE, *models)}
    routes = np.empty(len(images), np.int64)
    labels = np.empty(len(images), np.int64)
    for image in images[:_WARMUP]:
        router.predict(image[None])
        for model in loaded.values():
            model.time(image, iterations=1, warmup=0)
    contestants = [MIXTURE, *models]
    order = np.random.default_rng(0)
    for index in range(len(images)):
        image = images[index]
        for name in order.permutation(contestants):
            if name == MIXTURE:
                begin = time.perf_counter()
                result = router.predict(image[None])
                milliseconds[name][index] = (time.perf_counter() - begin) * 1e3
                routes[index], labels[index] = result.experts[0], result.labels[0]
            else:
                milliseconds[name][index] = loaded[name].time(image, iterations=1, warmup=0)[0]
        progress(what, index + 1, len(images))
    return Latencies(milliseconds, routes, labels)


def join(parts: Sequence[Latencies]) -> Latencies:
    """All parts as one."""
    return Latencies(
        {name: np.concatenate([part.milliseconds[name] for part in parts]) for name in parts[0].milliseconds},
        np.concatenate([part.routes for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
