import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.tiny_bundle import TinyBundle, edit_manifest, rehash, write_tiny_bundle
from trt_moe.bundle import Bundle, sha256_file, shipped_bundles
from trt_moe.bundle.onnx_scan import scan
from trt_moe.errors import BundleError, InputError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", experts=3, classes=4, channels=3)


@pytest.fixture
def tiny(original, tmp_path) -> TinyBundle:
    copy = tmp_path / "tiny"
    shutil.copytree(original.path, copy)
    return TinyBundle(copy, original.experts, original.classes, original.shape)


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        bundle = Bundle.load(path)
        bundle.golden()
        bundle.samples()
    message = str(caught.value)
    assert "Traceback" not in message
    assert len(message) < 1500
    return message


def test_load_reads_everything(tiny):
    bundle = Bundle.load(str(tiny.path))
    assert bundle.name == "tiny"
    assert bundle.input_shape == (8, 8, 3)
    assert bundle.class_names == [f"class-{i}" for i in range(4)]
    assert [entry.name for entry in bundle.models()] == ["gater", "expert-0", "expert-1", "expert-2"]
    assert [entry.name for entry in bundle.baselines] == ["robust-light"]
    assert bundle.file(bundle.gater) == tiny.path / "gater.onnx"
    assert bundle.read(bundle.gater) == (tiny.path / "gater.onnx").read_bytes()
    assert bundle.outputs(bundle.gater) == 3
    assert bundle.outputs(bundle.experts[0]) == 4
    golden = bundle.golden()
    assert golden["images"].dtype == np.uint8
    assert golden["images"].shape == (4, 8, 8, 3)
    np.testing.assert_allclose(golden["expert-2"], tiny.expert_logits(2, golden["images"]), rtol=1e-6)
    images, labels, severities = bundle.samples()
    assert images.shape == (24, 8, 8, 3)
    assert severities.tolist() == sorted(severities.tolist())
    np.testing.assert_array_equal(labels, tiny.labels(images))
    assert "tiny" in repr(bundle)


def test_manifest_file_names_its_bundle(tiny):
    assert Bundle.load(tiny.path / "bundle.json").path == tiny.path


def test_missing_onnx(tiny):
    (tiny.path / "expert-1.onnx").unlink()
    assert "expert-1.onnx is missing" in refused(tiny.path)


def test_truncated_onnx_fails_its_sha256(tiny):
    file = tiny.path / "expert-1.onnx"
    file.write_bytes(file.read_bytes()[:-10])
    message = refused(tiny.path)
    assert "expert-1.onnx" in message
    assert "sha256" in message
    assert "trt-moe pack" in message


def test_truncated_onnx_with_a_matching_sha256(tiny):
    file = tiny.path / "expert-1.onnx"
    file.write_bytes(file.read_bytes()[:-10])
    rehash(tiny.path, "expert-1")
    assert "not an ONNX model, or cut short" in refused(tiny.path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"hello world", os.urandom(500), b"\xff" * 100])
def test_not_onnx_at_all(tiny, content):
    (tiny.path / "gater.onnx").write_bytes(content)
    rehash(tiny.path, "gater")
    assert "gater.onnx" in refused(tiny.path)


def test_weights_in_other_files_are_refused(tiny):
    model = onnx.load(tiny.path / "gater.onnx")
    onnx.save(model, tiny.path / "gater.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    rehash(tiny.path, "gater")
    assert "weights in other files" in refused(tiny.path)


def test_weights_in_other_files_deep_inside_are_refused(tiny):
    model = onnx.load(tiny.path / "gater.onnx")
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=tensor)], "b", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    (tiny.path / "gater.onnx").write_bytes(model.SerializeToString())
    rehash(tiny.path, "gater")
    assert "weights in other files" in refused(tiny.path)


