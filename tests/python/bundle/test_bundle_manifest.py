import copy
import json
import subprocess
import sys

import pytest

from support.tiny_bundle import write_tiny_bundle
from trt_moe.bundle import Bundle, Manifest, write_manifest
from trt_moe.bundle.manifest import parse_manifest
from trt_moe.errors import BundleError

LATENCY = {"mean_ms": 1.0, "p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", experts=3).path
    return json.loads((path / "bundle.json").read_text())


def refused(data, change) -> str:
    changed = copy.deepcopy(data)
    change(changed)
    with pytest.raises(BundleError) as caught:
        parse_manifest(changed, "x/bundle.json")
    message = str(caught.value)
    assert message.startswith("x/bundle.json: ")
    assert message.isprintable()
    assert "Value error" not in message
    assert "pydantic" not in message
    return message


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.0", "schema version 2.0 is unknown; this trt-moe reads 1.x; install a newer trt-moe"),
        ("0.9", "rebuild the bundle"),
        ("1", "expected text such as"),
        (1.0, "expected text such as"),
        (None, "expected text such as"),
        ("1.0; rm", "expected text such as"),
        ("9" * 50 + ".0", "expected text such as"),
    ],
)
def test_unknown_schema_is_refused_before_anything_else(data, version, expected):
    def change(changed):
        changed.clear()
        changed["schema_version"] = version

    assert expected in refused(data, change)


def test_newer_minor_version_is_explained(data):
    parse_manifest({**data, "schema_version": "1.7"}, "x")
    message = refused(data, lambda d: d.update(schema_version="1.7", shiny=1))
    assert "shiny" in message
    assert "newer schema 1.7" in message


