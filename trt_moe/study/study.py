"""The paper's first phase: cues of the image against what the dearest expert gains on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe.console import ProgressCallback
from trt_moe.errors import DataError, MissingDependencyError
from trt_moe.evaluation import TestSet
from trt_moe.evaluation.answers import Answers, collect, join
from trt_moe.evaluation.cues import CUES, Cue, measure
from trt_moe.router import Router
from trt_moe.study.difficulty import tile_entropies
from trt_moe.study.fit import RESAMPLES, Bootstrap, Curve, Floats, Ints, Line, RankCorrelation, estimate

LOSS_CLIP = 6.0
"""Nats at which an expert's cross-entropy is clipped, as where the gater learns benefits."""
MIN_IMAGES = 20
"""Images of a severity, at least: half of them fit, the others test."""

ENTROPY = "entropy"
DIFFICULTY = "difficulty (learned)"
COMPLEXITY = "complexity (ICNet)"
TOGETHER = "all cues together"
SEVERITY = "severity, if it were known"
GATER = "learned gater"


@dataclass(frozen=True)
class Study:
    """Outcome of a study; arrays are of the N images that test, all severities one after the other.

    Attributes:
        data: ready for JSON, see `study`.
        cues: by name: float64 [N], the single cues and the gater's estimate.
        benefit: float64 [N], nats.
        severities: int64 [N].
    """

    data: dict[str, Any]
    cues: dict[str, Floats]
    benefit: Floats
    severities: Ints


