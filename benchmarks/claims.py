"""Judges the claims about a mixture on the test images of a finished training run, over several gater seeds.

python -m benchmarks.claims CONFIG [--data DIR] [--checkpoints DIR] [--seeds 0,1,2]
    [--latency-weights 0.1,0.2,0.4,0.7,1.0] [--experts A,B] [--out benchmarks/results]

CONFIG is what `trt-moe train` was given; its experts are used as they are, their logits on the test images are
computed once and kept beside the checkpoints. Costs are the mean latencies that the run measured, relative to the
dearest expert's: nothing is timed here, so all figures can be repeated on any machine. With --experts the files are
called claims-only-A-B.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import markdown
from trt_moe.bundle.manifest import VerifyBy
from trt_moe.bundle.writer import write_bytes
from trt_moe.console import note, print_table, progress
from trt_moe.data import EVALUATION_SEED
from trt_moe.evaluation.cues import CUES, measure
from trt_moe.study.fit import Bootstrap, Curve, estimate
from trt_moe.study.study import LOSS_CLIP
from trt_moe.sweep.claims import HARSHEST, Claim, Rivals, Routed, Rule, Single, claims, strongest_cascade
from trt_moe.sweep.compare import Comparison, Spread, compare
from trt_moe.sweep.finished import FinishedRun, open_run
from trt_moe.sweep.ideas import BUDGETS, Idea, calibrated, distilled, one_training, regret, specialised, verifying
from trt_moe.sweep.tables import Table
from trt_moe.training.config import CorruptionConfig, ExpertConfig, Method
from trt_moe.training.experts import predict
from trt_moe.training.gater import TrainedGater
from trt_moe.training.logits import Judged, judge
from trt_moe.training.routing import Frontier
from trt_moe.training.splits import Corrupted, Part, apply, every_severity
from trt_moe.training_run import open_config

CLAIM_COLUMNS = ["claim", "goal", "mean (least to most) over seeds", "unit", "verdict", "remark"]
SINGLE_COLUMNS = ["expert", "cost", "0", "1", "2", "3", "4", "5", "all"]
IDEA_COLUMNS = ["idea", "against", "measure", "plain %", "with it %", "gain, points", "verdict"]
EVERY, BLURRED, NOISY = "test", "test-blur", "test-noise"
NONE = (0.0,) * 6


class Bench:
    """A finished run with its classifiers' logits on the test images."""

    def __init__(self, run: FinishedRun, seeds: Sequence[int], update: Any) -> None:
        self.run, self.seeds, self.update = run, seeds, update
        self.images = corrupted(run)
        self.one = self.gaters(run.config.gater.for_every_weight, run.config.latency_weight)

    def judged(self, what: str, classifiers: Sequence[ExpertConfig]) -> Judged:
        return self.run.judged(what, self.images[what], classifiers, note)

    @cached_property
    def benefit_scores(self) -> dict[int, NDArray[np.float32]]:
        """Of gaters that learn the benefit, on the images of every severity."""
        return self.scores(EVERY, self.gaters("benefit", self.run.config.latency_weight))

    def gaters(self, method: Method, weight: float) -> dict[int, TrainedGater]:
        return self.run.gaters(method, weight, self.seeds, self.update, note)

    def routed(self, what: str) -> Routed:
        outcomes = self.run.outcomes(what, self.images[what], note, second_looks=what == EVERY)
        return Routed(outcomes, self.scores(what, self.one))

    def scores(self, what: str, gaters: Mapping[int, TrainedGater]) -> dict[int, NDArray[np.float32]]:
        return {seed: predict(gater.model, self.images[what].images) for seed, gater in gaters.items()}

    def comparison(self, every: Routed, weights: Sequence[float]) -> Comparison:
        separate = {weight: self.scores(EVERY, self.gaters("gumbel", weight)) for weight in weights}
        return compare(every.outcomes, every.scores, separate)


def corrupted(run: FinishedRun) -> dict[str, Corrupted]:
    """All severities, and the harshest blur and noise alone; the pixels are those of `trt-moe eval`."""
    test, corruption = run.test, run.config.corruption
    part = Part(test.images, test.labels, np.arange(len(test)))
    harshest = np.full(len(test), HARSHEST)

    def alone(only: CorruptionConfig) -> Corrupted:
        return Corrupted(apply(part, harshest, only, EVALUATION_SEED), part.labels, harshest)

    return {
        EVERY: every_severity(part, corruption, EVALUATION_SEED),
        BLURRED: alone(corruption.model_copy(update={"noise_sigma": NONE})),
        NOISY: alone(corruption.model_copy(update={"blur_sigma": NONE})),
    }


