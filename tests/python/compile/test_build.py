"""Real engines by TensorRT-RTX, which needs no GPU to build them."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.half_models import CLASSES, classifier, one_loud_channel
from tests.support.tiny_bundle import TinyBundle, edit_manifest, write_tiny_bundle
from trt_moe.bundle import Bundle, sha256_file
from trt_moe.compile import build as build_module
from trt_moe.compile.build import BuildOptions, BuildReport, Step, build_bundle
from trt_moe.compile.builder import EngineBuilder
from trt_moe.compile.cache import EngineCache
from trt_moe.compile.flavour import Flavour
from trt_moe.compile.gate import INT8_THRESHOLDS, Thresholds
from trt_moe.compile.sidecar import EngineSpec, Port
from trt_moe.errors import BundleError, EngineBuildError, InputError

FP32 = BuildOptions(buckets=(1, 2), precision="fp32")
TARGETS = ((), ("8.6",), ("8.9",), ("12.0",))


@pytest.fixture
def build(rtx: Flavour, cache: EngineCache) -> Callable[..., BuildReport]:
    def run(bundle: Bundle, options: BuildOptions = FP32, **more: object) -> BuildReport:
        return build_bundle(bundle, rtx, cache, options, **more)  # type: ignore[arg-type]

    return run


def test_the_shipped_bundle_builds_for_every_target_and_once(
    shipped: Bundle, build: Callable[..., BuildReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [BuildOptions(buckets=(1, 4), compute_capabilities=target) for target in TARGETS]
    plans = []
    for target, each in zip(TARGETS, options, strict=True):
        report = build(shipped, each)
        assert [engine.built for engine in report.engines] == [True] * 3
        for entry, engine in zip(shipped.models(), report.engines, strict=True):
            sidecar = engine.engine.sidecar
            assert sidecar.spec.model == entry.name
            assert sidecar.inputs == [Port(name="images", dtype="uint8", shape=[-1, *shipped.input_shape])]
            assert sidecar.outputs == [Port(name="logits", dtype="float32", shape=[-1, shipped.outputs(entry)])]
            assert (sidecar.spec.precision, sidecar.spec.buckets) == ("fp16", (1, 4))
            assert sidecar.spec.platform == f"{platform.system()} {platform.machine()}"
            assert sidecar.options["compute_capabilities"] == [f"SM{part.replace('.', '')}" for part in target] or [
                "default"
            ]
            assert sidecar.gate_report is not None
            assert (sidecar.gate_report["passed"], sidecar.gate_report["method"]) == (True, "emulated")
            # Not documented, but seen in every plan: the architecture it was asked for.
            assert all(f"sm{part.replace('.', '')}".encode() in engine.engine.plan for part in target)
            plans.append(engine.engine.plan)
    assert len(set(plans)) == len(plans)
    monkeypatch.setattr(build_module, "EngineBuilder", lambda flavour: pytest.fail("TensorRT was started"))
    for each in options:
        report = build(shipped, each)
        assert [engine.built for engine in report.engines] == [False] * 3
        assert report.to_json()["built"] == 0


COMMAND = """
import sys
from trt_moe.cli import app
try:
    app(sys.argv[1:])
finally:
    heavy = "tensorrt tensorrt_rtx torch onnx onnxruntime openvino numpy PIL matplotlib trt_moe._core".split()
    print(*(name for name in heavy if name in sys.modules), file=sys.stderr)
