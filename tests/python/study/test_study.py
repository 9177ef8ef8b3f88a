import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from support.tiny_bundle import write_tiny_bundle
from trt_moe.cli import app
from trt_moe.errors import DataError, MissingDependencyError
from trt_moe.evaluation import TestSet
from trt_moe.evaluation.answers import collect
from trt_moe.router import Router
from trt_moe.study import study
from trt_moe.study.fit import Bootstrap
from trt_moe.study.picture import draw
from trt_moe.study.study import (
    COMPLEXITY,
    DIFFICULTY,
    GATER,
    LOSS_CLIP,
    SEVERITY,
    TOGETHER,
    benefits,
)
from trt_moe.study.tables import print_study

CUES = {"entropy", "laplacian variance", "edge density", "JPEG size", DIFFICULTY}


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trt_moe.study.fit.RESAMPLES", 60)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("b"), experts=2, classes=4, samples_per_class=6)


def scene(tiny, severity, told_by_brightness, count=600):
    """The dearest expert is twice as sure as the cheapest, so it gains where the label is the experts' answer.

    That is where the image is bright, which the gater sees; or, not `told_by_brightness`, wherever chance wants.
    """
    images = tiny.random(count, seed=severity)
    answer = tiny.labels(images)
    bright = images.mean(axis=(1, 2, 3)) > 127
    right = bright if told_by_brightness else np.random.default_rng(severity).random(count) < 0.5
    return TestSet(severity, images, np.where(right, answer, (answer + 1) % 4))


def run(tiny, sets, **options):
    with Router(tiny.path, precision="fp32", threads=1) as router:
        return study(router, sets, "made", **options)


@pytest.fixture(scope="module")
def told(tiny):
    return run(tiny, [scene(tiny, severity, True) for severity in (0, 4)])


def test_a_gater_that_knows_comes_out_first(told):
    rows = told.data["explained_by"]
    assert set(rows) == {*CUES, TOGETHER, SEVERITY, GATER}
    best = rows[GATER]["r2_curve"]
    assert best["value"] > 0.9
    assert best["low"] < best["value"] < best["high"]
    assert rows[GATER]["rank_correlation"]["low"] > 0.5
    for name in (*CUES, SEVERITY):
        assert rows[name]["r2_curve"]["high"] < best["low"]
        ahead = rows[name]["gater_ahead"]
        assert ahead["value"] == pytest.approx(best["value"] - rows[name]["r2_curve"]["value"])
        assert 0 < ahead["low"] < ahead["high"]
    assert rows[GATER]["gater_ahead"] == {"value": 0, "low": 0, "high": 0}
    assert told.data["best_cue"] in CUES


def test_a_picture_at_several_severities_is_drawn_as_one(tiny, monkeypatch):
    drawn = []

    def spy(clusters, seed):
        drawn.append((clusters, seed))
        return Bootstrap(clusters, seed)

    monkeypatch.setitem(study.__globals__, "Bootstrap", spy)
    run(tiny, [scene(tiny, severity, True, count=40) for severity in (0, 2, 4)], seed=3)
    ((clusters, seed),) = drawn
    assert clusters.tolist() == 3 * list(range(20))
    assert seed == 3


def test_nothing_is_explained_where_nothing_can_be(tiny):
    rows = run(tiny, [scene(tiny, severity, False) for severity in (0, 1, 2)]).data["explained_by"]
    for name in (*CUES, TOGETHER, SEVERITY):
        # Fitted to chance, judged on other images: no better than their mean.
        assert rows[name]["r2_curve"]["value"] < 0.02
        assert abs(rows[name]["rank_correlation"]["value"]) < 0.1


def test_difficulty_is_learned_from_entropies(tiny):
    images = tiny.random(600, seed=7)
    answer = tiny.labels(images)
    textured = np.random.default_rng(7).random(600) < 0.5
    # Rows of light and dark keep the mean, so the answers, but not the entropy.
    swing = np.where(np.arange(images.shape[1]) % 2 == 0, 12, -12)[None, :, None, None]
    images = np.where(textured[:, None, None, None], images + swing, images).clip(0, 255).astype(np.uint8)
    sets = [TestSet(0, images, np.where(textured, (answer + 2) % 4, answer))]
    rows = run(tiny, sets).data["explained_by"]
    assert rows[DIFFICULTY]["r2_curve"]["value"] > 0.35


