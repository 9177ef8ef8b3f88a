"""Trains a mixture at full size (224 px, DeiT-S) on a GPU, and evaluates it there through the router.

python -m benchmarks.full_size CONFIG --data DIR [--checkpoints DIR] [--out benchmarks/results] [--quick]

The models are what torch compiles, captured, so that a GPU will do for which there is no TensorRT. What is trained
already is not trained again. --quick tries it out: few images, one epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.mixture import GATER, NO_FILE, model_entry
from benchmarks.gpu_check.turns import Timed, take_turns
from trt_moe import Bundle, Router
from trt_moe.bundle import InputSpec, Manifest, ModelEntry
from trt_moe.bundle.writer import write_bytes
from trt_moe.console import note, print_table
from trt_moe.cuda.device import open_device
from trt_moe.cuda.torch_source import HalfModel
from trt_moe.data import EVALUATION_SEED, Dataset, load_dataset
from trt_moe.evaluation import evaluate, make_test_sets
from trt_moe.evaluation.tables import print_report
from trt_moe.export.measure_gpu import capture_alone
from trt_moe.models import ImageModel
from trt_moe.training.calibration import temperatures
from trt_moe.training.config import TrainConfig, load_config
from trt_moe.training.experts import Shape, predict, severity_accuracy, train_experts
from trt_moe.training.gater import build_gater, train_gaters
from trt_moe.training.logits import judge_parts
from trt_moe.training.splits import Part, every_severity, split

ROUNDS, MOST_S = 300, 30.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_size", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    device = open_device().info
    config = load_config(options.config).model_copy(update={"checkpoints": options.checkpoints})
    training, test = (load_dataset(options.data, part, config.image_shape) for part in ("train", "test"))
    if options.quick:
        config, test = quick(config), first(test, 500)
    start = time.perf_counter()
    mixture = Trained(config, training, test)
    took = time.perf_counter() - start
    with Router(mixture.bundle, device="cuda", modules=mixture.modules, check=False) as router:
        sets = make_test_sets(test, mixture.bundle)
        report = evaluate(router, sets, test.name, latency_images=50 if options.quick else 500)
        plan = f"{router.plan}: {router.plan_reason}"
    data = {
        "command": f"python -m benchmarks.full_size {options.config} --data DIR" + " --quick" * options.quick,
        "gpu": device,
        "torch": torch.__version__,
        "plan": plan,
        "trained_in_s": round(took, 1),
        "epochs": {entry.name: entry.epochs for entry in config.classifiers()},
        "bare_models_ms": mixture.timings,
        "baselines": mixture.baselines(test),
        "evaluation": report.data,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_bytes(options.out / "full_size.json", (json.dumps(data, indent=1) + "\n").encode())
    print_report(report.data)
    keys = ("mean_ms", "p50_ms", "p90_ms", "p99_ms")
    rows = [[name, *(f"{row[key]:.3f}" for key in keys)] for name, row in mixture.timings.items()]
    print_table("bare models, single images", ["model", *(key.replace("_", " ") for key in keys)], rows)
    note(f"{device['name']}, {plan}; trained in {took:.0f} s; baselines at severity 0 to 5: {data['baselines']}")


def quick(config: TrainConfig) -> TrainConfig:
    def once(entries: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(entry.model_copy(update={"epochs": 1}) for entry in entries)

    return config.model_copy(
        update={
            "name": f"{config.name}-quick",
            "splits": config.splits.model_copy(update={"experts": 5000, "gater": 2000, "validation": 500}),
            "teachers": once(config.teachers),
            "experts": once(config.experts),
            "baselines": once(config.baselines),
            "gater": config.gater.model_copy(update={"epochs": 1, "seeds": (0,)}),
        }
    )


def first(data: Dataset, count: int) -> Dataset:
    return replace(data, images=data.images[:count], labels=data.labels[:count])


class Trained:
    """The trained models, timed on the GPU, with their routing costs.

    Attributes:
        config: with its experts cheapest first.
        modules: gater and experts as they are captured.
        timings: their milliseconds on single images.
        bundle: for `Router(modules=...)`, which reads no file of it.
    """

    def __init__(self, config: TrainConfig, training: Dataset, test: Dataset) -> None:
        height, width, channels = training.images.shape[1:]
        shape = Shape(height, width, channels, len(training.class_names))
        folder = config.checkpoints / config.name
        parts = split(training, config.splits)
        models = train_experts(config, parts, shape, folder, log=note)
        judged = judge_parts(config, config.experts, models, parts, folder, note)
        fitted = temperatures(config.experts, judged[0])
        halves = {name: HalfModel(models[name].with_temperature(value)) for name, value in fitted.items()}
        compiled = {name: torch.compile(half) for name, half in halves.items()}
        self.timings = time_bare(compiled, build_gater(config, shape), shape, test)
        dearest = max(self.timings[entry.name]["mean_ms"] for entry in config.experts)
        costs = {name: row["mean_ms"] / dearest for name, row in self.timings.items()}
        self.config = config.model_copy(
            update={"experts": tuple(sorted(config.experts, key=lambda entry: costs[entry.name]))}
        )
        columns = [config.experts.index(entry) for entry in self.config.experts]
        divisors = [fitted[entry.name] for entry in self.config.experts]
        training_part, validation = (part.of(columns).divided_by(divisors) for part in judged)
        weights = np.array([costs[entry.name] for entry in self.config.experts])
        gater = train_gaters(self.config, shape, training_part, validation, weights, folder, log=note)[0].model
        self.models = {**models, GATER: gater}
        self.modules = {**compiled, GATER: gater}
        self.bundle = Bundle(Path(config.name), manifest(self.config, shape, training.class_names, self.models, costs))

    def baselines(self, test: Dataset) -> dict[str, list[float]]:
        """Accuracy at each severity."""
        everything = every_severity(
            Part(test.images, test.labels, np.arange(len(test))), self.config.corruption, EVALUATION_SEED
        )
        return {
            entry.name: severity_accuracy(
                predict(HalfModel(self.models[entry.name]).cuda(), everything.images), everything
            )
            for entry in self.config.baselines
        }


def time_bare(experts: dict[str, Any], gater: ImageModel, shape: Shape, test: Dataset) -> dict[str, dict[str, float]]:
    """Captured, on single images, in turns; the gater need not be trained yet."""
    input_shape = (shape.height, shape.width, shape.channels)
    captured = capture_alone(open_device(), gater, len(experts), experts, input_shape, shape.classes)
    image = test.images[0]
    contenders: dict[str, Timed] = {
        name: lambda model=model: float(model.time(image, 1, 0)[0])  # type: ignore[misc]
        for name, model in captured.items()
    }
    return take_turns(contenders, ROUNDS, MOST_S)


def manifest(
    config: TrainConfig,
    shape: Shape,
    class_names: tuple[str, ...],
    models: dict[str, ImageModel],
    costs: dict[str, float],
) -> Manifest:
    def entry(name: str, architecture: str) -> ModelEntry:
        return model_entry(name, architecture, models[name].graph_size, costs[name], NO_FILE)

    return Manifest(
        name=config.name,
        class_names=list(class_names),
        input=InputSpec(height=shape.height, width=shape.width, channels=shape.channels),
        latency_weight=config.latency_weight,
        gater=entry(GATER, "SqueezeNetLight"),
        experts=[entry(each.name, each.model) for each in config.experts],
    )


if __name__ == "__main__":
    main()
