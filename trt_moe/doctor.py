"""`trt-moe doctor`: what this machine and this installation have, what is missing, and what adds it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

from trt_moe.compile.flavour import find_flavour, install_command
from trt_moe.console import print_table, stdout
from trt_moe.errors import TrtMoeError
from trt_moe.hardware import cpu_report, gpu_report, jetson_report, library, nvcc_version

RUNTIME = ("filelock", "numpy", "openvino", "pillow", "pydantic", "typer", "rich", "matplotlib", "platformdirs")
TRAINING = ("torch", "torchvision", "timm", "accelerate", "onnx", "onnxscript", "onnxruntime", "safetensors", "pyyaml")
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
        "cuda": {"nvcc": nvcc_version(), "cudart": library("cudart")},
        "tensorrt": {
            "flavour": _flavour(),
            "packages": {name: _version(name) for name in TENSORRT if _version(name)},
            "library": library("nvinfer"),
            "rtx_library": library("tensorrt_rtx"),
        },
        "packages": {name: _version(name) for name in (*RUNTIME, *TRAINING)},
        "bundles": _bundles(),
        "engine_cache": _cache(),
    }
    report["missing"] = _missing(report)
    report["ok"] = bool(core["backends"])
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print what `diagnose` found as tables."""
    product, cpu, gpu = report["trt_moe"], report["cpu"], report["gpu"]
    backends = ", ".join(product["backends"]) or f"none ({product['error']})"
    quota = f", cgroup quota {cpu['quota']:g}" if cpu["quota"] is not None else ""
    devices = [
        f"{device['name']}, {device['memory_mib']:,} MiB, compute capability {device['compute_capability']}"
        for device in gpu["devices"]
    ]
    tensorrt = report["tensorrt"]
    found = [f"{name} {version}" for name, version in tensorrt["packages"].items()]
    found += [path for path in (tensorrt["library"], tensorrt["rtx_library"]) if path]
    rows: list[tuple[Any, ...]] = [
        ("trt-moe", product["version"] or "not installed as a package"),
        ("backends built", backends),
        ("python", f"{report['python']['version']} ({report['python']['executable']})"),
        ("platform", report["platform"]),
        ("CPU", cpu["name"]),
        ("CPUs", f"{cpu['usable']} usable of {cpu['online']} (affinity {cpu['affinity']}{quota})"),
        ("CPU features", " ".join(cpu["features"]) or "none of those that matter"),
        ("GPU", "; ".join(devices) or gpu["why_none"]),
        ("GPU driver", gpu["driver"] or "none"),
        (
            "CUDA",
            _join(
                ("nvcc " + report["cuda"]["nvcc"]) if report["cuda"]["nvcc"] else None,
                report["cuda"]["cudart"],
            ),
        ),
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


def _flavour() -> str | None:
    try:
        return str(find_flavour())
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
    chosen = os.environ.get("TRT_MOE_CACHE_DIR")
    if chosen is not None:
        return chosen or None
    if importlib.util.find_spec("platformdirs") is None:
        return None
    import platformdirs

    return str(Path(platformdirs.user_cache_path("trt-moe")))


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
        add("the compiled module _core", "everything", "pip install --force-reinstall --no-deps .")
    lacking = [name for name in RUNTIME if packages[name] is None and name != "openvino"]
    if lacking:
        add(", ".join(lacking), "the run time", f"pip install {' '.join(lacking)}")
    lacking = [name for name in TRAINING if packages[name] is None]
    if lacking:
        add(", ".join(lacking), "trt-moe train, export and pack", "pip install '.[train]'")
    _missing_for_gpu(report, add)
    return missing


def _missing_for_gpu(report: dict[str, Any], add: Any) -> None:
    gpu, tensorrt = report["gpu"], report["tensorrt"]
    if gpu["pci_devices"] and not gpu["driver"]:
        add("NVIDIA driver", "the GPU in this machine", "sudo apt install nvidia-driver")
    if not (gpu["devices"] or report["jetson"]["release"]):
        return
    if "cuda" not in report["trt_moe"]["backends"]:
        add("the cuda backend", "the GPU; this build of trt-moe runs on the CPU only", None)
    if tensorrt["flavour"] is None:
        add("TensorRT", "engines on the GPU", install_command())


def _pinned_openvino() -> str | None:
    try:
        requirements = importlib.metadata.requires("trt-moe") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pins = (line.replace(" ", "").partition("openvino==")[2] for line in requirements)
    return next((pin.split(";")[0] for pin in pins if pin), None)


def _join(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part) or "none"
