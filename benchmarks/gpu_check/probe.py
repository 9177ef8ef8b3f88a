"""Does the installed TensorRT run on this GPU? What it says is kept word for word."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from benchmarks.gpu_check.parts import Work
from trt_moe import Bundle
from trt_moe.bundle import shipped_bundles
from trt_moe.compile.build import BuildOptions, build_bundle
from trt_moe.compile.cache import EngineCache
from trt_moe.compile.flavour import NAMES, Flavour, find_flavour
from trt_moe.cuda.capture import capture_model
from trt_moe.cuda.device import open_device
from trt_moe.cuda.tensorrt_source import TensorRt, TensorRtSource
from trt_moe.errors import TrtMoeError
from trt_moe.logit_error import relative_error

_BUCKETS = (1, 2)


def run(work: Work) -> dict[str, Any]:
    """The gater of a shipped bundle, by each TensorRT there may be."""
    logging.basicConfig()
    logging.getLogger("trt_moe").setLevel(logging.INFO)
    found: dict[str, Any] = {"ran": False, "said": []}
    for name in NAMES:
        # Whatever is raised: what was said is the result of this part.
        try:
            said = _run_gater(find_flavour(name))
            found["ran"] = True
        except TrtMoeError as error:
            said = str(error)
        except Exception:
            said = traceback.format_exc(limit=1)
        found["said"].append(f"{name}: {said}")
        work.keep(found)
    return found


def _run_gater(flavour: Flavour) -> str:
    """Build the gater for what the flavour chooses itself, also on a GPU that it does not list, and run it."""
    bundle = Bundle.load(next(iter(shipped_bundles())))
    gater = bundle.gater.name
    options = BuildOptions(buckets=_BUCKETS, models=(gater,))
    [built] = build_bundle(bundle, flavour, EngineCache.of_user(), options).engines
    model = capture_model(
        TensorRtSource(TensorRt(flavour), built.engine, "trt-moe build"),
        open_device(),
        name=gater,
        input_shape=bundle.input_shape,
        outputs=bundle.outputs(bundle.gater),
        buckets=_BUCKETS,
        precision="fp16",
    )
    golden = bundle.golden()
    error = relative_error(model.logits(golden["images"]), golden[gater])
    return f"{flavour} ran the gater of {bundle.name}, {error:.2g} off its golden logits"