def robust_light(run: FinishedRun) -> ExpertConfig | None:
    """The cheapest classifier, the dearest expert apart, that was trained on all severities."""
    known = [*run.config.baselines, *run.config.experts[:-1]]
    trained = [entry for entry in known if min(entry.severities) > 0]
    return min(trained, key=lambda entry: run.relative_costs[entry.name], default=None)


def find_rivals(bench: Bench, robust: ExpertConfig | None) -> Rivals:
    run = bench.run
    everyone = run.config.classifiers()
    judged = bench.judged(EVERY, everyone)
    column = {entry.name: k for k, entry in enumerate(everyone)}
    accuracy = dict(zip(column, judged.right.mean(0).tolist(), strict=True))

    def single(name: str) -> Single:
        # A teacher is never exported, so it was not timed either.
        return Single(name, accuracy[name], run.relative_costs.get(name, float("nan")))

    dearest = run.config.experts[-1].name
    timed = [entry.name for entry in (*run.config.experts, *run.config.baselines)]
    starts = tuple(name for name in timed if name != dearest)
    first = judged.of([column[name] for name in starts])
    looks: dict[VerifyBy, NDArray[np.bool_]] = {"dearest": first.right_with(judged.logits[:, [column[dearest]]])}
    if run.config.verify_by == "mirror":
        classifiers = [run.config.classifier(name) for name in starts]
        looks["mirror"] = first.right_with(run.mirrored(EVERY, bench.images[EVERY], classifiers, note).logits)

    def cascades(names: Sequence[str]) -> Frontier:
        return strongest_cascade(
            [
                (first.confidence[:, k], first.right[:, k], right[:, k], run.relative_costs[starts[k]], by)
                for by, right in looks.items()
                for k in map(starts.index, names)
            ]
        )

    best = max(accuracy, key=lambda name: accuracy[name])
    if robust is None:
        return Rivals(None, None, single(best), cascades(starts), starts)
    return Rivals(single(robust.name), cascades([robust.name]), single(best), cascades(starts), starts)


