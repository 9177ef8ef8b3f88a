"""A bundle's models on a GPU that is a stand-in: which engines are asked for, and what becomes of them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.engine_specs import SPEC, sidecar_for
from tests.support.fake_cuda import FakeCapture, FakeDevice
from tests.support.tiny_bundle import write_tiny_bundle
from trt_moe.bundle import Bundle
from trt_moe.compile.build import BUCKETS, BuildOptions, Step
from trt_moe.compile.cache import Engine
from trt_moe.compile.flavour import Flavour, FlavourName
from trt_moe.cuda import load
from trt_moe.cuda.load import CudaModels
from trt_moe.errors import InputError
from trt_moe.models import ImageModel, SqueezeNetLight


class FakeTensorRtSource:
    def __init__(self, tensorrt: Any, engine: Engine, advice: str) -> None:
        self.tensorrt, self.engine, self.advice = tensorrt, engine, advice

    def bind(self, capture: Any) -> None:
        pass

    def enqueue(self, bucket: int) -> None:
        pass


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.load(write_tiny_bundle(tmp_path / "tiny").path)


def precisions(bundle: Bundle, options: BuildOptions) -> dict[str, str]:
    """By model, as `build_bundle` has them."""
    experts = {entry.name: options.precision for entry in bundle.experts}
    return {bundle.gater.name: "fp16" if options.precision == "int8" else options.precision, **experts}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, core: list[FakeCapture]) -> SimpleNamespace:
    """Engines are always in the cache; `asked` is what was asked for."""
    machine = SimpleNamespace(flavour="tensorrt_rtx", asked=[], captures=core)

    def build(bundle: Bundle, flavour: Flavour, cache: Any, options: BuildOptions, progress: Any) -> Any:
        machine.asked.append(options)
        progress(Step("gater", "converting", 0.0, None, None))
        progress(Step("gater", "building", 0.0, 1, None))
        engines = [
            Engine(Path("x"), b"plan", sidecar_for(b"plan", SPEC.model_copy(update={"model": name, "precision": each})))
            for name, each in precisions(bundle, options).items()
        ]
        return SimpleNamespace(engines=[SimpleNamespace(engine=engine) for engine in engines])

    def flavour_for(device: Any) -> Flavour:
        name: FlavourName = machine.flavour
        return Flavour(name, version="1.7.1")

    monkeypatch.setattr(load, "open_device", lambda: FakeDevice("8.6"))
    monkeypatch.setattr(load, "flavour_for", flavour_for)
    monkeypatch.setattr(load, "build_bundle", build)
    monkeypatch.setattr(load.EngineCache, "of_user", classmethod(lambda cls, note: "cache"))
    monkeypatch.setattr("trt_moe.cuda.tensorrt_source.TensorRt", lambda flavour: ("started", flavour.name))
    monkeypatch.setattr("trt_moe.cuda.tensorrt_source.TensorRtSource", FakeTensorRtSource)
    return machine


@pytest.mark.parametrize(
    ("flavour", "capabilities", "tail"),
    [("tensorrt_rtx", ("8.6",), " --compute-capability 8.6"), ("tensorrt", (), "")],
)
def test_engines_are_those_of_this_gpu(
    machine: Any, bundle: Bundle, flavour: str, capabilities: tuple[str, ...], tail: str
) -> None:
    machine.flavour = flavour
    models = CudaModels(bundle, "auto", {})
    assert machine.asked == [BuildOptions(precision="fp16", compute_capabilities=capabilities)]
    model = models.load("expert-1")
    source: Any = model.core.owner  # type: ignore[attr-defined]
    assert source.engine.sidecar.spec.model == model.name == "expert-1"
    assert source.advice == f"trt-moe build {bundle.path} --flavour {flavour} --precision fp16{tail}"
    assert source.tensorrt == ("started", flavour)


def test_models_are_captured_for_what_the_bundle_says(machine: Any, bundle: Bundle) -> None:
    models = CudaModels(bundle, "fp32", {})
    for name, outputs in (("gater", 2), ("expert-0", 3)):
        models.load(name)
        assert machine.captures[-1].options == {
            "name": name,
            "input_shape": (8, 8, 1),
            "outputs": outputs,
            "buckets": list(BUCKETS),
            "precision": "fp32",
        }


def test_int8_is_of_the_experts(machine: Any, bundle: Bundle) -> None:
    models = CudaModels(bundle, "int8", {})
    assert machine.asked[0].precision == "int8"
    assert [models.load(name).precision for name in ("gater", "expert-0", "expert-1")] == ["fp16", "int8", "int8"]
    assert models.load("expert-0").core.owner.advice.endswith(  # type: ignore[attr-defined]
        "--precision int8 --compute-capability 8.6"
    )
    modules = {entry.name: None for entry in bundle.models()}
    with pytest.raises(InputError, match="precision is 'int8', which TensorRT's engines have, and modules have not"):
        CudaModels(bundle, "int8", modules)


def test_a_build_is_announced_with_the_command_that_spares_it(
    machine: Any, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "trt_moe"):
        CudaModels(bundle, "auto", {})
    assert [record.getMessage() for record in caplog.records] == [
        f"building the engine of gater for this GPU; beforehand: trt-moe build {bundle.path} --flavour tensorrt_rtx "
        "--precision fp16 --compute-capability 8.6"
    ]


def test_a_gater_as_it_is_exported_needs_no_engine(machine: Any) -> None:
    bundle = Bundle.load("fashion-mnist")
    models = CudaModels(bundle, "fp16", {})
    assert machine.asked[0].models == ("squeezenet", "resnet")
    models.load("gater")
    capture = machine.captures[-1]
    assert capture.events[0] == ("hold gater", 4004, (28, 28), False)
    assert [event for event in capture.events if event[0] == "enqueue gater"] == [
        ("enqueue gater", bucket) for bucket in BUCKETS for _ in ("warm-up", "capture")
    ]
    assert capture.options["precision"] == "fp32"
    assert isinstance(models.load("resnet").core.owner, FakeTensorRtSource)  # type: ignore[attr-defined]
    assert machine.captures[-1].options["precision"] == "fp16"


def test_a_gater_among_the_modules_needs_no_torch_to_run(
    machine: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_moe.cuda.torch_source.TorchSource", lambda module, ordinal: FakeTensorRtSource(*module))
    modules: dict[str, Any] = {entry.name: (entry.name, None, "") for entry in bundle.models()}
    modules["gater"] = ImageModel(SqueezeNetLight(2, 1, 8), (8, 8), (8, 8), [0.5], [0.5]).eval()
    CudaModels(bundle, "auto", modules).load("gater")
    assert machine.captures[-1].events[0][:1] == ("hold gater",)
    assert machine.captures[-1].options["precision"] == "fp32"


def test_modules_take_the_place_of_engines(machine: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_moe.cuda.torch_source.TorchSource", lambda module, ordinal: FakeTensorRtSource(*module))
    modules = {entry.name: (entry.name, None, "") for entry in bundle.models()}
    models = CudaModels(bundle, "auto", modules)
    assert machine.asked == []
    assert models.load("expert-0").core.owner.tensorrt == "expert-0"  # type: ignore[attr-defined]


def test_what_is_refused(machine: Any, bundle: Bundle) -> None:
    with pytest.raises(InputError, match="precision is 'bf16'; on the GPU expected auto, fp16, fp32, int8"):
        CudaModels(bundle, "bf16", {})
    with pytest.raises(InputError, match=r"modules are of \['gater'\]; expected one for each of \['gater', 'expert-0'"):
        CudaModels(bundle, "auto", {"gater": None})
    with pytest.raises(InputError, match="robust-light is a baseline, which runs on the CPU only"):
        CudaModels(bundle, "auto", {}).load("robust-light")
    with pytest.raises(InputError, match="no model is called 'expert-9'"):
        CudaModels(bundle, "auto", {}).load("expert-9")
