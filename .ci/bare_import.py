"""Fails unless the installed package imports every run-time module with no training or GPU package installed."""

import importlib
import importlib.util
import pkgutil
import sys
import time

start = time.process_time()
import trt_moe  # noqa: E402

assert trt_moe.Router

seconds = time.process_time() - start

ABSENT = (
    *("torch", "torchvision", "timm", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda"),
    *("starlette", "uvicorn", "prometheus_client"),
)
NEEDS_EXTRAS = (
    *("trt_moe.training.", "trt_moe.models.", "trt_moe.export.", "trt_moe.sweep.", "trt_moe.serving."),
    *("trt_moe.compile.gate", "trt_moe.compile.half.", "trt_moe.compile.int8.", "trt_moe.compile.opset."),
    *("trt_moe.cuda.torch_source.", "trt_moe.cuda.check."),
)

installed = [name for name in ABSENT if importlib.util.find_spec(name)]
if installed:
    sys.exit(f"this environment is not bare, it has {installed}")
imported = []
for module in pkgutil.walk_packages(trt_moe.__path__, "trt_moe."):
    if not f"{module.name}.".startswith(NEEDS_EXTRAS) and module.name != "trt_moe.__main__":
        importlib.import_module(module.name)
        imported.append(module.name)
if seconds >= 0.5:
    sys.exit(f"import trt_moe took {seconds:.2f} s of CPU time; expected under 0.5 s")
print(f"import trt_moe took {seconds:.2f} s; {len(imported)} modules import without {', '.join(ABSENT)}")