def test_data_is_complete_and_repeats_itself(tiny, told):
    data = json.loads(json.dumps(told.data, allow_nan=False))
    assert (data["images"], data["test_images"]) == (1200, 600)
    assert (data["cheapest"], data["dearest"]) == ("expert-0", "expert-1")
    assert list(data["severities"]) == ["0", "4"]
    for row in data["severities"].values():
        assert row["images"] == 600
        assert row["only_dearest_right"] == row["only_cheapest_right"] == 0
    for cue in told.cues.values():
        assert cue.shape == told.benefit.shape == told.severities.shape == (600,)
    sets = [scene(tiny, severity, True) for severity in (0, 4)]
    assert run(tiny, sets).data == told.data
    other = run(tiny, sets, seed=1).data["explained_by"][GATER]["r2_curve"]
    assert other["value"] == told.data["explained_by"][GATER]["r2_curve"]["value"]
    assert other["low"] != told.data["explained_by"][GATER]["r2_curve"]["low"]


def test_benefit_is_the_difference_of_clipped_losses(tiny):
    part = scene(tiny, 0, True)
    part = TestSet(0, part.images, (part.labels + 2) % 4)
    with Router(tiny.path, precision="fp32", threads=1) as router:
        answers = collect(router, part.images, part.labels, 0, lambda what, done, total: None)
    found = benefits(answers, "expert-0", "expert-1")
    losses = []
    for expert in (0, 1):
        scores = tiny.expert_logits(expert, part.images).astype(np.float64)
        loss = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(600), part.labels]
        losses.append(np.minimum(loss, 6))
    assert max(loss.max() for loss in losses) == 6
    np.testing.assert_allclose(found, losses[0] - losses[1], atol=1e-4)


def test_losses_are_clipped_as_in_training():
    pytest.importorskip("torch")
    from trt_moe.training.config import GaterConfig

    assert GaterConfig().loss_clip == LOSS_CLIP


def test_too_few_images(tiny):
    with pytest.raises(DataError, match="19 images of severity 3 are to be studied; a study needs at least 20"):
        run(tiny, [scene(tiny, 0, True), scene(tiny, 3, True, count=19)])


def test_nothing_to_explain(tiny):
    with pytest.raises(DataError, match="as good as expert-0 on every image"):
        run(tiny, [TestSet(0, tiny.grey(40, 30), np.zeros(30, np.int64))])


def test_complexity_is_one_more_cue(tiny, monkeypatch, tmp_path):
    pytest.importorskip("torch")

    def complexity(model, images, progress):
        assert model == "the weights"
        return images.mean(axis=(1, 2, 3)) / 255

    monkeypatch.setattr("trt_moe.models.icnet.load_icnet", lambda file: "the weights")
    monkeypatch.setattr("trt_moe.models.icnet.complexity", complexity)
    result = run(tiny, [scene(tiny, 0, True)], icnet=tmp_path / "icnet.safetensors")
    rows = result.data["explained_by"]
    assert rows[COMPLEXITY]["r2_curve"]["value"] > 0.8  # made to see what the gater sees
    assert result.data["best_cue"] == COMPLEXITY
    assert rows[TOGETHER]["r2_curve"]["value"] > 0.3  # none of the other cues knows anything
    draw(result, tmp_path / "seven.png")


def test_complexity_without_its_packages_says_what_to_install(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trt_moe.models.icnet", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[train\]'"):
        run(tiny, [scene(tiny, 0, True)], icnet=tmp_path / "icnet.safetensors")


def test_tables_go_from_the_best_to_the_worst(told, capsys):
    print_study(told.data)
    text = capsys.readouterr().out
    assert text.index(GATER) < text.index("entropy")
    assert "given for the 600 others" in text
    assert "--icnet FILE.safetensors" in text
    row = told.data["explained_by"]["entropy"]["r2_linear"]
    assert f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})" in text


def test_picture(told, tmp_path):
    draw(told, tmp_path / "study.png")
    with Image.open(tmp_path / "study.png") as image:
        image.load()
        assert image.width > 1500
    assert [path.name for path in tmp_path.iterdir()] == ["study.png"]


