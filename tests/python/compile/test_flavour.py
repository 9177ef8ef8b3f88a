from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trt_moe.compile import flavour
from trt_moe.compile.device import device_for
from trt_moe.compile.estimate import estimate
from trt_moe.compile.prepare import _readable
from trt_moe.compile.sidecar import EngineSpec, Sidecar
from trt_moe.errors import EngineBuildError, InputError, MissingDependencyError


def python_with(**versions: str) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        if name not in versions:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return SimpleNamespace(__version__=versions[name])

    return load


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_machine(gpu: bool = False, jetson: bool = False) -> None:
        monkeypatch.setattr(flavour, "gpu_report", lambda: {"devices": ["one"] if gpu else []})
        monkeypatch.setattr(flavour, "jetson_report", lambda: {"release": "Jetson Linux 36.4" if jetson else None})

    set_machine()
    return set_machine


@pytest.mark.parametrize(
    ("versions", "gpu", "asked", "expected"),
    [
        ({"tensorrt": "10.3.0"}, False, None, "TensorRT 10.3.0"),
        ({"tensorrt_rtx": "1.7.1.116"}, True, None, "TensorRT-RTX 1.7.1.116"),
        ({"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1"}, True, None, "TensorRT 11.4.0.106"),
        ({"tensorrt": "11.4.0", "tensorrt_rtx": "1.7.1"}, False, None, "TensorRT-RTX 1.7.1"),
        ({"tensorrt": "11.4.0", "tensorrt_rtx": "1.7.1"}, True, "tensorrt_rtx", "TensorRT-RTX 1.7.1"),
        ({"tensorrt": "11.4.0", "tensorrt_rtx": "1.7.1"}, False, "tensorrt", "TensorRT 11.4.0"),
    ],
)
def test_the_flavour_found(
    versions: dict[str, str], gpu: bool, asked: str | None, expected: str, machine: Callable[..., None]
) -> None:
    machine(gpu=gpu)
    assert str(flavour.find_flavour(asked, python_with(**versions))) == expected


def test_a_jetson_has_a_gpu_though_no_tool_reports_it(machine: Callable[..., None]) -> None:
    machine(jetson=True)
    both = python_with(tensorrt="10.3.0", tensorrt_rtx="1.7.1")
    assert flavour.find_flavour(load=both).name == "tensorrt"


def test_no_tensorrt_says_what_to_type_on_this_machine(machine: Callable[..., None]) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[rtx\]', or install NVIDIA's own TensorRT"):
        flavour.find_flavour(load=python_with())
    machine(jetson=True)
    with pytest.raises(MissingDependencyError, match=r"apt install nvidia-jetpack .* --system-site-packages"):
        flavour.find_flavour(load=python_with())
    with pytest.raises(MissingDependencyError, match="tensorrt_rtx: No module named 'tensorrt_rtx'"):
        flavour.find_flavour("tensorrt_rtx", python_with(tensorrt="10.3.0"))
    with pytest.raises(MissingDependencyError, match="TensorRT-RTX runs on no Jetson; TensorRT comes with JetPack"):
        flavour.find_flavour("tensorrt_rtx", python_with())
    machine()
    with pytest.raises(MissingDependencyError, match="install NVIDIA's own for your CUDA, or build with --flavour ten"):
        flavour.find_flavour("tensorrt", python_with(tensorrt_rtx="1.7.1"))


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(EngineBuildError, match=r"found TensorRT 8\.6\.1; at least 10\.3 is needed"):
        flavour.find_flavour(load=python_with(tensorrt="8.6.1"))
    with pytest.raises(InputError, match="is 'trt'; expected tensorrt or tensorrt_rtx"):
        flavour.find_flavour("trt")


def test_a_library_that_does_not_load_is_named() -> None:
    def load(name: str) -> Any:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    with pytest.raises(MissingDependencyError, match=r"tensorrt: libnvinfer\.so\.10: cannot open"):
        flavour.find_flavour(load=load)


