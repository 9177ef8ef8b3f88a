"""A finished run of the tiny configuration: trained for real, its latencies made up, nothing exported."""

import shutil

import numpy as np
import pytest

from support.tiny_training import tiny_config, write_data

pytest.importorskip("torch")
pytest.importorskip("timm")

from trt_moe.export.measure import Timing
from trt_moe.training import TrainConfig, pipeline
from trt_moe.training.pipeline import train

MILLISECONDS = {"gater": 0.1, "light": 1.0, "heavy": 4.0, "robust-light": 1.0}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    config = TrainConfig.model_validate(tiny_config(write_data(folder), folder / "runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "export_onnx", _export)
        patch.setattr(pipeline, "measure_latency", _latencies)
        patch.setattr(pipeline, "write_bundle", _no_bundle)
        train(config, folder / "bundle", log=lambda _: None)
    return config


def _export(model, file, shape):
    file.parent.mkdir(exist_ok=True)
    file.touch()
    return 0.0


def _no_bundle(source, out, log):
    return out


def _latencies(files, *_, **__):
    return {name: Timing(np.full(3, MILLISECONDS[name])) for name in files}


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, which a test may add to and break."""
    shutil.copytree(finished.checkpoints, tmp_path / "runs")
    return finished.model_copy(update={"checkpoints": tmp_path / "runs"})
