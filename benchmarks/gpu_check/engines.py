"""TensorRT's engines of the mixture that is measured, and a router on them, where the probe found TensorRT to run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.mixture import make_mixture
from benchmarks.gpu_check.parts import Work
from trt_moe import Bundle, Router
from trt_moe.compile.build import BuildOptions, Step, build_bundle
from trt_moe.compile.cache import Engine, EngineCache
from trt_moe.compile.flavour import Flavour
from trt_moe.cuda.device import compute_capability, flavour_for, open_device


def run(work: Work) -> dict[str, Any]:
    """Build them all, also the gater's, which the peer runs and we do not."""
    try:
        probe = json.loads((work.folder / "probe.json").read_text())
    except FileNotFoundError:
        probe = {"ran": False, "said": ["the probe of TensorRT did not run"]}
    if not probe["ran"]:
        return {"works": False, "said": "\n".join(probe["said"])}
    logging.basicConfig()
    logging.getLogger("trt_moe").setLevel(logging.INFO)
    stages: dict[str, str] = {}
    found = {"works": False, "said": "TensorRT's engines were not all made; see the part engines", "stages": stages}

    def tell(step: Step) -> None:
        if stages.get(step.model) != step.stage:
            stages[step.model] = step.stage
            work.keep(found)

    mixture = make_mixture()
    bundle = mixture.export(onnx_folder(work))
    flavour, _ = engines_of(bundle, tell)
    with Router(bundle, device="cuda", check=False) as router:
        routes = router.predict(mixture.images).experts.tolist()
        found["said"] = f"{flavour}: routes {routes}, {router.device}, {router.plan_reason}"
        found["works"] = found["routes_right"] = routes == list(range(len(mixture.images)))
    return found


def onnx_folder(work: Work) -> Path:
    """Where the mixture's ONNX files are."""
    return work.folder / "mixture"


def engines_of(
    bundle: Bundle, progress: Callable[[Step], None] = lambda step: None
) -> tuple[Flavour, dict[str, Engine]]:
    """The engines by model for this GPU, as a router takes them; built where the cache does not have them."""
    device = open_device()
    flavour = flavour_for(device)
    options = BuildOptions(compute_capabilities=(compute_capability(device),) if flavour.is_rtx else ())
    report = build_bundle(bundle, flavour, EngineCache.of_user(), options, progress)
    return flavour, {each.engine.sidecar.spec.model: each.engine for each in report.engines}
