from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tensorrt_names import Names, empty_libraries, names_of
from tests.support.tiny_bundle import TinyBundle, edit_manifest, write_tiny_bundle
from trt_moe.bundle import Bundle
from trt_moe.compile.cache import EngineCache
from trt_moe.compile.flavour import Flavour
from trt_moe.compile.sidecar import EngineSpec, Port, Sidecar

SPEC = EngineSpec(
    model="light",
    source_sha256="a" * 64,
    precision="fp16",
    gate="fallback",
    buckets=(1, 2),
    flavour="tensorrt_rtx",
    flavour_version="1.7.1",
    device="8.6",
    conversion="b" * 64,
)


@pytest.fixture
def spec() -> EngineSpec:
    return SPEC


@pytest.fixture
def rtx() -> Flavour:
    return Flavour("tensorrt_rtx", pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx"))


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


@pytest.fixture
def tiny(tmp_path: Path) -> TinyBundle:
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def shipped(tmp_path: Path) -> Bundle:
    """The models of the bundle fashion-mnist, gated on its few golden images instead of its 720 samples."""
    source = Bundle.load("fashion-mnist").path
    copy = tmp_path / "fashion-mnist"
    copy.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    edit_manifest(copy, lambda data: data.pop("samples"))
    return Bundle.load(copy)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, notes: list[str]) -> EngineCache:
    folder = tmp_path / "engines"
    folder.mkdir()
    return EngineCache(folder, 1 << 30, notes.append)


def sidecar_for(plan: bytes, spec: EngineSpec = SPEC, host_code: bool = False) -> Sidecar:
    return Sidecar(
        spec=spec,
        inputs=[Port(name="images", dtype="uint8", shape=[-1, 4, 4, 1])],
        outputs=[Port(name="logits", dtype="float32", shape=[-1, 3])],
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        onnx_sha256="c" * 64,
        opset=20,
        layers=7,
        host_code=host_code,
        options={},
        prepare_seconds=1.0,
        build_seconds=2.0,
        gate_report=None,
        trt_moe_version="0.1.0",
    )


@pytest.fixture
def describe() -> Callable[..., Sidecar]:
    """Makes the sidecar of a plan."""
    return sidecar_for