def install(folder: Path, code: str, version: str | None) -> str:
    """A package `tensorrt` in a folder, with the metadata that pip writes if it has a version."""
    (folder / "tensorrt").mkdir(parents=True)
    (folder / "tensorrt" / "__init__.py").write_text(code)
    if version is not None:
        (folder / f"tensorrt-{version}.dist-info").mkdir()
        (folder / f"tensorrt-{version}.dist-info" / "METADATA").write_text(f"Name: tensorrt\nVersion: {version}\n")
    return str(folder)


def test_what_is_installed_is_found_without_loading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "raise OSError('libnvinfer.so.10: cannot open shared object file')"
    monkeypatch.syspath_prepend(install(tmp_path, code, "10.3.0"))
    found = flavour.find_flavour("tensorrt")
    assert (found.version, found.release, str(found)) == ("10.3.0", (10, 3), "TensorRT 10.3.0")
    with pytest.raises(MissingDependencyError, match=r"tensorrt cannot be loaded \(libnvinfer\.so\.10: cannot"):
        _ = found.trt


def test_metadata_of_another_package_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "pip", "__version__ = '10.3.0'", "10.3.0"))
    monkeypatch.syspath_prepend(install(tmp_path / "pythonpath", "__version__ = '11.4.0'", None))
    try:
        assert str(flavour.find_flavour("tensorrt")) == "TensorRT 11.4.0"
    finally:
        sys.modules.pop("tensorrt", None)


def test_compute_capabilities_are_one_device_in_any_order() -> None:
    rtx = flavour.Flavour("tensorrt_rtx", SimpleNamespace(__version__="1.7.1"))
    assert device_for(rtx) == "default"
    assert device_for(rtx, ["12.0", "8.6", "12.0"]) == device_for(rtx, ["8.6", "12.0"]) == "8.6 12.0"
    for wrong in ("86", "", "8.6 ", "sm_86"):
        with pytest.raises(InputError, match=rf"compute capability is '{wrong}'; expected one such as 8\.6"):
            device_for(rtx, ["8.9", wrong])


@pytest.mark.parametrize(
    ("name", "version", "opset"),
    [
        ("tensorrt", "10.3.0", 17),
        ("tensorrt", "10.13.2", 20),
        ("tensorrt", "11.4.0", 20),
        ("tensorrt_rtx", "1.7.1", 20),
    ],
)
def test_the_opset_is_one_that_the_parser_reads(name: flavour.FlavourName, version: str, opset: int) -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Gelu", ["images"], ["logits"], "gelu")
    ports = [onnx.helper.make_tensor_value_info(port, 1, ["N", 3]) for port in ("images", "logits")]
    graph = onnx.helper.make_graph([node], "graph", ports[:1], ports[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    found = _readable(model, flavour.Flavour(name, SimpleNamespace(__version__=version)))
    assert [entry.version for entry in found.opset_import] == [opset]
    assert ("Gelu" in [node.op_type for node in found.graph.node]) == (opset == 20)


def test_estimates_come_from_the_most_similar_builds(spec: EngineSpec, describe: Callable[..., Sidecar]) -> None:
    def built(seconds: float, **changes: object) -> Sidecar:
        changed = EngineSpec.model_validate(spec.model_dump() | changes)
        return describe(b"plan", changed).model_copy(update={"build_seconds": seconds, "prepare_seconds": 10.0})

    others = [built(100.0, precision="int8"), built(100.0, flavour="tensorrt", flavour_version="10.3")]
    assert estimate(spec, others) is None
    model = built(30.0, source_sha256="d" * 64)
    assert estimate(spec, [*others, model]) == 40.0
    assert estimate(spec, [*others, model, built(2.0), built(4.0, device="8.9")]) == 13.0
    assert estimate(spec, [built(8.0, buckets=(1, 2, 4, 8))]) == 14.0  # half as many batch sizes
