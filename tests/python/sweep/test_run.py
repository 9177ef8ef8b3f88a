"""A sweep on a finished run: files, what is trained, what is loaded, what is refused."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from support.tiny_training import tiny_config

pytest.importorskip("torch")
pytest.importorskip("timm")

from safetensors.numpy import load_file

from trt_moe.cli import app
from trt_moe.errors import DataError, InputError
from trt_moe.sweep.compare import ONE, SEPARATE
from trt_moe.sweep.finished import open_run
from trt_moe.sweep.run import sweep
from trt_moe.training.logits import GATER_PART, VALIDATION_PART

FILES = {"sweep.csv", "sweep.json", "pareto.png", "pareto.html"}


def quiet(_):
    pass


def checkpoints(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_a_sweep_trains_what_is_missing_and_writes_its_files(run, tmp_path):
    folder, out = run.checkpoints / run.name, tmp_path / "new" / "out"
    before, steps = checkpoints(folder), []
    comparison = sweep(run, (0.7, 0.1), (1, 0), out, lambda what, *_: steps.append(what), quiet)

    # The run itself had trained all methods with seed 0 at its own weight, 0.7: they are neither trained nor lost.
    after = checkpoints(folder)
    assert set(steps) == {"gater regret 1", "gater gumbel 0", "gater gumbel 1"}
    assert {name: content for name, content in after.items() if name in before} == before
    other = "sweep/latency-weight-0.1"
    assert after.keys() - before.keys() == {
        "gater-regret-1.safetensors",
        "gater-gumbel-1.safetensors",
        f"{other}/gater-gumbel-0.safetensors",
        f"{other}/gater-gumbel-1.safetensors",
    }
    own, swept = (load_file(folder / part / "gater-gumbel-0.safetensors") for part in (".", other))
    assert any((own[name] != swept[name]).any() for name in own)

    outcomes = comparison.outcomes
    assert (outcomes.experts, outcomes.costs.tolist(), outcomes.gater_cost) == (("light", "heavy"), [0.25, 1.0], 0.025)
    assert len(outcomes.severities) == 6 * 40
    for strategy in (ONE, SEPARATE):
        found = [(point.latency_weight, point.seed) for point in comparison.of(strategy)]
        assert found == [(weight, seed) for weight in (0.1, 0.7) for seed in (1, 0)]

    assert {file.name for file in out.iterdir()} == FILES
    data = json.loads((out / "sweep.json").read_text())
    assert data == {"name": "tiny", **json.loads(json.dumps(comparison.to_json()))}
    with (out / "sweep.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == (2 * 2 * 2 + 3) * (1 + 6)
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "pareto.html").read_text()
    assert "tiny: 240 validation images, 2 gater seeds" in page
    assert "Collapsed, one gater:" in page
    assert "share of each expert at each severity" in page

    steps.clear()
    again = sweep(run, (0.1, 0.7), (1, 0), out, lambda what, *_: steps.append(what), quiet)
    assert steps == []
    assert again.to_json() == comparison.to_json()


def test_given_latencies_replace_measured_ones_and_order_the_experts(run, tmp_path):
    (run.checkpoints / run.name / "latency.json").unlink()
    given = run.model_copy(update={"latencies_ms": {"gater": 1.0, "light": 8.0, "heavy": 2.0, "robust-light": 8.0}})
    folder = run.checkpoints / run.name
    before = checkpoints(folder)
    outcomes = sweep(given, (0.7,), (0,), tmp_path / "out", log=quiet).outcomes
    after = checkpoints(folder)
    assert {name: content for name, content in after.items() if name in before} == before, "the run keeps its gaters"
    assert "sweep/latency-weight-0.7/gater-gumbel-0.safetensors" in after
    assert (outcomes.experts, outcomes.costs.tolist(), outcomes.gater_cost) == (("heavy", "light"), [0.25, 1.0], 0.125)


@pytest.mark.parametrize(
    ("weights", "seeds", "message"),
    [
        ((), (0,), "latency weights are \\[\\]"),
        ((0.1, -0.1), (0,), "latency weights are .*at least 0"),
        ((0.1, 0.1), (0,), "latency weights are .*once"),
        ((math.nan,), (0,), "latency weights are"),
        ((math.inf,), (0,), "latency weights are"),
        ((0.1,), (), "seeds are \\[\\]"),
        ((0.1,), (0, 0), "seeds are .*once"),
    ],
)
def test_weights_and_seeds_are_checked_before_anything_is_made(finished, tmp_path, weights, seeds, message):
    with pytest.raises(InputError, match=message):
        sweep(finished, weights, seeds, tmp_path / "out", log=quiet)
    assert not (tmp_path / "out").exists()


def test_the_output_must_be_a_folder(finished, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"out cannot be written \(Not a directory\); choose another folder"):
        sweep(finished, (0.7,), (0,), tmp_path / "out", log=quiet)


def test_without_data_the_message_says_what_to_type(finished, tmp_path):
    with pytest.raises(InputError, match="--data DIR"):
        sweep(finished.model_copy(update={"data": None}), (0.7,), (0,), tmp_path / "out", log=quiet)


def test_an_unfinished_run_is_not_trained_on(run, tmp_path):
    (run.checkpoints / run.name / "light.safetensors").unlink()
    with pytest.raises(InputError, match="no checkpoint of light; finish the run with `trt-moe train`"):
        sweep(run, (0.7,), (0,), tmp_path / "out", log=quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FileNotFoundError.*run `trt-moe train` first"),
        ("{", "does not hold the latencies"),
        ("[]", "does not hold the latencies"),
        ('{"identity": ["bf16", []], "milliseconds": {}}', "does not hold the latencies"),
        ('{"identity": ["bf16", []], "milliseconds": {"bf16": {"light": [1.0]}}}', "does not hold .*'gater'"),
        (
            '{"identity": ["bf16", []], "milliseconds": {"bf16": {"gater": [1], "light": [1], "heavy": [2], '
            '"robust-light": [1]}}}',
            "latencies of other models; .*`trt-moe train`",
        ),
    ],
)
def test_costs_must_be_those_of_the_run(run, tmp_path, content, message):
    file = run.checkpoints / run.name / "latency.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message):
        sweep(run, (0.7,), (0,), tmp_path / "out", log=quiet)


def test_a_run_is_opened_as_it_was_made(run):
    opened = open_run(run, None, quiet)
    for name, temperature in opened.temperatures.items():
        exported = json.loads((opened.folder / "onnx" / f"{name}.json").read_text())
        assert exported[1] == pytest.approx(temperature)
    for what, part in ((GATER_PART, opened.training), (VALIDATION_PART, opened.validation)):
        judged = opened.judged(what, part.images, opened.config.experts, quiet)
        np.testing.assert_array_equal(judged.logits, part.logits)


def test_one_more_expert_takes_its_place_among_the_costs(run):
    opened = open_run(run, None, quiet)
    dearer = dataclasses.replace(opened, relative_costs={**opened.relative_costs, "robust-light": 0.5})
    three = dearer.with_expert(opened.config.baselines[0], quiet)
    assert [expert.name for expert in three.config.experts] == ["light", "robust-light", "heavy"]
    assert three.costs.tolist() == [0.25, 0.5, 1.0]
    np.testing.assert_array_equal(three.validation.logits[:, [0, 2]], opened.validation.logits)


def test_a_run_on_other_data_is_refused(run, tmp_path):
    note = run.checkpoints / run.name / "data.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "sha256": "of other images"}))
    with pytest.raises(InputError, match="holds a run on other training data"):
        sweep(run, (0.7,), (0,), tmp_path / "out", log=quiet)


@pytest.fixture
def command(run, tmp_path):
    """Arguments of a sweep that finds all its gaters trained."""
    raw = tiny_config(str(run.data), "elsewhere")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    arguments = ["sweep", tmp_path / "tiny.yaml", "--checkpoints", run.checkpoints, "--latency-weights", "0.7"]
    return [str(argument) for argument in (*arguments, "--seeds", "0", "--out", tmp_path / "out")]


def test_the_command_prints_tables_and_remarks(command, tmp_path):
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for expected in ("separate gaters, accuracy %", "accuracy at equal mean cost", "Collapsed, one gater:"):
        assert expected in result.stdout
    assert f"written to {tmp_path / 'out'}: sweep.csv" in result.stdout


def test_the_command_prints_json_only(command, tmp_path):
    result = CliRunner().invoke(app, [*command, "--json"])
    data = json.loads(result.stdout)
    assert data.pop("out") == str(tmp_path / "out")
    assert data == json.loads((tmp_path / "out" / "sweep.json").read_text())


@pytest.mark.parametrize("wrong", [["--seeds", "0,x"], ["--seeds", ""], ["--latency-weights", "much"]])
def test_a_wrong_option_is_exit_code_2(command, wrong):
    result = CliRunner().invoke(app, [*command, *wrong])
    assert result.exit_code == 2
    assert f"{wrong[0]} is {wrong[1]!r}; expected" in result.stderr


def test_the_command_hands_on_what_it_is_told(command, tmp_path, monkeypatch):
    told = []

    def stop(config, weights, seeds, out, *_):
        told.append((config.data, config.skip_broken, weights, seeds, out))
        raise InputError("enough")

    monkeypatch.setattr("trt_moe.sweep.run.sweep", stop)
    more = ["--data", str(tmp_path), "--skip-broken", "--seeds", "3,1", "--latency-weights", "0.5,2"]
    assert CliRunner().invoke(app, [*command, *more]).exit_code == 2
    assert told == [(tmp_path, True, (0.5, 2.0), (3, 1), tmp_path / "out")]
