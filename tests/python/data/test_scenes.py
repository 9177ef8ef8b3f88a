"""Drawn scenes: the layout is Intel's, the seed decides everything, and colour alone does not give them away."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trt_moe.cli import app
from trt_moe.data import load_dataset
from trt_moe.data.scenes import CLASSES, SIDE, draw_scene, write_scenes
from trt_moe.errors import DataError, InputError


def test_the_verb_writes_the_intel_layout(tmp_path):
    out = tmp_path / "scenes"
    result = CliRunner().invoke(app, ["scenes", str(out), "--train", "2", "--test", "1"])
    assert result.exit_code == 0, result.output
    assert len(list(out.glob("seg_train/*/*.jpg"))) == 12
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"]
    train, test = load_dataset(out, "train"), load_dataset(out, "test")
    assert train.class_names == ("buildings", "forest", "glacier", "mountain", "sea", "street")
    assert train.images.shape == (12, SIDE, SIDE, 3)
    assert test.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert not (train.images[0] == test.images[0]).all()


def test_the_seed_decides_the_files(tmp_path):
    folders = [write_scenes(tmp_path / str(n), 1, 1, seed) for n, seed in enumerate((3, 3, 4))]
    first, again, other = ((folder / "seg_test" / "sea" / "00000.jpg").read_bytes() for folder in folders)
    assert first == again
    assert first != other


def test_no_scene_is_drawn_twice_and_all_are_counted(tmp_path):
    steps = []
    write_scenes(tmp_path / "new", 2, 1, progress=lambda *step: steps.append(step))
    files = [path.read_bytes() for path in (tmp_path / "new").rglob("*.jpg")]
    assert len(files) == len(set(files)) == 18
    assert len(list((tmp_path / "new").glob("seg_test/*/*.jpg"))) == 6
    assert steps == [("scenes", done, 18) for done in range(1, 19)]
    (tmp_path / "usual").mkdir()
    usual = (tmp_path / "usual").stat().st_mode
    assert [(tmp_path / folder).stat().st_mode for folder in ("new", "new/seg_test", "new/seg_train")] == [usual] * 3


def test_every_class_is_drawn_in_a_way_of_its_own():
    assert len({draw_scene(name, 0).tobytes() for name in CLASSES}) == len(CLASSES)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"scenes cannot be written to .*file/new"):
        write_scenes(tmp_path / "file" / "new", 1, 1)


def test_what_is_there_is_not_touched(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        write_scenes(tmp_path, 1, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    for train, test, seed, message in ((0, 1, 0, "train is 0"), (1, 0, 0, "test 0"), (1, 1, -1, "seed -1")):
        with pytest.raises(InputError, match=message):
            write_scenes(tmp_path / "new", train, test, seed)


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "new", 1, 1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_one_is_in_gets_the_scenes_and_stays_empty_after_an_interrupt(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = folder.stat().st_ino

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(Path(), 1, 1, progress=stop)
    assert list(folder.iterdir()) == []
    write_scenes(Path(), 1, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["seg_test", "seg_train"]
    assert folder.stat().st_ino == before


def test_an_unknown_scene_is_refused():
    with pytest.raises(InputError, match="'desert'; there are buildings, "):
        draw_scene("desert", 0)


def _centroid_accuracy(features, labels):
    """Nearest class mean, learned on the first half of each class and tested on the second."""
    half = np.arange(len(labels)) % 2 == 0
    means = np.stack([features[half & (labels == k)].mean(0) for k in range(len(CLASSES))])
    nearest = ((features[~half][:, None] - means) ** 2).sum(2).argmin(1)
    return (nearest == labels[~half]).mean()


def test_scenes_differ_in_shape_more_than_in_colour():
    count = 14
    images = np.stack([draw_scene(name, seed) for name in CLASSES for seed in range(count)]).astype(float)
    labels = np.repeat(np.arange(len(CLASSES)), count)
    assert _centroid_accuracy(images.mean((1, 2)), labels) < 0.6
    grey = images.mean(3)
    edges = np.stack([np.abs(np.diff(grey, axis=a)).reshape(len(grey), -1).mean(1) for a in (1, 2)], axis=1)
    assert _centroid_accuracy(edges, labels) > 0.4
