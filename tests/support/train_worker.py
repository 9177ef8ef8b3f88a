"""Trains by a JSON config and reports every step's loss, here or in a process that may be killed.

All phases where the config has a joint one (but no bundle is written), else only the experts.

python train_worker.py CONFIG FOLDER RESULT [KILL_AT]: after KILL_AT steps the process kills itself, as a power
cut would.
"""

import json
import os
import signal
import sys
from pathlib import Path
from unittest import mock

from trt_moe.data import load_dataset
from trt_moe.training import TrainConfig, loop, pipeline
from trt_moe.training.experts import Shape, train_experts
from trt_moe.training.processes import connect
from trt_moe.training.splits import split


def train_and_report(config_file, folder, kill_at=0):
    """Return losses by step, messages and the number of processes."""
    config = TrainConfig.model_validate_json(Path(config_file).read_text())
    losses, messages = [], []
    over_processes = loop._over_processes

    def record(network, value):
        losses.append(over_processes(network, value))
        return losses[-1]

    def progress(*_):
        if len(losses) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(loop, "_over_processes", record), mock.patch.object(pipeline, "write_bundle"):
        if config.joint is None:
            data = load_dataset(config.data, "train")
            shape = Shape(*data.images.shape[1:], len(data.class_names))
            train_experts(config, split(data, config.splits), shape, Path(folder), progress, messages.append)
        else:
            pipeline.train(
                config.model_copy(update={"checkpoints": Path(folder)}),
                Path(folder) / "bundle",
                progress,
                messages.append,
            )
    return {"losses": losses, "messages": messages, "processes": connect().num_processes}


if __name__ == "__main__":
    report = train_and_report(sys.argv[1], sys.argv[2], int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    if connect().is_main_process:
        Path(sys.argv[3]).write_text(json.dumps(report))
    connect().end_training()
