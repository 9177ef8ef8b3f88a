"""A bundle on disk: found, validated and read."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_moe.bundle.manifest import GOLDEN_IMAGES_KEY, Manifest, ModelEntry, VerifyBy, parse_manifest
from trt_moe.bundle.onnx_scan import check_io, scan_file
from trt_moe.bundle.safety import (
    MAX_NPZ_BYTES,
    MAX_ONNX_BYTES,
    check_sha256,
    inside,
    read_bounded,
    read_json,
    sha256_file,
)
from trt_moe.bundle.writer import MANIFEST_FILE
from trt_moe.errors import BundleError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Bundle:
    """A validated bundle: a gater, two or more experts from cheapest to dearest, and what is known of them.

    Make one with `Bundle.load`. Bundles are treated as untrusted input: nothing outside the folder is read,
    sizes are bounded, every file is checked against the sha256 of the manifest, and nothing is unpickled.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Wrap a manifest whose files were not checked yet; use `load`, which checks them."""
        self._path = path
        self._manifest = manifest
        self._verified: dict[str, tuple[int, int, int, int]] = {}
        self._scanned: set[str] = set()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Find and validate a bundle: manifest, presence, size and sha256 of every file.

        Args:
            path: the bundle's folder, or the name of a shipped bundle such as "fashion-mnist".

        Raises:
            BundleError: not found, damaged, unsafe, or of a schema that this version cannot read.
        """
        root = _find(path)
        where = f"{root}/{MANIFEST_FILE}"
        manifest = parse_manifest(read_json(inside(root, MANIFEST_FILE), where), where)
        bundle = cls(root, manifest)
        for entry in manifest.all_models():
            bundle.file(entry)
        if manifest.golden is not None:
            bundle._verify(manifest.golden.file, manifest.golden.sha256, MAX_NPZ_BYTES)
        return bundle

    def __repr__(self) -> str:
        """Name, path and experts."""
        return f"Bundle({self.name!r}, {str(self._path)!r}, experts={[entry.name for entry in self.experts]})"

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self._path

    @property
    def manifest(self) -> Manifest:
        """All that `bundle.json` says."""
        return self._manifest

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self._manifest.name

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the experts' logits."""
        return list(self._manifest.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the uint8 images that every model takes."""
        spec = self._manifest.input
        return spec.height, spec.width, spec.channels

    @property
    def latency_weight(self) -> float:
        """The latency weight to route with unless told otherwise."""
        return self._manifest.latency_weight

    @property
    def verify_below(self) -> float:
        """The confidence below which an expert's answer is verified, unless told otherwise."""
        return self._manifest.verify_below

    @property
    def verify_by(self) -> VerifyBy:
        """How it is verified, unless told otherwise: "dearest" or "mirror"."""
        return self._manifest.verify_by

    @property
    def gater(self) -> ModelEntry:
        """The model that scores the experts."""
        return self._manifest.gater

    @property
    def experts(self) -> list[ModelEntry]:
        """The experts, from the cheapest to the dearest."""
        return list(self._manifest.experts)

    @property
    def baselines(self) -> list[ModelEntry]:
        """Models to compare with, never routed to."""
        return list(self._manifest.baselines)

    def models(self) -> list[ModelEntry]:
        """The gater and the experts: what a router needs."""
        return [self._manifest.gater, *self._manifest.experts]

    @property
    def corruption(self) -> dict[str, Any]:
        """Arguments of `trt_moe.data.corrupt` that corrupt as the training did; empty where none is told."""
        training = self._manifest.training
        return training.corruption.model_dump() if training else {}

    def entry(self, name: str) -> ModelEntry:
        """The gater, expert or baseline called `name`.

        Raises:
            InputError: there is none; near matches are named.
        """
        entries = {entry.name: entry for entry in self._manifest.all_models()}
        if name in entries:
            return entries[name]
        near = difflib.get_close_matches(str(name), entries, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(entries)}"
        raise InputError(f"{self._path}: no model is called {name!r}; {hint}")

    def outputs(self, entry: ModelEntry) -> int:
        """Number of logits the model gives: experts for the gater, classes for all others."""
        is_gater = entry.name == self._manifest.gater.name
        return len(self._manifest.experts) if is_gater else len(self._manifest.class_names)

    def file(self, entry: ModelEntry) -> Path:
        """Path of a model's ONNX file, checked again where it changed since it was last checked.

        Raises:
            BundleError: missing, outside the bundle, over 2 GiB, of another sha256, or not an ONNX model in
                one file that takes the bundle's images and gives its logits.
        """
        path = self._verify(entry.file, entry.sha256, MAX_ONNX_BYTES)
        if entry.name not in self._scanned:
            what = f"{self._path}/{entry.file}"
            check_io(scan_file(path, what), self.input_shape, self.outputs(entry), what)
            self._scanned.add(entry.name)
        return path

    def read(self, entry: ModelEntry) -> bytes:
        """A model's ONNX file; the sha256 is checked on the bytes that are returned.

        Raises:
            BundleError: as `file`.
        """
        data = read_bounded(inside(self._path, entry.file), MAX_ONNX_BYTES, f"{self._path}/{entry.file}")
        check_sha256(self._path, entry.file, entry.sha256, hashlib.sha256(data).hexdigest())
        return data

    def golden(self) -> dict[str, NDArray[Any]]:
        """Golden arrays: "images" uint8 [G, H, W, C], and float32 [G, K] logits by model name.

        Every model of `models()` is there, baselines may be.

        Raises:
            BundleError: the manifest names no golden file, or the file is damaged or of other shapes.
        """
        import numpy as np

        from trt_moe.bundle.npz import read_npz

        golden = self._manifest.golden
        if golden is None:
            raise BundleError(f"{self._path}: has no golden file; rebuild the bundle with `trt-moe pack`")
        path = self._verify(golden.file, golden.sha256, MAX_NPZ_BYTES)
        required = [GOLDEN_IMAGES_KEY, *(entry.name for entry in self.models())]
        optional = [entry.name for entry in self.baselines]
        arrays = read_npz(path, required, optional, self._check_golden, f"{self._path}/{golden.file}")
        count = len(arrays[GOLDEN_IMAGES_KEY])
        for name, values in arrays.items():
            if len(values) != count or count == 0:
                raise BundleError(
                    f"{path}: array {name} has {len(values)} rows, images {count}; expected as many, not 0"
                )
            if values.dtype == np.float32 and not np.isfinite(values).all():
                raise BundleError(f"{path}: array {name} has values that are not finite")
        return arrays

    def samples(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """The bundle's test images, ordered by severity, class, file name.

        Returns:
            images uint8 [N, H, W, C], labels int64 [N], severities int64 [N].

        Raises:
            BundleError: the manifest names none, or an image is unreadable, of another size or surplus.
        """
        from trt_moe.bundle.samples import read_samples

        samples = self._manifest.samples
        if samples is None:
            raise BundleError(
                f"{self._path}: has no samples; give images of your own (`trt-moe predict`, `trt-moe eval`)"
            )
        return read_samples(self._path, samples, self._manifest.class_names, self.input_shape)

    def _check_golden(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str | None:
        import numpy as np

        expected_dtype: np.dtype[Any]
        if name == GOLDEN_IMAGES_KEY:
            expected_dtype, tail = np.dtype(np.uint8), self.input_shape
        else:
            expected_dtype, tail = np.dtype("<f4"), (self.outputs(self.entry(name)),)  # type: ignore[assignment]
        if dtype != expected_dtype or shape[1:] != tail or len(shape) != 1 + len(tail):
            return f"is {dtype} {shape}; expected {expected_dtype} (G, {', '.join(map(str, tail))})"
        return None

    def _verify(self, relative: str, sha256: str, limit: int) -> Path:
        path = inside(self._path, relative)
        status = path.stat()
        if status.st_size > limit:
            raise BundleError(f"{path}: has {status.st_size:,} bytes; at most {limit:,} are read")
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._verified.get(relative) != identity:
            try:
                found = sha256_file(path)
            except OSError as error:
                raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from error
            check_sha256(self._path, relative, sha256, found)
            self._verified[relative] = identity
        return path


def shipped_folders() -> list[Path]:
    """Folders that may hold shipped bundles: the checkout's `engines`, and beside the installed package."""
    import importlib.util

    package = Path(__file__).resolve().parents[1]
    # A checkout first: what was installed from it may be older.
    folders = [package.parent / "engines"] if (package.parent / "CMakeLists.txt").is_file() else []
    folders.append(package / "engines")
    spec = importlib.util.find_spec("trt_moe._core")
    if spec is not None and spec.origin:
        folders.append(Path(spec.origin).parent / "engines")
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def shipped_bundles() -> dict[str, Path]:
    """The bundles that came with the package, by name."""
    found: dict[str, Path] = {}
    for folder in shipped_folders():
        for manifest in sorted(folder.glob(f"*/{MANIFEST_FILE}")):
            found.setdefault(manifest.parent.name, manifest.parent)
    return found


def _find(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise BundleError(
            f"the bundle is a {type(path).__name__}; give a bundle's folder, or a name such as fashion-mnist"
        )
    root = Path(path)
    try:
        if root.is_file() and root.name == MANIFEST_FILE:
            return root.parent
        if (root / MANIFEST_FILE).exists():
            return root
    except OSError as error:  # too long a name, or no right to look
        raise BundleError(
            f"{str(root)[:80]} cannot be looked into ({error.strerror}); give a bundle's folder"
        ) from None
    # A folder that only happens to be called like a shipped bundle, such as its data set, does not hide it.
    shipped = shipped_bundles()
    name = os.fspath(path).rstrip("/")  # which shells add
    if name in shipped:
        return shipped[name]
    known = f"shipped bundles: {', '.join(shipped) or 'none'}"
    if root.is_dir():
        raise BundleError(
            f"{root} is no bundle, it holds no {MANIFEST_FILE}; give a bundle's folder, or a name; {known}"
        )
    if root.exists():
        raise BundleError(f"{root} is a file; expected a bundle's folder (it holds {MANIFEST_FILE})")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else known
        raise BundleError(f"no folder and no shipped bundle is called {name!r}; {hint}")
    raise BundleError(f"{root} does not exist; give a bundle's folder, or a name; {known}")