"""


def test_a_second_call_builds_nothing_and_loads_nothing_for_it(tiny: TinyBundle, tmp_path: Path, rtx: Flavour) -> None:
    command = [sys.executable, "-c", COMMAND, "build", str(tiny.path), "--device", "cuda", "--flavour", rtx.name]
    command += ["--buckets", "1", "--compute-capability", "8.6", "--json"]
    environment = {**os.environ, "TRT_MOE_CACHE_DIR": str(tmp_path)}
    built, loaded = [], []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        built.append(json.loads(done.stdout)["built"])
        loaded.append(done.stderr.split())
    assert built == [3, 0]
    assert {"tensorrt_rtx", "onnx", "numpy"} <= set(loaded[0])  # else the list above is of other names
    assert loaded[1] == []


def test_another_device_is_not_judged_again(
    tiny: TinyBundle, build: Callable[..., BuildReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_moe.compile import gate

    half = dataclasses.replace(FP32, precision="fp16")
    first = build(Bundle.load(tiny.path), half)
    monkeypatch.setattr(gate, "rescue", lambda *arguments: pytest.fail("judged again"))
    again = build(Bundle.load(tiny.path), dataclasses.replace(half, compute_capabilities=("8.6",)))
    assert [each.built for each in again.engines] == [True] * 3
    for one, two in zip(first.engines, again.engines, strict=True):
        assert one.engine.sidecar.onnx_sha256 == two.engine.sidecar.onnx_sha256
        assert one.engine.sidecar.gate_report == two.engine.sidecar.gate_report is not None


@pytest.fixture
def overflowing(tmp_path: Path) -> Bundle:
    """A bundle whose first expert has weights scaled so that its values leave float16's range."""
    path = write_tiny_bundle(tmp_path / "overflowing", classes=CLASSES, channels=3).path
    onnx.save(classifier(1e5), path / "expert-0.onnx")
    edit_manifest(path, lambda data: data["experts"][0].update(sha256=sha256_file(path / "expert-0.onnx")))
    return Bundle.load(path)


def test_what_overflows_in_float16_is_rescued(overflowing: Bundle, build: Callable[..., BuildReport]) -> None:
    report = build(overflowing, BuildOptions(buckets=(1, 2)))
    kept = [each.engine.sidecar.gate_report["float32_layers"] for each in report.engines]  # type: ignore[index]
    assert kept == [[], ["features", "active", "mean", "logits"], []]
    assert report.engines[1].engine.sidecar.gate_report["passed"] is True  # type: ignore[index]
    again = build(overflowing, BuildOptions(buckets=(1, 2), compute_capabilities=("8.6",)))
    assert again.engines[1].engine.sidecar.onnx_sha256 == report.engines[1].engine.sidecar.onnx_sha256


def test_what_overflows_in_float16_is_refused_where_that_was_asked(
    overflowing: Bundle, build: Callable[..., BuildReport], cache: EngineCache
) -> None:
    with pytest.raises(
        EngineBuildError, match=r"expert-0 in fp16: it misses the accuracy gate: \d+ of \d+ images over"
    ):
        build(overflowing, BuildOptions(buckets=(1, 2), gate="fail"))
    # What was finished before stays, and of the rest there is nothing.
    assert [entry.sidecar.spec.model for entry in cache.entries(check=True) if entry.sidecar] == ["gater"]
    assert len(list(cache.folder.glob("*.plan"))) == 1


def test_buckets_become_fixed_profiles(tiny: TinyBundle, build: Callable[..., BuildReport]) -> None:
    sizes = {}
    for buckets in ((1,), (4, 1, 2, 4)):
        report = build(Bundle.load(tiny.path), dataclasses.replace(FP32, buckets=buckets))
        sizes[buckets] = report.engines[1].engine.sidecar.engine_bytes
        assert report.engines[1].engine.sidecar.spec.buckets == tuple(sorted(set(buckets)))
    assert sizes[(4, 1, 2, 4)] > sizes[(1,)]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "was changed since it was built"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cut short: 1,000 bytes"),
        (
            lambda path: path.with_suffix(".json").write_text(
                path.with_suffix(".json").read_text().replace("1.7.", "1.6.")
            ),
            "it was built by TensorRT-RTX 1.6.",
        ),
    ],
)
def test_a_damaged_engine_is_explained_and_rebuilt(
    damage: Callable[[Path], object],
    complaint: str,
    tiny: TinyBundle,
    build: Callable[..., BuildReport],
    notes: list[str],
    rtx: Flavour,
) -> None:
    first = build(Bundle.load(tiny.path))
    damaged = first.engines[1].engine
    damage(damaged.path)
    again = build(Bundle.load(tiny.path))
    assert [each.built for each in again.engines] == [False, True, False]
    assert len(notes) == 1
    assert complaint in notes[0]
    if "1.6." in complaint:
        assert f"installed is {rtx}" in notes[0]
    rebuilt = again.engines[1].engine
    assert rebuilt.plan == rebuilt.path.read_bytes()
    assert (rebuilt.path, len(rebuilt.plan)) == (damaged.path, len(damaged.plan))
    assert [each.built for each in build(Bundle.load(tiny.path)).engines] == [False] * 3
    assert len(notes) == 1