def cli(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_cli(tiny, tmp_path):
    arguments = ("study", tiny.path / "samples", "-b", tiny.path, "-t", 1)
    output, picture = tmp_path / "s.json", tmp_path / "s.png"
    text = cli(*arguments, "--output", output, "--picture", picture).stdout
    for words in (GATER, "laplacian variance", "rank correlation"):
        assert words in text
    assert picture.is_file()
    data = json.loads(cli(*arguments, "--json").stdout)
    assert data == json.loads(output.read_text())
    assert data["images"] == 6 * 4 * 6
    assert json.loads(cli(*arguments, "--images", 20, "--json").stdout)["images"] == 120


def test_cli_leaves_out_broken_images_only_when_asked(tiny, tmp_path):
    shutil.copytree(tiny.path / "samples" / "0", tmp_path / "data" / "0")
    (next((tmp_path / "data" / "0").iterdir()) / "broken.jpg").write_bytes(b"no")
    arguments = ("study", tmp_path / "data", "-b", tiny.path, "-t", 1, "--json")
    assert "broken.jpg" in cli(*arguments, code=2).stderr
    done = cli(*arguments, "--skip-broken")
    assert "broken.jpg" in done.stderr
    assert json.loads(done.stdout)["images"] == 24


def test_of_many_experts_the_ends_are_studied(tmp_path):
    three = write_tiny_bundle(tmp_path / "three", experts=3, classes=4)
    sets = [scene(three, 0, True), scene(three, 3, True)]
    result = run(three, sets)
    assert (result.data["cheapest"], result.data["dearest"]) == ("expert-0", "expert-2")
    with Router(three.path, precision="fp32", threads=1) as router:
        answers = [collect(router, part.images, part.labels, part.severity, lambda *_: None) for part in sets]
    expected = np.concatenate([benefits(part, "expert-0", "expert-2")[1::2] for part in answers])
    np.testing.assert_array_equal(result.benefit, expected)
    gains = np.concatenate([(part.gater_logits[:, 2] - part.gater_logits[:, 0])[1::2] for part in answers])
    np.testing.assert_allclose(result.cues[GATER], gains, rtol=1e-5)
    print_study(result.data)
    draw(result, tmp_path / "three.png")


def test_cli_with_weights_of_icnet(tiny, tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    from safetensors.torch import save_file

    from trt_moe.models import icnet

    for side, small in (("_SIDE", 64), ("_CONTEXT_SIDE", 32), ("_MAP_SIDE", 8)):  # the same network, but seconds
        monkeypatch.setattr(icnet, side, small)
    shutil.copytree(tiny.path / "samples" / "0", tmp_path / "data" / "0")
    weights = {name: value.contiguous() for name, value in icnet.ICNet().state_dict().items()}
    save_file(weights, tmp_path / "icnet.safetensors")
    arguments = ("study", tmp_path / "data", "-b", tiny.path, "-t", 1, "--icnet")
    row = json.loads(cli(*arguments, tmp_path / "icnet.safetensors", "--json").stdout)["explained_by"][COMPLEXITY]
    assert np.isfinite([part for estimate in row.values() for part in estimate.values()]).all()
    assert COMPLEXITY in cli(*arguments, tmp_path / "icnet.safetensors").stdout

    assert "nowhere.safetensors" in cli(*arguments, tmp_path / "nowhere.safetensors", code=2).stderr
    first = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != first}, tmp_path / "less.safetensors")
    refused = cli(*arguments, tmp_path / "less.safetensors", code=2).stderr
    assert "does not hold the weights of ICNet" in refused
    assert "https://github.com/tinglyfeng/IC9600" in refused


def test_cli_refuses(tiny, tmp_path):
    arguments = ("study", tiny.path / "samples", "-b", tiny.path, "-t", 1)
    assert "its folder does not exist" in cli(*arguments, "--picture", "/no/such/s.png", code=2).stderr
    assert "at least 20" in cli(*arguments, "--images", 10, code=2).stderr
    pytest.importorskip("torch")
    weights = tmp_path / "ck.pth"
    weights.write_bytes(b"PK\x03\x04")
    assert "is a pickle file" in cli(*arguments, "--icnet", weights, code=2).stderr
