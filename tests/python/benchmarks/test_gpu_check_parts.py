"""The parts of the GPU check that measure, with the CPU in place of the GPU, tiny networks and a stand-in for routers.

What this shows is that they run to their end and report what they were given; no figure in them means anything.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.gpu_check import (
    compiled,
    engines,
    idle,
    keep_awake,
    latency,
    mixture,
    parity,
    routers,
)
from benchmarks.gpu_check.goals import BATCH, LARGE, goals
from benchmarks.gpu_check.mixture import CLASSES, EXPERTS, GATER, Mixture
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.torch_routing import TorchRouting
from trt_moe.compile.build import Step
from trt_moe.models import ImageModel, SqueezeNetLight
from trt_moe.softmax import softmax

SIDE = 16


@pytest.fixture(autouse=True)
def cpu_for_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    to = torch.Tensor.to

    def without_device(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, device: Any = None, pin_memory: bool = False, **options: Any) -> Any:
            return make(*arguments, **options)

        return made

    monkeypatch.setattr(nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **o: self if a == ("cuda",) else to(self, *a, **o))
    for name in ("empty", "zeros"):
        monkeypatch.setattr(torch, name, without_device(getattr(torch, name)))
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)


class FakeRouter:
    """Routes as the gater of the mixture says; its models are torch's, and answer in no time."""

    def __init__(self, made: Mixture, plan: str) -> None:
        self.made = made
        self.plan = "device-routed" if plan == "auto" else plan
        self.plan_reason = f"asked for {plan}"
        self.device = "a test"
        self.callers: set[threading.Thread] = set()
        self._pipeline = SimpleNamespace(waited_ms=0.0)

    def __enter__(self) -> FakeRouter:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def predict(self, images: np.ndarray) -> Any:
        self.callers.add(threading.current_thread())
        self._pipeline.waited_ms += 1e6
        experts = self.logits(GATER, images).argmax(axis=1)
        logits = np.stack([self.logits(name, images) for name in EXPERTS])[experts, np.arange(len(images))]
        return SimpleNamespace(experts=experts, probabilities=softmax(logits))

    def model(self, name: str) -> Any:
        return SimpleNamespace(
            logits=lambda images: self.logits(name, images), time=lambda image, count, warmup: np.full(count, 0.01)
        )

    def logits(self, name: str, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.made.models[name](torch.from_numpy(images)).numpy()

    def memory_report(self) -> dict[str, Any]:
        return {GATER: {"device": 1}}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Mixture:
    """A mixture of tiny networks, which every part takes."""
    torch.manual_seed(0)
    images = np.stack([np.full((SIDE, SIDE, 3), value, np.uint8) for value in (30, 128, 220)])
    images += np.random.default_rng(0).integers(0, 20, images.shape, np.uint8)

    def wrapped(network: nn.Module) -> ImageModel:
        return ImageModel(network, (SIDE, SIDE), (SIDE, SIDE), [0.5] * 3, [0.5] * 3).eval()

    gater = SqueezeNetLight(len(EXPERTS), side=SIDE)
    models = {GATER: wrapped(gater)}
    mixture._fit_head(gater, models[GATER], images)
    for name in EXPERTS:
        models[name] = wrapped(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES)))
    made = Mixture(models, images)
    monkeypatch.setattr(engines, "make_mixture", lambda: made)
    for part in (compiled, idle, latency, parity):
        monkeypatch.setattr(part, "make_mixture", lambda: made)
        monkeypatch.setattr(
            part,
            "choose_engines",
            lambda work, given, compiled=True: SimpleNamespace(
                engines="torch", why="a test", open=lambda plan="auto", speculate=False: FakeRouter(given, plan)
            ),
        )
    return made


def test_the_fitted_head_routes_each_image_to_its_expert(made: Mixture) -> None:
    assert FakeRouter(made, "auto").predict(made.batch((4, 2, 2))).experts.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]


