"""Training on the GPU: what the tests of training show on the CPU, as far as a GPU may differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed: training needs it")
pytest.importorskip("yaml", reason="pyyaml is not installed: training needs it")

from accelerate.state import AcceleratorState

from tests.support.tiny_training import SIDE, tiny_config, write_data
from trt_moe.data import load_dataset
from trt_moe.models import ImageModel
from trt_moe.training.config import TrainConfig
from trt_moe.training.experts import Shape, predict, train_experts
from trt_moe.training.splits import split


class _StopError(Exception):
    pass


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("on_gpu")
def test_a_cut_run_goes_on_and_ends_nearly_the_same(tmp_path: Path, precision: str) -> None:
    data = load_dataset(write_data(tmp_path), "train")
    config = TrainConfig.model_validate({**tiny_config(tmp_path, tmp_path), "precision": precision})
    messages: list[str] = []

    def run(folder: str, cut: str | None = None) -> dict[str, ImageModel]:
        def progress(name: str, done: int, total: int) -> None:
            if name == cut and done == total - 1:
                raise _StopError

        shape = Shape(SIDE, SIDE, 1, 10)
        return train_experts(config, split(data, config.splits), shape, tmp_path / folder, progress, messages.append)

    whole = run("whole")
    for name in ("teacher", "heavy"):
        with pytest.raises(_StopError):
            run("cut", name)
    resumed = run("cut")
    assert [message for message in messages if "goes on" in message] == [
        "teacher: goes on after epoch 1 of 2",
        "heavy: goes on after epoch 1 of 2",
    ]
    for name, model in whole.items():
        assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
        logits, again = (predict(network, data.images, precision) for network in (model, resumed[name]))
        assert np.abs(logits - again).max() <= 0.1 * np.abs(logits).max()
