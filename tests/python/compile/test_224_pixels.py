"""From PyTorch to engines for every GPU: models that users bring, at 224 pixels, with random weights.

Takes minutes, so `pytest` leaves it out and `.ci/run` has a step of its own: `pytest -m slow -s tests/python/compile`,
which also prints what each model took for each target.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.support.tensorrt_operators import READ_BY_TENSORRT_10_1  # noqa: E402
from trt_moe.bundle import (  # noqa: E402
    Bundle,
    Golden,
    InputSpec,
    Manifest,
    ModelEntry,
    sha256_file,
    write_golden,
    write_manifest,
)
from trt_moe.cli import app  # noqa: E402
from trt_moe.compile import build as build_module  # noqa: E402
from trt_moe.compile import half  # noqa: E402
from trt_moe.compile.builder import EngineBuilder  # noqa: E402
from trt_moe.compile.flavour import Flavour  # noqa: E402
from trt_moe.compile.gate_emulation import emulate  # noqa: E402
from trt_moe.compile.gate_runtime import logits  # noqa: E402
from trt_moe.compile.int8 import quantize  # noqa: E402
from trt_moe.compile.opset import OLDEST_OPSET, lower  # noqa: E402
from trt_moe.compile.sidecar import EngineSpec  # noqa: E402
from trt_moe.export.torch_export import export_onnx  # noqa: E402
from trt_moe.models import ImageModel, SqueezeNetLight, create_expert, fused_gater  # noqa: E402
from trt_moe.models.gater import GATER_SIDE  # noqa: E402

pytestmark = pytest.mark.slow

SIDE = 224
CLASSES = 6
GATER = "gater"
EXPERTS = ("squeezenet1_1", "mobilenetv3_large_100", "deit_tiny_patch16_224", "deit_small_patch16_224")
TARGETS = ("default", "8.6", "8.9", "12.0")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def expected() -> dict[str, NDArray[np.float32]]:
    """Logits of PyTorch, by model."""
    return {}


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, images: NDArray[np.uint8], expected: dict[str, NDArray[np.float32]]
) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "at-224"
    folder.mkdir()
    entries = {}
    for place, name in enumerate((GATER, *EXPERTS)):
        torch.manual_seed(0)
        side = GATER_SIDE if name == GATER else SIDE
        if name == GATER:
            network = SqueezeNetLight(len(EXPERTS))
            torch.nn.init.normal_(network.head.weight)
        else:
            network = create_expert(name, num_classes=CLASSES, image_size=side)
        model = ImageModel(network, (SIDE, SIDE), (side, side), MEAN, STD)
        if name == GATER:
            model = fused_gater(model)
        export_onnx(model, folder / f"{name}.onnx", (SIDE, SIDE, 3))
        with torch.no_grad():
            expected[name] = model(torch.from_numpy(images)).numpy()
        entries[name] = ModelEntry(
            name=name,
            file=f"{name}.onnx",
            sha256=sha256_file(folder / f"{name}.onnx"),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            architecture=name,
            graph_size=[side, side],
            relative_cost=place / len(EXPERTS),
        )
    write_golden(folder / "golden.npz", images, expected)
    golden = Golden(
        file="golden.npz",
        sha256=sha256_file(folder / "golden.npz"),
        tolerance={"fp32": 5e-3, "fp16": 5e-2, "bf16": 2e-1},
    )
    manifest = Manifest(
        name="at-224",
        class_names=[f"class-{index}" for index in range(CLASSES)],
        input=InputSpec(height=SIDE, width=SIDE, channels=3),
        latency_weight=0.0,
        gater=entries[GATER],
        experts=[entries[name] for name in EXPERTS],
        golden=golden,
    )
    write_manifest(folder, manifest)
    return Bundle.load(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


def build(bundle: Bundle, cache: Path, target: str) -> Any:
    """`trt-moe build`, as JSON."""
    arguments = ["build", str(bundle.path), "--device", "cuda", "--flavour", "tensorrt_rtx", "--buckets", "1,8"]
    if target != "default":
        arguments += ["--compute-capability", target]
    done = CliRunner().invoke(app, [*arguments, "--json"], env={"TRT_MOE_CACHE_DIR": str(cache)})
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [GATER, *EXPERTS])
def test_the_onnx_answers_as_torch_does_in_every_form(
    name: str,
    bundle: Bundle,
    images: NDArray[np.uint8],
    expected: dict[str, NDArray[np.float32]],
    rtx: Flavour,
    spec: EngineSpec,
    tmp_path: Path,
) -> None:
    exported = onnx.load(bundle.file(bundle.entry(name)))
    converted = half.to_half(exported)
    assert half.float32_layers(converted) == []
    lowered = lower(converted)
    assert (half.opset_version(exported), half.opset_version(lowered)) == (20, OLDEST_OPSET)
    quantized = half.to_half(quantize(exported, images))
    assert {node.op_type for node in lowered.graph.node} <= READ_BY_TENSORRT_10_1
    # Random weights give small logits: a share of the largest one, not of 1.
    scale = np.abs(expected[name]).max()
    forms = ((exported, 1e-3), (emulate(converted), 0.02), (emulate(lowered), 0.02), (emulate(quantized), 0.3))
    for graph, tolerance in forms:
        assert np.abs(logits(graph, images) - expected[name]).max() < tolerance * scale
    # What `build` does not give to TensorRT-RTX below.
    one = spec.model_copy(update={"buckets": (1,)})
    for graph in (lowered, quantized):
        built = EngineBuilder(rtx).build(graph.SerializeToString(), one, tmp_path / "timing")
        assert [port.dtype for port in (*built.inputs, *built.outputs)] == ["uint8", "float32"]


@pytest.mark.parametrize("target", TARGETS)
def test_engines_for_every_target_are_built_once(
    target: str, bundle: Bundle, cache: Path, rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = build(bundle, cache, target)
    assert [engine["built"] for engine in report["engines"]] == [True] * (1 + len(EXPERTS))
    for engine in report["engines"]:
        spec = engine["spec"]
        assert (spec["precision"], spec["device"], spec["buckets"]) == ("fp16", target, [1, 8])
        assert engine["inputs"] == [{"name": "images", "dtype": "uint8", "shape": [-1, SIDE, SIDE, 3]}]
        assert engine["outputs"][0]["dtype"] == "float32"
        assert engine["gate_report"]["passed"] is True
        capability = "default" if target == "default" else f"SM{target.replace('.', '')}"
        assert engine["options"]["compute_capabilities"] == [capability]
        print(
            f"\n{spec['model']} for {target}: {engine['prepare_seconds']:.1f} s of conversion, "
            f"{engine['build_seconds']:.1f} s of {rtx}, {engine['engine_bytes'] / 1e6:.1f} MB",
            end="",
        )
    monkeypatch.setattr(build_module, "EngineBuilder", lambda flavour: pytest.fail("TensorRT was started"))
    assert build(bundle, cache, target)["built"] == 0
