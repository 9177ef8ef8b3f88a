"""The images that a bundle is judged by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trt_moe.bundle import Bundle
from trt_moe.data import Dataset, load_dataset
from trt_moe.data.datasets import Split, has_splits, hold_out


def load_test_images(
    path: str | Path,
    bundle: Bundle,
    split: Split = "test",
    skip_broken: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """Read a data set at the bundle's size; of class folders that its training kept some images of, these alone.

    Args:
        path: see `load_dataset`.
        bundle: that is to be judged.
        split: see `load_dataset`.
        skip_broken: see `load_dataset`.
        note: gets one line for people about what is left out.

    Raises:
        DataError, InputError: see `load_dataset`.
    """
    data = load_dataset(path, split, bundle.input_shape, skip_broken)
    for broken in data.broken:
        note(f"left out: {broken}")
    training = bundle.manifest.training
    kept = None if training is None else training.held_out
    if kept is None or data.severities is not None or has_splits(Path(path)):
        return data
    counts = np.bincount(data.labels, minlength=len(data.class_names))
    if dict(zip(data.class_names, counts.tolist(), strict=True)) != kept.images:
        note(
            f"{bundle.name} was trained on class folders of {sum(kept.images.values())} images; {data.name} has "
            f"{len(data)}, all of which are taken: where some of them were trained on, accuracies are too high"
        )
        return data
    learned, test = hold_out(data, kept.share)
    note(f"left out: {len(learned)} of {len(data)} images, which {bundle.name} was trained on")
    return test
