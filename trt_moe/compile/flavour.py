"""Which TensorRT this Python has: `tensorrt` or `tensorrt_rtx`, found here and handed to all that use it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from trt_moe.errors import EngineBuildError, InputError, MissingDependencyError
from trt_moe.hardware import gpu_report, jetson_report

FlavourName = Literal["tensorrt", "tensorrt_rtx"]
NAMES: tuple[FlavourName, ...] = ("tensorrt", "tensorrt_rtx")
OLDEST = (10, 3)
"""Oldest `tensorrt` whose names are used; JetPack 6 has it."""

_LOAD_ERRORS = (ImportError, OSError)  # OSError: a shared library that ctypes does not find
_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


class Flavour:
    """One of the two TensorRTs.

    Args:
        name: of its Python package.
        trt: that package; where left out it is imported when it is first asked for. Engines that lie in the cache are
            found without it, and its libraries take longer to load than that.
        version: of the package, where it is known without importing it.
    """

    def __init__(self, name: FlavourName, trt: Any = None, version: str | None = None) -> None:
        """See the class."""
        self.name: FlavourName = name
        self._trt = trt
        self._version = version

    @property
    def trt(self) -> Any:
        """The Python package.

        Raises:
            MissingDependencyError: it is installed, but cannot be loaded.
        """
        if self._trt is None:
            try:
                self._trt = importlib.import_module(self.name)
            except _LOAD_ERRORS as error:
                raise MissingDependencyError(f"{self.name} cannot be loaded ({error}); {install_advice()}") from error
        return self._trt

    @property
    def version(self) -> str:
        """Such as "10.3.0" or "1.7.1.116"."""
        return self._version or str(self.trt.__version__)

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


def find_flavour(name: str | None = None, load: Callable[[str], Any] | None = None) -> Flavour:
    """Find TensorRT; it is imported only where its version is not known otherwise.

    Args:
        name: "tensorrt" or "tensorrt_rtx"; None: the one installed. Of both, `tensorrt` where there is a GPU,
            since it builds on the GPU itself.
        load: imports a package by its name; None: `importlib`, at first use.

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
        version = None if load else _installed_version(candidate)
        try:
            trt = None if version else (load or importlib.import_module)(candidate)
        except _LOAD_ERRORS as error:
            failures.append(f"{candidate}: {error}")
        else:
            found.append(Flavour(candidate, trt, version))
    if not found:
        raise MissingDependencyError(
            f"no TensorRT can be loaded in this Python ({'; '.join(failures)}); {install_advice(name)}"
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


def install_advice(name: str | None = None) -> str:
    """What to do on this machine to get TensorRT, or the flavour that is named."""
    if _is_jetson():
        what = "TensorRT-RTX runs on no Jetson; TensorRT" if name == "tensorrt_rtx" else "it"
        return f"{what} comes with JetPack, for Pythons that see the system's packages: {install_command()}"
    if name == "tensorrt":
        return "install NVIDIA's own for your CUDA, or build with --flavour tensorrt_rtx"
    return f"in the checkout: {install_command()}, or install NVIDIA's own TensorRT for your CUDA"


def _installed_version(name: str) -> str | None:
    """Version of a package by its metadata; None where it has none, or other files than these would be imported."""
    try:
        spec = importlib.util.find_spec(name)
        distribution = importlib.metadata.distribution(name)
    except (ValueError, importlib.metadata.PackageNotFoundError):  # ValueError: imported already, and from no file
        return None
    folder = Path(str(distribution.locate_file(name)))
    return distribution.version if spec and spec.origin and Path(spec.origin).parent == folder else None


def _has_gpu() -> bool:
    # The integrated GPU of a Jetson is in no report on some releases.
    return _is_jetson() or bool(gpu_report()["devices"])


def _is_jetson() -> bool:
    return jetson_report()["release"] is not None
