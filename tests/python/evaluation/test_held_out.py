"""Which images a bundle is judged by."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_bundle import edit_manifest, write_tiny_bundle
from trt_moe.bundle import Bundle
from trt_moe.data import load_dataset
from trt_moe.data.datasets import files_digest, hold_out
from trt_moe.evaluation import load_test_images

COUNTS = {"class-0": 8, "class-1": 12, "class-2": 4}


@pytest.fixture
def bundle(tmp_path: Path, folder: Path) -> Bundle:
    path = write_tiny_bundle(tmp_path / "tiny").path
    held_out = {"share": 0.25, "images": 24, "sha256": files_digest(folder)}
    edit_manifest(path, lambda manifest: manifest["training"].update(held_out=held_out))
    return Bundle.load(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


def test_of_the_folder_that_was_trained_on_only_what_was_held_out(bundle: Bundle, folder: Path) -> None:
    notes: list[str] = []
    found = load_test_images(folder, bundle, note=notes.append)
    _, expected = hold_out(load_dataset(folder), 0.25)
    np.testing.assert_array_equal(found.images, expected.images)
    assert np.bincount(found.labels).tolist() == [2, 3, 1]
    assert notes == ["left out: 18 of 24 images, which tiny was trained on"]


def test_another_folder_is_taken_whole_with_a_warning(bundle: Bundle, folder: Path) -> None:
    notes: list[str] = []
    (folder / "class-0" / "0.png").rename(folder / "class-0" / "new.png")
    assert len(load_test_images(folder, bundle, note=notes.append)) == 24
    (folder / "class-0" / "new.png").unlink()
    assert len(load_test_images(folder, bundle, note=notes.append)) == 23
    assert "no longer, these 24, all of which" in notes[0]
    assert "no longer, these 23, all of which" in notes[1]


def test_images_that_training_could_not_use_are_no_reason_to_guess(bundle: Bundle, folder: Path) -> None:
    edit_manifest(bundle.path, lambda manifest: manifest["training"]["held_out"].update(images=23))
    notes: list[str] = []
    assert len(load_test_images(folder, Bundle.load(bundle.path), note=notes.append)) == 24
    assert "too high" in notes[0]


def test_what_is_a_test_split_already_is_taken_whole(bundle: Bundle, folder: Path) -> None:
    notes: list[str] = []
    apart = folder.parent / "apart"
    (apart / "train").mkdir(parents=True)
    folder.rename(apart / "test")
    (apart / "train" / "class-0").mkdir()
    assert len(load_test_images(apart, bundle, note=notes.append)) == 24
    assert not notes


def test_a_bundle_that_held_nothing_out_takes_all(tmp_path: Path, folder: Path) -> None:
    path = write_tiny_bundle(tmp_path / "other").path
    notes: list[str] = []
    assert len(load_test_images(folder, Bundle.load(path), note=notes.append)) == 24
    edit_manifest(path, lambda manifest: manifest.update(training=None))
    assert len(load_test_images(folder, Bundle.load(path), note=notes.append)) == 24
    assert not notes
