"""What an epoch of an expert is made of, without going through it."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from timm.layers.patch_dropout import PatchDropout  # noqa: E402
from torch import nn  # noqa: E402

from trt_moe.training import TrainConfig, experts  # noqa: E402
from trt_moe.training.experts import Shape, autocast, build, make_optimizer, predict, train_expert  # noqa: E402
from trt_moe.training.losses import distillation_loss, soft_loss  # noqa: E402
from trt_moe.training.splits import Part, Parts  # noqa: E402

SHAPE = Shape(16, 16, 1, 10)


def part(*indices):
    rows = np.array(indices)
    return Part(np.full((len(rows), 16, 16, 1), 100, np.uint8), rows % 10, rows)


PARTS = Parts(part(*range(40)), part(40, 41), part(42, 43))


@pytest.fixture
def epochs(raw_config, tmp_path, monkeypatch):
    """Epochs of the heavy expert as they would be gone through, each as the loop gets it."""

    def start(teacher=None, expert=(), **changes):
        entry = {**raw_config["experts"][1], **dict(expert)}
        config = TrainConfig.model_validate({**raw_config, "experts": [raw_config["experts"][0], entry], **changes})
        heavy, drawn, made = config.experts[1], [], []
        model = build(config, heavy, SHAPE).eval()
        draw = experts.draw

        def run_epoch(what, network, optimizer, settings, epoch, order, fetch, loss_of, *_):
            tokens = model.network.patch_drop
            made.append(
                SimpleNamespace(
                    order=order, severities=drawn[-1].severities, training=model.training, tokens=tokens,
                    noise=torch.rand(()).item(), loss_of=loss_of, distilled=model.network.distilled_training,
                )
            )  # fmt: skip
            return 0.0

        def run_epochs(what, model, optimizer, file, identity, count, train_epoch, *_):
            for epoch in range(count):
                torch.seed()  # whatever was drawn before
                train_epoch(epoch)

        monkeypatch.setattr(experts, "draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
        monkeypatch.setattr(experts, "run_epoch", run_epoch)
        monkeypatch.setattr(experts, "run_epochs", run_epochs)
        train_expert(config, heavy, model, PARTS, tmp_path, teacher)
        return made

    return start


def test_an_expert_sees_its_own_severities(epochs):
    for epoch in epochs(expert={"severities": [0, 0, 0, 1, 0, 0]}):
        assert set(epoch.severities) == {3}


def test_an_expert_is_watched_on_validation_images(epochs, monkeypatch):
    seen = []
    monkeypatch.setattr(experts, "every_severity", lambda part, *_: seen.append(part.indices.tolist()))
    epochs()
    assert seen == [[42, 43]]


def test_everything_random_follows_the_seeds_and_the_epoch(epochs):
    plain, again = epochs(), epochs()
    assert [epoch.noise for epoch in plain] == [epoch.noise for epoch in again]
    orders = [epoch.order.chosen.tolist() for epoch in (*plain, *epochs(expert={"seed": 1}), *epochs(seed=1))]
    assert orders[:2] == [epoch.order.chosen.tolist() for epoch in again]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert plain[0].noise != plain[1].noise


def test_images_are_mirrored_where_the_config_says_so_and_steps_accumulated(epochs):
    plain, other = epochs()[0].order, epochs(expert={"accumulate": 2}, flip=False)[0].order
    assert plain.chosen.shape == (2, 1, 16) and plain.mirrored.any()
    assert other.chosen.shape == (2, 2, 8) and not other.mirrored.any()


def test_tokens_are_dropped_in_the_first_epochs_but_never_those_of_the_heads(epochs):
    first, second, third = epochs(expert={"epochs": 3, "token_drop": 0.25, "token_drop_epochs": 2})
    for epoch in (first, second):
        assert isinstance(epoch.tokens, PatchDropout)
        assert (epoch.tokens.prob, epoch.tokens.num_prefix_tokens) == (0.25, 2)
    assert not isinstance(third.tokens, PatchDropout)
    assert all(epoch.training for epoch in (first, second, third))


def test_the_second_head_of_a_distilled_transformer_imitates_the_teacher_alone(epochs, monkeypatch):
    torch.manual_seed(0)
    student, pupil, target = torch.randn(3, 3, 10)
    pixels, labels = torch.randint(0, 256, (3, 16, 16, 1), dtype=torch.uint8), torch.tensor([1, 0, 2])
    monkeypatch.setattr(experts, "share_network", lambda *_: lambda _: (student, pupil))
    asked = []
    settings = {"distill_weight": 0.3, "temperature": 4.0}
    epoch = epochs(lambda images: asked.append(images) or target, settings)[0]
    loss = epoch.loss_of(pixels, labels, 0.0)
    torch.testing.assert_close(
        loss, distillation_loss(student, labels, target, 0.3, 4.0) + soft_loss(pupil, target, 4.0)
    )
    assert torch.equal(asked[0], pixels)
    assert epoch.distilled


def test_biases_norms_and_tokens_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model.token = nn.Parameter(torch.zeros(1, 1, 4))
    decayed, free = make_optimizer(model, 0.25).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.25, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(2, 1, 3, 3)]
    assert len(free["params"]) == 4


def test_predictions_are_those_of_evaluation_mode():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images):
            return nn.functional.dropout(images.flatten(1) * self.weight, 0.5, self.training)

    images = np.full((501, 1, 4, 1), 7, np.uint8)
    np.testing.assert_array_equal(predict(Dropping().train(), images), np.full((501, 4), 7.0))


def test_the_precision_is_that_of_the_config():
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(precision, "cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_weights_that_a_checkpoint_will_replace_are_neither_fetched_nor_read(raw_config, monkeypatch):
    raw_config["experts"][0] |= {"pretrained": True, "weights": "w.safetensors"}
    config = TrainConfig.model_validate(raw_config)
    asked = []

    def create(*_, pretrained, weights, **__):
        asked.append((pretrained, weights and weights.name))
        return nn.Linear(1, 1)

    monkeypatch.setattr(experts, "create_expert", create)
    for from_file in (False, True):
        build(config, config.experts[0], SHAPE, from_file)
    assert asked == [(True, "w.safetensors"), (False, None)]


def test_another_seed_builds_another_network(raw_config):
    config = TrainConfig.model_validate(raw_config)
    light = config.experts[0]
    made = [
        build(other, expert, SHAPE).network.state_dict()["conv1.0.weight"]
        for other, expert in (
            (config, light),
            (config, light.model_copy(update={"seed": 1})),
            (config.model_copy(update={"seed": 1}), light),
        )
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])
