from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.engine_specs import SPEC, sidecar_for
from tests.support.tensorrt_fixtures import classic_names, tensorrt  # noqa: F401
from tests.support.tiny_bundle import TinyBundle, edit_manifest, write_tiny_bundle
from trt_moe.bundle import Bundle
from trt_moe.compile.cache import EngineCache
from trt_moe.compile.flavour import Flavour
from trt_moe.compile.sidecar import EngineSpec, Sidecar


@pytest.fixture
def spec() -> EngineSpec:
    return SPEC


@pytest.fixture
def rtx() -> Flavour:
    return Flavour("tensorrt_rtx", pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx"))


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


@pytest.fixture
def describe() -> Callable[..., Sidecar]:
    """Makes the sidecar of a plan."""
    return sidecar_for
