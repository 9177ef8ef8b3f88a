"""The joint phase: kept only where it helps, resumable, and norms keep their statistics."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from safetensors.torch import load_file  # noqa: E402

from trt_moe.data import load_dataset  # noqa: E402
from trt_moe.errors import ModelOutputError  # noqa: E402
from trt_moe.training import TrainConfig, joint, splits  # noqa: E402
from trt_moe.training.checkpoint import save_checkpoint  # noqa: E402
from trt_moe.training.experts import Shape, build, checkpoint_path, predict  # noqa: E402
from trt_moe.training.gater import TrainedGater, build_gater, gater_path  # noqa: E402
from trt_moe.training.joint import train_joint, utility  # noqa: E402
from trt_moe.training.logits import Judged  # noqa: E402
from trt_moe.training.losses import expert_losses, gumbel_noise  # noqa: E402
from trt_moe.training.splits import Corrupted, derived_seed, every_severity, split  # noqa: E402

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

    def start(joint, folder="runs", progress=None, log=lambda _: None, costs=COSTS, **changes):
        changed = TrainConfig.model_validate({**raw_config, "joint": {"batch": 20, **joint}, **changes})
        if not (tmp_path / folder).exists():
            save_checkpoint(gater_path(tmp_path / folder, "benefit", 0), best.model, "x", 1)
            for name, model in models.items():
                save_checkpoint(checkpoint_path(tmp_path / folder, name), model, "x", 1)
        return train_joint(
            changed, changed.joint, best, models, parts.gater, validation, costs, tmp_path / folder, progress, log
        )

    start.models, start.gater, start.labels = models, best.model, torch.from_numpy(parts.gater.labels)
    return start


def of_one(model, images, *precision):
    """What `predict` says of one image, for all: it is quick where nothing looks at them."""
    return predict(model, images[:1], *precision).repeat(len(images), 0)


@pytest.fixture
def epochs(run, monkeypatch):
    """Epochs as they would be gone through: how each is made, and what its first piece gives to the loss."""
    made = []

    def draw(*given):
        images = splits.draw(*given)
        made.append(SimpleNamespace(severities=set(images.severities)))
        return images

    def run_epoch(what, network, optimizer, settings, epoch, order, fetch, loss_of, *_):
        pixels, chosen = fetch(0, 0)
        decay = {group["weight_decay"] for group in optimizer.param_groups}
        vars(made[-1]).update(order=order, pixels=pixels, chosen=chosen, decay=decay, training=network.training)
        loss_of(pixels, chosen, 0.0)
        return 0.0

    def loss(*given):
        made[-1].given = given
        return given[0].sum()

    monkeypatch.setattr(joint, "predict", of_one)
    monkeypatch.setattr(joint, "draw", draw)
    monkeypatch.setattr(joint, "run_epoch", run_epoch)
    monkeypatch.setattr(joint, "gumbel_loss", loss)
    return made


def test_the_loss_is_made_of_what_the_router_does(run, epochs):
    run({"epochs": 2, "temperature": 0.5})
    for number, epoch in enumerate(epochs):
        scores, losses, costs, latency_weight, temperature, noise = epoch.given
        pixels, labels = epoch.pixels.numpy(), run.labels[epoch.chosen]
        expected = predict(run.gater, pixels) - 0.7 * COSTS
        np.testing.assert_allclose(scores.detach().numpy(), expected, atol=1e-5)
        logits = [torch.from_numpy(predict(model, pixels)) for model in run.models.values()]
        torch.testing.assert_close(losses, expert_losses(torch.stack(logits, 1), labels), check_stride=False)
        assert costs.numpy() == pytest.approx(COSTS)
        assert (latency_weight, temperature) == (0.7, 0.5)
        # By image: the same noise however many processes share them.
        assert torch.equal(noise, gumbel_noise(60, 2, derived_seed("joint epoch", 0, number))[epoch.chosen])
    assert len(epochs) == 2


def test_an_epoch_has_all_severities_and_an_order_of_its_own(run, epochs):
    run({"epochs": 2, "accumulate": 2, "weight_decay": 0.25})
    run({}, "other", flip=False)
    first, second, plain = epochs
    assert first.order.chosen.shape == (3, 2, 10)
    assert first.order.chosen.tolist() != second.order.chosen.tolist()
    assert first.order.mirrored.any() and not plain.order.mirrored.any()
    assert first.decay == {0.25, 0.0}
    assert all(epoch.severities == {0, 1, 2, 3, 4, 5} and not epoch.training for epoch in epochs)


def test_it_is_trained_again_by_other_settings_and_from_other_weights(run, epochs, tmp_path):
    def trained(joint=(), **changes):
        count = len(epochs)
        run(dict(joint), **changes)
        return len(epochs) > count

    assert (trained(), trained()) == (True, False)
    for changes in ({"joint": {"temperature": 2.0}}, {"costs": COSTS * [2, 1]}, {"latency_weight": 0.5}):
        assert (trained(**changes), trained()) == (True, True), changes
    for file in (gater_path(tmp_path / "runs", "benefit", 0), checkpoint_path(tmp_path / "runs", "heavy")):
        save_checkpoint(file, torch.nn.Linear(1, 1), "x", 1)
        assert (trained(), trained()) == (True, False), file


@pytest.mark.parametrize("part", ["gater", "experts"])
def test_a_mixture_that_its_last_steps_drove_off_is_not_kept(run, monkeypatch, tmp_path, part):
    def drive_off(what, network, *_):
        with torch.no_grad():
            next(getattr(network, part).parameters()).fill_(torch.inf)
        return 0.0

    monkeypatch.setattr(joint, "run_epoch", drive_off)
    with pytest.raises(ModelOutputError, match="joint: logits on validation images are not finite"):
        run({})
    assert not checkpoint_path(tmp_path / "runs", "joint").exists()


def test_utility_is_minus_the_routed_loss_and_weighted_cost():
    logits = np.log(np.array([[[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.9, 0.1]]], np.float32))
    images = Corrupted(np.zeros((2, 1, 1, 1)), np.array([0, 0]), np.array([0, 0]))
    expected = -((-np.log(0.9) - np.log(0.25)) / 2 + 0.7 * 0.6)
    assert utility(np.array([1, 0]), Judged(images, logits), COSTS, 0.7) == pytest.approx(expected)


def test_what_helps_is_kept_and_the_norms_keep_their_statistics(run):
    models = {**run.models, "gater": run.gater}
    before = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in models.items()}
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
    for name, made in {**tuned.experts, "gater": tuned.gater}.items():
        for key, value in made.state_dict().items():
            assert torch.equal(models[name].state_dict()[key], before[name][key]), "the phase works on copies"
            if "running_" in key:
                assert torch.equal(value, before[name][key])
    assert not torch.equal(tuned.experts["light"].network.fc.weight, run.models["light"].network.fc.weight)
    assert not torch.equal(tuned.gater.network.head.weight, run.gater.network.head.weight)
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
