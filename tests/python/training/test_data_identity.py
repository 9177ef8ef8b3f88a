"""A run's folder belongs to one data set."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from trt_moe.data import Dataset  # noqa: E402
from trt_moe.errors import DataError, InputError  # noqa: E402
from trt_moe.training import TrainConfig  # noqa: E402
from trt_moe.training.data_identity import check_data  # noqa: E402
from trt_moe.training.pipeline import train  # noqa: E402


@pytest.fixture
def data():
    images = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)
    return Dataset(images, np.array([0, 1, 0, 1]), ("sea", "street"), "data")


def test_the_same_data_is_welcome_again(data, tmp_path):
    check_data(tmp_path / "run", data)
    check_data(tmp_path / "run", replace(data, name="elsewhere"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("sea", "wood")}, r"class_names \['sea', 'street'\], now \['sea', 'wood'\]"),
        ({"labels": np.array([0, 1, 1, 0])}, "sha256"),
        ({"images": np.zeros((4, 8, 8, 1), np.uint8)}, "sha256"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, r"images \[4, 8, 8, 1\], now \[4, 8, 8, 3\]"),
    ],
)
def test_other_data_is_refused_with_what_differs(data, tmp_path, changes, message):
    check_data(tmp_path / "run", data)
    with pytest.raises(InputError, match=rf"run holds a run on other training data \(.*{message}.*--checkpoints"):
        check_data(tmp_path / "run", replace(data, **changes))


def test_a_run_from_before_is_taken_to_be_of_this_data_and_is_noted_on_request(data, tmp_path):
    check_data(tmp_path, data, write=False)
    assert not list(tmp_path.iterdir())
    check_data(tmp_path, data)
    with pytest.raises(InputError):
        check_data(tmp_path, replace(data, class_names=("a", "b")), write=False)


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_trained(raw_config, tmp_path):
    (tmp_path / "taken").touch()
    config = TrainConfig.model_validate({**raw_config, "checkpoints": tmp_path / "taken"})
    lines = []
    with pytest.raises(DataError, match=r"cannot write .*taken/tiny/data\.json: .*--checkpoints"):
        train(config, tmp_path / "bundle", log=lines.append)
    assert not lines