def test_a_file_of_millions_of_nothings_is_refused(tiny):
    empty_nodes = b"\x0a\x00" * 1_000_000
    (tiny.path / "gater.onnx").write_bytes(b"\x3a\x80\x89\x7a" + empty_nodes)
    rehash(tiny.path, "gater")
    assert "gater.onnx: has more than 1,000,000 fields" in refused(tiny.path)


def test_foreign_io_is_refused(tiny):
    model = onnx.load(tiny.path / "expert-0.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, tiny.path / "expert-0.onnx")
    rehash(tiny.path, "expert-0")
    message = refused(tiny.path)
    assert "gives logits float32 [N, 7]" in message
    assert "expected one output logits float32 [N, 4]" in message


def test_static_batch_is_refused(tiny):
    model = onnx.load(tiny.path / "expert-0.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tiny.path / "expert-0.onnx")
    rehash(tiny.path, "expert-0")
    assert "N dynamic" in refused(tiny.path)


def test_wrong_sha256(tiny):
    edit_manifest(tiny.path, lambda data: data["gater"].update(sha256="ab" * 32))
    message = refused(tiny.path)
    assert "bundle.json says sha256 abababababab.. of gater.onnx" in message


def test_sha256_is_checked_again_when_the_file_changes(tiny):
    bundle = Bundle.load(tiny.path)
    file = tiny.path / "gater.onnx"
    file.write_bytes(file.read_bytes() + b"\x00")
    with pytest.raises(BundleError, match="sha256"):
        bundle.file(bundle.gater)
    with pytest.raises(BundleError, match="sha256"):
        bundle.read(bundle.gater)


@pytest.mark.parametrize(
    "bad",
    [
        "../gater.onnx",
        "a/../../gater.onnx",
        "/etc/x.onnx",
        "~/x.onnx",
        "C:/x.onnx",
        "a\\b.onnx",
        "./gater.onnx",
    ],
)
def test_paths_out_of_the_bundle_are_refused(tiny, bad):
    shutil.copy(tiny.path / "gater.onnx", tiny.path.parent / "gater.onnx")
    edit_manifest(tiny.path, lambda data: data["gater"].update(file=bad))
    assert "gater.file" in refused(tiny.path)


def test_symlink_out_is_refused(tiny):
    outside = tiny.path.parent / "outside.onnx"
    shutil.move(tiny.path / "gater.onnx", outside)
    (tiny.path / "gater.onnx").symlink_to(outside)
    assert "leads out of the bundle" in refused(tiny.path)


def test_symlinked_folder_out_is_refused(tiny):
    shutil.move(tiny.path / "samples", tiny.path.parent / "elsewhere")
    (tiny.path / "samples").symlink_to(tiny.path.parent / "elsewhere")
    assert "leads out of the bundle" in refused(tiny.path)


def test_symlink_inside_is_fine(tiny):
    (tiny.path / "gater.onnx").rename(tiny.path / "real.onnx")
    (tiny.path / "gater.onnx").symlink_to("real.onnx")
    Bundle.load(tiny.path)


def test_symlink_to_the_bundle_is_fine(tiny):
    link = tiny.path.parent / "link"
    link.symlink_to(tiny.path)
    Bundle.load(link).samples()


def test_symlink_loop(tiny):
    (tiny.path / "gater.onnx").unlink()
    (tiny.path / "gater.onnx").symlink_to("gater.onnx")
    assert "gater.onnx" in refused(tiny.path)


def test_fifo_does_not_block(tiny):
    (tiny.path / "gater.onnx").unlink()
    os.mkfifo(tiny.path / "gater.onnx")
    assert "not a regular file" in refused(tiny.path)


def test_huge_onnx_is_refused_before_it_is_read(tiny):
    with (tiny.path / "gater.onnx").open("r+b") as stream:
        stream.truncate((2 << 30) + 1)  # sparse: takes no disk
    assert "at most 2,147,483,648" in refused(tiny.path)


def rehash_golden(path: Path) -> None:
    edit_manifest(path, lambda data: data["golden"].update(sha256=sha256_file(path / "golden.npz")))


def test_huge_declared_npz_array(tiny):
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**13, 8, 8, 3)})
    with zipfile.ZipFile(tiny.path / "golden.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
        for name in ("gater", "expert-0", "expert-1", "expert-2"):
            archive.writestr(f"{name}.npy", b"")
    rehash_golden(tiny.path)
    assert "declares over" in refused(tiny.path)


def test_huge_npz_file(tiny):
    with (tiny.path / "golden.npz").open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    rehash_golden(tiny.path)
    assert "at most" in refused(tiny.path)


def test_pickled_npz_is_not_unpickled(tiny):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tiny.path / "owned"),)

    arrays = dict(np.load(tiny.path / "golden.npz"))
    arrays["gater"] = np.array([Bomb()], dtype=object)
    np.savez(tiny.path / "golden.npz", **arrays)
    rehash_golden(tiny.path)
    assert "pickle" in refused(tiny.path)
    (tiny.path / "golden.npz").write_bytes(pickle.dumps(Bomb()))
    rehash_golden(tiny.path)
    assert "not a readable npz" in refused(tiny.path)
    assert not (tiny.path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: a.pop("gater"), "arrays missing: gater"),
        (lambda a: a.update(extra=np.zeros(1)), "unexpected member 'extra.npy'"),
        (lambda a: a.update(gater=a["gater"].astype(np.float64)), "float64"),
        (lambda a: a.update(gater=a["gater"][:, :1]), "expected float32 (G, 3)"),
        (lambda a: a.update(gater=a["gater"][:2]), "has 2 rows, images 4"),
        (lambda a: a.update(gater=a["gater"] * np.nan), "not finite"),
        (lambda a: a.update(images=a["images"][:, :4]), "expected uint8 (G, 8, 8, 3)"),
        (lambda a: a.update({k: v[:0] for k, v in a.items()}), "not 0"),
    ],
)
def test_wrong_golden_arrays(tiny, change, expected):
    arrays = dict(np.load(tiny.path / "golden.npz"))
    change(arrays)
    np.savez(tiny.path / "golden.npz", **arrays)
    rehash_golden(tiny.path)
    assert expected in refused(tiny.path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b"[" * 100_000, "not acceptable JSON"),
        (b'{"schema_version": NaN}', "NaN is not a JSON number"),
        (b'{"name": "a", "name": "b"}', "'name' appears twice"),
        (b" " * (5 << 20), "at most 4,194,304"),
        (b'{"n": 1' + b"0" * 10_000 + b"}", "not acceptable JSON"),
    ],
)
def test_bad_json(tiny, content, expected):
    (tiny.path / "bundle.json").write_bytes(content)
    message = refused(tiny.path)
    assert "bundle.json" in message
    assert expected in message


