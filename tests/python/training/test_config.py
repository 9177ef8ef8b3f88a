"""Configs: what is wrong is refused before anything is trained, and named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from trt_moe.errors import InputError
from trt_moe.training import TrainConfig, load_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configs_are_valid(file):
    config = load_config(file)
    assert config.source == file


def _change(raw, **changes):
    return {**raw, **changes}


def test_a_negative_latency_weight_is_refused(raw_config):
    with pytest.raises(ValidationError, match="latency_weight"):
        TrainConfig.model_validate(_change(raw_config, latency_weight=-0.1))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "re/duced", "pattern"),
        ("name", "gater", "reserved"),
        ("severities", [1, 1], "6 items"),
        ("severities", [0] * 6, "above 0"),
        ("severities", [1, 1, 1, 1, 1, -1], "greater than or equal"),
        ("teacher", "nobody", "'nobody'"),
        ("start_from", "heavy", "'heavy'"),
        ("epochs", 0, "greater than or equal"),
        ("learning_rate", float("nan"), "finite"),
        ("wings", 2, "not permitted"),
    ],
)
def test_wrong_expert_values_are_refused(raw_config, key, value, message):
    raw_config["experts"][0][key] = value
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(raw_config)


def test_names_must_be_unique(raw_config):
    raw_config["baselines"][0]["name"] = "light"
    with pytest.raises(ValidationError, match="twice: \\['light'\\]"):
        TrainConfig.model_validate(raw_config)


def test_one_expert_is_no_mixture(raw_config):
    with pytest.raises(ValidationError, match="experts"):
        TrainConfig.model_validate(_change(raw_config, experts=raw_config["experts"][:1]))


def test_the_hash_of_an_expert_covers_what_decides_its_weights(raw_config):
    config = TrainConfig.model_validate(raw_config)
    before = {e.name: config.expert_hash(e) for e in config.classifiers()}
    raw_config["teachers"][0]["epochs"] = 3
    raw_config["gater"]["epochs"] = 9
    raw_config["latency_weight"] = 0.1
    config = TrainConfig.model_validate(raw_config)
    after = {e.name: config.expert_hash(e) for e in config.classifiers()}
    assert {name for name in before if before[name] != after[name]} == {"teacher", "heavy"}


def test_a_file_that_is_no_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.yaml cannot be read"):
        load_config(tmp_path / "missing.yaml")
    file = tmp_path / "c.yaml"
    file.write_text("name: [")
    with pytest.raises(InputError, match="YAML"):
        load_config(file)
    file.write_text("- 1")
    with pytest.raises(InputError, match="holds list"):
        load_config(file)
    file.write_text("name: x\nmean: [0.5]\nstd: [0]\nexperts: []")
    with pytest.raises(InputError, match=r"std\.0: .*greater than 0.*experts: "):
        load_config(file)
