"""Image data sets as arrays: Fashion-MNIST idx files, image folders, the Intel layout, severity folders."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_moe.data.corruptions import SEVERITIES
from trt_moe.errors import DataError, InputError

FASHION_CLASSES = (
    "T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot",
)  # fmt: skip
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_IDX_BYTES = 1 << 31

Split = Literal["train", "test"]
Shape = tuple[int, int, int]

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_SPLIT_FOLDERS = {"train": ("seg_train", "train"), "test": ("seg_test", "test", "val")}


@dataclass(frozen=True)
class Dataset:
    """A split held in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N], indices into `class_names`.
        class_names: in label order.
        name: what tables call the data set.
        severities: int64 [N] where the images were corrupted before they were stored, else None.
        broken: what was left out, with the reason (only with `skip_broken`).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str
    severities: NDArray[np.int64] | None = None
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)


def load_dataset(
    path: str | Path, split: Split = "test", shape: Shape | None = None, skip_broken: bool = False
) -> Dataset:
    """Recognise the layout under `path` and read one split of it.

    Args:
        path: folder with idx files (.gz or not), with `seg_train`/`seg_test`, with `train`/`test` (or `val`), with
            severity folders `0`..`5` that hold class folders, or with class folders.
        split: of layouts without splits all is "test".
        shape: (height, width, channels) to convert every decoded image to; without it all images must have
            one size already. Idx images are never resized.
        skip_broken: leave out images that cannot be read, have another size or no valid label, and list them
            in `Dataset.broken` instead of raising.

    Raises:
        DataError: nothing recognised there, no such split, a class without images, or the above; lists every image
            it is about.
        InputError: `split` is neither "train" nor "test".
    """
    if split not in _IDX_PREFIX:
        raise InputError(f"split is {split!r}; expected 'train' or 'test'")
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the folder that holds the data set")
    if _find_idx(root, split, "images-idx3-ubyte") is not None:
        return _checked(_load_idx(root, split, shape), skip_broken)
    for name in _SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            inner = root / name
            # The published archive nests the folder once more: seg_train/seg_train/<class>.
            inner = inner / name if (inner / name).is_dir() else inner
            return _checked(_load_folder(inner, root.name, shape), skip_broken)
    if split == "train" or _has_splits(root):
        # Without splits the images to train on would be those to test on.
        raise DataError(
            f"{root} has no {split} split apart; expected {_SPLIT_FOLDERS['train'][0]}/<class> and "
            f"{_SPLIT_FOLDERS['test'][0]}/<class>, train/<class> and test/<class>, or the idx files of Fashion-MNIST"
        )
    if any((root / str(level)).is_dir() for level in range(SEVERITIES)):
        return _checked(_load_severities(root, shape), skip_broken)
    return _checked(_load_folder(root, root.name, shape), skip_broken)


def _checked(data: Dataset, skip_broken: bool) -> Dataset:
    """Raise where something was left out, unless that was asked for and something remains."""
    if data.broken and not (skip_broken and len(data)):
        listed = "\n  ".join(data.broken)
        count = f"{len(data.broken)} unusable image{'s' * (len(data.broken) > 1)}"
        advice = "mend or remove them, or leave them out with --skip-broken" if len(data) else "no image is left"
        raise DataError(f"{data.name} has {count}; {advice}:\n  {listed}")
    return data


