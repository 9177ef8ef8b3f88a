"""Which TensorRT this Python has: `tensorrt` or `tensorrt_rtx`, found here and handed to all that use it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from trt_moe.errors import EngineBuildError, InputError, MissingDependencyError
from trt_moe.hardware import gpu_report, jetson_report

FlavourName = Literal["tensorrt", "tensorrt_rtx"]
NAMES: tuple[FlavourName, ...] = ("tensorrt", "tensorrt_rtx")
OLDEST = (10, 3)
"""Oldest `tensorrt` whose names are used; JetPack 6 has it."""

_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Flavour:
    """One of the two TensorRTs.

    Attributes:
        name: of its Python package.
        trt: that package.
    """

    name: FlavourName
    trt: Any

    @property
    def version(self) -> str:
        """Such as "10.3.0" or "1.7.1.116"."""
        return str(self.trt.__version__)

    @property
    def release(self) -> tuple[int, ...]:
        """Major and minor version."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which builds without a GPU and for GPUs that are elsewhere."""
        return self.name == "tensorrt_rtx"

    def __str__(self) -> str:
        """Such as "TensorRT 10.3.0"."""
        return title(self.name, self.version)


def title(name: str, version: str) -> str:
    """A flavour and its version for people."""
    return f"{_TITLES[name]} {version}"


def find_flavour(name: str | None = None, load: Callable[[str], Any] = importlib.import_module) -> Flavour:
    """Import TensorRT.

    Args:
        name: "tensorrt" or "tensorrt_rtx"; None: the one installed. Of both, `tensorrt` where there is a GPU,
            since it builds on the GPU itself.
        load: imports a package by its name.

    Raises:
        MissingDependencyError: it is not installed, or cannot be loaded.
        EngineBuildError: it is older than 10.3.
        InputError: no flavour has that name.
    """
    if name is not None and name not in NAMES:
        raise InputError(f"TensorRT flavour is {name!r}; expected {' or '.join(NAMES)}")
    found: list[Flavour] = []
    failures: list[str] = []
    for candidate in NAMES:
        if name not in (None, candidate):
            continue
        try:
            found.append(Flavour(candidate, load(candidate)))
        except (ImportError, OSError) as error:  # OSError: a shared library that ctypes does not find
            failures.append(f"{candidate}: {error}")
    if not found:
        raise MissingDependencyError(
            f"no TensorRT can be loaded in this Python ({'; '.join(failures)}); {install_advice()}"
        )
    flavour = found[-1] if len(found) > 1 and not _has_gpu() else found[0]
    if not flavour.is_rtx and flavour.release < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise EngineBuildError(f"found {flavour}; at least {oldest} is needed (JetPack 6 has it); {install_advice()}")
    return flavour


def install_command() -> str:
    """What to type on this machine to get TensorRT."""
    if _is_jetson():
        return "sudo apt install nvidia-jetpack && python3 -m venv --system-site-packages .venv"
    return "pip install '.[rtx]'"


def install_advice() -> str:
    """A sentence with `install_command`."""
    if _is_jetson():
        return f"it comes with JetPack, for Pythons that see the system's packages: {install_command()}"
    return f"in the checkout: {install_command()}, or install NVIDIA's own TensorRT for your CUDA"


def _has_gpu() -> bool:
    # The integrated GPU of a Jetson is in no report on some releases.
    return _is_jetson() or bool(gpu_report()["devices"])


def _is_jetson() -> bool:
    return jetson_report()["release"] is not None
