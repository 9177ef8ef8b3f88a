"""`trt-moe train` and `trt-moe export`, from a configuration file to a bundle and again."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from support.tiny_training import tiny_config

pytest.importorskip("onnxscript")

from trt_moe.bundle import Bundle
from trt_moe.cli import app


@pytest.fixture
def trt_moe(data_folder, tmp_path, monkeypatch):
    """Run a verb on the tiny configuration, changed, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    raw = {**tiny_config(str(data_folder), "runs"), "teachers": [], "baselines": []}
    del raw["experts"][1]["teacher"]
    raw |= {"latency_weight": 0.2, "latencies_ms": {"gater": 0.1, "light": 1.0, "heavy": 2.0}}
    raw["gater"]["methods"] = ["benefit"]

    def run(verb, *arguments, code=0, gater=(), **changes):
        Path("tiny.yaml").write_text(yaml.safe_dump({**raw, **changes, "gater": {**raw["gater"], **dict(gater)}}))
        result = CliRunner().invoke(app, [verb, "tiny.yaml", *map(str, arguments)])
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return run


def test_a_run_its_bundle_and_what_it_leaves_alone(trt_moe, tmp_path):
    report = json.loads(trt_moe("train", "--out", "mine", "--json").stdout)
    manifest = Bundle.load("mine").manifest
    assert report == {
        "bundle": str(tmp_path / "mine"),
        "name": "tiny",
        "relative_cost": {"gater": 0.05, "light": 0.5, "heavy": 1.0},
        "evaluation": manifest.evaluation.model_dump(),
    }
    assert set(report["evaluation"]["severities"]["0"]) == {"mixture", "experts", "baselines", "share"}
    assert "bundle written to" in trt_moe("train", "--out", "mine").stdout, "again, without --force"

    gater = Path("runs/tiny/gater-benefit-0.safetensors")
    before = gater.read_bytes()
    trt_moe("export", "--out", "mine", latency_weight=0.9)
    assert Bundle.load("mine").latency_weight == 0.9
    refused = trt_moe("export", "--out", "mine", code=2, gater={"learning_rate": 0.5}).stderr
    assert f"{gater} was made with another latency_weight, gater or joint section" in refused
    assert gater.read_bytes() == before

    # Another run's bundle, and what is no bundle.
    manifest_of_mine = Path("mine/bundle.json").read_text()
    Path("mine/bundle.json").write_text(manifest_of_mine.replace('"name": "tiny"', '"name": "yours"', 1))
    assert (
        "not of a training run called 'tiny'; replace it with --force"
        in trt_moe("export", "--out", "mine", code=2).stderr
    )
    trt_moe("export", "--out", "mine", "--force")
    assert Bundle.load("mine").name == "tiny"
    for out, message in (
        (".", "is or holds"),
        ("runs", "the run's checkpoints"),
        ("runs/tiny/onnx", "not a bundle"),
    ):
        for force in ((), ("--force",)):
            assert message in trt_moe("export", "--out", out, *force, code=2).stderr
            assert message in trt_moe("train", "--out", out, *force, code=2).stderr
    assert gater.read_bytes() == before