def test_another_onnx_is_another_engine(tiny: TinyBundle, build: Callable[..., BuildReport]) -> None:
    build(Bundle.load(tiny.path))
    file = tiny.path / "expert-0.onnx"
    model = onnx.load(file)
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), "bias"))
    onnx.save(model, file)
    edit_manifest(tiny.path, lambda data: data["experts"][0].update(sha256=sha256_file(file)))
    again = build(Bundle.load(tiny.path))
    assert [each.built for each in again.engines] == [False, True, False]


def test_other_samples_are_judged_again(tiny: TinyBundle, build: Callable[..., BuildReport], notes: list[str]) -> None:
    half = dataclasses.replace(FP32, precision="fp16")
    first = build(Bundle.load(tiny.path), half)
    build(Bundle.load(tiny.path))
    one, two = sorted(tiny.path.glob("samples/0/*/*.png"))[:2]
    two.write_bytes(one.read_bytes())
    again = build(Bundle.load(tiny.path), half)
    assert [each.built for each in again.engines] == [True] * 3
    assert "the samples or costs that its accuracy was judged by have changed" in notes[0]
    # In float32 nothing is judged.
    assert build(Bundle.load(tiny.path)).to_json()["built"] == 0
    edit_manifest(tiny.path, lambda data: data.update(latency_weight=data["latency_weight"] + 0.5))
    again = build(Bundle.load(tiny.path), half)
    assert [each.built for each in again.engines] == [True, False, False]  # the gater alone is judged by its routes
    assert [each.engine.plan == it.engine.plan for each, it in zip(first.engines, again.engines, strict=True)][1:]


def test_samples_outside_the_bundle_are_not_read(tiny: TinyBundle, build: Callable[..., BuildReport]) -> None:
    first = sorted(tiny.path.glob("samples/0/*/*.png"))[0]
    first.unlink()
    first.symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        build(Bundle.load(tiny.path), dataclasses.replace(FP32, precision="fp16"))


def test_a_bundle_larger_than_the_limit_is_built_whole(
    tiny: TinyBundle, build: Callable[..., BuildReport], cache: EngineCache, notes: list[str]
) -> None:
    cache.limit = 1
    assert build(Bundle.load(tiny.path)).to_json()["built"] == 3
    assert "give it more (TRT_MOE_CACHE_GIB)" in notes[-1]
    assert build(Bundle.load(tiny.path)).to_json()["built"] == 0


def test_int8_quantizes_the_experts_alone(tiny: TinyBundle, build: Callable[..., BuildReport]) -> None:
    report = build(Bundle.load(tiny.path), dataclasses.replace(FP32, precision="int8"))
    kinds = [each.engine.sidecar.spec.precision for each in report.engines]
    assert kinds == ["fp16", "int8", "int8"]
    images = [each.engine.sidecar.gate_report["images"] for each in report.engines]  # type: ignore[index]
    assert images[1] == images[2] == images[0] // 2  # the other half calibrates
    limits = [each.engine.sidecar.gate_report["thresholds"] for each in report.engines]  # type: ignore[index]
    assert limits == [limit.model_dump() for limit in (Thresholds(), INT8_THRESHOLDS, INT8_THRESHOLDS)]


