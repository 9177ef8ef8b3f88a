"""Against torch.compile with CUDA graphs, routed in Python, in turns with ours."""

from __future__ import annotations

from typing import Any

import torch

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
    batches = {name: mixture.images[k : k + 1] for k, name in enumerate(EXPERTS)}
    batches["mixed batch of 8"] = mixture.batch(BATCH_OF_8)
    for batch in batches.values():
        for _ in range(3):  # compiles, warms up, captures
            peer.predict(batch)
    with routers.open() as router:
        return {
            "engines": routers.engines,
            "torch": torch.__version__,
            "milliseconds": {
                name: take_turns(
                    {
                        "our device-routed plan": wall(lambda batch=batch: router.predict(batch)),  # type: ignore[misc]
                        "torch.compile, routed in Python": wall(lambda batch=batch: peer.predict(batch)),  # type: ignore[misc]
                    },
                    ROUNDS,
                    work.seconds / 12,
                )
                for name, batch in batches.items()
            },
        }
