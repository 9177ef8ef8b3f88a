"""Configs: what is wrong is refused before anything is trained, and named."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from trt_moe.errors import InputError
from trt_moe.training import TrainConfig, load_config
from trt_moe.training.config import GaterConfig
from trt_moe.training.yaml_file import read_yaml
from trt_moe.training_run import check_finished, open_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
LATENCIES = {"gater": 0.1, "light": 1.0, "heavy": 2.0, "robust-light": 1.0}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configs_are_valid(file):
    config = load_config(file)
    assert config.source == file


def test_hashes_of_old_configs_never_change():
    """People have checkpoints under these: new keys must leave them as they are at their defaults."""
    common = {"model": "resnet10t", "image_size": 64, "severities": [1] * 6}
    config = TrainConfig.model_validate(
        {
            "name": "old",
            "mean": [0.3],
            "std": [0.3],
            "teachers": [{**common, "name": "teacher", "options": {"drop_rate": 0.1}}],
            "experts": [{**common, "name": "light"}, {**common, "name": "heavy", "teacher": "teacher"}],
        }
    )
    hashes = {entry.name: config.expert_hash(entry)[:16] for entry in config.classifiers()}
    assert hashes == {"teacher": "34f8899317f83c77", "light": "89137009a12b3ff3", "heavy": "246450f339b9e381"}
    for method in ("gumbel", "likelihood"):
        assert [found[:16] for found in config.gater_hashes(method)] == ["5ca1347b5f5c4f1e"]
    for method in ("regret", "benefit"):
        assert [found[:16] for found in config.gater_hashes(method)] == ["ac455f3c3e80824e", "5ca1347b5f5c4f1e"]


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"learning_rate": 0.1}])
def test_the_hash_of_an_expert_follows_its_new_keys(raw_config, changes):
    before = TrainConfig.model_validate(raw_config)
    raw_config["experts"][0].update(changes)
    after = TrainConfig.model_validate(raw_config)
    assert before.expert_hash(before.experts[0]) != after.expert_hash(after.experts[0])


def test_mirrored_looks_need_experts_that_know_mirrored_images(raw_config):
    assert TrainConfig.model_validate({**raw_config, "flip": True, "verify_by": "mirror"}).verify_by == "mirror"
    with pytest.raises(ValidationError, match=r"verify_by is mirror, but flip is false.*set flip: true"):
        TrainConfig.model_validate({**raw_config, "flip": False, "verify_by": "mirror"})


def test_the_hashes_follow_what_else_decides_weights(raw_config):
    plain = TrainConfig.model_validate(raw_config)
    shaped = TrainConfig.model_validate({**raw_config, "image_shape": [16, 16, 1]})
    assert plain.expert_hash(plain.experts[0]) != shaped.expert_hash(shaped.experts[0])
    for key in ("balance", "entropy"):
        changed = TrainConfig.model_validate({**raw_config, "gater": {**raw_config["gater"], key: 0.1}})
        assert not set(plain.gater_hashes("gumbel")) & set(changed.gater_hashes("gumbel"))
    neutral = {"skip_broken": True, "joint": {}, "latencies_ms": LATENCIES}
    same = TrainConfig.model_validate({**raw_config, **neutral})
    assert plain.gater_hashes("gumbel") == same.gater_hashes("gumbel")
    weighted = TrainConfig.model_validate({**raw_config, "latency_weight": 0.9})
    for method in ("regret", "benefit"):
        assert plain.gater_hashes(method)[0] == weighted.gater_hashes(method)[0], "one gater serves every weight"
    for method in ("gumbel", "likelihood"):
        assert plain.gater_hashes(method) != weighted.gater_hashes(method)


@pytest.mark.parametrize(
    "latencies",
    [
        {"light": 1.0, "heavy": 2.0},
        {**LATENCIES, "third": 3.0},
    ],
)
def test_latencies_of_the_wrong_length_are_refused(raw_config, latencies):
    with pytest.raises(ValidationError, match=r"latencies_ms has .*expected one each of \['gater', 'light', 'heavy'"):
        TrainConfig.model_validate(_change(raw_config, latencies_ms=latencies))


def test_a_latency_must_be_positive(raw_config):
    with pytest.raises(ValidationError, match=r"latencies_ms\.heavy\s.*greater than 0"):
        TrainConfig.model_validate(_change(raw_config, latencies_ms={**LATENCIES, "heavy": 0.0}))


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
        ("name", "gater-regret-0", "reserved"),
        ("name", "joint", "reserved"),
        ("severities", [1, 1], "6 items"),
        ("severities", [0] * 6, "above 0"),
        ("severities", [1, 1, 1, 1, 1, -1], "greater than or equal"),
        ("teacher", "nobody", "'nobody'"),
        ("teacher", "light", "light learns from 'light', but trained before it is teacher"),
        ("start_from", "heavy", "'heavy'"),
        ("epochs", -1, "greater than or equal"),
        ("learning_rate", float("nan"), "finite"),
        ("wings", 2, "not permitted"),
        ("image_size", 90000, "less than or equal to 4096"),
    ],
)
def test_wrong_expert_values_are_refused(raw_config, key, value, message):
    raw_config["experts"][0][key] = value
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(raw_config)


@pytest.mark.parametrize("key", ["teacher", "start_from"])
def test_an_expert_may_learn_from_one_before_it(raw_config, key):
    raw_config["experts"][1] |= {"teacher": None, key: "light"}
    before = TrainConfig.model_validate(raw_config)
    raw_config["experts"][0]["epochs"] += 1
    after = TrainConfig.model_validate(raw_config)
    assert before.expert_hash(before.classifier("heavy")) != after.expert_hash(after.classifier("heavy"))


def test_the_normalisation_must_have_as_many_means_as_deviations(raw_config):
    with pytest.raises(ValidationError, match="mean has 2 channels, std 1"):
        TrainConfig.model_validate({**raw_config, "mean": [0.3, 0.3]})


def test_a_gater_for_every_weight_is_trained_by_a_method_without_costs():
    assert GaterConfig(methods=("gumbel", "benefit", "regret")).for_every_weight == "benefit"
    assert GaterConfig(methods=("gumbel", "likelihood")).for_every_weight == "regret"


def test_no_epochs_need_weights(raw_config):
    raw_config["experts"][0]["epochs"] = 0
    with pytest.raises(ValidationError, match=r"light: epochs is 0, so nothing would be learned; give its weights"):
        TrainConfig.model_validate(raw_config)
    raw_config["experts"][0]["weights"] = "w.safetensors"
    TrainConfig.model_validate(raw_config)


def test_terms_that_no_method_has_are_refused(raw_config):
    for term in ("balance", "entropy"):
        with pytest.raises(
            ValidationError, match=r"gumbel and likelihood methods only, and methods are regret, benefit"
        ):
            TrainConfig.model_validate({**raw_config, "gater": {"methods": ["regret", "benefit"], term: 0.5}})
        TrainConfig.model_validate({**raw_config, "gater": {"methods": ["regret", "gumbel"], term: 0.5}})


def test_what_no_bundle_could_have_is_refused(raw_config):
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        TrainConfig.model_validate({**raw_config, "latency_weight": 2e6})
    raw_config["experts"][0]["name"] = "file"
    with pytest.raises(ValidationError, match="'file' is reserved; give the expert another name"):
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


def message_about(raw, folder):
    file = folder / "c.yaml"
    file.write_text(json.dumps(raw, default=str))  # YAML, too
    with pytest.raises(InputError) as caught:
        load_config(file)
    return str(caught.value).removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("place", "key", "message"),
    [
        ((), "latency_wieght", r"latency_wieght: no such key; near matches: latency_weight(, \w+)*"),
        (("experts", 1), "epoch", r"experts\.1\.epoch: no such key; near matches: epochs(, \w+)*"),
        (("gater",), "metods", r"gater\.metods: no such key; near matches: methods"),
        (("gater",), "teacher", r"gater\.teacher: no such key; there are methods, seeds, width, .*"),
        ((), "source", r"source: no such key; .*"),
        ((), "lerning", r"lerning: no such key; there are name, data, .*, evaluation_images"),
        (("splits",), "wings", r"splits\.wings: no such key; there are experts, gater, validation, seed"),
    ],
)
def test_an_unknown_key_comes_with_those_that_it_may_stand_for(raw_config, tmp_path, place, key, message):
    section = raw_config
    for part in place:
        section = section[part]
    section[key] = 1
    assert re.fullmatch(message, message_about(raw_config, tmp_path))


@pytest.mark.parametrize(("key", "values"), [("mean", [123.675]), ("mean", [-0.1]), ("std", [58.395])])
def test_means_and_deviations_are_of_images_from_0_to_1(raw_config, tmp_path, key, values):
    expected = rf"{key}\.0: (is [\d.]+, of images from 0 to 1; divide .* by 255|.*greater than or equal to 0)"
    assert re.match(expected, message_about({**raw_config, key: values}, tmp_path))


def test_a_wrong_entry_of_a_list_is_the_only_complaint(raw_config, tmp_path):
    raw_config["gater"]["methods"] = ["guess"]
    assert re.fullmatch(r"gater\.methods\.0: Input should be [^;]*", message_about(raw_config, tmp_path))
    raw_config["gater"]["methods"] = []
    assert re.fullmatch(r"gater\.methods: Tuple should have at least 1 item [^;]*", message_about(raw_config, tmp_path))
    del raw_config["gater"]["methods"]
    raw_config["experts"][0]["severities"] = [1, 1, 1, 1, 1, -1]
    assert re.fullmatch(r"experts\.0\.severities\.5: Input should be [^;]*", message_about(raw_config, tmp_path))


def test_a_key_that_comes_twice_is_refused_but_may_override_what_is_merged(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("name: x\nseed: 1\ngater: {width: 16}\nseed: 2\n")
    with pytest.raises(InputError, match=r"(?s)'seed' comes twice in one section; remove one of them.*line 4"):
        load_config(file)
    file.write_text("a: &a {seed: 1, width: 2}\nb: &b {<<: *a, seed: 2}\nc: [{<<: *b, seed: 3}, {<<: *a, seed: 4}]\n")
    assert read_yaml(file)["c"] == [{"seed": 3, "width": 2}, {"seed": 4, "width": 2}]


def test_a_message_of_ours_comes_without_pydantics_prefix(raw_config, tmp_path):
    raw_config["experts"][1]["name"] = raw_config["experts"][0]["name"]
    file = tmp_path / "twice.yaml"
    file.write_text(json.dumps(raw_config, default=str))  # YAML, too
    with pytest.raises(InputError, match=r"twice\.yaml: config: names must be unique"):
        load_config(file)


def test_a_temperature_must_be_positive(raw_config):
    with pytest.raises(ValidationError, match=r"gater\.temperature\.1"):
        TrainConfig.model_validate({**raw_config, "gater": {**raw_config["gater"], "temperature": [1.0, 0.0]}})


def test_the_command_line_comes_before_the_file_and_drops_nothing(raw_config, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({**raw_config, "skip_broken": True}, default=str))  # YAML, too
    kept, changed = open_config(file, None, None, False), open_config(file, tmp_path / "d", tmp_path / "r", False)
    assert (kept.data, kept.checkpoints) == (raw_config["data"], raw_config["checkpoints"])
    assert (changed.data, changed.checkpoints) == (tmp_path / "d", tmp_path / "r")
    assert kept.skip_broken and changed.skip_broken
    file.write_text(json.dumps(raw_config, default=str))
    assert [open_config(file, None, None, given).skip_broken for given in (False, True)] == [False, True]


def test_a_run_without_its_joint_phase_is_not_finished(raw_config):
    config = TrainConfig.model_validate({**raw_config, "joint": {}, "gater": {"methods": ["benefit"], "seeds": [0]}})
    folder = config.checkpoints / config.name
    folder.mkdir(parents=True)
    for name in ("teacher", "light", "heavy", "robust-light", "gater-benefit-0"):
        (folder / f"{name}.safetensors").touch()
    with pytest.raises(InputError, match=r"has no checkpoint of joint; finish the run"):
        check_finished(config)
