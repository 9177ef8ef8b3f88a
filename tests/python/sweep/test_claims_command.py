"""The benchmark of claims, from a finished run of the tiny configuration to its tables."""

import json

import numpy as np
import pytest
import yaml

from support.tiny_training import tiny_config

pytest.importorskip("torch")
pytest.importorskip("timm")

from benchmarks.claims import BLURRED, EVERY, NOISY, corrupted, main
from trt_moe.data import EVALUATION_SEED, corrupt, load_dataset
from trt_moe.errors import InputError
from trt_moe.softmax import softmax
from trt_moe.sweep.finished import open_run


@pytest.fixture
def command(run, tmp_path):
    raw = tiny_config(str(run.data), str(run.checkpoints))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    return [str(tmp_path / "tiny.yaml"), "--seeds", "0", "--latency-weights", "0.7", "--out", str(tmp_path / "out")]


def test_all_claims_are_judged_and_written(command, run, tmp_path, capsys):
    main(command)
    data = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert (data["name"], data["images"], data["seeds"]) == ("tiny", 360, [0])
    assert data["relative_cost"] == {"gater": 0.025, "light": 0.25, "heavy": 1.0, "robust-light": 0.25}
    names = [row["name"] for row in data["claims"]]
    assert len(names) == len(set(names)) == 25  # the bundle routes by the latency weight of the paper
    assert all(row["met"] in (True, False) for row in data["claims"] if row["goal"] and row["value"])
    ideas = {(idea["name"], idea["plain"]) for idea in data["ideas"]}
    assert ("gater that learns its choices (regret)", "one that regresses losses (benefit)") in ideas
    assert ("specialised experts: light + heavy", "robust-light + heavy") in ideas
    assert ("specialised experts: robust-light + light + heavy", "robust-light + heavy") in ideas
    text, printed = (tmp_path / "out" / "claims.md").read_text(), capsys.readouterr().out
    for row in data["claims"]:
        assert f"| {row['name']} |" in text
    assert "Beyond the paper" in printed
    # Logits and the gater of three experts are kept, and nothing of the run is replaced.
    folder = run.checkpoints / "tiny"
    assert (folder / "with-robust-light" / "gater-regret-0.safetensors").is_file()
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    main(command)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == made
    assert json.loads((tmp_path / "out" / "claims.json").read_text()) == data


def test_a_mixture_of_some_experts_is_judged_with_gaters_of_its_own(command, run, tmp_path):
    main([*command, "--experts", "heavy,light"])
    data = json.loads((tmp_path / "out" / "claims-only-light-heavy.json").read_text())
    assert any("cheapest expert (light)" in row["name"] for row in data["claims"])
    assert (tmp_path / "out" / "claims-only-light-heavy.md").exists()
    assert list((run.checkpoints / "tiny" / "only-light-heavy").glob("gater-*.safetensors"))
    opened = open_run(run, None, lambda _: None)
    three = opened.with_expert(opened.config.baselines[0], lambda _: None)
    assert [expert.name for expert in three.config.experts] == ["robust-light", "light", "heavy"]
    two = three.only(["heavy", "light"], lambda _: None)
    assert [expert.name for expert in two.config.experts] == ["light", "heavy"]
    assert "robust-light" in [expert.name for expert in two.config.teachers]
    assert two.training.logits.shape[1] == two.validation.logits.shape[1] == 2
    for names in (["light"], ["heavy", "heavy"], ["light", "middle"]):
        with pytest.raises(InputError, match=r"expected two or more of light, heavy, one of them heavy"):
            opened.only(names, lambda _: None)


def test_second_looks_in_the_mirror_are_judged(command, run, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "verify_by": "mirror"}))
    main(command)
    names = [row["name"] for row in json.loads((tmp_path / "out" / "claims.json").read_text())["claims"]]
    assert len(names) == len(set(names)) == 25
    assert any("that verifies by mirror minus" in name for name in names)
    opened = open_run(run.model_copy(update={"verify_by": "mirror"}), None, lambda _: None)
    images = corrupted(opened)[EVERY]
    experts = opened.config.experts
    judged, mirrored = (see(EVERY, images, experts, lambda _: None) for see in (opened.judged, opened.mirrored))
    assert (judged.logits != mirrored.logits).any()
    again = opened.mirrored(EVERY, images.mirrored(), experts, lambda _: None)
    np.testing.assert_array_equal(again.logits, mirrored.logits)  # kept by their name
    second = opened.outcomes(EVERY, images, lambda _: None).second
    both = softmax(judged.logits) + softmax(mirrored.logits)
    np.testing.assert_array_equal(second["mirror"], both.argmax(2) == images.labels[:, None])
    both = softmax(judged.logits) + softmax(judged.logits[:, -1:])
    np.testing.assert_array_equal(second["dearest"], both.argmax(2) == images.labels[:, None])


def test_images_are_those_of_eval_and_one_corruption_is_left_out(run):
    made = corrupted(open_run(run, None, lambda _: None))
    test = load_dataset(run.data, "test")
    for what, kind in ((BLURRED, "blur"), (NOISY, "noise")):
        assert (made[what].images == corrupt(test.images, 5, EVALUATION_SEED, kind=kind)).all()
    harshest = made[EVERY].severities == 5
    assert (made[EVERY].images[harshest] == corrupt(test.images, 5, EVALUATION_SEED)).all()
