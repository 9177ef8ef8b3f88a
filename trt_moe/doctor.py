"""`trt-moe doctor`: what this machine and this installation have, what is missing, and what adds it."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

from trt_moe.compile.flavour import find_flavour, install_command
from trt_moe.console import print_table, stdout
from trt_moe.engine_folder import cache_root
from trt_moe.errors import TrtMoeError
from trt_moe.hardware import cpu_report, gpu_report, jetson_report, library, nvcc_version

RUNTIME = ("filelock", "numpy", "openvino", "pillow", "pydantic", "typer", "rich", "matplotlib", "platformdirs")
TRAINING = ("torch", "torchvision", "timm", "accelerate", "onnx", "onnxscript", "onnxruntime", "safetensors", "pyyaml")
SERVING = ("starlette", "uvicorn", "httptools", "uvloop", "prometheus-client")
# One minor version: newer ones ask for a newer driver.
NVCC = " ".join(f"'nvidia-{name}==13.0.*'" for name in ("cuda-nvcc", "cuda-crt", "cuda-runtime", "nvvm"))
REINSTALL = "pip install --force-reinstall --no-deps ."
IN_PLACE = "pip install -e ."
TENSORRT = ("tensorrt", "tensorrt-rtx", "tensorrt-cu12", "tensorrt-cu13")


def diagnose() -> dict[str, Any]:
    """Look at everything and return it, ready for JSON; "ok" says whether images can be routed here.

    "missing" lists what could be added: {"what", "for", "command"}, the command None where there is none.
    """
    core = _core_report()
    report: dict[str, Any] = {
        "trt_moe": {"version": _version("trt-moe"), **core},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "cpu": cpu_report(),
        "gpu": gpu_report(),
        "jetson": jetson_report(),
        "cuda": {**_cuda_core(), "nvcc": nvcc_version(), "cudart": library("cudart")},
        "tensorrt": {
            "flavour": _flavour(),
            "packages": {name: _version(name) for name in TENSORRT if _version(name)},
            "library": library("nvinfer"),
            "rtx_library": library("tensorrt_rtx"),
        },
        "packages": {name: _version(name) for name in (*RUNTIME, *TRAINING, *SERVING)},
        "bundles": _bundles(),
        "engine_cache": _cache(),
    }
    report["missing"] = _missing(report)
    report["ok"] = bool(core["backends"] or report["cuda"]["device"])
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print what `diagnose` found as tables."""
    product, cpu, gpu = report["trt_moe"], report["cpu"], report["gpu"]
    backends = ", ".join(product["backends"]) or product["error"] or "not built"
    quota = f", cgroup quota {cpu['quota']}" if cpu["quota"] is not None else ""
    devices = [
        f"{device['name']}, {device['memory_mib']:,} MiB, compute capability {device['compute_capability']}"
        for device in gpu["devices"]
    ]
    tensorrt = report["tensorrt"]
    found = [f"{name} {version}" for name, version in tensorrt["packages"].items()]
    found += [path for path in (tensorrt["library"], tensorrt["rtx_library"]) if path]
    rows: list[tuple[Any, ...]] = [
        ("trt-moe", product["version"] or "not installed as a package"),
        ("python", f"{report['python']['version']} ({report['python']['executable']})"),
        ("platform", report["platform"]),
        ("CPU", cpu["name"]),
        ("CPUs", f"{cpu['usable']} usable of {cpu['online']} (affinity {cpu['affinity']}{quota})"),
        ("CPU features", " ".join(cpu["features"]) or "none of those that matter"),
        ("GPU", "; ".join(devices) or gpu["why_none"]),
        ("GPU driver", gpu["driver"] or "none"),
        (
            "CUDA toolkit",
            _join(
                ("nvcc " + report["cuda"]["nvcc"]) if report["cuda"]["nvcc"] else None,
                report["cuda"]["cudart"],
            ),
        ),
        ("CPU backend", backends),
        ("CUDA backend", report["cuda"]["build"] or "not built"),
        ("GPU that it uses", _used_gpu(report["cuda"])),
        ("TensorRT found", ", ".join(found) or "none"),
        ("TensorRT used by build", tensorrt["flavour"] or "none that can be loaded"),
        ("Jetson", _join(report["jetson"]["release"], report["jetson"]["jetpack"])),
        ("bundles", ", ".join(report["bundles"]) or "none"),
        ("engine cache", report["engine_cache"] or "off"),
    ]
    print_table("", ["what", "found"], rows)
    packages = [(name, version or "-") for name, version in report["packages"].items()]
    print_table("packages", ["package", "version"], packages)
    out = stdout()
    if report["missing"]:
        rows = [(item["what"], item["for"], item["command"] or "-") for item in report["missing"]]
        print_table("missing", ["what", "for", "command that adds it (. is the checkout)"], rows)
    if report["ok"]:
        out.print("Images can be routed on this machine. Try `trt-moe demo`.")
    else:
        out.print("Images cannot be routed on this machine yet; see above.")


