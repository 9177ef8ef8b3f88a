"""configs/intel.yaml from drawn scenes to a bundle, with everything in it made small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from trt_moe.bundle import Bundle
from trt_moe.cli import app
from trt_moe.data.scenes import CLASSES, write_scenes

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "intel.yaml"
LATENCIES = {"gater": 0.1, "mobilenet": 0.5, "squeezenet": 1.0, "deit": 4.0, "robust-light": 1.0}


def _small(raw):
    """Networks of a few thousand weights, an epoch, 32 px, and the two sections that the file has as comments."""
    tiny = {
        "squeezenet1_1": {},
        "mobilenetv3_small_100": {"model": "test_resnet"},
        "deit_small_patch16_224": {"options": {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}},
    }
    for expert in [*raw["experts"], *raw["baselines"]]:
        expert.update({"epochs": 1, "batch": 12, "image_size": 32, "pretrained": False, **tiny[expert["model"]]})
    raw["image_shape"] = [32, 32, 3]
    raw["splits"] = {"experts": 24, "gater": 12, "validation": 12}
    raw["gater"].update(batch=12, epochs=1, seeds=[0])
    raw.update(precision="fp32", sample_images=6, golden_images=6, evaluation_images=12)
    return {**raw, "latencies_ms": LATENCIES, "joint": {"epochs": 1, "batch": 12}}


def test_the_recipe_runs_from_drawn_scenes_to_a_bundle_in_two_processes(tmp_path):
    data = write_scenes(tmp_path / "scenes", 8, 2)
    (data / "seg_train" / "sea" / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    raw = _small(yaml.safe_load(CONFIG.read_text()))
    file = tmp_path / "intel.yaml"
    file.write_text(yaml.safe_dump({**raw, "checkpoints": str(tmp_path / "runs")}))
    command = ["train", str(file), "--data", str(data), "--out", str(tmp_path / "bundle")]

    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "damaged.jpg" in refused.stderr
    assert not (tmp_path / "runs").exists()

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "trt_moe", *command, "--skip-broken", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "intel", "only the first process prints"
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert tuple(manifest.class_names) == CLASSES
    assert {e.name: e.relative_cost for e in manifest.all_models()} == {
        "gater": 0.025, "mobilenet": 0.125, "squeezenet": 0.25, "deit": 1.0, "robust-light": 0.25
    }  # fmt: skip
    assert [e.name for e in manifest.experts] == ["mobilenet", "squeezenet", "deit"]
    assert manifest.latency == []
    assert manifest.latency_weight == 0.7
    assert "left out 1 of the training images" in done.stderr
    assert done.stderr.count("gater benefit 0: epoch 1/1") == 1
    for severity in range(6):
        assert f"  severity {severity}: mobilenet " in done.stderr
        assert f"test severity {severity}: mobilenet " in done.stderr
    assert "joint: validation utility" in done.stderr