def test_torch_routing_answers_each_image_by_its_expert(made: Mixture) -> None:
    peer = TorchRouting(made.models, lambda module: module, 8, made.images.shape[1:])
    batch = made.batch((4, 2, 2))
    routes = [0, 1, 2, 0, 1, 2, 0, 0]
    with torch.inference_mode():
        tensors = torch.from_numpy(batch)
        expected = torch.stack(
            [made.models[list(EXPERTS)[k]](tensors[i : i + 1])[0].softmax(dim=0) for i, k in enumerate(routes)]
        ).numpy()
    np.testing.assert_allclose(peer.predict(batch), expected, atol=1e-6)
    for index in range(len(batch)):
        np.testing.assert_allclose(peer.predict(batch[index : index + 1])[0], expected[index], atol=1e-6)


def test_parity(made: Mixture, tmp_path: Path) -> None:
    found = parity.run(Work(tmp_path, 60, "part"))
    assert set(found["models"]) == {GATER, *EXPERTS}
    for figures in found["models"].values():
        assert figures["passed"]
        assert figures["largest_error_over_largest_logit"] < 1e-4
        assert figures["top1_agreement"] == 1.0
    assert set(found["plans"]) == {"device-routed", "host-routed"}
    for row in found["plans"].values():
        assert row["routes_right"] is row["passed"] is True
        assert row["largest_difference_of_a_probability"] < 1e-5
    json.dumps(found)


