"""The parts of the GPU check that need TensorRT, and its peer with pycuda, on stand-ins.

What this shows is which calls are made, and what is made of their answers; not that a GPU runs anything.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks.gpu_check import engines, probe, pycuda_loop
from benchmarks.gpu_check.mixture import CLASSES, EXPERTS, GATER, Images
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.pycuda_loop import PycudaLoop, open_loop
from tests.support.engine_specs import SPEC, sidecar_for
from tests.support.fake_cuda import FakeDevice
from tests.support.fake_pycuda import FakePycuda, Stream
from tests.support.fake_tensorrt import FakeTensorRt
from tests.support.tensorrt_names import Names
from trt_moe import Bundle
from trt_moe.bundle import shipped_bundles
from trt_moe.compile.build import BuildOptions, BuildReport, BuiltEngine
from trt_moe.compile.cache import Engine
from trt_moe.compile.flavour import Flavour, FlavourName
from trt_moe.cuda.tensorrt_source import TensorRt, TensorRtSource
from trt_moe.errors import MissingDependencyError
from trt_moe.softmax import softmax

SHAPE = (4, 4, 1)
LEVELS = np.linspace(20, 220, len(EXPERTS)).astype(np.uint8)
"""Of images: the gater sends the k-th to expert k."""


def grey(experts: list[int]) -> Images:
    return np.stack([np.full(SHAPE, LEVELS[expert], np.uint8) for expert in experts])


def logits_of(name: str, images: Images) -> np.ndarray:
    levels = images.reshape(len(images), -1).mean(axis=1)
    if name == GATER:
        return -np.abs(levels[:, None] - LEVELS.astype(np.float32)).astype(np.float32)
    # They tell which model answered, and which image.
    return np.outer(levels, np.arange(CLASSES)).astype(np.float32) / 1000 + list(EXPERTS).index(name)


def engine_of(name: str, flavour: FlavourName) -> Engine:
    spec = SPEC.model_copy(update={"model": name, "buckets": (1, 2, 4, 8), "flavour": flavour})
    return Engine(Path(f"{name}.plan"), name.encode(), sidecar_for(name.encode(), spec))


class RunningTensorRt(FakeTensorRt):
    """Its contexts do a model's work, in memory of the stand-in for pycuda, on its stream."""

    def __init__(self, flavour: FlavourName, names: Names, cuda: FakePycuda) -> None:
        super().__init__(flavour, names)
        self.cuda = cuda
        self.runtime.deserialize_cuda_engine.side_effect = self._open
        self.made: dict[tuple[str, int], Mock] = {}

    def _open(self, plan: bytes) -> Mock:
        engine = Mock(spec_set=self.names["ICudaEngine"])
        engine.create_execution_context.side_effect = lambda strategy: self._run(plan.decode(), strategy)
        return engine

    def _run(self, name: str, strategy: str) -> Mock:
        assert strategy == "ExecutionContextAllocationStrategy.USER_MANAGED"
        context = self._context(strategy)
        given: dict[str, Any] = {}

        def shape(port: str, size: tuple[int, ...]) -> bool:
            given["count"] = size[0]
            self.made[name, size[0]] = context
            return size[1:] == SHAPE

        def address(port: str, at: int) -> bool:
            given[port] = at
            return True

        def execute(stream: int) -> bool:
            assert stream == Stream.handle

            def work() -> None:
                images = self.cuda.memory[given["images"]].reshape(-1, *SHAPE)[: given["count"]]
                found = logits_of(name, images).reshape(-1).view(np.uint8)
                self.cuda.memory[given["logits"]][: len(found)] = found

            self.cuda.stream.work.append(work)
            return True

        context.set_input_shape.side_effect = shape
        context.set_tensor_address.side_effect = address
        context.execute_async_v3.side_effect = execute
        return context


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakePycuda:
    cuda = FakePycuda()
    package = ModuleType("pycuda")
    package.__spec__ = ModuleSpec("pycuda", None)
    for name, module in (("pycuda", package), ("pycuda.autoprimaryctx", package), ("pycuda.driver", cuda)):
        monkeypatch.setitem(sys.modules, name, module)
    return cuda


@pytest.fixture
def fake(tensorrt: tuple[FlavourName, Names], cuda: FakePycuda) -> RunningTensorRt:
    return RunningTensorRt(*tensorrt, cuda)


def loop_of(fake: RunningTensorRt) -> PycudaLoop:
    made = {name: engine_of(name, fake.flavour.name) for name in (GATER, *EXPERTS)}
    return PycudaLoop(TensorRt(fake.flavour), made, SHAPE)


def test_the_loop_answers_each_image_by_its_expert(fake: RunningTensorRt) -> None:
    loop = loop_of(fake)
    for experts in ([0], [1], [2], [0, 1, 2, 0, 1, 2, 0, 0], [2], [0, 0], [0, 1, 2, 0, 1, 2, 0, 0]):
        images = grey(experts)
        logits = [logits_of(list(EXPERTS)[k], image[None])[0] for k, image in zip(experts, images, strict=True)]
        np.testing.assert_allclose(loop.predict(images), softmax(np.stack(logits)), atol=1e-6)


