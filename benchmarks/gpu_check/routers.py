"""Routers over the mixture: TensorRT engines where the probe found them to work, torch-captured graphs elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass

from benchmarks.gpu_check.mixture import Mixture
from benchmarks.gpu_check.parts import Work
from trt_moe import Bundle, Router

ONNX_FOLDER = "mixture"


@dataclass(frozen=True)
class Routers:
    """Opens routers of one kind of engine.

    Attributes:
        engines: "TensorRT" or "torch".
        why: it is that kind.
    """

    engines: str
    why: str
    _mixture: Mixture
    _bundle: Bundle

    def open(self, plan: str = "auto", speculate: bool = False) -> Router:
        """A router whose models are captured anew."""
        modules = None if self.engines == "TensorRT" else self._mixture.halves()
        return Router(self._bundle, device="cuda", plan=plan, modules=modules, check=False, speculate=speculate)


def choose_engines(work: Work, mixture: Mixture) -> Routers:
    """By what the part `probe` wrote."""
    try:
        probe = json.loads((work.folder / "probe.json").read_text())
    except FileNotFoundError:
        return Routers("torch", "the probe of TensorRT did not run", mixture, mixture.bundle())
    if probe["works"]:
        return Routers("TensorRT", probe["said"], mixture, Bundle.load(work.folder / ONNX_FOLDER))
    return Routers("torch", probe["said"], mixture, mixture.bundle())
