"""Routers over the mixture: TensorRT's engines where they were found to work, elsewhere what torch compiles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_check.engines import onnx_folder
from benchmarks.gpu_check.mixture import GATER, Mixture
from benchmarks.gpu_check.parts import Work
from trt_moe import Bundle, Result, Router

# Of one forward of all modules together; past it, and it is 8 unless set, torch goes on uncompiled.
torch._dynamo.config.recompile_limit = 64


@dataclass(frozen=True)
class Routers:
    """Opens routers of one kind of engine.

    Attributes:
        engines: "TensorRT", "torch.compile" or "torch, not compiled".
        why: it is that kind.
    """

    engines: str
    why: str
    _modules: Mapping[str, Any] | None
    _bundle: Bundle

    def open(self, plan: str = "auto", speculate: bool = False) -> Router:
        """A router whose models are captured anew."""
        return Router(self._bundle, device="cuda", plan=plan, modules=self._modules, check=False, speculate=speculate)


def choose_engines(work: Work, mixture: Mixture, compiled: bool = True) -> Routers:
    """By what the part `engines` wrote; `compiled`: where torch takes the place of TensorRT, which takes a minute."""
    try:
        made = json.loads((work.folder / "engines.json").read_text())
    except FileNotFoundError:
        made = {"works": False, "said": "the part engines did not run"}
    if made["works"]:
        return Routers("TensorRT", made["said"], None, Bundle.load(onnx_folder(work)))
    modules: dict[str, Any] = dict(mixture.halves())
    if compiled:
        modules = {name: torch.compile(module) for name, module in modules.items()}
    modules[GATER] = mixture.models[GATER]  # on the kernels of our own
    kind = "torch.compile" if compiled else "torch, not compiled"
    return Routers(kind, made["said"], modules, mixture.bundle())


def routes_right(router: Router, mixture: Mixture, counts: Sequence[int]) -> bool:
    """Whether each image goes to its expert, in batches of so many."""
    return all(bool((result.experts == wanted).all()) for wanted, result in answers(router, mixture, counts))


def answers(router: Router, mixture: Mixture, counts: Sequence[int]) -> Iterator[tuple[NDArray[np.int64], Result]]:
    """Batches of so many of the mixture's images in turns: which images, each its expert's, and the answers."""
    wanted = np.resize(np.arange(len(mixture.images)), max(counts))
    batch = mixture.images[wanted]
    for count in counts:
        yield wanted[:count], router.predict(batch[:count])
