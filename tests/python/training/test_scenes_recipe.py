"""configs/scenes.yaml: what `trt-moe scenes DIR` draws when nothing else is said is what it needs."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trt_moe.cli import app, make
from trt_moe.data import Dataset
from trt_moe.data.scenes import CLASSES
from trt_moe.export.bundle_writer import check_test_images
from trt_moe.models import create_expert
from trt_moe.training import load_config
from trt_moe.training.splits import split

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "scenes.yaml"


def _drawn(option):
    """Make a data set of as many images as the verb draws by default, all black."""
    labels = np.repeat(np.arange(len(CLASSES)), inspect.signature(make.scenes).parameters[option].default)
    return Dataset(np.zeros((len(labels), 1, 1, 3), np.uint8), labels, CLASSES, "scenes")


def test_the_recipe_fits_what_is_drawn_by_default():
    config = load_config(CONFIG)
    train, test = _drawn("train"), _drawn("test")
    assert (len(train), len(test)) == (1200, 300)
    split(train, config.splits)
    check_test_images(test, max(config.sample_images, config.golden_images))
    assert config.image_shape is not None
    assert config.image_shape[2] == len(config.mean) == 3


def test_the_recipe_fetches_no_weights():
    for entry in load_config(CONFIG).classifiers():
        assert not entry.pretrained
        assert entry.weights is None
        create_expert(
            entry.model, num_classes=len(CLASSES), in_chans=3, image_size=entry.image_size, options=entry.options
        )


@pytest.mark.parametrize(("counts", "fits"), [((200, 50), True), ((1, 50), False), ((200, 1), False)])
def test_the_verb_names_the_recipe_and_says_where_it_does_not_fit(tmp_path, monkeypatch, counts, fits):
    monkeypatch.setattr("trt_moe.data.scenes.write_scenes", lambda *_: None)
    train, test = map(str, counts)
    result = CliRunner().invoke(app, ["scenes", str(tmp_path / "new"), "--train", train, "--test", test])
    assert result.exit_code == 0, result.output
    assert f"try `trt-moe train configs/scenes.yaml --data {tmp_path}/new`" in result.stdout
    assert ("made for --train 200 --test 50 or more" in result.stdout) is not fits