def explained(bench: Bench, every: Routed) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """R^2 of the dearest expert's benefit by a curve over each cue, and over the estimates of gaters by their method.

    The gaters are those that route, and those that learn the benefit itself. As in `trt-moe study`: every second image
    fits, the others test.
    """
    clipped = np.minimum(every.outcomes.losses.astype(np.float64), LOSS_CLIP)
    benefit = clipped[:, 0] - clipped[:, -1]
    position = np.tile(np.arange(len(benefit) // 6), 6)
    tests = position % 2 == 1
    bootstrap = Bootstrap(position[tests] // 2, 0)

    def r2(values: NDArray[np.floating]) -> float:
        x = values[:, None].astype(np.float64)
        curve = Curve(x[~tests], benefit[~tests])(x[tests])
        return estimate(bootstrap.r_squared(benefit[tests], curve)).value

    learned = {bench.run.config.gater.for_every_weight: every.scores}
    if "benefit" not in learned:
        learned["benefit"] = bench.benefit_scores
    return (
        {name: Spread.of([r2(measure(cue, bench.images[EVERY].images))]) for name, cue in CUES.items()},
        {
            m: Spread.of([r2(scores[:, -1] - scores[:, 0]) for scores in by_seed.values()])
            for m, by_seed in learned.items()
        },
    )


def beyond(bench: Bench, every: Routed, comparison: Comparison, robust: ExpertConfig | None) -> list[Idea]:
    run = bench.run
    method = run.config.gater.for_every_weight
    ideas = [one_training(method, comparison)]
    if method == "regret":
        ideas.append(regret(every, bench.benefit_scores))
    for budget in BUDGETS:
        ideas += verifying(every, run.config.latency_weight, budget)
    raw = judge(run.config, run.config.experts, run.models, EVERY, bench.images[EVERY], run.folder, note)
    ideas.append(calibrated(every, raw, [run.temperatures[entry.name] for entry in run.config.experts]))
    if robust is not None:
        ideas += specialists(bench, robust)
    for expert in run.config.experts:
        if expert.teacher is not None and expert.start_from is not None:
            before = bench.judged(EVERY, [run.config.classifier(expert.start_from), expert])
            trained = np.asarray(expert.severities)[before.images.severities] > 0
            first, then = before.right[trained].mean(0)
            ideas.append(distilled(expert.name, [float(first)], [float(then)]))
    return ideas


def specialists(bench: Bench, robust: ExpertConfig) -> list[Idea]:
    """The run's experts without and with the robust light, against the robust light and the dearest expert."""
    run = bench.run
    if robust not in run.config.experts:
        bench = Bench(run.with_expert(robust, note), bench.seeds, bench.update)
    routed, names = bench.routed(EVERY), [expert.name for expert in bench.run.config.experts]
    without = [name for name in names if name != robust.name]
    return [specialised(routed, [robust.name, names[-1]], better) for better in (without, names)]


def spread(value: Spread | None, form: str, scale: float = 1.0) -> str:
    if value is None:
        return "-"
    mean, low, high = (form.format(scale * part) for part in (value.mean, value.low, value.high))
    return mean if low == high else f"{mean} ({low} to {high})"


FORMS = {"%": ("{:.1f}", 100.0), "points": ("{:+.2f}", 100.0), "gaters": ("{:.0f}", 1.0)}


def claim_rows(rows: Sequence[Claim]) -> list[list[str]]:
    words = {True: "met", False: "missed", None: "reported"}
    return [
        [
            row.name,
            row.goal or "-",
            spread(row.value, *FORMS.get(row.unit, ("{:.3f}", 1.0))),
            row.unit,
            words[row.met],
            row.remark or "-",
        ]
        for row in rows
    ]


def idea_rows(ideas: Sequence[Idea]) -> list[list[str]]:
    return [
        [
            idea.name,
            idea.plain,
            idea.measure,
            *(spread(value, "{:.2f}", 100.0) for value in (idea.before, idea.after)),
            spread(idea.gain, *FORMS["points"]),
            idea.verdict,
        ]
        for idea in ideas
    ]


def single_rows(every: Routed) -> list[list[str]]:
    """Each expert alone: cost, and accuracy at every severity."""
    outcomes = every.outcomes
    levels = np.unique(outcomes.severities)
    return [
        [
            name,
            f"{outcomes.costs[k]:.3f}",
            *(f"{100 * outcomes.right[outcomes.severities == level, k].mean():.2f}" for level in levels),
            f"{100 * outcomes.right[:, k].mean():.2f}",
        ]
        for k, name in enumerate(outcomes.experts)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("config", type=Path, help="training configuration of a finished run")
    parser.add_argument("--data", type=Path, help="folder of the data set; default: the configuration's")
    parser.add_argument("--checkpoints", type=Path, help="folder of training runs; default: the configuration's")
    parser.add_argument("--seeds", default="0,1,2", help="of the gaters")
    parser.add_argument("--latency-weights", default="0.1,0.2,0.4,0.7,1.0", help="of gaters trained for each")
    parser.add_argument("--experts", help="judge a mixture of these alone, with gaters of its own; default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    seeds, weights = (
        [kind(part) for part in text.split(",")] for kind, text in ((int, given.seeds), (float, given.latency_weights))
    )
    with progress() as update:
        run = open_run(open_config(given.config, given.data, given.checkpoints, False), update, note)
        if given.experts is not None:
            run = run.only(given.experts.split(","), note)
        bench = Bench(run, seeds, update)
        every = bench.routed(EVERY)
        comparison = bench.comparison(every, weights)
        robust = robust_light(run)
        rows = claims(
            every,
            bench.routed(BLURRED),
            bench.routed(NOISY),
            comparison,
            find_rivals(bench, robust),
            *explained(bench, every),
            Rule(run.config.latency_weight, run.config.verify_below, run.config.verify_by),
        )
        ideas = beyond(bench, every, comparison, robust)
    title = f"{run.config.name}: {len(every.outcomes.severities):,} test images of all severities, gater seeds {seeds}"
    tables = [
        Table(f"{title}; costs relative to {every.outcomes.experts[-1]}", CLAIM_COLUMNS, claim_rows(rows)),
        Table("Each expert alone: accuracy in % at severity 0 to 5", SINGLE_COLUMNS, single_rows(every)),
        Table("Beyond the paper: each idea against the plain recipe", IDEA_COLUMNS, idea_rows(ideas)),
    ]
    for table in tables:
        print_table(table.title, table.columns, table.rows)
    data = {
        "name": run.config.name,
        "images": len(every.outcomes.severities),
        "seeds": seeds,
        "relative_cost": dict(run.relative_costs),
        "claims": [asdict(row) for row in rows],
        "ideas": [{**asdict(idea), "verdict": idea.verdict} for idea in ideas],
        "sweep": comparison.to_json(),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    file = "claims" if given.experts is None else f"claims-{run.gater_folder.name}"
    write_bytes(given.out / f"{file}.json", json.dumps(data, indent=1).encode() + b"\n")
    sections = [f"### {table.title}\n\n{markdown(table.columns, table.rows)}\n" for table in tables]
    write_bytes(given.out / f"{file}.md", "\n".join(sections).encode())


if __name__ == "__main__":
    main()
