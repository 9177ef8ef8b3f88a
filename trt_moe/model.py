"""One model of a bundle, compiled and run by itself."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe import _core, blob_cache
from trt_moe.arguments import whole, word
from trt_moe.bundle import Bundle
from trt_moe.engine_folder import engine_cache
from trt_moe.errors import BundleError
from trt_moe.inputs import as_images, as_one_image

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Of the CPU."""
MAX_BUCKET = 1 << 16
MAX_ITERATIONS = 1 << 30
MAX_THREADS = 1 << 16
"""Past any machine; the core knows how many this one has."""


class Model:
    """A gater, expert or baseline of a bundle, past any routing: for profiles, baselines and checks.

    Thread-safe. Make one with `Model.load`, or take the router's own with `Router.model`.
    """

    def __init__(self, name: str, core: _core.Model) -> None:
        """Wrap a compiled model; use `load`."""
        self.name = name
        self.core = core

    @classmethod
    def load(
        cls,
        bundle: Bundle | str | os.PathLike[str],
        name: str,
        *,
        backend: str = "openvino",
        precision: str = "auto",
        threads: int | None = None,
        buckets: list[int] | None = None,
    ) -> Model:
        """Compile one model of a bundle.

        Args:
            bundle: the bundle, its folder or the name of a shipped one.
            name: of the model in the bundle.
            backend: one of those this build has.
            precision: "auto" (the fastest the CPU has natively), "fp32", "bf16" or "fp16".
            threads: CPU threads; None: one for each CPU that this process may use.
            buckets: batch sizes to compile for, ascending from 1; None: chosen by the model's and its images' size.

        Raises:
            BundleError: the bundle or the model's file is damaged, or the model gives another number of logits.
            EngineBuildError: the model cannot be compiled, or not in that precision.
            DeviceError: this build has no such backend.
            InputError: unknown name or precision, or more threads than usable CPUs.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        entry = bundle.entry(name)
        core = _core.Model(
            bundle.read(entry),
            backend=backend,
            precision=word("precision", precision, PRECISIONS),
            threads=checked_threads(threads) or 0,
            cache_dir=engine_cache(backend) or "",
            buckets=[whole("a bucket", bucket, 1, MAX_BUCKET) for bucket in buckets or ()],
        )
        if backend == blob_cache.BACKEND:
            blob_cache.trim(blob_cache.LIMIT)
        # A file need not say how many logits its model gives.
        if core.outputs != bundle.outputs(entry):
            raise BundleError(
                f"model {name}: gives {core.outputs} logits an image; expected {bundle.outputs(entry)}, "
                f"one for each {'expert' if name == bundle.gater.name else 'class'} of the bundle"
            )
        return cls(name, core)

    @property
    def precision(self) -> str:
        """What the device computes in: "fp32", "bf16", "fp16" or "int8"."""
        return self.core.precision

    @property
    def device(self) -> str:
        """The device, for people."""
        return self.core.device

    def logits(self, images: Any) -> NDArray[np.float32]:
        """Run uint8 [N, H, W, C] images; returns float32 [N, outputs] logits.

        Raises:
            InputError: another dtype or shape, or an empty batch.
        """
        return self.core.logits(as_images(images, self.core.input_shape))

    def time(self, image: Any, iterations: int = 100, warmup: int = 10) -> NDArray[np.float64]:
        """Wall times of single-image inference, float64 [iterations] milliseconds, by the C++ clock.

        Args:
            image: one uint8 [H, W, C] image.
            iterations: measured runs.
            warmup: runs before them that are not measured.

        Raises:
            InputError: another image, or numbers out of range.
        """
        return self.core.time(
            as_one_image(image, self.core.input_shape),
            whole("iterations", iterations, 1, MAX_ITERATIONS),
            whole("warmup", warmup, 0, MAX_ITERATIONS),
        )


def checked_threads(threads: int | None) -> int | None:
    """A number of CPU threads; None: all that may be used.

    Raises:
        InputError: no such number.
    """
    return None if threads is None else whole("threads", threads, 1, MAX_THREADS)
