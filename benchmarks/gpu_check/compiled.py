"""Against torch.compile with CUDA graphs, routed in Python, in turns with ours."""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu_check.goals import BATCH, OURS
from benchmarks.gpu_check.latency import BATCH_OF_8, ROUNDS
from benchmarks.gpu_check.mixture import EXPERTS, make_mixture
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.routers import choose_engines
from benchmarks.gpu_check.torch_routing import TorchRouting
from benchmarks.gpu_check.turns import take_turns, wall


def run(work: Work) -> dict[str, Any]:
    mixture = make_mixture()
    routers = choose_engines(work, mixture)
    peer = TorchRouting(
        mixture.halves(),
        lambda module: torch.compile(module, mode="reduce-overhead", dynamic=False),
        8,
        mixture.images.shape[1:],
    )
    cheapest, *others = ((name, mixture.images[k : k + 1]) for k, name in enumerate(EXPERTS))
    # The batch is early, as it is a figure of its own; of single images the worst counts.
    batches = dict([cheapest, (BATCH, mixture.batch(BATCH_OF_8)), *others])
    cases: dict[str, Any] = {}
    found = {"engines": routers.engines, "torch": torch.__version__, "milliseconds": cases}
    with routers.open() as router:
        for to_come, (name, batch) in zip(range(len(batches), 0, -1), batches.items(), strict=True):
            for _ in range(3):  # compiles, warms up, captures
                peer.predict(batch)
            # Half of the time, since the batches to come must be compiled for as well.
            cases[name] = take_turns(
                {
                    OURS: wall(lambda batch=batch: router.predict(batch)),  # type: ignore[misc]
                    "torch.compile, routed in Python": wall(lambda batch=batch: peer.predict(batch)),  # type: ignore[misc]
                },
                ROUNDS,
                work.left / (2 * to_come),
            )
            # Where torch says here that it left CUDA graphs out, its figures are not those of CUDA graphs.
            found["inductor"] = dict(counters["inductor"])
            work.keep(found)
    return found