def read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """Read one idx file of unsigned bytes, gzipped or not; `rank` is the number of dimensions expected.

    Raises:
        DataError: not an idx file of that rank, truncated, or longer than its header says.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                raw = stream.read(MAX_IDX_BYTES + 1)
        else:
            with path.open("rb") as stream:
                raw = stream.read(MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch the file again") from error
    header = 4 + 4 * rank
    if len(raw) < header or raw[:4] != bytes([0, 0, 8, rank]):
        raise DataError(f"{path} is not an idx file of bytes with {rank} dimensions (starts with {raw[:4].hex()})")
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    expected = int(np.prod(shape, dtype=object))
    if len(raw) - header != expected:
        raise DataError(
            f"{path} holds {len(raw) - header} bytes of data, its header {shape} says {expected}; "
            "the file is damaged, fetch it again"
        )
    values: NDArray[np.uint8] = np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()
    return values


def _find_idx(root: Path, split: Split, kind: str) -> Path | None:
    for suffix in ("", ".gz"):
        candidate = root / f"{_IDX_PREFIX[split]}-{kind}{suffix}"
        if candidate.is_file():
            return candidate
    return None


def _has_splits(root: Path) -> bool:
    folders = any((root / name).is_dir() for names in _SPLIT_FOLDERS.values() for name in names)
    return folders or any(_find_idx(root, split, "images-idx3-ubyte") is not None for split in ("train", "test"))


def _load_idx(root: Path, split: Split, shape: Shape | None) -> Dataset:
    image_file = _find_idx(root, split, "images-idx3-ubyte")
    label_file = _find_idx(root, split, "labels-idx1-ubyte")
    if image_file is None or label_file is None:
        raise DataError(f"{root} has {_IDX_PREFIX[split]}-images-idx3-ubyte but no labels beside it")
    images, labels = read_idx(image_file, 3)[..., None], read_idx(label_file, 1)
    if len(images) != len(labels):
        raise DataError(f"{image_file} has {len(images)} images, {label_file} {len(labels)} labels")
    if shape is not None and images.shape[1:] != shape:
        raise DataError(f"{image_file} has images of {images.shape[1:]}, expected {shape} (H, W, C)")
    known = labels < len(FASHION_CLASSES)
    wrong = [
        f"{label_file}, image {i} (label {labels[i]}; Fashion-MNIST's go from 0 to 9)" for i in np.flatnonzero(~known)
    ]
    return Dataset(images[known], labels[known].astype(np.int64), FASHION_CLASSES, "fashion-mnist", broken=tuple(wrong))


def _load_severities(root: Path, shape: Shape | None) -> Dataset:
    parts: list[tuple[int, Dataset]] = []
    broken: list[str] = []
    for level in range(SEVERITIES):
        folder = root / str(level)
        if folder.is_dir():
            part = _load_folder(folder, root.name, shape)
            if parts and part.class_names != parts[0][1].class_names:
                raise DataError(
                    f"{folder} has classes {list(part.class_names)}, "
                    f"severity {parts[0][0]} has {list(parts[0][1].class_names)}"
                )
            if parts and len(part) and part.images.shape[1:] != parts[0][1].images.shape[1:]:
                raise DataError(f"{folder} has images of {part.images.shape[1:]}, others are of another size")
            broken += part.broken
            if len(part):
                parts.append((level, part))
    if not parts:
        return Dataset(np.zeros((0, 0, 0, 0), np.uint8), np.zeros(0, np.int64), (), root.name, broken=tuple(broken))
    return Dataset(
        np.concatenate([part.images for _, part in parts]),
        np.concatenate([part.labels for _, part in parts]),
        parts[0][1].class_names,
        root.name,
        np.concatenate([np.full(len(part), level, dtype=np.int64) for level, part in parts]),
        tuple(broken),
    )


def _load_folder(folder: Path, name: str, shape: Shape | None) -> Dataset:
    """Read <class>/<image>; whatever cannot be used is left out and listed."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if not classes:
        raise DataError(f"{folder} has no class folders; expected <class>/<image>.png inside it")
    broken = [f"{file} (in no class folder, so it has no label)" for file in _image_files(folder)]
    files = {class_name: _image_files(folder / class_name) for class_name in classes}
    empty = [str(folder / class_name) for class_name in classes if not files[class_name]]
    if empty:
        raise DataError(f"{', '.join(empty)}: holds no images; remove the folder or fill it")
    decoded: list[tuple[Path, int, NDArray[np.uint8]]] = []
    for label, class_name in enumerate(classes):
        for file in files[class_name]:
            try:
                decoded.append((file, label, _decode(file, shape)))
            except Exception as error:  # Damaged files make Pillow's decoders raise nearly anything.
                broken.append(f"{file} ({error})")
    usual = Counter(image.shape for _, _, image in decoded).most_common(1)[0][0] if decoded else (0, 0, 0)
    broken += [
        f"{file} (is {_size(image.shape)}, most are {_size(usual)}: a shape, image_shape in a config, converts them)"
        for file, _, image in decoded
        if image.shape != usual
    ]
    fitting = [(label, image) for _, label, image in decoded if image.shape == usual]
    images = np.stack([image for _, image in fitting]) if fitting else np.zeros((0, *usual), np.uint8)
    return Dataset(
        images, np.asarray([label for label, _ in fitting], np.int64), tuple(classes), name, broken=tuple(broken)
    )


def _size(shape: tuple[int, ...]) -> str:
    """Height, width and channels, such as "150 x 113 x 3"."""
    return " x ".join(str(side) for side in shape)


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _decode(file: Path, shape: Shape | None) -> NDArray[np.uint8]:
    """One image as uint8 [H, W, C]: grey where `shape` or the file says so, else RGB."""
    with Image.open(file) as image:
        grey = shape[2] == 1 if shape is not None else image.mode in ("1", "L", "I", "I;16", "F")
        pixels = image.convert("L" if grey else "RGB")
    if shape is not None and pixels.size != (shape[1], shape[0]):
        pixels = pixels.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    array = np.asarray(pixels, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array
