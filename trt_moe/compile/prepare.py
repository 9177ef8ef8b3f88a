"""A bundle's ONNX file as TensorRT gets it: in the wanted precision, past the accuracy gate, in an opset it reads."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_moe.bundle import Bundle, ModelEntry, sha256_file
from trt_moe.bundle.safety import inside
from trt_moe.compile.flavour import Flavour
from trt_moe.compile.sidecar import EngineSpec, Sidecar
from trt_moe.errors import BundleError, EngineBuildError, MissingDependencyError, ModelOutputError

if TYPE_CHECKING:
    from onnx import ModelProto

    from trt_moe.compile.gate import GateReport

FIRST_WITH_NEW_OPSET = (10, 13)
"""The `tensorrt` of JetPack 7; older ones, such as JetPack 6's 10.3, get the model in an older opset."""

# All that decides what comes out of the bundle's ONNX file: an engine of other code is another engine.
_CODE = ("builder.py", "gate*.py", "half.py", "int8.py", "opset.py", "prepare.py")


@dataclass(frozen=True)
class Prepared:
    """The model for the parser, and what `Sidecar` says of it."""

    onnx: bytes
    opset: int
    gate_report: dict[str, Any] | None
    seconds: float


def conversion_digest() -> str:
    """Sha256 of the code of this conversion."""
    digest = hashlib.sha256()
    for pattern in _CODE:
        for file in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def samples_digests(bundle: Bundle) -> dict[str, str]:
    """By model, sha256 of what the gate and the calibration go by besides the model: images, labels, corruption, costs.

    Raises:
        BundleError: an image leads out of the bundle, or cannot be read.
    """
    manifest = bundle.manifest
    # None, not {}, where nothing is known: engines that are cached stay valid.
    seen = hashlib.sha256(json.dumps([manifest.class_names, bundle.corruption or None]).encode())
    if manifest.samples is None:
        seen.update(manifest.golden.sha256.encode() if manifest.golden else b"")
    else:
        root = bundle.path.resolve()
        for file in sorted(root.joinpath(manifest.samples.folder).glob("*/*/*.png")):
            relative = file.relative_to(root).as_posix()
            try:
                found = sha256_file(inside(root, relative))
            except OSError as error:
                raise BundleError(f"{file}: cannot be read ({error.strerror or error})") from error
            seen.update(os.fsencode(f"{relative}\0{found}\0"))
    digests = dict.fromkeys((entry.name for entry in bundle.models()), seen.hexdigest())
    # The gater is judged by its routes, which the costs decide with it.
    seen.update(json.dumps([bundle.latency_weight, [entry.relative_cost for entry in bundle.experts]]).encode())
    return digests | {bundle.gater.name: seen.hexdigest()}


def prepare(
    bundle: Bundle, entry: ModelEntry, spec: EngineSpec, flavour: Flavour, earlier: Sidecar | None = None
) -> Prepared:
    """Convert one model of a bundle.

    Args:
        bundle: that has the model.
        entry: the model.
        spec: what is built.
        flavour: that will parse it.
        earlier: of an engine that `EngineSpec.converts_like` this one, for another device or other buckets; if the same
            graph comes out, it is not judged again.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
        EngineBuildError: the model cannot be converted, or misses the accuracy gate and was to fail then.
        ModelOutputError: the bundle's model itself gives logits that are not finite.
        BundleError: the model's file is damaged.
    """
    try:
        import onnx

        from trt_moe.compile import half
    except ImportError as error:
        raise MissingDependencyError(
            f"building engines needs the packages onnx and onnxruntime ({error}); in the checkout: pip install '.[rtx]'"
        ) from error
    if spec.precision == "int8" and _reads_old_opset(flavour):
        raise EngineBuildError(
            f"{bundle.path}: {entry.name} in int8: {flavour} reads ONNX opset 17, where the scales of int8 cannot be "
            f"float16; build it in fp16, or with TensorRT {'.'.join(map(str, FIRST_WITH_NEW_OPSET))} or later"
        )
    start = time.perf_counter()
    try:
        model = onnx.load_from_string(bundle.read(entry))
        known = None if earlier is None else _repeat(model, flavour, earlier)
        converted, report = known or _convert(model, bundle, entry, spec)
        final = _readable(converted, flavour)
    except (EngineBuildError, ModelOutputError) as error:
        raise type(error)(f"{bundle.path}: {entry.name} in {spec.precision}: {error}") from error
    gate_report = None if report is None else report.model_dump(mode="json")
    seconds = time.perf_counter() - start
    return Prepared(final.SerializeToString(), half.opset_version(final), gate_report, seconds)


def _convert(
    model: ModelProto, bundle: Bundle, entry: ModelEntry, spec: EngineSpec
) -> tuple[ModelProto, GateReport | None]:
    from trt_moe.compile import gate, half, int8

    if spec.precision == "fp32":
        return half.prepare(model), None
    samples = gate.Samples.of(bundle, entry)
    images = None
    if spec.precision == "int8":
        shipped = 0 if bundle.manifest.samples is None else len(samples.images)
        if shipped < 2:
            raise EngineBuildError(
                f"int8 is calibrated on one half of the sample images and judged by the other, and the bundle ships "
                f"{shipped or 'none'}; give some to `trt-moe pack` (--samples), or build it in fp16"
            )
        calibration, samples = samples.halves()
        images = calibration.of_all_severities(bundle)

    def convert(model: ModelProto, keep_float32: Collection[str] = ()) -> ModelProto:
        quantized = model if images is None else int8.quantize(model, images, keep_float32)
        return half.to_half(quantized, keep_float32)

    if spec.gate == "fallback":
        return gate.rescue(model, samples, convert=convert)
    converted = convert(model)
    report = gate.check(model, converted, samples)
    if not report.passed:
        raise EngineBuildError(f"it misses the accuracy gate: {'; '.join(report.failures)}; build it in fp32")
    return converted, report


def _repeat(model: ModelProto, flavour: Flavour, earlier: Sidecar) -> tuple[ModelProto, GateReport] | None:
    """The graph and report of an earlier engine, where the conversion gives that very graph again."""
    from trt_moe.compile import gate, half

    if earlier.spec.precision != "fp16":
        return None
    report = gate.GateReport.model_validate(earlier.gate_report)
    converted = half.to_half(model, report.float32_layers)
    found = hashlib.sha256(_readable(converted, flavour).SerializeToString()).hexdigest()
    return (converted, report) if found == earlier.onnx_sha256 else None


def _reads_old_opset(flavour: Flavour) -> bool:
    return not flavour.is_rtx and flavour.release < FIRST_WITH_NEW_OPSET


def _readable(model: ModelProto, flavour: Flavour) -> ModelProto:
    """The model in an opset that the flavour's parser reads."""
    from trt_moe.compile.opset import lower

    return lower(model) if _reads_old_opset(flavour) else model
