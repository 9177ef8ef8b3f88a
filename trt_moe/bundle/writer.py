"""Writing bundles: the manifest and the golden file, never half of either."""

from __future__ import annotations

import io
import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_moe.bundle.manifest import GOLDEN_IMAGES_KEY, Manifest
from trt_moe.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST_FILE = "bundle.json"


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever interrupts; readers see the old one or the new one."""
    # Beside the target, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_manifest(path: str | Path, manifest: Manifest) -> Path:
    """Write `bundle.json` atomically and return its path.

    Args:
        path: the bundle's folder, or the file itself.
        manifest: what to write; it was validated when it was made.
    """
    target = Path(path)
    if target.is_dir():
        target = target / MANIFEST_FILE
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(target, text.encode() + b"\n")
    return target


def write_golden(path: str | Path, images: NDArray[np.uint8], logits: Mapping[str, NDArray[np.float32]]) -> Path:
    """Write golden inputs and the logits of each model atomically; the same arrays give the same bytes.

    Args:
        path: the npz file.
        images: uint8 [G, H, W, C].
        logits: by model name (gater included), float32 [G, K].

    Raises:
        InputError: wrong dtype, rank or number of rows, or values that are not finite.
    """
    import numpy as np

    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise InputError(f"golden images are {images.dtype} {images.shape}; expected uint8 [G, H, W, C] with G >= 1")
    arrays: dict[str, NDArray[Any]] = {GOLDEN_IMAGES_KEY: images}
    for name, values in logits.items():
        if values.dtype != np.float32 or values.ndim != 2 or len(values) != len(images):
            raise InputError(
                f"golden logits of {name} are {values.dtype} {values.shape}; expected float32 [{len(images)}, K]"
            )
        if not np.isfinite(values).all():
            raise InputError(f"golden logits of {name} are not finite; the model is broken")
        arrays[name] = values
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(values), allow_pickle=False)
            # ZipInfo's default date (1980) keeps the file reproducible, so its sha256 says something.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, member.getvalue())
    write_bytes(Path(path), buffer.getvalue())
    return Path(path)
