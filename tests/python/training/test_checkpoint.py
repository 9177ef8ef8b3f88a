"""Checkpoints: a cut run ends in the same weights, and a failed write keeps the old file."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from trt_moe.data import load_dataset  # noqa: E402
from trt_moe.errors import BundleError, DataError, InputError, ModelOutputError  # noqa: E402
from trt_moe.models import create_expert  # noqa: E402
from trt_moe.training import TrainConfig, experts, losses  # noqa: E402
from trt_moe.training import checkpoint as module  # noqa: E402
from trt_moe.training.checkpoint import checkpoint_hash, load_checkpoint, save_checkpoint  # noqa: E402
from trt_moe.training.experts import (  # noqa: E402
    Shape,
    build,
    checkpoint_path,
    make_optimizer,
    start_from,
    train_experts,
)
from trt_moe.training.splits import split  # noqa: E402

SHAPE = Shape(16, 16, 1, 10)


def test_model_and_optimizer_come_back(tmp_path):
    def build():
        network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        return network.to(memory_format=torch.channels_last)

    model = build()
    optimizer = make_optimizer(model, 0.1)
    model(torch.randn(4, 2, 3, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "a" / "c.safetensors", model, "hash", 2, optimizer)
    other = build()
    fresh = make_optimizer(other, 0.1)
    assert load_checkpoint(tmp_path / "a" / "c.safetensors", other, "hash", fresh) == 2
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    for old, new in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[old].items():
            assert torch.equal(fresh.state[new][key], value)
        # The fused optimizer of CUDA refuses state that lies in memory otherwise than its parameter.
        assert fresh.state[new]["exp_avg"].stride() == new.stride()


def test_another_hash_or_no_file_gives_none(tmp_path):
    model = nn.Linear(2, 3)
    save_checkpoint(tmp_path / "c", model, "hash", 1)
    assert load_checkpoint(tmp_path / "c", model, "other") is None
    assert load_checkpoint(tmp_path / "missing", model, "hash") is None


def test_the_hash_of_a_file_is_that_of_its_weights(tmp_path):
    model, found = nn.Linear(2, 3), []
    for _ in range(2):
        save_checkpoint(tmp_path / "c", model, "hash", 1)
        found.append(checkpoint_hash(tmp_path / "c"))
        with torch.no_grad():
            model.bias += 1
    assert found[0] != found[1] == checkpoint_hash(tmp_path / "c")


def test_damage_and_another_architecture_are_named(tmp_path):
    save_checkpoint(tmp_path / "c", nn.Linear(2, 3), "hash", 1)
    with pytest.raises(DataError, match="another architecture"):
        load_checkpoint(tmp_path / "c", nn.Linear(2, 4), "hash")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:40])
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(tmp_path / "c", nn.Linear(2, 3), "hash")


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    model = nn.Linear(2, 3)
    save_checkpoint(tmp_path / "c", model, "hash", 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_bytes", full)
    with pytest.raises(DataError, match=r"No space left.*previous one is kept"):
        save_checkpoint(tmp_path / "c", model, "hash", 2)
    assert load_checkpoint(tmp_path / "c", model, "hash") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """A limit on the size of files, as no test may fill a disk: writing really stops in the middle."""
    save_checkpoint(tmp_path / "c", nn.Linear(2, 3), "hash", 1)
    before = (tmp_path / "c").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write checkpoint .*large.*previous one is kept"):
            save_checkpoint(tmp_path / "c", nn.Linear(100, 100), "hash", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "c").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


class _StopError(Exception):
    pass


def _run(raw, data, folder, progress=None, log=lambda _: None):
    config = TrainConfig.model_validate(raw)
    return train_experts(config, split(data, config.splits), SHAPE, folder, progress, log)


def test_a_cut_run_ends_in_the_same_weights(raw_config, data_folder, tmp_path):
    data = load_dataset(data_folder, "train")
    whole = _run(raw_config, data, tmp_path / "whole")

    def cut(name, done, total):
        if name == "heavy" and done == total - 1:
            raise _StopError

    with pytest.raises(_StopError):
        _run(raw_config, data, tmp_path / "cut", cut)
    assert (tmp_path / "cut" / "heavy.partial.safetensors").is_file()
    steps = []
    resumed = _run(raw_config, data, tmp_path / "cut", lambda name, done, _: steps.append((name, done)))
    assert next(step for step in steps if step[0] == "heavy") == ("heavy", 8)  # the first of epoch 2
    assert "teacher" not in {name for name, _ in steps}
    for name, model in whole.items():
        for key, value in model.state_dict().items():
            assert torch.equal(resumed[name].state_dict()[key], value), (name, key)
    assert not list((tmp_path / "cut").glob("*.partial.*"))


def test_a_finished_expert_is_skipped_and_a_changed_one_trained_again(raw_config, data_folder, tmp_path):
    data = load_dataset(data_folder, "train")
    _run(raw_config, data, tmp_path)
    raw_config["experts"][0]["learning_rate"] = 2e-3
    names = []
    _run(raw_config, data, tmp_path, lambda name, *_: names.append(name))
    assert set(names) == {"light"}


def test_weights_to_start_from_are_needed_only_until_there_is_a_checkpoint(raw_config, data_folder, tmp_path):
    data, weights = load_dataset(data_folder, "train"), tmp_path / "w.safetensors"
    source = create_expert("test_resnet", num_classes=10, in_chans=1)
    save_file({name: value.contiguous() for name, value in source.state_dict().items()}, weights)
    raw_config["experts"][0]["weights"] = weights
    runs = raw_config["checkpoints"] / raw_config["name"]

    def cut(name, done, total):
        if name == "light" and done == total - 1:
            raise _StopError

    with pytest.raises(_StopError):
        _run(raw_config, data, runs, cut)
    weights.unlink()
    steps = []
    _run(raw_config, data, runs, lambda *step: steps.append(step))  # unfinished: goes on
    assert [done for name, done, _ in steps if name == "light"] == list(range(8, 15))
    _run(raw_config, data, runs, lambda *step: steps.append(("again", *step)))  # finished: is skipped
    assert not [step for step in steps if step[0] == "again"]
    with pytest.raises(BundleError, match=r"w\.safetensors"):
        _run(raw_config, data, tmp_path / "elsewhere")


def test_other_weights_in_the_same_file_are_started_from_anew(raw_config, data_folder, tmp_path):
    data, weights = load_dataset(data_folder, "train"), tmp_path / "w.safetensors"
    raw_config["experts"][0] |= {"weights": weights, "epochs": 0}
    runs, found = raw_config["checkpoints"] / raw_config["name"], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        source = create_expert("test_resnet", num_classes=10, in_chans=1).state_dict()
        save_file({name: value.contiguous() for name, value in source.items()}, weights)
        trained = _run(raw_config, data, runs)["light"].network.state_dict()
        found.append([torch.equal(trained[name], value) for name, value in source.items()])
    assert found == [[True] * len(source)] * 2


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", nn.Linear(2, 3), "hash", 1)
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o666 & ~umask()

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "safe_open", refused)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=r"c cannot be read \(Permission denied\); it needs your permission to"):
        load_checkpoint(tmp_path / "c", nn.Linear(2, 3), "hash")


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_bf16_trains_float32_weights_to_nearly_the_same(raw_config, data_folder, tmp_path):
    data = load_dataset(data_folder, "train")
    raw_config["experts"][0]["learning_rate"] = 1e-4
    weights = {}
    for precision in ("fp32", "bf16"):
        model = _run({**raw_config, "precision": precision}, data, tmp_path / precision)["light"]
        weights[precision] = torch.cat([parameter.detach().ravel() for parameter in model.parameters()])
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not torch.equal(weights["fp32"], weights["bf16"])
    torch.testing.assert_close(weights["bf16"], weights["fp32"], atol=3e-3, rtol=0)


def test_an_expert_can_go_on_from_its_teacher(raw_config, data_folder, tmp_path):
    data = load_dataset(data_folder, "train")
    raw_config["experts"][0] |= {"start_from": "teacher", "image_size": 48, "learning_rate": 1e-9}
    models = _run(raw_config, data, tmp_path)
    for name, value in models["teacher"].network.named_parameters():
        torch.testing.assert_close(dict(models["light"].network.named_parameters())[name], value, atol=1e-4, rtol=0)


def test_a_loss_that_is_not_finite_stops_with_step_and_advice(raw_config, data_folder, tmp_path, monkeypatch):
    data = load_dataset(data_folder, "train")
    monkeypatch.setattr(experts, "distillation_loss", lambda student, *_: student.sum() * float("nan"))
    with pytest.raises(
        ModelOutputError,
        match=r"teacher: loss is nan at epoch 1, step 1 of 7 \(batch of images \d+, .* of the training split, counted "
        r"from 0\); nothing is kept yet, it was the first epoch\. Lower learning_rate",
    ):
        _run(raw_config, data, tmp_path)
    assert not checkpoint_path(tmp_path, "teacher").exists()


def test_after_a_loss_that_is_not_finite_the_last_good_epoch_is_gone_on_from(
    raw_config, data_folder, tmp_path, monkeypatch
):
    data = load_dataset(data_folder, "train")
    whole = _run(raw_config, data, tmp_path / "whole")
    calls = []

    def break_down(*arguments):
        calls.append(None)
        # Teacher, light: 14 steps each; heavy: 7 an epoch.
        return losses.distillation_loss(*arguments) * (float("nan") if len(calls) == 28 + 9 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(experts, "distillation_loss", break_down)
        with pytest.raises(
            ModelOutputError, match=r"heavy: loss is nan at epoch 2, step 2 of 7 .*checkpoint of epoch 1 is kept"
        ):
            _run(raw_config, data, tmp_path / "broken")
    assert (tmp_path / "broken" / "heavy.partial.safetensors").is_file()
    repaired = _run(raw_config, data, tmp_path / "broken")
    for key, value in whole["heavy"].state_dict().items():
        assert torch.equal(repaired["heavy"].state_dict()[key], value), key


def test_weights_that_the_last_step_of_an_epoch_drove_off_are_not_kept(raw_config, data_folder, tmp_path, monkeypatch):
    data = load_dataset(data_folder, "train")
    step = torch.optim.AdamW.step
    taken = []

    def drive_off(optimizer, *arguments):
        taken.append(step(optimizer, *arguments))
        if len(taken) == 14:  # the last of the teacher's second epoch
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].fill_(torch.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", drive_off)
    with pytest.raises(ModelOutputError, match=r"teacher: logits on validation images are not finite .* not kept"):
        _run(raw_config, data, tmp_path)
    assert not checkpoint_path(tmp_path, "teacher").exists()
    with safe_open(tmp_path / "teacher.partial.safetensors", framework="pt") as kept:
        assert kept.metadata()["epoch"] == "1"
        assert all(kept.get_tensor(key).isfinite().all() for key in kept.keys())  # noqa: SIM118


def test_a_gradient_that_is_not_finite_is_not_stepped_along(raw_config, data_folder, tmp_path, monkeypatch):
    data = load_dataset(data_folder, "train")
    # Its value is 0, its slope is not finite.
    monkeypatch.setattr(experts, "distillation_loss", lambda student, *_: (student * 0).abs().sqrt().sum())
    with pytest.raises(ModelOutputError, match=r"teacher: the gradient's norm is nan at epoch 1, step 1"):
        _run(raw_config, data, tmp_path)


def test_an_expert_that_is_trained_already_skips_its_training(raw_config, data_folder, tmp_path):
    data = load_dataset(data_folder, "train")
    first = _run(raw_config, data, tmp_path / "first")["light"]
    raw_config["experts"][0] |= {"epochs": 0, "weights": tmp_path / "first" / "light.safetensors"}
    steps = []
    second = _run(raw_config, data, tmp_path / "second", lambda name, *_: steps.append(name))["light"]
    assert "light" not in steps and "heavy" in steps
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key
    steps.clear()
    _run(raw_config, data, tmp_path / "second", lambda name, *_: steps.append(name))
    assert not steps


def test_what_another_configuration_made_is_replaced_with_a_word(raw_config, data_folder, tmp_path):
    data = load_dataset(data_folder, "train")
    _run(raw_config, data, tmp_path)
    raw_config["experts"][0]["learning_rate"] = 2e-3
    lines = []
    _run(raw_config, data, tmp_path, log=lines.append)
    assert [line for line in lines if "made by another configuration" in line] == [
        f"light: {tmp_path / 'light.safetensors'} was made by another configuration; it is trained again and replaced"
    ]


def test_an_expert_of_another_number_of_classes_is_refused(raw_config, tmp_path):
    config = TrainConfig.model_validate(raw_config)
    light = config.experts[0]
    save_checkpoint(checkpoint_path(tmp_path, "light"), build(config, light, SHAPE), config.expert_hash(light), 2)
    other = build(config, light, Shape(16, 16, 1, 7))
    with pytest.raises(DataError, match=r"(?s)light\.safetensors.*for other classes.*delete it to train again"):
        load_checkpoint(checkpoint_path(tmp_path, "light"), other, config.expert_hash(light))


def test_the_same_seed_builds_the_same_network(raw_config):
    config = TrainConfig.model_validate(raw_config)
    first, second = (build(config, config.experts[0], SHAPE) for _ in range(2))
    images = torch.from_numpy(np.zeros((1, 16, 16, 1), np.uint8))
    assert torch.equal(first.eval()(images), second.eval()(images))


def test_an_expert_starts_from_its_teacher_at_another_size(raw_config, data_folder, tmp_path, monkeypatch):
    raw_config["experts"][0].update(start_from="teacher", image_size=48)
    config = TrainConfig.model_validate(raw_config)
    started = {}

    def remember(config, expert, model, *_):
        started[expert.name] = {name: value.clone() for name, value in model.network.state_dict().items()}

    monkeypatch.setattr(experts, "train_expert", remember)
    models = train_experts(config, split(load_dataset(data_folder, "train"), config.splits), SHAPE, tmp_path)
    teacher = models["teacher"].network.state_dict()
    assert all(torch.equal(started["light"][name], value) for name, value in teacher.items())
    assert not all(torch.equal(started["robust-light"][name], value) for name, value in teacher.items())
    assert models["light"].graph_size == (48, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_from": "teacher"}, "heavy starts from teacher, but their networks differ"),
        ({"model": "test_resnets"}, "'test_resnets'; near matches: test_resnet"),
        ({"weights": "/no/such.safetensors"}, r"such\.safetensors is not a readable"),
        ({"model": "test_resnet", "options": {}}, "token_drop needs a vision transformer"),
    ],
)
def test_a_mistake_in_the_last_expert_is_found_before_the_first_is_trained(
    raw_config, data_folder, tmp_path, changes, message
):
    raw_config["experts"][1] |= changes
    steps = []
    with pytest.raises((InputError, BundleError), match=message):
        _run(raw_config, load_dataset(data_folder, "train"), tmp_path, lambda *step: steps.append(step))
    assert steps == []


def test_a_deeper_network_starts_as_the_shallower_ones_function(raw_config):
    shallow = {"model": "resnet10t", "image_size": 32, "options": {"channels": [8, 8, 16, 16]}, "severities": [1] * 6}
    deep = {**shallow, "options": {"channels": [8, 8, 16, 16], "layers": [3, 1, 2, 1]}}
    raw_config["teachers"] = [{**shallow, "name": "teacher"}]
    raw_config["experts"][0] = {**deep, "name": "light", "start_from": "teacher"}
    raw_config["experts"][1]["teacher"] = None
    config = TrainConfig.model_validate(raw_config)
    source, model = (build(config, config.classifier(name), SHAPE) for name in ("teacher", "light"))
    images = torch.randint(0, 256, (4, 16, 16, 1), dtype=torch.uint8)
    assert not torch.allclose(model.eval()(images), source.eval()(images))
    start_from(model, source)
    assert len(model.network.state_dict()) > len(source.network.state_dict())
    torch.testing.assert_close(model.eval()(images), source.eval()(images))
