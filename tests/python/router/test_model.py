"""One model by itself, and the folder where compiled engines are kept."""

import locale
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import trt_moe
import trt_moe.model
from tests.support.tiny_bundle import TinyBundle, rehash, write_tiny_bundle


@pytest.fixture
def tiny(tmp_path: Path) -> TinyBundle:
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRT_MOE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_compiled_engines_are_kept_and_used_again(tiny: TinyBundle, cache: Path) -> None:
    images = tiny.random(5)
    first = trt_moe.Model.load(tiny.path, "expert-0", precision="fp32").logits(images)
    kept = files_in(cache)
    assert kept
    times = [path.stat().st_mtime_ns for path in kept]
    again = trt_moe.Model.load(tiny.path, "expert-0", precision="fp32").logits(images)
    np.testing.assert_array_equal(first, again)
    assert [path.stat().st_mtime_ns for path in files_in(cache)] == times


@pytest.mark.parametrize("keep", [0, 100])
def test_a_truncated_engine_is_compiled_again(tiny: TinyBundle, cache: Path, keep: int) -> None:
    images = tiny.random(5)
    first = trt_moe.Model.load(tiny.path, "expert-0", precision="fp32").logits(images)
    for path in files_in(cache):
        path.write_bytes(path.read_bytes()[:keep])
    again = trt_moe.Model.load(tiny.path, "expert-0", precision="fp32").logits(images)
    np.testing.assert_array_equal(first, again)


def test_without_a_writable_cache_models_load_all_the_same(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "/proc/no/such/folder"):
        monkeypatch.setenv("TRT_MOE_CACHE_DIR", value)
        assert trt_moe.Model.load(tiny.path, "gater").logits(tiny.grey(9)).shape == (1, 2)


def test_buckets_are_the_users_if_given(tiny: TinyBundle) -> None:
    model = trt_moe.Model.load(tiny.path, "expert-0", precision="fp32", buckets=[1, 3])
    images = tiny.random(8)
    assert model.core.buckets == [1, 3]
    np.testing.assert_allclose(model.logits(images), tiny.expert_logits(0, images), atol=1e-3)
    with pytest.raises(trt_moe.InputError, match="buckets"):
        trt_moe.Model.load(tiny.path, "expert-0", buckets=[2, 4])


@pytest.mark.parametrize(("side", "largest"), [(8, 16), (96, 16), (128, 8), (160, 4), (224, 2), (512, 1)])
def test_batches_of_many_pixels_are_not_compiled(tmp_path: Path, side: int, largest: int) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny", size=(side, side), channels=3, golden=0, samples_per_class=0)
    expected = [size for size in (1, 2, 4, 8, 16) if size <= largest]
    assert trt_moe.Model.load(tiny.path, "expert-0").core.buckets == expected


def test_a_precision_the_cpu_lacks_is_said(tiny: TinyBundle) -> None:
    for precision in ("bf16", "fp16"):
        try:
            assert trt_moe.Model.load(tiny.path, "expert-0", precision=precision).precision == precision
        except trt_moe.EngineBuildError as error:
            assert precision in str(error) and "auto" in str(error)


def test_threads_are_at_most_the_usable_cpus(tiny: TinyBundle) -> None:
    assert trt_moe.Model.load(tiny.path, "gater", threads=1).core.threads == 1
    assert trt_moe.Model.load(tiny.path, "gater").core.threads == trt_moe.model._core.usable_cpus()
    with pytest.raises(trt_moe.InputError, match="threads is 10000"):
        trt_moe.Model.load(tiny.path, "gater", threads=10_000)


def test_a_backend_that_was_not_built_is_named(tiny: TinyBundle) -> None:
    with pytest.raises(trt_moe.DeviceError, match="abacus"):
        trt_moe.Model.load(tiny.path, "gater", backend="abacus")


def test_a_file_changed_after_the_bundle_was_loaded_is_not_run(tiny: TinyBundle) -> None:
    bundle = trt_moe.Bundle.load(tiny.path)
    file = tiny.path / "expert-0.onnx"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(trt_moe.BundleError, match="sha256"):
        trt_moe.Model.load(bundle, "expert-0")


def replace_model(tiny: TinyBundle, name: str, model: onnx.ModelProto) -> None:
    onnx.save(model, tiny.path / f"{name}.onnx")
    rehash(tiny.path, name)


@pytest.mark.parametrize(("name", "of"), [("expert-1", "class"), ("gater", "expert")])
def test_another_number_of_logits_than_the_bundle_has_classes_or_experts(tmp_path: Path, name: str, of: str) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny", experts=2, classes=2, golden=0)
    model = onnx.load(write_tiny_bundle(tmp_path / "other", experts=5, classes=5).path / f"{name}.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "logits"
    replace_model(tiny, name, model)
    expected = f"model {name}: gives 5 logits an image; expected 2, one for each {of} of the bundle"
    with pytest.raises(trt_moe.BundleError, match=expected):
        trt_moe.Model.load(tiny.path, name)
    with pytest.raises(trt_moe.BundleError, match=expected):
        trt_moe.Router(tiny.path, device="cpu")


def test_a_model_that_gives_one_row_for_a_whole_batch(tiny: TinyBundle) -> None:
    constants = {"shape": np.array([1, 1], np.int64), "weight": np.ones((1, 3), np.float32)}
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["row"]),
        helper.make_node("MatMul", ["row", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "reduces",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *tiny.shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    replace_model(tiny, "expert-0", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
    with pytest.raises(trt_moe.EngineBuildError, match=r"of a batch of 2 it gives \[1,3\]; expected \[2,3\]"):
        trt_moe.Model.load(tiny.path, "expert-0")


def test_models_that_are_loaded_at_the_same_time_leave_the_locale_alone(tiny: TinyBundle, cache: Path) -> None:
    before = locale.setlocale(locale.LC_ALL)
    try:
        assert locale.setlocale(locale.LC_ALL, "C.UTF-8") != "C"
        given = locale.setlocale(locale.LC_ALL)
        with ThreadPoolExecutor(4) as threads:
            for _ in range(5):
                list(threads.map(lambda name: trt_moe.Model.load(tiny.path, name), ["gater", "expert-0"] * 2))
        assert locale.setlocale(locale.LC_ALL) == given
    finally:
        locale.setlocale(locale.LC_ALL, before)