def expert(index, **values):
    return lambda d: d["experts"][index].update(values)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.pop("gater"), "gater: Field required"),
        (lambda d: d.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda d: d.update(experts=d["experts"][2:]), "experts: List should have at least 2 items"),
        (expert(1, name="expert-0"), "model names: 'expert-0' appears twice"),
        (expert(1, name="gater"), "model names: 'gater' appears twice"),
        (expert(1, name="Expert 1"), "experts.1.name"),
        (expert(1, name="a" * 65), "experts.1.name"),
        (expert(1, name="good\n"), "experts.1.name"),
        (expert(1, name="images"), "is reserved"),
        (expert(1, name="../up"), "experts.1.name"),
        (expert(1, file="model.pt"), "experts.1.file"),
        (expert(1, sha256="AB" * 32), "experts.1.sha256"),
        (expert(1, sha256=5), "experts.1.sha256"),
        (expert(1, relative_cost=0.0), "expert-1 has relative_cost 0; expected (0, 1]"),
        (expert(1, relative_cost=-0.5), "experts.1.relative_cost"),
        (expert(1, relative_cost=1.5), "expert-1 has relative_cost 1.5; expected (0, 1]"),
        (expert(1, relative_cost="0.5"), "experts.1.relative_cost"),
        (expert(1, relative_cost=float("nan")), "experts.1.relative_cost"),
        (expert(2, relative_cost=0.9), "the dearest, expert-2, must have relative_cost 1, not 0.9"),
        (lambda d: d["experts"].reverse(), "experts must go from the cheapest to the dearest"),
        (lambda d: d["gater"].update(relative_cost=float("inf")), "gater.relative_cost"),
        (expert(1, parameters=-1), "experts.1.parameters"),
        (expert(1, graph_size=[28]), "experts.1.graph_size"),
        (expert(1, graph_size=[28, 0]), "experts.1.graph_size.1"),
        (expert(1, architecture="\x1b[31mred"), "control characters"),
        (expert(1, trained_on={"6": 1.0}), "experts.1.trained_on.6"),
        (expert(1, trained_on={"0": -1.0}), "experts.1.trained_on.0"),
        (lambda d: d.update(latency_weight=-0.1), "latency_weight"),
        (lambda d: d.update(latency_weight=float("nan")), "latency_weight"),
        (lambda d: d.update(latency_weight=1e30), "latency_weight"),
        (lambda d: d.update(latency_weight=True), "latency_weight"),
        (lambda d: d.update(class_names=["one"]), "class_names"),
        (lambda d: d.update(class_names=["a", "a", "b"]), "class_names: 'a' appears twice"),
        (lambda d: d.update(class_names=["a", "../b"]), "class_names.1: cannot be a folder name"),
        (lambda d: d.update(class_names=["a", ".."]), "class_names.1: cannot be a folder name"),
        (lambda d: d.update(class_names=["a", ""]), "class_names.1"),
        (lambda d: d.update(class_names=["a", "b\x1b]0;x\x07"]), "class_names.1: has control characters"),
        (lambda d: d["input"].update(channels=2), "input.channels"),
        (lambda d: d["input"].update(height=0), "input.height"),
        (lambda d: d["input"].update(width=10**9), "input.width"),
        (lambda d: d["input"].update(width=8.0), "input.width"),
        (lambda d: d.update(name="../evil"), "name"),
        (lambda d: d["golden"].update(file="../golden.npz"), "golden.file: leaves the bundle"),
        (lambda d: d["golden"]["tolerance"].pop("bf16"), "tolerance lacks bf16"),
        (lambda d: d["golden"]["tolerance"].update(fp32=0.0), "golden.tolerance.fp32"),
        (lambda d: d["golden"]["tolerance"].update(int8=1.0), "golden.tolerance.int8"),
        (lambda d: d["samples"].update(folder=".."), "samples.folder"),
        (lambda d: d["samples"].update(folder="/tmp"), "samples.folder"),
        (lambda d: d["samples"].update(images=10**12), "samples.images"),
        (lambda d: d["latency"][0].update(models={"other": LATENCY}), "'other' is none of"),
        (lambda d: d["latency"][0]["models"]["gater"].update(p99_ms=-1), "p99_ms"),
        (lambda d: d["evaluation"]["severities"]["0"].update(mixture=93.1), "severities.0.mixture"),
        (lambda d: d["evaluation"]["severities"]["0"]["share"].update(gater=0.1), "'gater' is none of"),
        (lambda d: d["training"]["corruption"].update(blur_sigma=[0.0]), "training.corruption.blur_sigma"),
        (lambda d: d["training"].update(method="magic"), "training.method"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(data, change, expected):
    assert expected in refused(data, change)


def test_many_errors_are_summarised(data):
    def change(d):
        for entry in d["experts"]:
            entry.clear()

    message = refused(data, change)
    assert "and " in message
    assert " more" in message


def test_huge_values_are_not_echoed(data):
    assert len(refused(data, lambda d: d.update(name="x" * 1_000_000))) < 500


def test_manifests_are_frozen(data):
    manifest = parse_manifest(data, "x")
    with pytest.raises(ValueError, match="frozen"):
        manifest.name = "other"  # type: ignore[misc]


def test_write_manifest_round_trips(data, tmp_path):
    manifest = parse_manifest(data, "x")
    assert write_manifest(tmp_path, manifest) == tmp_path / "bundle.json"
    again = json.loads((tmp_path / "bundle.json").read_text())
    assert Manifest.model_validate(again) == manifest
    write_manifest(tmp_path / "bundle.json", manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.json"]


def test_a_failed_write_leaves_the_old_manifest(data, tmp_path, monkeypatch):
    manifest = parse_manifest(data, "x")
    target = write_manifest(tmp_path, manifest)
    before = target.read_bytes()

    def fail(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(tmp_path, manifest.model_copy(update={"name": "other"}))
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.json"]


def test_bundles_load_without_onnx_or_torch(tmp_path):
    tiny = write_tiny_bundle(tmp_path)
    code = (
        "import sys\n"
        "for name in ('onnx', 'torch', 'tensorrt'): sys.modules[name] = None\n"
        "from trt_moe.bundle import Bundle\n"
        "bundle = Bundle.load(sys.argv[1]); bundle.golden(); bundle.samples()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny.path)], check=True)


def test_property_any_text_in_a_name_is_handled(data):
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(hypothesis.strategies.text(max_size=40))
    @hypothesis.settings(max_examples=50, deadline=None)
    def check(text):
        changed = copy.deepcopy(data)
        changed["experts"][0]["file"] = text
        try:
            entry = parse_manifest(changed, "x").experts[0]
        except BundleError as error:
            assert str(error).isprintable()
        else:
            assert not entry.file.startswith("/")
            assert ".." not in entry.file.split("/")

    check()


def test_bundle_repr_needs_no_files(data):
    assert "tiny" in repr(Bundle(__import__("pathlib").Path("x"), parse_manifest(data, "x")))