def test_parity_sees_rows_out_of_order(made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = FakeRouter.logits

    def logits(self: FakeRouter, name: str, images: np.ndarray) -> np.ndarray:
        found = right(self, name, images)
        return found if name == GATER else np.roll(found, 1, axis=0)

    monkeypatch.setattr(FakeRouter, "logits", logits)
    found = parity.run(Work(tmp_path, 60, "part"))
    assert {name: row["passed"] for name, row in found["models"].items()} == {GATER: True} | dict.fromkeys(
        EXPERTS, False
    )
    for row in found["plans"].values():
        assert row["routes_right"] is True and row["passed"] is False


def test_parity_sees_wrong_logits_and_routes(made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = FakeRouter.logits
    monkeypatch.setattr(FakeRouter, "logits", lambda self, name, images: -right(self, name, images))
    found = parity.run(Work(tmp_path, 60, "part"))
    assert found["models"]["squeezenet"]["largest_error_over_largest_logit"] > 1.0
    assert found["models"]["squeezenet"]["passed"] is False
    assert found["plans"]["device-routed"]["routes_right"] is False


def test_parity_keeps_each_model_and_each_plan(made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept() -> dict[str, Any]:
        return json.loads((tmp_path / "parity.json").read_text())  # type: ignore[no-any-return]

    right, cheapest = FakeRouter.logits, next(iter(EXPERTS))

    def logits(self: FakeRouter, name: str, images: np.ndarray) -> np.ndarray:
        if name == cheapest:
            raise RuntimeError("the device failed")
        return right(self, name, images)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the device failed"):
        patch.setattr(FakeRouter, "logits", logits)
        parity.run(Work(tmp_path, 60, "parity"))
    assert list(kept()["models"]) == [GATER]

    answer = FakeRouter.predict

    def predict(self: FakeRouter, images: np.ndarray) -> Any:
        if self.plan == "host-routed":
            raise RuntimeError("the device failed")
        return answer(self, images)

    monkeypatch.setattr(FakeRouter, "predict", predict)
    with pytest.raises(RuntimeError, match="the device failed"):
        parity.run(Work(tmp_path, 60, "parity"))
    assert list(kept()["models"]) == [GATER, *EXPERTS]
    assert list(kept()["plans"]) == ["device-routed"]


def test_latencies_and_their_goals(made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (latency, compiled):
        monkeypatch.setattr(part, "ROUNDS", 5)
    work = Work(tmp_path, 30, "part")
    results = {"latency": latency.run(work), "compiled": compiled.run(work)}
    json.dumps(results)
    # What the GPU is waited for is not the host's.
    assert results["latency"]["host_us"]["p50_us"] < 0
    assert set(results["latency"]["milliseconds"]) == {*EXPERTS, BATCH, LARGE}
    single = results["latency"]["milliseconds"]["deit-small"]
    assert single["bare gater + bare expert"]["p50_ms"] == pytest.approx(0.02)
    assert single["our device-routed plan"]["rounds"] == 5
    assert results["latency"]["routes_right"] is True
    assert results["latency"]["pycuda_loop"] == "TensorRT does not run on this GPU"
    rows = {row[0]: row[1] for row in goals(results)}
    assert float(rows["torch.compile, routed in Python over ours, batch 8, p50, worst"]) > 0
    assert rows["tensorrt + pycuda loop over ours, batch 1, p50, worst"] == "not measured"
    large = results["latency"]["milliseconds"][LARGE]
    assert set(large) == {"our device-routed plan", "our host-routed plan", "DeiT-S alone"}
    assert float(rows["the same of a batch of 32, half of it to the cheapest, p50"]) > 0


def test_figures_of_a_router_that_routes_wrongly_are_errors(
    made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FakeRouter.logits

    def logits(self: FakeRouter, name: str, images: np.ndarray) -> np.ndarray:
        found = right(self, name, images)
        return found[:, ::-1] if self.plan == "host-routed" else found

    monkeypatch.setattr(FakeRouter, "logits", logits)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    assert latency.run(Work(tmp_path, 30, "latency"))["routes_right"] is False


def test_what_was_timed_is_kept_where_a_later_batch_fails(
    made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FakeRouter.predict

    def predict(self: FakeRouter, images: np.ndarray) -> Any:
        if len(images) == 8:
            raise RuntimeError("the device failed")
        return right(self, images)

    monkeypatch.setattr(FakeRouter, "predict", predict)
    for part in (latency, compiled):
        monkeypatch.setattr(part, "ROUNDS", 2)
    for part in (latency, compiled):
        name = part.__name__.rpartition(".")[2]
        with pytest.raises(RuntimeError, match="the device failed"):
            part.run(Work(tmp_path, 30, name))
        kept = json.loads((tmp_path / f"{name}.json").read_text())
        assert list(kept["milliseconds"]) == (list(EXPERTS) if part is latency else [next(iter(EXPERTS))])


class FakeStream:
    """Like `torch.cuda.Stream`; `times` it was waited for."""

    times = 0

    def synchronize(self) -> None:
        FakeStream.times += 1


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> type[FakeStream]:
    FakeStream.times = 0
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    return FakeStream


def test_idleness(made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: type[FakeStream]) -> None:
    opened: list[FakeRouter] = []
    make = FakeRouter.__init__

    def note(self: FakeRouter, *given: Any) -> None:
        make(self, *given)
        opened.append(self)

    monkeypatch.setattr(FakeRouter, "__init__", note)
    monkeypatch.setattr(idle, "IDLE_S", 0.01)
    found = idle.run(Work(tmp_path, idle._SPARE_S + 1.0, "part"))
    calls = [found[label]["calls"] for label in ("after idleness", "after idleness, with keep-alive")]
    assert calls[0] == calls[1] >= 5, "in blocks, each after the other"
    assert found["engines"] == "torch"
    assert stream.times >= 1
    # A second caller would be waited for.
    assert opened[0].callers == {threading.current_thread()}
    json.dumps(found)


def test_every_call_after_idleness_is_kept_at_once(
    made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: type[FakeStream]
) -> None:
    monkeypatch.setattr(idle, "IDLE_S", 0.0)
    right, calls = FakeRouter.predict, 0

    def predict(self: FakeRouter, images: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls == 204:
            raise RuntimeError("the device failed")
        return right(self, images)

    monkeypatch.setattr(FakeRouter, "predict", predict)
    with pytest.raises(RuntimeError, match="the device failed"):
        idle.run(Work(tmp_path, 60, "idle"))
    kept = json.loads((tmp_path / "idle.json").read_text())
    assert (kept["busy"]["calls"], kept["after idleness"]["calls"]) == (100, 3)


def test_the_gpu_is_kept_awake_only_meanwhile(stream: type[FakeStream]) -> None:
    with keep_awake.gpu_kept_awake(0.001):
        sleep(0.1)
    times = stream.times
    assert times > 5
    sleep(0.05)
    assert stream.times == times


def test_a_gpu_that_does_not_stay_awake_is_an_error(stream: type[FakeStream], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FakeStream) -> None:
        raise RuntimeError("the device failed")

    monkeypatch.setattr(FakeStream, "synchronize", fail)
    with pytest.raises(RuntimeError, match="the device failed"), keep_awake.gpu_kept_awake(0.001):
        sleep(0.05)


def make_engines(
    work: Work, monkeypatch: pytest.MonkeyPatch, probe: dict[str, Any], last_stage: str = "building"
) -> Any:
    """The part `engines`, with an export and builds that do nothing; the last build may fail."""

    def build(bundle: Any, progress: Callable[[Step], None]) -> Any:
        for name, stage in ((GATER, "converting"), (GATER, "building"), (GATER, "building"), ("light", last_stage)):
            progress(Step(name, stage, 0.5, None, None))  # type: ignore[arg-type]
        if last_stage == "converting":
            raise RuntimeError("no kernel for Gelu")
        return "TensorRT 10.3", {}

    (work.folder / "probe.json").write_text(json.dumps(probe))
    monkeypatch.setattr(Mixture, "export", lambda self, folder: f"bundle in {folder}")
    monkeypatch.setattr(engines, "engines_of", build)
    return engines.run(work)


def router_on_engines(made: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "Router", lambda bundle, device, check: FakeRouter(made, "auto"))


def test_engines_are_made_where_the_probe_ran(made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router_on_engines(made, monkeypatch)
    work = Work(tmp_path, 60, "engines")
    found = make_engines(work, monkeypatch, {"ran": True, "said": ["tensorrt: it ran"]})
    assert found["works"] and found["routes_right"]
    assert found["said"] == "TensorRT 10.3: routes [0, 1, 2], a test, asked for auto"
    found = make_engines(work, monkeypatch, {"ran": False, "said": ["tensorrt: none", "tensorrt_rtx: no Hopper"]})
    assert found == {"works": False, "said": "tensorrt: none\ntensorrt_rtx: no Hopper"}
    (tmp_path / "probe.json").unlink()
    assert engines.run(work) == {"works": False, "said": "the probe of TensorRT did not run"}


def test_engines_that_route_wrongly_are_not_taken(
    made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router_on_engines(made, monkeypatch)
    right = FakeRouter.logits
    monkeypatch.setattr(FakeRouter, "logits", lambda self, name, images: -right(self, name, images))
    found = make_engines(Work(tmp_path, 60, "engines"), monkeypatch, {"ran": True, "said": []})
    assert found["works"] is found["routes_right"] is False


def test_engines_that_were_not_finished_are_not_taken(
    made: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="no kernel for Gelu"):
        make_engines(Work(tmp_path, 60, "engines"), monkeypatch, {"ran": True, "said": []}, "converting")
    kept = json.loads((tmp_path / "engines.json").read_text())
    assert kept["works"] is False
    assert kept["stages"] == {GATER: "building", "light": "converting"}


def test_engines_are_chosen_by_what_was_made(tmp_path: Path, made: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routers, "Bundle", SimpleNamespace(load=lambda folder: f"bundle in {folder}"))
    monkeypatch.setattr(Mixture, "bundle", lambda self: "bundle without files")
    monkeypatch.setattr(routers, "Router", lambda bundle, **options: (bundle, options))
    work = Work(tmp_path, 60, "part")
    for made_engines, kind, bundle in (
        (None, "torch.compile", "bundle without files"),
        ({"works": False, "said": "Hopper is not supported"}, "torch.compile", "bundle without files"),
        ({"works": True, "said": "it ran"}, "TensorRT", f"bundle in {tmp_path / 'mixture'}"),
    ):
        if made_engines is not None:
            (tmp_path / "engines.json").write_text(json.dumps(made_engines))
        chosen = routers.choose_engines(work, made)
        assert chosen.engines == kind
        opened: Any = chosen.open("host-routed")
        assert opened[0] == bundle
        assert (opened[1]["modules"] is None) == (kind == "TensorRT")
        assert (opened[1]["plan"], opened[1]["speculate"]) == ("host-routed", False)
        assert routers.choose_engines(work, made, compiled=False).engines == kind.replace(
            "torch.compile", "torch, not compiled"
        )


def test_a_bundle_without_files_is_valid() -> None:
    bundle = Mixture({GATER: None, **dict.fromkeys(EXPERTS)}, np.zeros(0)).bundle()  # type: ignore[arg-type]
    assert [entry.name for entry in bundle.models()] == [GATER, *EXPERTS]
    assert bundle.input_shape == (224, 224, 3)
    assert bundle.outputs(bundle.gater) == len(EXPERTS)
