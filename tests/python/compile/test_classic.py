"""The path of `tensorrt`, which builds on GPUs only, on stand-ins that have the names of the real one and no others.

What this shows is which calls are made, and what is made of their answers; not that an engine comes out.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from tests.support.tensorrt_names import Names
from trt_moe.compile.builder import EngineBuilder, read_timing_cache
from trt_moe.compile.device import device_for
from trt_moe.compile.flavour import Flavour
from trt_moe.compile.sidecar import EngineSpec, Port
from trt_moe.errors import DeviceError, EngineBuildError, InputError


class Classic:
    """A `tensorrt` whose objects know the names of one version only, and what they were told."""

    def __init__(self, version: str, names: Names) -> None:
        def thing(kind: str, **answers: Any) -> Mock:
            return Mock(spec_set=names[kind], **answers)

        def constants(kind: str) -> SimpleNamespace:
            return SimpleNamespace(**{name: f"{kind}.{name}" for name in names[kind] if name.isupper()})

        images = thing("ITensor", dtype=SimpleNamespace(name="UINT8"), shape=(-1, 4, 4, 1))
        logits = thing("ITensor", dtype=SimpleNamespace(name="FLOAT"), shape=(-1, 3))
        images.name, logits.name = "images", "logits"
        self.network = thing("INetworkDefinition", num_inputs=1, num_outputs=1, num_layers=5)
        self.network.get_input.return_value, self.network.get_output.return_value = images, logits
        self.network.get_flag.return_value = True
        self.parser = thing("OnnxParser")
        self.parser.parse.return_value = True
        self.profiles: list[Mock] = []
        self.config = thing("IBuilderConfig")
        self.config.add_optimization_profile.side_effect = lambda profile: self.profiles.append(profile) or 0
        self.config.get_flag.return_value = False
        self.config.get_timing_cache.return_value = thing("ITimingCache")
        self.config.get_timing_cache.return_value.serialize.return_value = b"measured"
        self.config.set_timing_cache.return_value = True
        self.builder = thing("Builder")
        self.builder.create_network.return_value = self.network
        self.builder.create_builder_config.return_value = self.config
        self.builder.create_optimization_profile.side_effect = lambda: thing("IOptimizationProfile")
        self.builder.build_serialized_network.return_value = b"plan"
        self.engine = thing("ICudaEngine", num_optimization_profiles=2)
        self.engine.hardware_compatibility_level = "HardwareCompatibilityLevel.NONE"
        self.engine.get_tensor_profile_shape.side_effect = lambda name, index: [(index + 1, 4, 4, 1)] * 3
        self.runtime = thing("Runtime", engine_host_code_allowed=False)
        self.runtime.deserialize_cuda_engine.return_value = self.engine
        module = SimpleNamespace(
            __version__=f"{version}.0",
            Builder=lambda logger: self.builder,
            OnnxParser=lambda network, logger: self.parser,
            Runtime=lambda logger: self.runtime,
            ILogger=type("ILogger", (), vars(constants("ILogger"))),
            IProgressMonitor=type("IProgressMonitor", (), {}),
            BuilderFlag=constants("BuilderFlag"),
            HardwareCompatibilityLevel=constants("HardwareCompatibilityLevel"),
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        )
        self.flavour = Flavour("tensorrt", module)

    def flags(self) -> list[str]:
        return [call.args[0] for call in self.config.set_flag.call_args_list]


@pytest.fixture
def classic(classic_names: tuple[str, Names]) -> Classic:
    return Classic(*classic_names)


@pytest.fixture
def asked(spec: EngineSpec) -> EngineSpec:
    return spec.model_copy(update={"flavour": "tensorrt", "device": "NVIDIA Orin"})


def test_a_plain_build(classic: Classic, asked: EngineSpec, tmp_path: Path) -> None:
    built = EngineBuilder(classic.flavour).build(b"onnx", asked, tmp_path / "t")
    assert built.plan == b"plan"
    assert built.inputs == [Port(name="images", dtype="uint8", shape=[-1, 4, 4, 1])]
    assert built.outputs == [Port(name="logits", dtype="float32", shape=[-1, 3])]
    assert built.host_code is False
    assert built.options == {
        "version_compatible": False,
        "hardware_compatible": False,
        "strongly_typed": True,
        "tf32": False,
        "max_aux_streams": 0,
    }
    classic.builder.create_network.assert_called_once_with(1 << 1)
    assert classic.flags() == []  # neither FP16 nor INT8: the types are the network's
    classic.config.clear_flag.assert_called_once_with("BuilderFlag.TF32")
    shapes = [profile.set_shape.call_args.args for profile in classic.profiles]
    assert shapes == [("images", *[(1, 4, 4, 1)] * 3), ("images", *[(2, 4, 4, 1)] * 3)]


def test_the_timing_cache_is_kept_and_used(classic: Classic, asked: EngineSpec, tmp_path: Path) -> None:
    builder, file = EngineBuilder(classic.flavour), tmp_path / "t"
    builder.build(b"onnx", asked, file)
    builder.build(b"onnx", asked, file)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    builder.build(b"onnx", asked, file)
    given = [call.args[0] for call in classic.config.create_timing_cache.call_args_list]
    assert given == [b"", b"measured", b""]
    assert read_timing_cache(file) == b"measured"


def test_a_timing_cache_of_another_gpu_is_replaced(classic: Classic, asked: EngineSpec, tmp_path: Path) -> None:
    classic.config.set_timing_cache.side_effect = [False, True]
    EngineBuilder(classic.flavour).build(b"onnx", asked, tmp_path / "t")
    assert [call.args[1] for call in classic.config.set_timing_cache.call_args_list] == [False, False]
    assert classic.config.create_timing_cache.call_args.args == (b"",)


def test_a_timing_cache_that_cannot_be_kept_costs_no_engine(
    classic: Classic, asked: EngineSpec, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    built = EngineBuilder(classic.flavour).build(b"onnx", asked, tmp_path / "file" / "t")
    assert built.plan == b"plan"


def test_compatibility_is_asked_for_and_read_back(classic: Classic, asked: EngineSpec, tmp_path: Path) -> None:
    asked = asked.model_copy(update={"version_compatible": True, "hardware_compatible": True})
    classic.engine.hardware_compatibility_level = "HardwareCompatibilityLevel.AMPERE_PLUS"
    # A plan with the lean runtime inside opens with the permission only.
    classic.runtime.deserialize_cuda_engine.side_effect = lambda plan: (
        classic.engine if classic.runtime.engine_host_code_allowed else None
    )
    built = EngineBuilder(classic.flavour).build(b"onnx", asked, tmp_path / "t")
    assert classic.flags() == ["BuilderFlag.VERSION_COMPATIBLE"]
    assert classic.config.hardware_compatibility_level == "HardwareCompatibilityLevel.AMPERE_PLUS"
    assert built.host_code is True
    assert (built.options["version_compatible"], built.options["hardware_compatible"]) == (True, True)


@pytest.mark.parametrize("name", ["version_compatible", "hardware_compatible"])
def test_an_engine_without_what_was_asked_is_refused(
    name: str, classic: Classic, asked: EngineSpec, tmp_path: Path
) -> None:
    asked = asked.model_copy(update={name: True})
    with pytest.raises(
        EngineBuildError, match=rf"light: TensorRT .* built .*'{name}': False.*, asked was .*'{name}': True"
    ):
        EngineBuilder(classic.flavour).build(b"onnx", asked, tmp_path / "t")


def test_an_engine_with_other_buckets_is_refused(classic: Classic, asked: EngineSpec, tmp_path: Path) -> None:
    classic.engine.num_optimization_profiles = 1
    with pytest.raises(EngineBuildError, match=r"'buckets': \(1,\).*asked was .*'buckets': \(1, 2\)"):
        EngineBuilder(classic.flavour).build(b"onnx", asked, tmp_path / "t")


def test_failures_are_told(classic: Classic, asked: EngineSpec, tmp_path: Path) -> None:
    builder = EngineBuilder(classic.flavour)
    classic.runtime.deserialize_cuda_engine.return_value = None
    with pytest.raises(EngineBuildError, match="cannot open its own engine"):
        builder.build(b"onnx", asked, tmp_path / "t")
    classic.builder.build_serialized_network.return_value = None
    with pytest.raises(EngineBuildError, match=r"light: TensorRT .* builds no engine: it gives no reason"):
        builder.build(b"onnx", asked, tmp_path / "t")
    classic.config.get_flag.return_value = True
    classic.builder.build_serialized_network.return_value = b"plan"
    classic.runtime.deserialize_cuda_engine.return_value = classic.engine
    with pytest.raises(EngineBuildError, match=r"did not keep to what was asked, it took .*'tf32': True"):
        builder.build(b"onnx", asked, tmp_path / "t")


def test_a_tensorrt_that_does_not_start(classic: Classic) -> None:
    def fail(logger: Any) -> None:
        logger.log(classic.flavour.trt.ILogger.ERROR, "CUDA initialization failure\nwith error: 35")
        raise TypeError("factory function returned nullptr")

    classic.flavour.trt.Builder = fail
    with pytest.raises(
        DeviceError, match="does not start: CUDA initialization failure with error: 35; see `trt-moe doc"
    ):
        EngineBuilder(classic.flavour)


def test_its_device_is_the_gpu_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    flavour = Flavour("tensorrt", SimpleNamespace(__version__="10.3.0"))
    found = {"devices": [{"name": "NVIDIA L4", "compute_capability": "8.9"}]}
    monkeypatch.setattr("trt_moe.compile.device.gpu_report", lambda: found)
    assert device_for(flavour) == device_for(flavour, ["8.9"]) == "NVIDIA L4"
    with pytest.raises(InputError, match=r"NVIDIA L4, compute capability 8.9\), not for 8.6; leave --compute-cap"):
        device_for(flavour, ["8.6"])
    found["devices"] = []
    with pytest.raises(DeviceError, match=r"TensorRT 10.3.0 builds only where the GPU is, and here is none"):
        device_for(flavour)
