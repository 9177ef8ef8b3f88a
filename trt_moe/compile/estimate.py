"""How long a build will take, by those that went before."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from trt_moe.compile.sidecar import EngineSpec, Sidecar


def estimate(spec: EngineSpec, earlier: Iterable[Sidecar]) -> float | None:
    """Expected seconds of a build.

    Builds of the same model in the same precision count, by their buckets; where there is none, those of all
    models. None where nothing comparable was built.
    """
    comparable = [known for known in earlier if _kind(known.spec) == _kind(spec)]
    same = [known for known in comparable if known.spec.source_sha256 == spec.source_sha256]
    if not comparable:
        return None
    return fmean(_seconds(known, len(spec.buckets)) for known in same or comparable)


def _kind(spec: EngineSpec) -> tuple[str, str]:
    return spec.flavour, spec.precision


def _seconds(known: Sidecar, buckets: int) -> float:
    return known.prepare_seconds + known.build_seconds * buckets / len(known.spec.buckets)