def _core_report() -> dict[str, Any]:
    try:
        from trt_moe import _core
    except ImportError as error:
        return {"backends": [], "error": str(error)}
    return {"backends": list(_core.built_backends()), "error": None}


def _cuda_core() -> dict[str, Any]:
    """What the CUDA backend was built with and for, the device that it opens, or why it opens none."""
    try:
        from trt_moe import _core
    except ImportError:
        return {"build": None, "device": None, "error": None}
    build = _core.cuda_build()
    if not build:
        return {"build": None, "device": None, "error": None}
    try:
        return {"build": build, "device": _core.CudaDevice().info, "error": None}
    except TrtMoeError as error:
        return {"build": build, "device": None, "error": str(error).partition(". `trt-moe doctor`")[0]}


def _used_gpu(cuda: dict[str, Any]) -> str:
    device = cuda["device"]
    if device is None:
        return cuda["error"] or "none"
    conditionals = "no" if device["conditionals"] == "none" else device["conditionals"].upper()
    return (
        f"{device['name']}, compute capability {device['compute_capability']}, driver for CUDA {device['driver']}, "
        f"{conditionals} nodes in CUDA graphs"
    )


def _flavour() -> str | None:
    try:
        found = find_flavour()
        return str(found) if found.trt else None
    except TrtMoeError:
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _bundles() -> list[str]:
    try:
        from trt_moe.bundle import shipped_bundles
    except ImportError:
        return []
    return sorted(shipped_bundles())


def _cache() -> str | None:
    try:
        root = cache_root()
    except ImportError:  # platformdirs is missing, and reported as such
        return None
    return None if root is None else str(root)


def _missing(report: dict[str, Any]) -> list[dict[str, str | None]]:
    missing: list[dict[str, str | None]] = []

    def add(what: str, purpose: str, command: str | None) -> None:
        missing.append({"what": what, "for": purpose, "command": command})

    packages = report["packages"]
    pinned = _pinned_openvino()
    if packages["openvino"] is None or (pinned and packages["openvino"] != pinned):
        found = packages["openvino"] or "none"
        wanted = f"openvino=={pinned}" if pinned else "openvino"
        add(f"openvino (found {found})", "the CPU backend, linked to this version", f"pip install '{wanted}'")
    elif report["trt_moe"]["error"]:
        add(
            "the compiled module _core", "everything", IN_PLACE if IN_PLACE in report["trt_moe"]["error"] else REINSTALL
        )
    lacking = [name for name in RUNTIME if packages[name] is None and name != "openvino"]
    if lacking:
        add(", ".join(lacking), "the run time", f"pip install {' '.join(lacking)}")
    for names, purpose, extra in (
        (TRAINING, "trt-moe train, export and pack", "train"),
        (SERVING, "trt-moe serve", "serve"),
    ):
        lacking = [name for name in names if packages[name] is None]
        if lacking:
            add(", ".join(lacking), purpose, f"pip install '.[{extra}]'")
    _missing_for_gpu(report, add)
    return missing


def _missing_for_gpu(report: dict[str, Any], add: Any) -> None:
    gpu, tensorrt = report["gpu"], report["tensorrt"]
    if gpu["pci_devices"] and not gpu["driver"]:
        add("NVIDIA driver", "the GPU in this machine", "sudo apt install nvidia-driver")
    here = bool(gpu["devices"] or report["jetson"]["release"])
    if tensorrt["flavour"] is None:
        # TensorRT-RTX builds on machines without a GPU too.
        add("TensorRT", "engines on the GPU" if here else "trt-moe build, for GPUs elsewhere", install_command())
    if not here:
        return
    cuda = report["cuda"]
    if not cuda["build"]:
        nvcc = "" if cuda["nvcc"] else f"pip install {NVCC} && "
        add("the CUDA backend", "the GPU; this build runs on the CPU only", f"{nvcc}{REINSTALL}")
    elif cuda["error"]:
        add("a GPU that the CUDA backend opens", cuda["error"], None)


def _pinned_openvino() -> str | None:
    try:
        requirements = importlib.metadata.requires("trt-moe") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pins = (line.replace(" ", "").partition("openvino==")[2] for line in requirements)
    return next((pin.split(";")[0] for pin in pins if pin), None)


def _join(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part) or "none"
