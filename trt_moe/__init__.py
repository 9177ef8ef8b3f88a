"""trt-moe: image classification that routes every image to the cheapest expert able to handle it."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_moe.errors import (
    BundleError,
    DataError,
    DeadlineError,
    DeviceError,
    EngineBuildError,
    InputError,
    MissingDependencyError,
    ModelOutputError,
    QueueFullError,
    RouterClosedError,
    TrtMoeError,
)

if TYPE_CHECKING:
    from trt_moe.bundle import Bundle
    from trt_moe.images import load_images
    from trt_moe.model import Model
    from trt_moe.result import DeviceResult, Result, ResultRow
    from trt_moe.router import Router

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "DataError",
    "DeadlineError",
    "DeviceError",
    "DeviceResult",
    "EngineBuildError",
    "InputError",
    "MissingDependencyError",
    "Model",
    "ModelOutputError",
    "QueueFullError",
    "Result",
    "ResultRow",
    "Router",
    "RouterClosedError",
    "TrtMoeError",
    "__version__",
    "load_images",
]

# Loaded at first use: `trt-moe doctor` must run, and say why, where the C++ module cannot be loaded.
_HOME = {
    "Bundle": "trt_moe.bundle",
    "DeviceResult": "trt_moe.result",
    "Model": "trt_moe.model",
    "Result": "trt_moe.result",
    "ResultRow": "trt_moe.result",
    "Router": "trt_moe.router",
    "load_images": "trt_moe.images",
}


def __getattr__(name: str) -> Any:
    if name == "_core":
        return _load_core()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOME[name]), name)
    except ImportError as error:
        if isinstance(error, TrtMoeError):
            raise
        raise MissingDependencyError(
            f"trt_moe.{name} cannot be loaded ({error}); `trt-moe doctor` says what is missing"
        ) from error
    globals()[name] = value
    return value


def _load_core() -> Any:
    try:
        return import_module("trt_moe._core")
    except ImportError as error:
        package = Path(__file__).parent
        if not (package.parent / "CMakeLists.txt").exists():
            raise
        raise MissingDependencyError(
            f"{package} is the source, which Python found before any installed trt_moe, and it has no compiled module "
            f"({error}); run from another folder than {package.parent}, or install it in place: pip install -e ."
        ) from error


def __dir__() -> list[str]:
    return __all__
