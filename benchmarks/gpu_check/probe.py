"""Does the installed TensorRT run on this GPU? What it says is kept word for word."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from benchmarks.gpu_check.mixture import make_mixture
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.routers import ONNX_FOLDER
from trt_moe import Bundle, Router
from trt_moe.bundle import shipped_bundles
from trt_moe.compile.build import BuildOptions, build_bundle
from trt_moe.compile.cache import EngineCache
from trt_moe.compile.flavour import NAMES, Flavour, find_flavour
from trt_moe.cuda.capture import capture_model
from trt_moe.cuda.device import open_device
from trt_moe.cuda.tensorrt_source import TensorRt, TensorRtSource
from trt_moe.errors import TrtMoeError
from trt_moe.golden import relative_error

_BUCKETS = (1, 2)


def run(work: Work) -> dict[str, Any]:
    """First the gater of a shipped bundle, then, where that ran, the mixture that is measured."""
    logging.basicConfig()
    logging.getLogger("trt_moe").setLevel(logging.INFO)
    said: list[str] = []
    ran = False
    for name in NAMES:
        # Whatever is raised: what was said is the result of this part.
        try:
            said.append(f"{name}: {_run_gater(find_flavour(name))}")
            ran = True
        except TrtMoeError as error:
            said.append(f"{name}: {error}")
        except Exception:
            said.append(f"{name}: {traceback.format_exc(limit=1)}")
    works = False
    if ran:
        try:
            mixture = make_mixture()
            with Router(mixture.export(work.folder / ONNX_FOLDER), device="cuda", check=False) as router:
                routes = router.predict(mixture.images).experts.tolist()
                said.append(f"a router on its engines: routes {routes}, {router.device}, {router.plan_reason}")
                works = routes == list(range(len(mixture.images)))
        except Exception:
            said.append(f"a router on its engines: {traceback.format_exc(limit=1)}")
    return {"works": works, "said": "\n".join(said)}


def _run_gater(flavour: Flavour) -> str:
    """Build the gater for what the flavour chooses itself, also on a GPU that it does not list, and run it."""
    bundle = Bundle.load(next(iter(shipped_bundles())))
    report = build_bundle(bundle, flavour, EngineCache.of_user(), BuildOptions(buckets=_BUCKETS))
    engine = next(each.engine for each in report.engines if each.engine.sidecar.spec.model == bundle.gater.name)
    model = capture_model(
        TensorRtSource(TensorRt(flavour), engine, "trt-moe build"),
        open_device(),
        name=bundle.gater.name,
        input_shape=bundle.input_shape,
        outputs=bundle.outputs(bundle.gater),
        buckets=_BUCKETS,
        precision="fp16",
    )
    golden = bundle.golden()
    error = relative_error(model.logits(golden["images"]), golden[bundle.gater.name])
    return f"{flavour} ran the gater of {bundle.name}, {error:.2g} off its golden logits"
