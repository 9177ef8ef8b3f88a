"""The peer: the same float16 modules in torch, routed in Python the way users write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_check.mixture import CLASSES, GATER

Wrap = Callable[[torch.nn.Module], Callable[[torch.Tensor], torch.Tensor]]


class TorchRouting:
    """Gater, routes on the host, then each expert on its images.

    Args:
        modules: by name, the gater among them; moved to the GPU.
        wrap: what is called for each module, such as a compiled one.
        largest: most images of a batch.
        image: (H, W, C).
    """

    def __init__(
        self, modules: Mapping[str, torch.nn.Module], wrap: Wrap, largest: int, image: tuple[int, ...]
    ) -> None:
        # As our captures have it, and as whoever wants speed sets it: cuDNN tries which algorithm is the fastest.
        torch.backends.cudnn.benchmark = True
        self._run = {name: wrap(module.cuda().eval()) for name, module in modules.items()}
        self._experts = [name for name in modules if name != GATER]
        self._pinned = torch.empty((largest, *image), dtype=torch.uint8, pin_memory=True)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        with torch.inference_mode():
            staged = self._pinned[: len(images)]
            staged.copy_(torch.from_numpy(images))
            batch = staged.to("cuda", non_blocking=True)
            routes = self._run[GATER](batch).argmax(dim=1).cpu()
            if len(images) == 1:
                logits = self._run[self._experts[int(routes[0])]](batch)
            else:
                logits = torch.empty((len(images), CLASSES), device="cuda")
                for index, name in enumerate(self._experts):
                    rows = (routes == index).nonzero().squeeze(1).to("cuda", non_blocking=True)
                    if len(rows):
                        logits[rows] = self._run[name](batch[rows])
            probabilities: NDArray[Any] = logits.softmax(dim=1).cpu().numpy()
            return probabilities
