"""The joint phase: kept only where it helps, resumable, and norms keep their statistics."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from safetensors.torch import load_file  # noqa: E402

from trt_moe.data import load_dataset  # noqa: E402
from trt_moe.training import TrainConfig  # noqa: E402
from trt_moe.training.checkpoint import save_checkpoint  # noqa: E402
from trt_moe.training.experts import Shape, build, checkpoint_path, predict  # noqa: E402
from trt_moe.training.gater import TrainedGater, build_gater, gater_path  # noqa: E402
from trt_moe.training.joint import train_joint, utility  # noqa: E402
from trt_moe.training.logits import Judged  # noqa: E402
from trt_moe.training.splits import Corrupted, every_severity, split  # noqa: E402

SHAPE = Shape(16, 16, 1, 10)
COSTS = np.array([0.2, 1.0])


@pytest.fixture
def run(raw_config, data_folder, tmp_path):
    """Call train_joint on untrained models, validated on the clean images that they train on."""
    raw_config["corruption"] = {"blur_sigma": [0] * 6, "noise_sigma": [0] * 6}
    config = TrainConfig.model_validate(raw_config)
    parts = split(load_dataset(data_folder, "train"), config.splits)
    models = {expert.name: build(config, expert, SHAPE).eval() for expert in config.experts}
    best = TrainedGater("benefit", 0, build_gater(config, SHAPE).eval(), 0.0, 0.0)
    images = every_severity(parts.gater, config.corruption, 0)
    validation = Judged(images, np.stack([predict(model, images.images) for model in models.values()], axis=1))

    def start(joint, folder="runs", progress=None, log=lambda _: None):
        changed = TrainConfig.model_validate({**raw_config, "joint": {"batch": 20, **joint}})
        if not (tmp_path / folder).exists():
            save_checkpoint(gater_path(tmp_path / folder, "benefit", 0), best.model, "x", 1)
            for name, model in models.items():
                save_checkpoint(checkpoint_path(tmp_path / folder, name), model, "x", 1)
        return train_joint(
            changed, changed.joint, best, models, parts.gater, validation, COSTS, tmp_path / folder, progress, log
        )

    start.models = models
    return start


def test_utility_is_minus_the_routed_loss_and_weighted_cost():
    logits = np.log(np.array([[[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.9, 0.1]]], np.float32))
    images = Corrupted(np.zeros((2, 1, 1, 1)), np.array([0, 0]), np.array([0, 0]))
    expected = -((-np.log(0.9) - np.log(0.25)) / 2 + 0.7 * 0.6)
    assert utility(np.array([1, 0]), Judged(images, logits), COSTS, 0.7) == pytest.approx(expected)


def test_what_helps_is_kept_and_the_norms_keep_their_statistics(run):
    before = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in run.models.items()}
    lines = []
    tuned = run({"epochs": 12, "learning_rate": 1e-2}, log=lines.append)
    assert tuned is not None
    assert lines[-1].endswith("after: kept")
    assert sum(line.startswith("  before: severity") for line in lines) == 6
    assert sum(line.startswith("  after: severity") for line in lines) == 6
    assert any("routing collapsed" in line for line in lines)
    epochs = [i for i, line in enumerate(lines) if line.startswith("joint: epoch ")]
    assert len(epochs) == 12
    for epoch in epochs:
        assert "validation accuracy " in lines[epoch]
        assert [line[:12] for line in lines[epoch + 1 : epoch + 7]] == [f"  severity {s}" for s in range(6)]
    for name, model in run.models.items():
        for key, value in tuned.experts[name].state_dict().items():
            assert torch.equal(model.state_dict()[key], before[name][key]), "the phase works on copies"
            if "running_" in key:
                assert torch.equal(value, before[name][key])
    assert not torch.equal(tuned.experts["light"].network.fc.weight, run.models["light"].network.fc.weight)
    again = []
    assert run({"epochs": 12, "learning_rate": 1e-2}, log=again.append) is not None
    assert again[0].startswith("joint: already trained")
    assert again[-1] == lines[-1]


def test_what_does_not_help_is_dropped_and_says_so(run):
    lines = []
    assert run({"learning_rate": 1e-20}, log=lines.append) is None
    assert lines[-1].endswith("not better, gater and experts stay as they were")


def test_a_cut_joint_phase_ends_in_the_same_weights(run, tmp_path):
    settings = {"epochs": 2, "learning_rate": 1e-3, "accumulate": 2}
    run(settings, "whole")

    def cut(_, done, total):
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, "cut", cut)
    lines = []
    run(settings, "cut", log=lines.append)
    assert lines[0] == "joint: goes on after epoch 1 of 2"
    resumed = load_file(tmp_path / "cut" / "joint.safetensors")
    for key, value in load_file(tmp_path / "whole" / "joint.safetensors").items():
        assert torch.equal(resumed[key], value), key