def study(
    router: Router,
    sets: Sequence[TestSet],
    dataset: str,
    icnet: Path | None = None,
    seed: int = 0,
    progress: ProgressCallback = lambda what, done, total: None,
) -> Study:
    """Explain the dearest expert's benefit by image cues and by the bundle's own gater.

    The benefit of an image is the cross-entropy of the cheapest expert minus that of the dearest, each clipped
    at `LOSS_CLIP` nats. Every second image fits (at all its severities), the others test; each explanation is
    given by R^2 of a line, by R^2 of a curve (see `Curve`) and by Spearman's rank correlation, with bootstrap
    95 % intervals over the test images. `gater_ahead` is the gater's R^2 of the curve minus this one's.

    - entropy, laplacian variance, edge density, JPEG size: see `trt_moe.evaluation.cues`.
    - difficulty (learned): the cheapest expert's clipped cross-entropy, as a curve over the entropies of the
      image's tiles predicts it. It is fitted on images that fit, and for those on the other half of them.
    - complexity (ICNet): score of the network of IC9600, where its weights are given.
    - all cues together: a curve over all of the above.
    - severity, if it were known: what corrupted the image.
    - learned gater: the dearest expert's score minus the cheapest's.

    Args:
        router: gives the compiled models.
        sets: one for each severity.
        dataset: what reports call the data.
        icnet: weights of ICNet (safetensors); None leaves the cue out.
        seed: of the bootstrap.
        progress: called as progress(what, done, total).

    Raises:
        DataError: too few images, or every image has the same benefit.
        BundleError: the weights of ICNet cannot be read.
        MissingDependencyError: `icnet` is given and torch, torchvision or safetensors is not installed.
        ModelOutputError: a model gives logits that are not finite.
    """
    fewest = min(sets, key=lambda part: len(part.labels))
    if len(fewest.labels) < MIN_IMAGES:
        raise DataError(
            f"{dataset}: {len(fewest.labels)} images of severity {fewest.severity} are to be studied; "
            f"a study needs at least {MIN_IMAGES} of each: half of them fit, the others test"
        )
    image_cues = dict(CUES) if icnet is None else {**CUES, COMPLEXITY: _complexity_cue(icnet, progress)}
    cheapest, dearest = router.bundle.experts[0].name, router.bundle.experts[-1].name
    answers = join(
        [collect(router, part.images, part.labels, part.severity, progress, second_looks=False) for part in sets]
    )
    severities = np.concatenate([np.full(len(part.labels), part.severity) for part in sets])
    picture = np.concatenate([part.picture for part in sets])
    tests = picture % 2 == 1
    benefit = benefits(answers, cheapest, dearest)
    if np.ptp(benefit[tests]) == 0:
        raise DataError(f"{dearest} is exactly as good as {cheapest} on every image; there is nothing to explain")
    cues = _measure(image_cues, sets, progress)
    cues[DIFFICULTY] = _difficulty(sets, clipped(answers, cheapest), picture)
    gater = answers.gater_logits[:, -1].astype(np.float64) - answers.gater_logits[:, 0]
    variables = {
        **{name: cue[:, None] for name, cue in cues.items()},
        TOGETHER: np.stack(list(cues.values()), axis=1),
        SEVERITY: severities[:, None].astype(np.float64),
        GATER: gater[:, None],
    }
    rows = _explain(variables, benefit, tests, Bootstrap(picture[tests] // 2, seed), progress)
    data = {
        "bundle": router.bundle.name,
        "dataset": dataset,
        "device": router.device,
        "precision": router.precision,
        "cheapest": cheapest,
        "dearest": dearest,
        "loss_clip": LOSS_CLIP,
        "images": len(answers),
        "test_images": int(tests.sum()),
        "resamples": RESAMPLES,
        "seed": seed,
        "severities": {
            str(part.severity): _severity(benefit, answers, severities == part.severity, cheapest, dearest)
            for part in sets
        },
        "explained_by": rows,
        "best_cue": max(cues, key=lambda name: float(rows[name]["r2_curve"]["value"])),
    }
    shown = {name: cue[tests] for name, cue in {**cues, GATER: gater}.items()}
    return Study(data, shown, benefit[tests], severities[tests])


def clipped(answers: Answers, expert: str) -> Floats:
    """The expert's cross-entropy, at most `LOSS_CLIP` nats, float64 [N]."""
    return np.minimum(answers.loss[expert].astype(np.float64), LOSS_CLIP)


def benefits(answers: Answers, cheapest: str, dearest: str) -> Floats:
    """What the dearest expert gains over the cheapest in nats, float64 [N]."""
    return clipped(answers, cheapest) - clipped(answers, dearest)


def _complexity_cue(weights: Path, progress: ProgressCallback) -> Cue:
    try:
        from trt_moe.models.icnet import complexity, load_icnet
    except ImportError as error:
        raise MissingDependencyError(
            f"complexity scores need packages that are not installed ({error}); in the checkout: pip install '.[train]'"
        ) from error
    return partial(complexity, load_icnet(weights), progress=progress)


def _measure(cues: Mapping[str, Cue], sets: Sequence[TestSet], progress: ProgressCallback) -> dict[str, Floats]:
    """Every cue over all severities, float64 [N] each."""
    values: dict[str, Floats] = {}
    for name, cue in cues.items():
        values[name] = np.concatenate([measure(cue, part.images) for part in sets])
        progress("cues", len(values), len(cues))
    return values


def _difficulty(sets: Sequence[TestSet], loss: Floats, picture: Ints) -> Floats:
    """Predict the cheapest expert's loss from entropies, for no image by what was fitted on itself."""
    entropies = np.concatenate([tile_entropies(part.images) for part in sets])
    quarter = picture % 4
    predicted = np.empty(len(loss))
    for judged, fitted in (([1, 3], [0, 2]), ([0], [2]), ([2], [0])):
        here, there = np.isin(quarter, judged), np.isin(quarter, fitted)
        predicted[here] = Curve(entropies[there], loss[there])(entropies[here])
    return predicted


def _explain(
    variables: dict[str, Floats],
    benefit: Floats,
    tests: NDArray[np.bool_],
    bootstrap: Bootstrap,
    progress: ProgressCallback,
) -> dict[str, dict[str, Any]]:
    truth = benefit[tests]
    rows: dict[str, dict[str, Any]] = {}
    curves: dict[str, Floats] = {}
    for name, values in variables.items():
        line = Line(values[~tests], benefit[~tests])(values[tests])
        curve = Curve(values[~tests], benefit[~tests])(values[tests])
        # Several variables have no order of their own; their prediction has.
        ranked = values[tests, 0] if values.shape[1] == 1 else curve
        curves[name] = bootstrap.r_squared(truth, curve)
        rows[name] = {
            "r2_linear": asdict(estimate(bootstrap.r_squared(truth, line))),
            "r2_curve": asdict(estimate(curves[name])),
            "rank_correlation": asdict(estimate(bootstrap.values(RankCorrelation(ranked, truth)))),
        }
        progress("intervals", len(rows), len(variables))
    for name, row in rows.items():
        row["gater_ahead"] = asdict(estimate(curves[GATER] - curves[name]))
    return rows


def _severity(
    benefit: Floats, answers: Answers, chosen: NDArray[np.bool_], cheapest: str, dearest: str
) -> dict[str, Any]:
    return {
        "images": int(chosen.sum()),
        "benefit": float(benefit[chosen].mean()),
        "only_dearest_right": float((answers.right(dearest) & ~answers.right(cheapest))[chosen].mean()),
        "only_cheapest_right": float((answers.right(cheapest) & ~answers.right(dearest))[chosen].mean()),
    }
