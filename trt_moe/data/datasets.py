"""Image data sets as arrays: idx files (MNIST, Fashion-MNIST), image folders, the Intel layout, severity folders."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trt_moe.data.corruptions import SEVERITIES
from trt_moe.errors import DataError, InputError
from trt_moe.images import SUFFIXES, LoadFailure, decode_image, is_of_macos, warn_of

FASHION_CLASSES = (
    "T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot",
)  # fmt: skip
# Some Pillows read some of these. Which ones must not decide what a data set holds.
UNREAD_SUFFIXES = frozenset(
    {
        ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".svg", ".eps", ".psd", ".xcf", ".tga", ".pcx", ".exr",
        ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
    }
)  # fmt: skip
"""Image files that are not read, and listed with the broken ones; all others are no images, and ignored."""
MAX_IDX_BYTES = 1 << 31

Split = Literal["train", "test"]
Shape = tuple[int, int, int]

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_CLASSES = 10
# Idx files hold no names, and MNIST's and others' are called the same; these are the labels that its own begin with.
_FASHION_LABELS = {"train": [9, 0, 0, 3, 0, 2, 7, 2], "test": [9, 2, 1, 1, 6, 1, 4, 6]}
_SPLIT_FOLDERS = {"train": ("seg_train", "train"), "test": ("seg_test", "test", "val")}


class BrokenImagesError(DataError):
    """Images that cannot be used, each with the reason."""


@dataclass(frozen=True)
class Dataset:
    """A split held in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N], indices into `class_names`.
        class_names: in label order.
        name: what tables call the data set.
        severities: int64 [N] where the images were corrupted before they were stored, else None.
        pictures: with `severities`: int64 [N], which picture each shows, the same for files of one path in several
            severities; None: they are ordered alike in each.
        broken: what was left out, with the reason (only with `skip_broken`).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str
    severities: NDArray[np.int64] | None = None
    pictures: NDArray[np.int64] | None = None
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)


def load_dataset(
    path: str | Path, split: Split = "test", shape: Shape | None = None, skip_broken: bool = False
) -> Dataset:
    """Recognise the layout under `path` and read one split of it.

    Args:
        path: folder with idx files (.gz or not; the classes are Fashion-MNIST's where the labels are, else 0 to 9),
            with `seg_train`/`seg_test`, with `train`/`test` (or `val`), with severity folders `0`..`5` alone that hold
            class folders, or with class folders. Images in subfolders of a class folder are the class's.
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
    name, apart = root.resolve().name, _split_folders(root)
    if split in apart:
        inner = apart[split]
        # The published archive nests the folder once more: seg_train/seg_train/<class>.
        inner = inner / inner.name if _folders(inner) == [inner / inner.name] else inner
        return _checked(_load_folder(inner, name, shape), skip_broken)
    if split == "train" or has_splits(root):
        # Without splits the images to train on would be those to test on.
        raise DataError(
            f"{root} has no {split} split apart; expected {_SPLIT_FOLDERS['train'][0]}/<class> and "
            f"{_SPLIT_FOLDERS['test'][0]}/<class>, train/<class> and test/<class>, or idx files as Fashion-MNIST has. "
            "Of class folders alone a config may keep some for the test, held_out: 0.2"
        )
    if _has_severities(root):
        return _checked(_load_severities(root, name, shape), skip_broken)
    return _checked(_load_folder(root, name, shape), skip_broken)


def hold_out(data: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Divide images into those to train on and those to test on: of every class alike, each time the same.

    Args:
        data: of a folder without splits.
        share: of every class, 0 to 1, that is kept for the test.

    Raises:
        DataError: a class has too few images for both, or the images are corrupted already.
    """
    if data.severities is not None:
        raise DataError(f"{data.name} holds images of several severities; training needs them as they were before")
    kept = np.zeros(len(data), bool)
    for label, class_name in enumerate(data.class_names):
        rows = np.flatnonzero(data.labels == label)
        count = max(1, round(share * len(rows)))
        if count >= len(rows):
            raise DataError(f"{data.name}: {len(rows)} images of {class_name} are too few to keep {share:.0%} of them")
        kept[np.random.Generator(np.random.PCG64(label)).permutation(rows)[:count]] = True
    training, test = (replace(data, images=data.images[part], labels=data.labels[part]) for part in (~kept, kept))
    return training, replace(test, broken=())


def files_digest(root: Path) -> str:
    """Sha256 of the paths and sizes of all images below class folders: other files, another digest."""
    digest = hashlib.sha256()
    for folder in _folders(root):
        for file in _files_of_class(folder):
            digest.update(
                f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode(errors="surrogateescape")
            )
    return digest.hexdigest()


def _checked(data: Dataset, skip_broken: bool) -> Dataset:
    """Raise where something was left out, unless that was asked for and something remains."""
    if data.broken and not (skip_broken and len(data)):
        listed = "\n  ".join(data.broken)
        count = f"{len(data.broken)} unusable image{'s' * (len(data.broken) > 1)}"
        advice = "mend or remove them, or leave them out with --skip-broken" if len(data) else "no image is left"
        raise BrokenImagesError(f"{data.name} has {count}; {advice}:\n  {listed}")
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


