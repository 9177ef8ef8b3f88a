"""The two plans, the bare graphs they consist of, and torch eager, in turns on the same images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.gpu_check.goals import ALONE, BARE, BATCH, HOST, LARGE, OURS, SPECULATING
from benchmarks.gpu_check.mixture import DEAREST, EXPERTS, GATER, WEIGHTS, make_mixture
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.pycuda_loop import open_loop
from benchmarks.gpu_check.routers import choose_engines, routes_right
from benchmarks.gpu_check.torch_routing import TorchRouting
from benchmarks.gpu_check.turns import Timed, take_turns, wall
from trt_moe import Router

ROUNDS = 500
BATCH_OF_8, BATCH_OF_32 = (4, 2, 2), (16, 8, 8)
"""Images for each expert."""
_SPARE_S = 5.0
"""For closing."""


def run(work: Work) -> dict[str, Any]:
    mixture = make_mixture()
    routers = choose_engines(work, mixture)
    with ExitStack() as stack:
        device = stack.enter_context(routers.open())
        host = stack.enter_context(routers.open("host-routed"))
        speculating = stack.enter_context(routers.open(speculate=True))
        loop, why_no_loop = open_loop(work, routers.engines, mixture.images)
        calls: dict[str, Callable[[Any], Any]] = {
            OURS: device.predict,
            HOST: host.predict,
            SPECULATING: speculating.predict,
        }
        if loop is not None:
            calls["tensorrt + pycuda loop"] = loop.predict
        batches = {name: mixture.images[k : k + 1] for k, name in enumerate(EXPERTS)}
        batches |= {BATCH: mixture.batch(BATCH_OF_8), LARGE: mixture.batch(BATCH_OF_32)}
        cases: dict[str, Any] = {}
        found = {
            "engines": routers.engines,
            "why": routers.why,
            "weights": WEIGHTS,
            "plan": device.plan,
            "plan_reason": device.plan_reason,
            # No figure of a router that sends images elsewhere is worth anything.
            "routes_right": all(routes_right(router, mixture, (1, 3, 32)) for router in (device, host, speculating)),
            "pycuda_loop": why_no_loop,
            "dearest": DEAREST,
            "host_us": host_us(device, mixture.images[:1]),
            "memory": device.memory_report(),
            "milliseconds": cases,
        }
        work.keep(found)
        eager = TorchRouting(mixture.halves(), lambda module: module, 8, mixture.images.shape[1:])
        calls["torch eager, routed in Python"] = eager.predict
        for to_come, (name, batch) in zip(range(len(batches), 0, -1), batches.items(), strict=True):
            contenders: dict[str, Timed] = {
                label: wall(lambda call=call, batch=batch: call(batch))  # type: ignore[misc]
                for label, call in calls.items()
                if name != LARGE or label in (OURS, HOST)
            }
            if name == LARGE:
                contenders[ALONE] = wall(lambda batch=batch: host.model(DEAREST).logits(batch))  # type: ignore[misc]
            if name in EXPERTS:
                contenders |= _bare(host, name, batch[0])
            cases[name] = take_turns(contenders, ROUNDS, (work.left - _SPARE_S) / to_come)
            work.keep(found)
        return found


def _bare(router: Router, expert: str, image: Any) -> dict[str, Timed]:
    """The gater's and the expert's own graph with their copies, by the C++ clock."""
    gater, model = router.model(GATER), router.model(expert)
    return {
        BARE: lambda: float(gater.time(image, 1, 0)[0] + model.time(image, 1, 0)[0]),
        "bare gater": lambda: float(gater.time(image, 1, 0)[0]),
        "bare expert": lambda: float(model.time(image, 1, 0)[0]),
    }


def host_us(router: Router, batch: Any) -> dict[str, float]:
    """Microseconds of `predict` less those that it waits for the GPU: Python, copies on the host, the launch."""
    pipeline = router._pipeline
    times = []
    for _ in range(ROUNDS):
        waited, start = pipeline.waited_ms, perf_counter()
        router.predict(batch)
        times.append((perf_counter() - start) * 1e6 - (pipeline.waited_ms - waited) * 1e3)
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50_us": float(p50), "p99_us": float(p99)}
