"""The gater phase: what it learns, what it logs, and that a cut run goes on."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from trt_moe.errors import InputError, ModelOutputError  # noqa: E402
from trt_moe.routing_rule import route  # noqa: E402
from trt_moe.training import TrainConfig, gater  # noqa: E402
from trt_moe.training.experts import Shape, predict  # noqa: E402
from trt_moe.training.gater import build_gater, gater_path, train_gaters  # noqa: E402
from trt_moe.training.logits import Judged  # noqa: E402
from trt_moe.training.losses import balance_loss, gate_entropy, gumbel_loss  # noqa: E402
from trt_moe.training.routing import explained_variance, frontier_score, gater_frontier  # noqa: E402
from trt_moe.training.splits import Corrupted  # noqa: E402

SHAPE = Shape(8, 8, 1, 2)
COSTS = np.array([0.1, 0.4, 1.0])
WEIGHT = 0.7
STEPS = 6


@pytest.fixture
def config(raw_config):
    """Three experts, and a gater phase of 6 steps an epoch on the images of `judged`."""

    def make(**changes):
        middle = {**raw_config["experts"][0], "name": "middle"}
        experts = [raw_config["experts"][0], middle, raw_config["experts"][1]]
        phase = {"methods": ["benefit"], "seeds": [0], "epochs": 2, "batch": 32, **changes}
        return TrainConfig.model_validate(
            {**raw_config, "experts": experts, "gater": phase, "latency_weight": WEIGHT, "flip": False}
        )

    return make


def judged(best):
    """192 images as bright as the number of the only expert that is right: best[i] of 0 to 2."""
    best = np.asarray(best)
    pixels = np.broadcast_to((best * 100).astype(np.uint8)[:, None, None, None], (len(best), 8, 8, 1)).copy()
    right = np.eye(3)[best] * 10 - 5
    logits = np.stack([right, -right], axis=2).astype(np.float32)
    return Judged(Corrupted(pixels, np.zeros(len(best), np.int64), np.arange(len(best)) * 6 // len(best)), logits)


MIXED = judged(np.arange(192) % 3)


def _train(config, folder, images=MIXED, progress=None, log=lambda _: None):
    return train_gaters(config, SHAPE, images, images, COSTS, folder, progress, log)


@pytest.mark.parametrize("method", ["regret", "benefit", "gumbel", "likelihood"])
def test_every_method_learns_which_of_three_experts_an_image_needs(config, tmp_path, method):
    [trained] = _train(config(methods=[method], epochs=25, learning_rate=0.02), tmp_path)
    scores = predict(trained.model, MIXED.images.images)
    assert (route(scores, COSTS, WEIGHT) == np.arange(192) % 3).mean() > 0.95


@pytest.mark.parametrize("method", ["regret", "benefit", "gumbel", "likelihood"])
def test_finished_scores_are_free_of_costs(config, tmp_path, method):
    untrained = build_gater(config(), SHAPE)
    [trained] = _train(config(methods=[method], learning_rate=1e-12), tmp_path)
    moved = trained.model.network.head.bias - untrained.network.head.bias
    expected = np.zeros(3) if method in ("regret", "benefit") else WEIGHT * COSTS
    np.testing.assert_allclose(moved.detach().numpy(), expected, atol=1e-6)


def test_every_epoch_logs_the_routing_table_by_severity(config, tmp_path):
    lines = []
    _train(config(epochs=3), tmp_path, log=lines.append)
    starts = [i for i, line in enumerate(lines) if line.startswith("gater benefit 0: epoch")]
    assert len(starts) == 3
    for number, start in enumerate(starts, 1):
        assert f"epoch {number}/3 loss " in lines[start]
        assert "validation accuracy 0." in lines[start]
        for severity in range(6):
            line = lines[start + 1 + severity]
            assert line.startswith(f"  severity {severity}: light ")
            for part in ("middle ", "heavy ", "accuracy ", "cost "):
                assert part in line


def test_a_collapse_is_warned_of_with_its_cause_once_at_the_end(config, tmp_path):
    lines = []
    _train(config(epochs=3, learning_rate=0.02), tmp_path, judged(np.zeros(192, int)), log=lines.append)
    [warning] = [line for line in lines if "collapsed" in line]
    assert warning == lines[-2]
    assert warning.startswith(
        "gater benefit 0: warning: routing collapsed: 100.0% of the images go to light. Cause: no other expert"
    )


def test_a_gater_that_begins_with_one_expert_for_all_is_not_warned_of(config, tmp_path):
    lines = []
    _train(config(epochs=25, learning_rate=0.02), tmp_path, log=lines.append)
    assert all("light 100.0%" in line for line in lines[1:7]), "it does begin so"
    assert not any("collapsed" in line for line in lines)


def test_the_temperature_goes_from_the_first_to_the_last(config, tmp_path, monkeypatch):
    seen = []

    def record(scores, losses, costs, weight, temperature):
        seen.append(temperature)
        return gumbel_loss(scores, losses, costs, weight, temperature)

    monkeypatch.setattr(gater, "gumbel_loss", record)
    _train(config(methods=["gumbel"], temperature=[4.0, 0.25]), tmp_path)
    assert seen == pytest.approx([4.0 * 0.0625 ** (step / (2 * STEPS)) for step in range(2 * STEPS)])


@pytest.mark.parametrize("method", ["gumbel", "likelihood"])
def test_balance_and_entropy_are_weighted_terms_of_the_loss(config, method):
    scores, losses = torch.tensor([[2.0, 0.0, -1.0]] * 8), torch.rand(8, 3)

    def loss(**changes):
        torch.manual_seed(0)
        return gater._loss(config(methods=[method], **changes), method, scores, losses, torch.tensor(COSTS), 0.5)

    torch.testing.assert_close(loss(balance=0.3) - loss(), 0.3 * balance_loss(scores).double())
    torch.testing.assert_close(loss(entropy=0.3) - loss(), -0.3 * gate_entropy(scores).double())


def test_a_cut_gater_ends_in_the_same_weights_and_a_finished_one_is_skipped(config, tmp_path):
    settings = config(methods=["gumbel"], seeds=[0, 1])
    whole = {gater.seed: gater.model.state_dict() for gater in _train(settings, tmp_path / "whole")}

    def cut(name, done, _):
        if (name, done) == ("gater gumbel 1", STEPS + 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(settings, tmp_path / "cut", progress=cut)
    steps = []
    again = _train(settings, tmp_path / "cut", progress=lambda name, done, _: steps.append((name, done)))
    resumed = {gater.seed: gater.model.state_dict() for gater in again}
    assert steps == [("gater gumbel 1", STEPS + 1 + i) for i in range(STEPS)]
    for seed, weights in whole.items():
        for key, value in weights.items():
            assert torch.equal(resumed[seed][key], value), (seed, key)
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [f"gater-gumbel-{s}.safetensors" for s in (0, 1)]


@pytest.mark.parametrize(("method", "serves_all"), [("benefit", True), ("gumbel", False)])
def test_a_gater_that_serves_every_weight_is_trained_once(config, tmp_path, method, serves_all):
    settings, steps = config(methods=[method]), []
    _train(settings, tmp_path)
    _train(settings.model_copy(update={"latency_weight": 0.2}), tmp_path, progress=lambda *step: steps.append(step))
    assert (steps == []) is serves_all


def test_a_gater_from_when_all_had_the_weight_in_their_hash_is_as_good(config, tmp_path, monkeypatch):
    settings, steps = config(methods=["benefit", "gumbel"]), []
    hashes = TrainConfig.gater_hashes
    with monkeypatch.context() as patch:
        patch.setattr(TrainConfig, "gater_hashes", lambda self, method: hashes(self, method)[-1:])
        _train(settings, tmp_path)
    _train(settings, tmp_path, progress=lambda *step: steps.append(step))
    assert steps == []


def test_a_gater_of_other_logits_is_trained_again(config, tmp_path):
    _train(config(), tmp_path)
    steps = []
    _train(config(), tmp_path, MIXED.divided_by(np.array([2.0, 1.0, 1.0])), lambda *step: steps.append(step))
    assert len(steps) == 2 * STEPS


def test_after_a_loss_that_is_not_finite_the_last_good_epoch_is_gone_on_from(config, tmp_path, monkeypatch):
    whole = _train(config(), tmp_path / "whole")[0].model.state_dict()
    calls = []

    def break_down(*arguments):
        calls.append(None)
        return benefit_loss(*arguments) * (float("nan") if len(calls) == STEPS + 3 else 1.0)

    benefit_loss = gater.benefit_loss
    with monkeypatch.context() as patch:
        patch.setattr(gater, "benefit_loss", break_down)
        with pytest.raises(ModelOutputError, match=r"gater benefit 0: loss is nan at epoch 2, step 3 of 6 \(batch of"):
            _train(config(), tmp_path / "broken")
    assert not gater_path(tmp_path / "broken", "benefit", 0).exists()
    repaired = _train(config(), tmp_path / "broken")[0].model.state_dict()
    assert all(torch.equal(repaired[key], value) for key, value in whole.items())


@pytest.fixture
def epochs(monkeypatch, tmp_path):
    """Epochs of gaters as they would be gone through, each as the loop gets it."""

    def start(config, images=MIXED):
        made = []

        def run_epoch(what, network, optimizer, settings, epoch, order, fetch, *_):
            decay = {group["weight_decay"] for group in optimizer.param_groups}
            made.append(
                SimpleNamespace(
                    order=order, served=fetch(0, 0)[0], training=network.training, noise=torch.rand(()).item(),
                    decay=decay,
                )
            )  # fmt: skip
            torch.seed()  # whatever is drawn in an epoch
            return 0.0

        monkeypatch.setattr(gater, "run_epoch", run_epoch)
        _train(config, tmp_path / f"{config.seed} {config.flip} {config.gater.weight_decay}", images)
        return made

    return start


def test_everything_random_in_a_gater_follows_the_seeds_and_the_epoch(config, epochs):
    made = [*epochs(config(seeds=[0, 1])), *epochs(config().model_copy(update={"seed": 1}))]
    orders = [epoch.order.chosen.tolist() for epoch in made]
    assert len(made) == 6
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert len({epoch.noise for epoch in made}) == 6
    again = epochs(config(seeds=[0, 1], weight_decay=0.5))
    assert [epoch.noise for epoch in again] == [epoch.noise for epoch in made[:4]]
    assert all(epoch.training for epoch in made)
    assert again[0].decay == {0.5, 0.0}


def test_gaters_see_mirrored_images_where_the_config_says_so(config, epochs):
    pixels = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None], (192, 8, 8, 1)).copy()
    images = Judged(Corrupted(pixels, MIXED.images.labels, MIXED.images.severities), MIXED.logits)
    [plain, _], [flipped, _] = (epochs(config(), images), epochs(config().model_copy(update={"flip": True}), images))
    assert not plain.order.mirrored.any()
    assert (plain.served == torch.from_numpy(pixels[:32])).all()
    mirrored = torch.from_numpy(flipped.order.mirrored[0, 0])
    assert (flipped.served[:, 0, 0, 0] == torch.where(mirrored, 7, 0)).all()
    assert mirrored.any()


def test_another_seed_or_width_builds_another_gater(config):
    made = [
        build_gater(settings, SHAPE, seed)
        for settings, seed in ((config(), 0), (config(), 1), (config().model_copy(update={"seed": 1}), 0))
    ]
    weights = [next(model.network.parameters()) for model in made]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    assert next(build_gater(config(width=8), SHAPE).network.parameters()).shape != weights[0].shape


def test_losses_are_clipped_where_the_config_says(config):
    scores, losses = torch.zeros(4, 3), torch.full((4, 3), 9.0)
    clipped = gater._loss(config(loss_clip=2.0), "benefit", scores, losses, torch.tensor(COSTS), 0.5)
    assert clipped.item() == pytest.approx(4.0)
    torch.manual_seed(0)
    paid = gater._loss(config(loss_clip=2.0), "regret", scores, losses, torch.tensor(COSTS), 0.5).item()
    assert 2.0 < paid < 3.0


def test_gaters_come_with_the_best_by_validation_first(config, tmp_path, monkeypatch):
    scored = iter((0.5, 0.9, 0.7))
    monkeypatch.setattr(gater, "frontier_score", lambda *_: next(scored))
    found = _train(config(seeds=[0, 1, 2], epochs=1), tmp_path)
    assert [(trained.seed, trained.frontier) for trained in found] == [(1, 0.9), (2, 0.7), (0, 0.5)]


def test_gaters_are_ranked_by_other_images_than_they_learn_from(config, tmp_path, monkeypatch):
    settings = config(epochs=1, loss_clip=1.5)
    random = np.random.default_rng(0)
    scores = random.normal(0, 1, (192, 3))
    validation = Judged(MIXED.images, random.normal(0, 3, (192, 3, 2)).astype(np.float32))
    monkeypatch.setattr(gater, "predict", lambda *_: scores)
    [trained] = train_gaters(settings, SHAPE, MIXED, validation, COSTS, tmp_path, log=lambda _: None)
    frontier = gater_frontier(scores, validation.right, COSTS, 0.0)
    assert trained.frontier == pytest.approx(frontier_score(frontier, COSTS))
    assert trained.r2 == pytest.approx(explained_variance(scores, validation.losses, 1.5))


def test_a_gater_of_other_costs_is_trained_again(config, tmp_path):
    _train(config(), tmp_path)
    steps = []
    train_gaters(
        config(), SHAPE, MIXED, MIXED, COSTS * [2, 1, 1], tmp_path, lambda *step: steps.append(step), lambda _: None
    )
    assert len(steps) == 2 * STEPS


@pytest.mark.parametrize(("method", "weights"), [("gumbel", [0.0, 0.0, WEIGHT]), ("regret", [WEIGHT] * 3)])
def test_while_costs_are_in_the_loss_they_are_not_in_the_rule(config, tmp_path, monkeypatch, method, weights):
    asked = []
    monkeypatch.setattr(gater, "route", lambda scores, costs, weight: asked.append(weight) or route(scores, costs, 0))
    _train(config(methods=[method]), tmp_path)
    assert asked == weights


def test_costs_must_fit_the_experts(config, tmp_path):
    with pytest.raises(InputError, match=r"costs for 3 experts; expected one per expert"):
        train_gaters(config(), SHAPE, MIXED, MIXED, COSTS[:2], tmp_path, log=lambda _: None)
