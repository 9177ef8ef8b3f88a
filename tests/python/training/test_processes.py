"""Killed runs and many processes: weights and losses are those of one process that was left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from accelerate import Accelerator  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from support.train_worker import train_and_report  # noqa: E402
from trt_moe.errors import InputError  # noqa: E402
from trt_moe.training.loop import epoch_order  # noqa: E402
from trt_moe.training.processes import check_batch, connect  # noqa: E402

WORKER = Path(__file__).resolve().parents[2] / "support" / "train_worker.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
TRANSFORMER = {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}


@pytest.fixture
def small_config(raw_config, tmp_path):
    """Two experts, unless a test names others: a convolutional one with batch norm, and a transformer without."""
    norm_free = {"model": "deit_tiny_patch16_224", "image_size": 16, "options": TRANSFORMER, "epochs": 2, "batch": 24}
    raw_config["teachers"] = []
    raw_config["baselines"] = []
    raw_config["splits"] = {"experts": 96, "gater": 60, "validation": 20}
    raw_config["experts"] = [
        {**norm_free, "name": "plain", "severities": [1] * 6},
        {"name": "normed", "model": "test_resnet", "image_size": 32, "epochs": 2, "batch": 24, "severities": [1] * 6},
    ]
    file = tmp_path / "config.json"

    def write(experts=raw_config["experts"], more=(), **changes):
        chosen = [{**expert, **changes} for expert in experts]
        file.write_text(json.dumps({**raw_config, "experts": chosen, **dict(more)}, default=str))
        return file

    return write


def _elsewhere(*arguments, launcher=()):
    """Train in a process of its own, with as many threads as this one."""
    command = [sys.executable, *launcher, WORKER, *arguments]
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def test_a_killed_run_goes_on_to_the_same_weights(small_config, tmp_path):
    config = small_config()
    whole = train_and_report(config, tmp_path / "whole")
    # Four steps an epoch, two epochs an expert: the sixth is in the middle of the first expert's second epoch.
    cut = _elsewhere(config, tmp_path / "cut", tmp_path / "cut.json", 6)
    assert cut.returncode == -signal.SIGKILL, cut.stderr
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["plain.partial.safetensors"]
    resumed = train_and_report(config, tmp_path / "cut")
    assert resumed["losses"] == whole["losses"][4:]
    for name in ("plain.safetensors", "normed.safetensors"):
        weights = load_file(tmp_path / "cut" / name)
        for key, value in load_file(tmp_path / "whole" / name).items():
            np.testing.assert_array_equal(weights[key], value, err_msg=f"{name} {key}")
    assert len(list((tmp_path / "cut").iterdir())) == 2


def test_two_processes_and_accumulation_give_the_losses_of_one(small_config, tmp_path):
    one = train_and_report(small_config(), tmp_path / "one")
    done = _elsewhere(small_config(accumulate=2), tmp_path / "two", tmp_path / "two.json", launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    # The transformer has no batch norm: only the order of summation differs (float32).
    np.testing.assert_allclose(two["losses"][:8], one["losses"][:8], rtol=1e-4)
    _assert_same_weights(tmp_path / "one", tmp_path / "two", ("plain",))
    warned = [message for message in two["messages"] if "warning" in message]
    assert len(warned) == 1
    assert warned[0].startswith("normed: warning: each CPU process normalises its own images")
    assert not any("warning" in message for message in one["messages"])


def test_two_processes_give_the_losses_and_weights_of_one_in_all_phases(small_config, tmp_path):
    pytest.importorskip("onnxscript")
    first = {"name": "first", "model": "deit_tiny_patch16_224", "image_size": 16, "options": TRANSFORMER}
    first |= {"epochs": 2, "batch": 24, "severities": [1] * 6}
    # Convolutions without batch norm: their memory format is another one after an export.
    second = {**first, "name": "second", "model": "squeezenet1_1", "image_size": 32, "options": {"dropout": 0.0}}
    joint = {"epochs": 2, "batch": 20, "learning_rate": 1e-3, "accumulate": 2}
    more = {"joint": joint, "latencies_ms": {"gater": 0.1, "first": 1.0, "second": 4.0}}
    config = small_config([first, second], more)
    one = train_and_report(config, tmp_path / "one")
    done = _elsewhere(config, tmp_path / "two", tmp_path / "two.json", launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["losses"]) == 2 * (2 * 4) + 3 * 2 * 7 + 2 * 3  # experts, gaters by three methods, joint
    # Rounding grows from step to step, by a few thousandths in the end; noise that differed made several hundredths.
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=5e-3)
    folders = tmp_path / "one" / "tiny", tmp_path / "two" / "tiny"
    _assert_same_weights(*folders, ("first", "second"))
    # Biases before the gater's batch norms have no gradient but rounding, which Adam makes as large as any, and the
    # gater's choices weigh the experts' gradients.
    _assert_same_weights(*folders, ("joint",), but="model.gater.", tolerance=1e-3)


def _assert_same_weights(one, two, names, but="nothing", tolerance=5e-5):
    for name in names:
        weights = load_file(two / f"{name}.safetensors")
        for key, value in load_file(one / f"{name}.safetensors").items():
            if key.startswith(but):
                continue
            # Adam moves a weight whose gradient is nearly zero as far as any, so a few differ by rounding alone.
            assert np.abs(weights[key] - value).mean() < tolerance, f"{name} {key}"


@given(
    count=st.integers(12, 200),
    steps=st.integers(1, 3),
    pieces=st.integers(1, 3),
    processes=st.integers(1, 4),
    seed=st.integers(0, 2**62),
)
def test_the_shares_of_all_processes_are_the_steps_of_one(count, steps, pieces, processes, seed):
    batch = pieces * processes * steps
    whole = epoch_order(count, batch, seed, True)
    shares = [epoch_order(count, batch, seed, True, pieces, p, processes) for p in range(processes)]
    used = len(whole.chosen) * whole.chosen.shape[2]
    assert len(np.unique(whole.chosen)) == used == count // batch * batch or count < batch
    for field in ("chosen", "mirrored"):
        together = np.stack([getattr(share, field) for share in shares], axis=2)
        step = together[0].ravel()
        assert step.tolist() == getattr(whole, field)[0].ravel()[: len(step)].tolist()


def test_fewer_images_than_a_batch_are_one_step():
    assert epoch_order(5, 8, 0, False).chosen.shape == (1, 1, 5)
    assert epoch_order(5, 8, 0, False, 2, 0, 2).chosen.shape == (1, 2, 1)
    with pytest.raises(InputError, match="3 images for 2 processes x 2"):
        epoch_order(3, 8, 0, False, 2, 0, 2)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match=r"light: batch 10 cannot be divided by 1 processes x 4.*multiple of 4"):
        check_batch(connect(), "light", 10, 4)


def test_without_torchrun_there_is_one_process():
    processes = connect()
    assert isinstance(processes, Accelerator)
    assert (processes.num_processes, processes.is_main_process) == (1, True)
    assert processes.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