def test_a_context_for_each_batch_size_of_a_model(fake: RunningTensorRt) -> None:
    loop = loop_of(fake)
    for _ in range(2):
        loop.predict(grey([0, 0, 0, 0, 1, 1, 2, 2]))
    cheap, middle, dear = EXPERTS
    assert set(fake.made) == {(GATER, 8), (cheap, 4), (middle, 2), (dear, 2)}
    assert len(fake.contexts) == 4
    for (_, count), context in fake.made.items():
        context.set_optimization_profile_async.assert_called_once_with((1, 2, 4, 8).index(count), Stream.handle)
        address, size = context.set_device_memory.call_args.args
        assert len(fake.cuda.memory[address]) == size
        assert context.execute_async_v3.call_count == 2
    addresses = [context.set_device_memory.call_args.args[0] for context in fake.made.values()]
    assert len(set(addresses)) == 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("set_optimization_profile_async", "profile 0"),
        ("set_input_shape", "the shape"),
        ("set_tensor_address", "its input"),
        ("execute_async_v3", f"to run {GATER}"),
    ],
)
def test_what_tensorrt_refuses_is_said(
    fake: RunningTensorRt, call: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunningTensorRt._run

    def refusing(self: RunningTensorRt, name: str, strategy: str) -> Mock:
        context = run(self, name, strategy)
        getattr(context, call).side_effect = lambda *given: False
        return context

    monkeypatch.setattr(RunningTensorRt, "_run", refusing)
    with pytest.raises(RuntimeError, match=rf"TensorRT.* 1\.7\.1 refuses {words}: it gives no reason"):
        loop_of(fake).predict(grey([0]))


def test_the_loop_is_opened_where_it_answers(
    fake: RunningTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {name: engine_of(name, fake.flavour.name) for name in (GATER, *EXPERTS)}
    monkeypatch.setattr(pycuda_loop, "Bundle", SimpleNamespace(load=lambda folder: folder))
    monkeypatch.setattr(pycuda_loop, "engines_of", lambda bundle: (fake.flavour, made))
    work = Work(tmp_path, 60, "latency")
    loop, why = open_loop(work, "TensorRT", grey([0, 1, 2]))
    assert isinstance(loop, PycudaLoop) and why == "it ran"
    assert {name for name, _ in fake.made} == {GATER, *EXPERTS}
    assert open_loop(work, "torch.compile", grey([0])) == (None, "TensorRT does not run on this GPU")

    def refuse(bundle: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pycuda_loop, "engines_of", refuse)
    loop, why = open_loop(work, "TensorRT", grey([0]))
    assert loop is None and why.endswith("RuntimeError: out of memory\n")
    monkeypatch.setattr(pycuda_loop.importlib.util, "find_spec", lambda name: None)
    assert open_loop(work, "TensorRT", grey([0])) == (None, "pycuda is not installed")


@pytest.mark.parametrize(("name", "capabilities"), [("tensorrt", ()), ("tensorrt_rtx", ("8.6",))])
def test_engines_are_those_that_a_router_takes(
    name: FlavourName, capabilities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BuildOptions] = []

    def build(bundle: Any, flavour: Flavour, cache: Any, options: BuildOptions, progress: Any) -> BuildReport:
        asked.append(options)
        return BuildReport(bundle, flavour, [BuiltEngine(engine_of(each, name), True) for each in ("a", "b")], 1.0)

    monkeypatch.setattr(engines, "open_device", FakeDevice)
    monkeypatch.setattr(engines, "flavour_for", lambda device: Flavour(name, version="1.7.1"))
    monkeypatch.setattr(engines, "build_bundle", build)
    flavour, made = engines.engines_of("bundle")  # type: ignore[arg-type]
    assert flavour.name == name and list(made) == ["a", "b"]
    assert asked == [BuildOptions(compute_capabilities=capabilities)]


def test_the_probe_runs_the_gater_of_a_shipped_bundle(
    fake: RunningTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.load(next(iter(shipped_bundles())))
    asked: list[BuildOptions] = []

    def find(name: FlavourName) -> Flavour:
        if name != fake.flavour.name:
            raise MissingDependencyError("no TensorRT can be loaded in this Python")
        return fake.flavour

    def build(bundle: Bundle, flavour: Flavour, cache: Any, options: BuildOptions) -> BuildReport:
        asked.append(options)
        return BuildReport(bundle, flavour, [BuiltEngine(engine_of("gater", flavour.name), True)], 1.0)

    def capture(source: Any, device: Any, **options: Any) -> Any:
        assert isinstance(source, TensorRtSource)
        assert options["buckets"] == asked[0].buckets
        assert options["outputs"] == len(bundle.manifest.experts)
        return SimpleNamespace(logits=lambda images: bundle.golden()[bundle.gater.name])

    monkeypatch.setattr(probe, "find_flavour", find)
    monkeypatch.setattr(probe, "build_bundle", build)
    monkeypatch.setattr(probe, "capture_model", capture)
    monkeypatch.setattr(probe, "open_device", FakeDevice)
    found = probe.run(Work(tmp_path, 60, "probe"))
    assert asked[0].models == (bundle.gater.name,)
    assert found["ran"]
    ran, absent = sorted(found["said"], key=lambda words: "no TensorRT" in words)
    assert ran.startswith(f"{fake.flavour.name}: TensorRT")
    assert ran.endswith(f"1.7.1 ran the gater of {bundle.name}, 0 off its golden logits")
    assert absent.endswith(": no TensorRT can be loaded in this Python")


def test_what_each_tensorrt_says_is_kept_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(flavour: str) -> str:
        if flavour == "tensorrt_rtx":
            raise KeyboardInterrupt  # the part is ended
        raise ValueError("Hopper is not supported")

    monkeypatch.setattr(probe, "find_flavour", lambda name: name)
    monkeypatch.setattr(probe, "_run_gater", say)
    with pytest.raises(KeyboardInterrupt):
        probe.run(Work(tmp_path, 60, "probe"))
    kept = json.loads((tmp_path / "probe.json").read_text())
    assert kept["ran"] is False
    [words] = kept["said"]
    assert words.startswith("tensorrt: ") and words.endswith("ValueError: Hopper is not supported\n")