def has_splits(root: Path) -> bool:
    """Whether a data set keeps images to train on and images to test on apart."""
    idx = any(_find_idx(root, split, "images-idx3-ubyte") is not None for split in ("train", "test"))
    return idx or bool(_split_folders(root))


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits: of both, or of one with no other beside it, since a class may be called train too."""
    there = {
        split: [root / name for name in names if (root / name).is_dir()] for split, names in _SPLIT_FOLDERS.items()
    }
    found = {split: folders[0] for split, folders in there.items() if folders}
    return found if len(found) == len(_SPLIT_FOLDERS) or _folders(root) == list(found.values()) else {}


def _has_severities(root: Path) -> bool:
    """Whether all folders are severities that hold class folders; classes may be called 0 to 5 as well."""
    folders = _folders(root)
    named = {str(level) for level in range(SEVERITIES)} >= {folder.name for folder in folders}
    return named and any(entry.is_dir() for folder in folders for entry in folder.iterdir())


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
    known = labels < _IDX_CLASSES
    wrong = tuple(f"{label_file}, image {i} (label {labels[i]}; expected 0 to 9)" for i in np.flatnonzero(~known))
    names, name = tuple(map(str, range(_IDX_CLASSES))), root.resolve().name
    if labels[: len(_FASHION_LABELS[split])].tolist() == _FASHION_LABELS[split]:
        names, name = FASHION_CLASSES, "fashion-mnist"
    return Dataset(images[known], labels[known].astype(np.int64), names, name, broken=wrong)


def _load_severities(root: Path, name: str, shape: Shape | None) -> Dataset:
    parts: list[tuple[int, Dataset]] = []
    paths: list[str] = []
    broken: list[str] = []
    for level in range(SEVERITIES):
        folder = root / str(level)
        if folder.is_dir():
            part, files = _read_folder(folder, name, shape)
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
                paths += (file.relative_to(folder).with_suffix("").as_posix() for file in files)
    if not parts:
        return Dataset(np.zeros((0, 0, 0, 0), np.uint8), np.zeros(0, np.int64), (), name, broken=tuple(broken))
    return Dataset(
        np.concatenate([part.images for _, part in parts]),
        np.concatenate([part.labels for _, part in parts]),
        parts[0][1].class_names,
        name,
        np.concatenate([np.full(len(part), level, dtype=np.int64) for level, part in parts]),
        np.unique(paths, return_inverse=True)[1],
        tuple(broken),
    )


def _load_folder(folder: Path, name: str, shape: Shape | None) -> Dataset:
    return _read_folder(folder, name, shape)[0]


def _read_folder(folder: Path, name: str, shape: Shape | None) -> tuple[Dataset, list[Path]]:
    """Read <class>/**/<image>, and say which files these are; whatever cannot be used is left out and listed."""
    classes = [entry.name for entry in _folders(folder)]
    if not classes:
        raise DataError(f"{folder} has no class folders; expected <class>/<image>.png inside it")
    stray = sorted(entry for entry in folder.iterdir() if _looks_like_image(entry) and not entry.is_dir())
    broken = [f"{file} (in no class folder, so it has no label)" for file in stray]
    files = {class_name: _files_of_class(folder / class_name) for class_name in classes}
    empty = [str(folder / class_name) for class_name in classes if not files[class_name]]
    if empty:
        raise DataError(f"{', '.join(empty)}: holds no images; remove the folder or fill it")
    decoded: list[tuple[Path, int, NDArray[np.uint8]]] = []
    remarks: list[LoadFailure] = []
    for label, class_name in enumerate(classes):
        for file in files[class_name]:
            try:
                said: list[str] = []
                decoded.append((file, label, _decode(file, shape, said.append)))
                remarks += (LoadFailure(file, remark) for remark in said)
            except DataError as error:
                broken.append(f"{file} ({str(error).removeprefix(f'{file}: ')})")
    warn_of(remarks)
    usual = Counter(image.shape for _, _, image in decoded).most_common(1)[0][0] if decoded else (0, 0, 0)
    broken += [
        f"{file} (is {_size(image.shape)}, most are {_size(usual)}: a shape, image_shape in a config, converts them)"
        for file, _, image in decoded
        if image.shape != usual
    ]
    fitting = [each for each in decoded if each[2].shape == usual]
    images = np.stack([image for _, _, image in fitting]) if fitting else np.zeros((0, *usual), np.uint8)
    labels = np.asarray([label for _, label, _ in fitting], np.int64)
    return Dataset(images, labels, tuple(classes), name, broken=tuple(broken)), [file for file, _, _ in fitting]


def _size(shape: tuple[int, ...]) -> str:
    """Height, width and channels, such as "150 x 113 x 3"."""
    return " x ".join(str(side) for side in shape)


def _files_of_class(folder: Path) -> list[Path]:
    """Image files in a class folder and below, in the order of their paths."""
    above = folder.parent.resolve()
    # A link up to these would bring in other classes.
    walked = {above, *above.parents, *folder.resolve().parents}
    return sorted(_walk(folder, walked))


def _walk(folder: Path, walked: set[Path]) -> Iterator[Path]:
    """Follow links too, but read no folder twice, so that links in a circle end."""
    real = folder.resolve()
    if real in walked:
        return
    walked.add(real)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            if entry.name[0] != ".":
                yield from _walk(entry, walked)
        elif _looks_like_image(entry):
            yield entry


def _looks_like_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    return (suffix in SUFFIXES or suffix in UNREAD_SUFFIXES) and not is_of_macos(path.name)


def _decode(file: Path, shape: Shape | None, remark: Callable[[str], None]) -> NDArray[np.uint8]:
    """One image as uint8 [H, W, C], as `trt-moe predict` decodes it; without a shape as the file is."""
    if file.suffix.lower() not in SUFFIXES:
        raise DataError(f"{file.suffix} files are not read: convert it to PNG or JPEG")
    return decode_image(file, shape, remark)
