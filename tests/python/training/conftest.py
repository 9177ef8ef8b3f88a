"""Tiny data, a config that trains on it in seconds, and a run of it that is finished."""

import shutil

import pytest

from support.tiny_training import tiny_config, write_data

pytest.importorskip("torch")
pytest.importorskip("timm")

from trt_moe.training import TrainConfig
from trt_moe.training.pipeline import train


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("idx"))


@pytest.fixture
def raw_config(data_folder, tmp_path):
    """Config as plain values: change them, then validate with `TrainConfig.model_validate`."""
    return tiny_config(data_folder, tmp_path / "runs")


@pytest.fixture(scope="session")
def finished(data_folder, tmp_path_factory):
    """A folder with the checkpoints of a run that was trained once, `runs`, and its bundle, `bundle`; to be read."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("finished")
    config = TrainConfig.model_validate(tiny_config(data_folder, folder / "runs"))
    train(config, folder / "bundle", log=lambda _: None)
    return folder


@pytest.fixture
def finished_config(finished, raw_config):
    """`raw_config` with a copy of the finished run's checkpoints, which a test may change."""
    shutil.copytree(finished / "runs", raw_config["checkpoints"])
    return raw_config
