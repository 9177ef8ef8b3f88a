"""One model of a bundle, compiled and run by itself."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe import _core, blob_cache
from trt_moe.bundle import Bundle
from trt_moe.engine_folder import engine_cache
from trt_moe.errors import InputError
from trt_moe.inputs import as_image, as_images


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
            buckets: batch sizes to compile for, ascending from 1; None: chosen by the model's size.

        Raises:
            BundleError: the bundle or the model's file is damaged.
            EngineBuildError: the model cannot be compiled, or not in that precision.
            DeviceError: this build has no such backend.
            InputError: unknown name or precision, or more threads than usable CPUs.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; expected at least 1, or None for all usable CPUs")
        core = _core.Model(
            bundle.read(bundle.entry(name)),
            backend=backend,
            precision=precision,
            threads=threads or 0,
            cache_dir=engine_cache(backend) or "",
            buckets=buckets or [],
        )
        if backend == blob_cache.BACKEND:
            blob_cache.trim(blob_cache.LIMIT)
        return cls(name, core)

    @property
    def precision(self) -> str:
        """What the device computes in: "fp32", "bf16" or "fp16"."""
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
        """
        return self.core.time(as_image(image), iterations, warmup)
