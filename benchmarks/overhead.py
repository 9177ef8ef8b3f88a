"""What the router adds to the bare inferences it consists of."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.common import Images
from benchmarks.tables import markdown, percentiles
from trt_moe import Bundle, Router
from trt_moe.routing_rule import asked_last

TITLE = "Overhead: `router.predict` of one image over bare gater + bare experts"


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """Bare inferences (C++ clock) and `predict` (Python clock) take turns on the same compiled models and images."""
    rounds = 200 if quick else 2000
    report: dict[str, Any] = {}
    with Router(bundle) as router:
        asked = _asked(router, images)
        gater = router.model(bundle.gater.name)
        for names in sorted(set(asked), key=asked.count, reverse=True):
            mine = images[[one == names for one in asked]]
            models = [gater, *(router.model(name) for name in names)]
            bare, routed, python = [], [], []
            for i in range(rounds + rounds // 10):
                image = mine[i % len(mine)]
                batch = image[None]
                seen = [image, image, image[:, ::-1] if router.verify_by == "mirror" else image]
                for bare_now in (True, False) if i % 2 else (False, True):
                    if bare_now:
                        bare.append(float(sum(m.time(look, 1, 0)[0] for m, look in zip(models, seen, strict=False))))
                        continue
                    start = perf_counter()
                    result = router.predict(batch)
                    python.append((perf_counter() - start) * 1e3)
                    routed.append(float(result.latency_ms[0]))
                    assert router.expert_names[result.experts[0]] == names[-1]
            bare, routed, python = (values[rounds // 10 :] for values in (bare, routed, python))
            by_mirror = len(names) == 2 and names[0] == names[1]
            report[f"{names[0]}, then its mirror" if by_mirror else ", then ".join(names)] = {
                "bare": percentiles(bare),
                "predict": percentiles(python),
                "inside_the_core": percentiles(routed),
                "ratio_p50": float(np.median(python) / np.median(bare)),
                "added_us_p50": float((np.median(python) - np.median(bare)) * 1e3),
            }
    return report


def _asked(router: Router, images: Images) -> list[tuple[str, ...]]:
    """The experts that answer each image: one, or where it is unsure the one that has the second look as well."""
    verify_below, router.verify_below = router.verify_below, 0.0
    result = router.predict(images)
    router.verify_below = verify_below
    names = router.expert_names
    first = result.experts
    unsure = (result.probabilities.max(axis=1) < verify_below) & (first != len(names) - 1)
    last = asked_last(first, unsure, len(names), router.verify_by)
    return [(names[a], names[b]) if twice else (names[a],) for a, b, twice in zip(first, last, unsure, strict=True)]


def table(report: dict[str, Any]) -> str:
    rows = [
        [
            expert,
            f"{row['bare']['p50_ms']:.3f}",
            f"{row['predict']['p50_ms']:.3f}",
            f"{row['predict']['p90_ms']:.3f}",
            f"{row['predict']['p99_ms']:.3f}",
            f"{row['ratio_p50']:.3f}",
            f"{row['added_us_p50']:.0f}",
        ]
        for expert, row in report.items()
    ]
    header = ["routed to", "bare p50 ms", "predict p50 ms", "p90 ms", "p99 ms", "ratio (p50)", "added us (p50)"]
    return markdown(header, rows)
