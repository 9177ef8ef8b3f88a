"""Where a bundle goes: what it may not replace, and that nothing is lost on the way."""

import json
import resource
from pathlib import Path

import pytest

from support.tiny_bundle import write_tiny_bundle
from trt_moe.errors import DataError, InputError
from trt_moe.export.destination import check_destination, check_writable, new_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "bundle").path


def trained(folder, name):
    """Give a bundle the record of a training run."""
    file = folder / "bundle.json"
    corruption = {"blur_sigma": [0.0] * 6, "noise_sigma": [0.0] * 6, "reference_side": 28}
    record = {"dataset": "d", "corruption": corruption, "latency_weight": 0.1, "method": "benefit", "seed": 0}
    record |= {"commit": "unknown", "packages": {}, "command": "trt-moe train"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "name": name, "training": record}))


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_a_bundle_is_never_replaced(tmp_path, force):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    (tmp_path / "link").symlink_to("home")
    for place in ("home", "home/letter.txt", "link"):
        with pytest.raises(InputError, match=r"is not a bundle, so it is not replaced; choose another folder"):
            check_destination(tmp_path / place, force, {}, "tiny")


def test_a_bundle_is_replaced_by_force_or_by_its_own_run(bundle):
    with pytest.raises(InputError, match=r"is a bundle already; replace it with --force, or choose another folder"):
        check_destination(bundle, False, {})
    check_destination(bundle, True, {})
    refused = r"not of a training run called 'mine'; replace it with --force"
    with pytest.raises(InputError, match=refused):
        check_destination(bundle, False, {}, "mine")
    trained(bundle, "mine")
    check_destination(bundle, False, {}, "mine")
    trained(bundle, "yours")
    with pytest.raises(InputError, match=refused):
        check_destination(bundle, False, {}, "mine")
    check_destination(bundle, True, {}, "mine")
    trained(bundle, "mine")
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "training": None}))
    with pytest.raises(InputError, match=refused):  # of the same name, but packed
        check_destination(bundle, False, {}, "mine")
    (bundle / "bundle.json").write_text("of another age")
    with pytest.raises(InputError, match=refused):
        check_destination(bundle, False, {}, "mine")


def test_what_is_used_is_not_replaced_even_where_it_lies_in_a_bundle(bundle, monkeypatch):
    for inside in ("data", "deep/er"):
        with pytest.raises(InputError, match=rf"is or holds the data set, .*{inside}, which a bundle would replace"):
            check_destination(bundle, True, {"the data set": bundle / inside})
    check_destination(bundle, True, {"the data set": bundle.parent})
    monkeypatch.chdir(bundle)
    for here in (".", bundle, "../bundle"):
        with pytest.raises(InputError, match="is or holds the current directory"):
            check_destination(Path(here), True, {})


def test_nothing_and_an_empty_folder_are_free_and_stay_as_they_are(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new", "not/there/yet"):
        check_destination(tmp_path / place, False, {}, "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_place_that_takes_no_files_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in (Path("/proc/x"), Path("/proc/x/y"), tmp_path / "file" / "x"):
        with pytest.raises(InputError, match=rf"{place} cannot be written \(.*\); choose another folder"):
            check_destination(place, False, {})
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "file", tmp_path / "file")


def test_a_new_bundle_takes_the_place_of_the_old_one_or_leaves_it(bundle):
    with new_bundle(bundle) as work:
        (work / "bundle.json").write_text("new")
    assert [path.name for path in bundle.iterdir()] == ["bundle.json"]
    with pytest.raises(ZeroDivisionError), new_bundle(bundle) as work:
        (work / "bundle.json").write_text(1 // 0)
    assert (bundle / "bundle.json").read_text() == "new"
    with new_bundle(bundle.parent / "deep" / "second") as work:
        (work / "bundle.json").touch()
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "deep"]


def test_what_came_in_the_meantime_is_not_replaced(tmp_path):
    with pytest.raises(InputError, match="is not a bundle"), new_bundle(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "letter.txt").touch()
    assert (tmp_path / "out" / "letter.txt").exists()


def test_a_link_to_a_bundle_stays_one(bundle):
    link = bundle.parent / "link"
    link.symlink_to("bundle")
    with new_bundle(link) as work:
        (work / "bundle.json").write_text("new")
    assert link.is_symlink()
    assert (bundle / "bundle.json").read_text() == "new"


@pytest.mark.parametrize("renames", [0, 1])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error")])
def test_a_bundle_survives_whatever_ends_its_replacement(bundle, monkeypatch, renames, after, error):
    """Ends it right before or after one of its renames."""
    rename, calls = Path.replace, []

    def cut(source, target):
        calls.append(target)
        if len(calls) == renames + 1 and not after:
            raise error
        rename(source, target)
        if len(calls) == renames + 1:
            raise error

    monkeypatch.setattr(Path, "replace", cut)
    before = (bundle / "bundle.json").read_text()
    try:
        with new_bundle(bundle) as work:
            (work / "bundle.json").write_text("new")
    except (KeyboardInterrupt, DataError):
        pass
    assert (bundle / "bundle.json").read_text() == ("new" if renames + after >= 2 else before)
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_full_disk_is_the_destinations_fault(bundle, tmp_path):
    """A limit on the size of files, as no test may fill a disk."""
    (tmp_path / "model.onnx").write_bytes(bytes(8192))
    before = (bundle / "bundle.json").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        message = rf"cannot write the bundle to {bundle}: File too large; free some space, or choose another folder"
        with pytest.raises(DataError, match=message), new_bundle(bundle) as work:
            (work / "model.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (bundle / "bundle.json").read_bytes() == before
