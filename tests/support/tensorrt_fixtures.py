"""Fixtures with the names of every TensorRT that is supported; import them into a conftest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.tensorrt_names import Names, empty_libraries, names_of


def names_of_bindings(version: str, libraries: Path) -> Names:
    """Names that a version of `tensorrt` has, by its bindings."""
    if "TRT_MOE_TENSORRT_BINDINGS" not in os.environ:
        pytest.skip("TRT_MOE_TENSORRT_BINDINGS names no folder of bindings; see test_tensorrt_names.py")
    folder = Path(os.environ["TRT_MOE_TENSORRT_BINDINGS"]).absolute() / version
    if not folder.is_dir():
        pytest.skip(f"{folder} has no bindings; there are none of 10.3 for Python 3.13")
    return names_of("tensorrt_bindings", folder, empty_libraries(folder, libraries))


@pytest.fixture(scope="session", params=["10.3", "11.4"])
def classic_names(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Names]:
    """A version of `tensorrt`, and the names that it has."""
    return request.param, names_of_bindings(request.param, tmp_path_factory.mktemp("lib") / "lib")


@pytest.fixture(scope="session", params=["10.3", "11.4", "rtx"])
def tensorrt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Names]:
    """A flavour, and the names that one of its versions has."""
    if request.param != "rtx":
        return "tensorrt", names_of_bindings(request.param, tmp_path_factory.mktemp("lib") / "lib")
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    return "tensorrt_rtx", names_of("tensorrt_rtx")
