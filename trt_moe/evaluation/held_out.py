"""The images that a bundle is judged by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trt_moe.bundle import Bundle
from trt_moe.data import Dataset, load_dataset
from trt_moe.data.datasets import Split, files_digest, has_splits, hold_out


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
    if (len(data), files_digest(Path(path))) != (kept.images, kept.sha256):
        note(
            f"{bundle.name} was trained on class folders with {kept.images} images that are not, or no longer, these "
            f"{len(data)}, all of which are taken: where it was trained on some of them, accuracies are too high"
        )
        return data
    learned, test = hold_out(data, kept.share)
    note(f"left out: {len(learned)} of {len(data)} images, which {bundle.name} was trained on")
    return test
