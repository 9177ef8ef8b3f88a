"""Tiny data, and a config that trains on it in seconds."""

import pytest

from support.tiny_training import tiny_config, write_data

pytest.importorskip("torch")
pytest.importorskip("timm")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("idx"))


@pytest.fixture
def raw_config(data_folder, tmp_path):
    """Config as plain values: change them, then validate with `TrainConfig.model_validate`."""
    return tiny_config(data_folder, tmp_path / "runs")
