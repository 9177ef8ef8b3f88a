"""Images, of files and of memory, to the arrays that a bundle's models take, by one fixed transform.

The transform: decode a file's first frame, turn it upright by its EXIF orientation, convert to the bundle's
channels (1: grey by ITU-R 601 luma, 3: RGB, 4: RGBA; 16-bit greys keep their upper 8 bits), and resize to
the bundle's height and width with Pillow's bilinear filter (which averages when it shrinks), without
keeping the aspect ratio. Images that have the bundle's size already are not resampled.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from trt_moe.bundle import Bundle
from trt_moe.errors import DataError, InputError

PathLike: TypeAlias = str | os.PathLike[str]
_Content: TypeAlias = bytes | bytearray | memoryview
Source: TypeAlias = PathLike | _Content | BinaryIO | Image.Image | NDArray[np.uint8]
"""An image: a file's path or content, Pillow's, or uint8 [H, W] or [H, W, 1, 3 or 4] with red first."""

_log = logging.getLogger("trt_moe")

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: a few kilobytes can declare gigabytes."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".gif"}
)
"""What counts as an image file when a folder is given."""

# Only decoders that run inside Pillow: EPS, for one, would start an interpreter on the file. JPEG covers the
# multi-picture files of phones.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY_MODES = ("1", "L", "I", "I;16", "I;16B", "F")
_TWELVE_BITS = 1 << 12
_SIXTEEN_BITS = 1 << 16
_NAMED_FAILURES = 8
_EXPECTED = "expected paths, bytes or file objects of images, Pillow's images or uint8 arrays"


@dataclass(frozen=True)
class LoadFailure:
    """A file, and why it or a part of it is not read; what lies in memory is called "image 3", counted from 0."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """Path and reason in one line."""
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class LoadedImages:
    """What could be read, and what could not.

    Attributes:
        images: uint8 [N, H, W, C], the readable ones in the order they were given.
        paths: their N paths, or names as `LoadFailure` has them.
        failures: the others.
        remarks: what was not read of the readable ones: transparency, further frames, lower bits.
    """

    images: NDArray[np.uint8]
    paths: tuple[Path, ...]
    failures: tuple[LoadFailure, ...]
    remarks: tuple[LoadFailure, ...]


@overload
def load_images(
    images: Source | Iterable[Source], bundle: Bundle | PathLike, *, on_error: Literal["raise"] = "raise"
) -> NDArray[np.uint8]: ...


@overload
def load_images(
    images: Source | Iterable[Source], bundle: Bundle | PathLike, *, on_error: Literal["skip"]
) -> LoadedImages: ...


def load_images(
    images: Source | Iterable[Source], bundle: Bundle | PathLike, *, on_error: Literal["raise", "skip"] = "raise"
) -> NDArray[np.uint8] | LoadedImages:
    """Decode images and resize them to the bundle's input, as its evaluation did.

    Args:
        images: one image or several, each a path, the bytes of a file or a file object, an image of Pillow's, or a
            uint8 array [H, W] or [H, W, C] of 1, 3 (red first; of OpenCV's frames pass frame[..., ::-1]) or 4 channels.
        bundle: gives height, width and channels; the bundle, its folder or the name of a shipped one.
        on_error: "raise" names every unreadable image in one error; "skip" answers the others.

    Returns:
        uint8 [N, H, W, C] in the order of `images`; with "skip" a `LoadedImages`, which names the failures. What is
        not read of an image (transparency, further frames) is logged; with "skip" it is in `LoadedImages.remarks`.

    Raises:
        DataError: one is not a readable image (with "raise").
        InputError: no images, something that is none of these, or another `on_error`.
    """
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
    sources = _listed_sources(images)
    if not sources:
        raise InputError("no images were given; expected at least one")
    shape = (bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)).input_shape
    decoded: list[NDArray[np.uint8]] = []
    good: list[Path] = []
    failures: list[LoadFailure] = []
    remarks: list[LoadFailure] = []
    for index, source in enumerate(sources):
        path = Path(source) if isinstance(source, str | os.PathLike) else Path(f"image {index}")
        try:
            said: list[str] = []
            decoded.append(decode_image(source, shape, said.append, path))
            good.append(path)
            remarks += (LoadFailure(path, remark) for remark in said)
        except (DataError, InputError) as error:
            if isinstance(error, InputError) and on_error == "raise":
                raise
            failures.append(LoadFailure(path, str(error).removeprefix(f"{path}: ")))
    if on_error == "raise":
        if failures:
            raise DataError(f"{len(failures)} of {len(sources)} images cannot be read: {_listed(failures)}")
        warn_of(remarks)
        return np.stack(decoded)
    stacked = np.stack(decoded) if decoded else np.empty((0, *shape), np.uint8)
    return LoadedImages(stacked, tuple(good), tuple(failures), tuple(remarks))


def decode_image(
    source: Source,
    shape: tuple[int, int, int] | None,
    remark: Callable[[str], None] = lambda text: None,
    name: Path | None = None,
) -> NDArray[np.uint8]:
    """One image as uint8 [height, width, channels] = `shape`, by the transform of this module.

    Without a shape it keeps its size, and is grey (one channel) where the file is, else RGB. What is not read of it is
    told to `remark`. `name` is what messages call it, if not by its path.

    Raises:
        DataError: missing, no regular file, of no known format, damaged, or of over 100 million pixels.
        InputError: an array of another dtype or shape, or no image at all.
    """
    file = name or Path(source if isinstance(source, str | os.PathLike) else "image")
    try:
        with _open(source, file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{file}: has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded"
                )
            if not image.width * image.height:
                raise DataError(f"{file}: has no pixels")
            # Further pictures in a phone's JPEG are previews and depths of the first.
            if image is not source and image.format != "MPO" and getattr(image, "is_animated", False):
                remark("has several frames; only the first is read")
            grey = image.mode in _GREY_MODES
            channels = shape[2] if shape is not None else 1 if grey else 3
            pixels = _convert(ImageOps.exif_transpose(image), _MODES[channels], remark)
    except (DataError, InputError):
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{file}: {_reason(file, error)}") from error
    except Exception as error:
        # Damaged files make Pillow's decoders raise nearly anything (struct.error, KeyError, ...).
        raise DataError(f"{file}: damaged image ({type(error).__name__}: {error})") from error
    height, width = (pixels.height, pixels.width) if shape is None else shape[:2]
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(pixels, dtype=np.uint8).reshape(height, width, channels)


def _listed_sources(images: Any) -> list[Any]:
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | _Content | Image.Image) or hasattr(images, "read"):
        return [images]
    if not isinstance(images, Iterable):
        raise InputError(f"images are {type(images).__name__}; {_EXPECTED}")
    return list(images)


def _open(source: Any, file: Path) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)  # the caller's, and not to be closed here
    if isinstance(source, np.ndarray):
        channels = source.shape[2] if source.ndim == 3 else 1
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or channels not in _MODES or source.size == 0:
            raise InputError(
                f"{file} is an array of {source.dtype} {list(source.shape)}; expected uint8 [height, width] or "
                "[height, width, channels] with 1, 3 or 4 channels (of channels first: np.moveaxis(image, 0, -1))"
            )
        return nullcontext(Image.fromarray(source if channels > 1 else source.reshape(source.shape[:2])))
    if isinstance(source, _Content):
        if len(source) == 0:
            raise DataError(f"{file}: the file is empty")
        return Image.open(BytesIO(source), formats=_FORMATS)
    if hasattr(source, "read"):
        return Image.open(source, formats=_FORMATS)
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"{file} is of type {type(source).__name__}; {_EXPECTED}")
    # Of a pipe or a device the end may never come.
    if not stat.S_ISREG(mode := file.stat().st_mode) and not stat.S_ISDIR(mode):
        raise DataError(f"{file}: is a pipe or a device; expected a regular file")
    return Image.open(file, formats=_FORMATS)


def warn_of(remarks: list[LoadFailure]) -> None:
    """Log what is not read of images; the first few by name."""
    if remarks:
        _log.warning("not all of the images is read: %s", _listed(remarks))


def find_images(paths: Iterable[PathLike]) -> tuple[list[Path], list[LoadFailure]]:
    """The image files that `paths` name, and the folders that cannot be read or hold no image.

    Files are taken as given, folders replaced by all images below them, sorted.
    """
    files: list[Path] = []
    failures: list[LoadFailure] = []

    def failed(error: OSError) -> None:
        failures.append(LoadFailure(Path(error.filename), f"the folder cannot be read ({error.strerror})"))

    for given in paths:
        path = Path(given)
        if not _is_folder(path):
            files.append(path)
            continue
        failures_before = len(failures)
        found = sorted(
            Path(folder, name)
            for folder, _, names in os.walk(path, onerror=failed)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not is_of_macos(name)
        )
        if not found and len(failures) == failures_before:
            failures.append(LoadFailure(path, f"holds no images; looked for {', '.join(sorted(SUFFIXES))}"))
        files += found
    return files, failures


def is_of_macos(name: str) -> bool:
    """Whether a file is what macOS keeps beside another one on foreign disks, under its name with "._" before it."""
    return name.startswith("._")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # Who opens it as an image is told why.
        return False


def _convert(image: Image.Image, mode: str, remark: Callable[[str], None]) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit greys at 255 instead of scaling them.
        values = np.asarray(image)
        if not 0 <= values.min() <= values.max() < _SIXTEEN_BITS:
            raise DataError("holds 32-bit values, whose range is unknown; save it with 8 or 16 bits")
        if 0 < (largest := int(values.max())) < _TWELVE_BITS:
            remark(
                f"has 16-bit values of at most {largest:,}, of which the upper 8 bits are read; scale them to 65,535"
            )
        image = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise DataError("holds float pixels, whose range is unknown; save it with 8 or 16 bits")
    elif mode != "RGBA" and image.has_transparency_data and _is_see_through(image):
        remark("is transparent in places, which are read as if they were opaque")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "LAB":  # Pillow knows no other way from it
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _is_see_through(image: Image.Image) -> bool:
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return bool(alpha.min() < 255)


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"has far too many pixels; at most {MAX_PIXELS:,} are decoded"
    if isinstance(error, UnidentifiedImageError):
        if file.is_file() and file.stat().st_size == 0:
            return "the file is empty"
        return f"not an image, or of a format that is not read ({', '.join(_FORMATS)} are)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"damaged image ({error})"


def _listed(failures: list[LoadFailure]) -> str:
    shown = "; ".join(str(failure) for failure in failures[:_NAMED_FAILURES])
    more = f"; and {len(failures) - _NAMED_FAILURES} more" if len(failures) > _NAMED_FAILURES else ""
    return f"{shown}{more}"
