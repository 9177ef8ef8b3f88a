"""trt-moe: image classification that routes every image to the cheapest expert able to handle it."""

from trt_moe.bundle import Bundle
from trt_moe.errors import (
    BundleError,
    DataError,
    DeviceError,
    EngineBuildError,
    InputError,
    MissingDependencyError,
    ModelOutputError,
    QueueFullError,
    RouterClosedError,
    TrtMoeError,
)
from trt_moe.images import load_images
from trt_moe.model import Model
from trt_moe.result import Result, ResultRow
from trt_moe.router import Router

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "DataError",
    "DeviceError",
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