def test_samples_are_checked(tiny):
    victim = next((tiny.path / "samples" / "3").rglob("*.png"))
    good = victim.read_bytes()
    victim.write_bytes(good[: len(good) // 2])
    assert str(victim) in refused(tiny.path)
    victim.unlink()
    assert "says 24 sample images, samples has 23" in refused(tiny.path)
    from PIL import Image

    Image.new("RGB", (4000, 4000)).save(victim)
    assert "is 4000 x 4000 RGB; expected 8 x 8 RGB" in refused(tiny.path)
    Image.new("RGB", (8, 8)).save(victim, format="BMP")
    assert "not a readable PNG" in refused(tiny.path)


def test_samples_that_would_fill_memory_are_refused(tiny):
    def change(data):
        data["samples"]["images"] = 1_000_000
        data["input"].update(height=8192, width=8192)

    edit_manifest(tiny.path, change)
    # The graphs are 8 x 8, which is noticed even before.
    assert "images uint8 [N, 8, 8, 3]" in refused(tiny.path)


def test_without_optional_parts(tmp_path):
    tiny = write_tiny_bundle(tmp_path, golden=0, samples_per_class=0, baseline=False)
    bundle = Bundle.load(tiny.path)
    with pytest.raises(BundleError, match="no golden"):
        bundle.golden()
    with pytest.raises(BundleError, match="no samples"):
        bundle.samples()


def test_a_shipped_name_may_end_as_shells_complete_it(tiny, monkeypatch):
    monkeypatch.setattr("trt_moe.bundle.bundle.shipped_bundles", lambda: {"shipped": tiny.path})
    assert Bundle.load("shipped/").path == tiny.path


def test_not_found_names_near_matches(tmp_path, monkeypatch):
    monkeypatch.setattr("trt_moe.bundle.bundle.shipped_bundles", lambda: {"fashion-mnist": tmp_path})
    with pytest.raises(BundleError, match="did you mean fashion-mnist"):
        Bundle.load("fashion-mnits")
    with pytest.raises(BundleError, match="does not exist"):
        Bundle.load(tmp_path / "nothing" / "here")
    with pytest.raises(BundleError, match=r"is no bundle, it holds no bundle.json; .* shipped bundles: fashion-mnist"):
        Bundle.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.load(tmp_path / "file")
    with pytest.raises(BundleError, match="the bundle is a NoneType; give a bundle's folder"):
        Bundle.load(None)
    with pytest.raises(BundleError, match=r"aaa cannot be looked into \(File name too long\)"):
        Bundle.load("a" * 5000)


def test_shipped_bundles_all_load():
    for path in shipped_bundles().values():
        bundle = Bundle.load(path)
        bundle.golden()
        bundle.samples()


def test_entry_by_name(tiny):
    bundle = Bundle.load(tiny.path)
    assert bundle.entry("robust-light").name == "robust-light"
    with pytest.raises(InputError, match="did you mean expert-2"):
        bundle.entry("expert_2")


def test_a_folder_named_like_a_shipped_bundle_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = write_tiny_bundle(tmp_path / "shipped" / "toy").path
    monkeypatch.setattr("trt_moe.bundle.bundle.shipped_folders", lambda: [tmp_path / "shipped"])
    (tmp_path / "elsewhere" / "toy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Bundle.load("toy").path == shipped
    own = write_tiny_bundle(tmp_path / "elsewhere" / "toy").path
    assert Bundle.load("toy").path.resolve() == own.resolve()


def test_a_golden_file_that_is_too_large_is_not_even_hashed(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "b").path
    with (path / "golden.npz").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="at most"):
        Bundle.load(path)


def test_weights_elsewhere_are_found_in_lists_of_graphs_and_without_a_file_name():
    node = onnx.helper.make_node("X", [], ["y"])
    graph = node.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS).graphs.add()
    tensor = graph.initializer.add(name="w", data_type=1)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    with pytest.raises(BundleError, match="keeps its weights in other files"):
        scan(memoryview(model.SerializeToString()), "m")


def test_a_model_that_changed_in_place_is_hashed_again(tiny):
    bundle = Bundle.load(tiny.path)
    file = bundle.file(bundle.entry("expert-0"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    with file.open("r+b") as stream:
        stream.write(data)
    os.utime(file, ns=(0, 0))
    with pytest.raises(BundleError, match="sha256"):
        bundle.file(bundle.entry("expert-0"))


def test_more_samples_than_are_told_of_are_refused(tiny):
    folder = next((tiny.path / "samples" / "3").iterdir())
    shutil.copyfile(next(folder.iterdir()), folder / "one-more.png")
    assert "says 24 sample images, samples has 25" in refused(tiny.path)


def test_no_model_is_called_file(tiny):
    edit_manifest(tiny.path, lambda data: data["experts"][0].update(name="file"))
    assert "is reserved; rename the model" in refused(tiny.path)