def test_clean_samples_calibrate_corrupted(tiny: TinyBundle, build: Callable[..., BuildReport]) -> None:
    for severity in range(1, 6):
        shutil.rmtree(tiny.path / "samples" / str(severity))
    edit_manifest(tiny.path, lambda data: data["samples"].update(images=data["samples"]["images"] // 6))
    found = []
    for noise in (0.0, 0.5):
        strength = {"noise_sigma": [noise] * 6}
        edit_manifest(tiny.path, lambda data, strength=strength: data["training"]["corruption"].update(strength))
        report = build(Bundle.load(tiny.path), dataclasses.replace(FP32, precision="int8"))
        assert report.to_json()["built"] == 3
        found.append([each.engine.sidecar.onnx_sha256 for each in report.engines])
    assert [one == two for one, two in zip(*found, strict=True)] == [True, False, False]


def test_layers_that_int8_spoils_stay_float32_unless_it_is_to_fail(
    tmp_path: Path, build: Callable[..., BuildReport]
) -> None:
    path = write_tiny_bundle(tmp_path / "loud", classes=CLASSES, channels=3).path
    for index in range(2):
        file = path / f"expert-{index}.onnx"
        onnx.save(one_loud_channel(), file)
        edit_manifest(
            path, lambda data, index=index, file=file: data["experts"][index].update(sha256=sha256_file(file))
        )
    bundle, int8 = Bundle.load(path), dataclasses.replace(FP32, precision="int8")
    with pytest.raises(EngineBuildError, match="expert-0 in int8: it misses the accuracy gate"):
        build(bundle, dataclasses.replace(int8, gate="fail"))
    report = build(bundle, int8).engines[1].engine.sidecar.gate_report
    assert report is not None
    assert report["passed"] is True
    assert "features2" in report["float32_layers"]  # type: ignore[operator]


@pytest.mark.parametrize(("samples", "ships"), [(0, "none"), (1, "1")])
def test_int8_without_samples_for_both_halves_is_refused(
    tmp_path: Path, build: Callable[..., BuildReport], cache: EngineCache, samples: int, ships: str
) -> None:
    path = write_tiny_bundle(tmp_path / "few", samples_per_class=samples).path
    if samples:
        for image in sorted(path.glob("samples/*/*/*.png"))[samples:]:
            image.unlink()
        edit_manifest(path, lambda manifest: manifest["samples"].update(images=samples))
    with pytest.raises(EngineBuildError, match=rf"expert-0 in int8: .* ships {ships}; give some to `trt-moe pack`"):
        build(Bundle.load(path), dataclasses.replace(FP32, precision="int8"))


def unsupported(operator: str, domain: str = "") -> bytes:
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node(operator, ["float"], ["logits"], "the-odd-one", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 4, 4, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4, 4, 1])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return data


@pytest.mark.parametrize(("operator", "domain"), [("Bernoulli", ""), ("Frobnicate", "acme")])
def test_an_unsupported_operator_is_named_with_its_node(
    operator: str, domain: str, rtx: Flavour, spec: EngineSpec, tmp_path: Path
) -> None:
    with pytest.raises(EngineBuildError, match=rf"light: {rtx} cannot read.*node the-odd-one \(operator {operator}\)"):
        EngineBuilder(rtx).build(unsupported(operator, domain), spec, tmp_path / "t")


def test_what_is_no_onnx_is_refused(rtx: Flavour, spec: EngineSpec, tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match=r"MODEL_DESERIALIZE_FAILED: .*Failed to parse the ONNX model"):
        EngineBuilder(rtx).build(b"nonsense", spec, tmp_path / "t")


def test_options_that_the_flavour_lacks_are_refused_not_ignored(
    tiny: TinyBundle, build: Callable[..., BuildReport]
) -> None:
    bundle = Bundle.load(tiny.path)
    for name in ("version_compatible", "hardware_compatible"):
        with pytest.raises(EngineBuildError, match=r"TensorRT-RTX .* builds no version-compatible or hardware-compat"):
            build(bundle, dataclasses.replace(FP32, **{name: True}, trusted=["gater", "expert-0", "expert-1"]))
    with pytest.raises(InputError, match=r"no compute capability 9.0; it knows .*8.9, 12.0"):
        build(bundle, dataclasses.replace(FP32, compute_capabilities=("9.0",)))
    with pytest.raises(InputError, match="no model is called 'exprt-0'; did you mean expert-0"):
        build(bundle, dataclasses.replace(FP32, trusted=["exprt-0"]))
    edit_manifest(tiny.path, lambda data: data.update(baselines=[{**data["experts"][0], "name": "old"}]))
    with pytest.raises(InputError, match="old is a baseline and gets no engine; those get one: gater, expert-0"):
        build(Bundle.load(tiny.path), dataclasses.replace(FP32, trusted=["old"]))
    with pytest.raises(InputError, match=r"buckets.0: Input should be greater than or equal to 1 \(found 0\)"):
        build(bundle, dataclasses.replace(FP32, buckets=(0, 1)))


def test_progress_goes_through_models_and_buckets_and_knows_the_time_left(
    shipped: Bundle, build: Callable[..., BuildReport]
) -> None:
    steps: list[Step] = []
    options = BuildOptions(buckets=(1, 2, 4, 8, 16, 32), precision="fp32")
    build(shipped, options, progress=steps.append)
    assert list(dict.fromkeys(step.model for step in steps)) == ["gater", "squeezenet", "resnet"]
    assert {step.seconds_left for step in steps} == {None}
    assert [step.bucket for step in steps if step.stage == "converting"] == [None] * 3
    reached = [step.bucket for step in steps if step.model == "resnet" and step.bucket]
    assert reached == sorted(reached)
    assert {1, 32} <= set(reached) <= set(options.buckets)
    steps.clear()
    build(shipped, dataclasses.replace(options, compute_capabilities=("8.6",)), progress=steps.append)
    left = [step.seconds_left for step in steps]
    assert None not in left
    assert left[0] == max(left) > 0  # type: ignore[type-var]


SCRIPT = """
import sys
from pathlib import Path
from trt_moe.bundle import Bundle
from trt_moe.compile import build
from trt_moe.compile.cache import EngineCache
from trt_moe.compile.flavour import find_flavour
def note(line): print(line, flush=True)
def progress(step):
    if step.stage == "building": print(step.model, "building", flush=True)
cache = EngineCache(Path(sys.argv[2]), 1 << 30, note)
options = build.BuildOptions(buckets=range(1, 1 + int(sys.argv[3])), precision="fp32")
try:
    report = build.build_bundle(Bundle.load(sys.argv[1]), find_flavour("tensorrt_rtx"), cache, options, progress)
    print("built", report.to_json()["built"], flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def start(bundle: Path, cache: EngineCache, buckets: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(bundle), str(cache.folder), str(buckets)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found == f"{line}\n":
            return
    pytest.fail(f"ended without {line!r}")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_builder_stopped_in_the_middle(
    stop: signal.Signals, shipped: Bundle, cache: EngineCache, rtx: Flavour
) -> None:
    # So many buckets that TensorRT is at them for long.
    builder = start(shipped.path, cache, 16)
    wait_for(builder, "squeezenet building")
    # Until TensorRT is at it: an interrupt of Python's start of a thread, which comes first, may end in a RuntimeError.
    sleep(0.5)
    builder.send_signal(stop)
    out, _ = builder.communicate(timeout=60)
    if stop == signal.SIGINT:
        assert out.endswith("interrupted\n")
    else:
        assert builder.returncode == -signal.SIGKILL
    assert [entry.sidecar.spec.model for entry in cache.entries(check=True) if entry.sidecar] == ["gater"]
    assert [entry.problem for entry in cache.entries(check=True)] == [None]
    report = build_bundle(shipped, rtx, cache, FP32)
    assert report.to_json()["built"] == 3


def test_two_builders_build_once(tiny: TinyBundle, cache: EngineCache, rtx: Flavour) -> None:
    both = [start(tiny.path, cache, 6) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    counts = [int(output.splitlines()[-1].removeprefix("built ")) for output in outputs]
    assert sum(counts) == 3
    assert len(list(cache.folder.glob("*.plan"))) == 3


def test_float32_means_float32(tiny: TinyBundle, build: Callable[..., BuildReport]) -> None:
    report = build(Bundle.load(tiny.path))
    for each in report.engines:
        expected = {"strongly_typed": True, "tf32": False, "max_aux_streams": 0, "require_user_allocation": True}
        assert expected.items() <= each.engine.sidecar.options.items()
        assert each.engine.sidecar.gate_report is None


def test_a_builder_that_cannot_write(tiny: TinyBundle, cache: EngineCache, rtx: Flavour) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    command = [sys.executable, "-c", limit + SCRIPT, str(tiny.path), str(cache.folder), "2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 1
    assert "cannot be written (File too large); make room (`trt-moe cache clear`)" in done.stderr
    assert [path for path in cache.folder.iterdir() if path.is_file()] == []
    assert build_bundle(Bundle.load(tiny.path), rtx, cache, FP32).to_json()["built"] == 3


def test_some_models_alone(tiny: TinyBundle, cache: EngineCache, rtx: Flavour) -> None:
    bundle = Bundle.load(tiny.path)
    report = build_bundle(bundle, rtx, cache, dataclasses.replace(FP32, models=["expert-0"]))
    assert [each.engine.sidecar.spec.model for each in report.engines] == ["expert-0"]
    assert build_bundle(bundle, rtx, cache, FP32).to_json()["built"] == 2
