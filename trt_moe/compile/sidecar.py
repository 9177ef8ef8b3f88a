"""What is written beside every engine: what was asked for, what came out, and how to tell one from another.

The engine file itself stays a plain TensorRT plan. Nothing in it is read before its sidecar was: without a GPU
TensorRT cannot open an engine, and what it says of a broken one is less than what is known here.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from trt_moe.bundle.manifest import ModelName, Sha256, Text
from trt_moe.compile.flavour import FlavourName, title

MAX_BUCKET = 1024
MAX_ENGINE_BYTES = 16 << 30

Precision = Literal["fp32", "fp16", "int8"]
Bucket = Annotated[int, Field(ge=1, le=MAX_BUCKET)]
Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class EngineSpec(_Section):
    """All that an engine depends on; two engines of the same spec are interchangeable.

    Attributes:
        model: its name in the bundle.
        source_sha256: of the bundle's ONNX file.
        samples_sha256: of what int8 is calibrated on and the accuracy gate judges by; None in fp32.
        precision: what the graph computes in.
        gate: what happened, or would have, below the accuracy gate's threshold.
        buckets: batch sizes, ascending; optimisation profile i is for exactly `buckets[i]` images.
        flavour: which TensorRT.
        flavour_version: of that.
        device: what it runs on: a GPU's name, or compute capabilities such as "8.6 8.9", or "default" for
            all that TensorRT-RTX builds for when not told.
        platform: operating system and CPU architecture; TensorRT's engines run on no other.
        version_compatible: later versions of TensorRT can run it; it embeds host code.
        hardware_compatible: every GPU from Ampere on can run it.
        conversion: sha256 of the code that turns the bundle's ONNX into the one TensorRT gets.
    """

    model: ModelName
    source_sha256: Sha256
    samples_sha256: Sha256 | None
    precision: Precision
    gate: Literal["fallback", "fail"]
    buckets: Annotated[tuple[Bucket, ...], Field(min_length=1)]
    flavour: FlavourName
    flavour_version: Text
    device: Text
    platform: Text
    version_compatible: bool = False
    hardware_compatible: bool = False
    conversion: Sha256

    @property
    def stem(self) -> str:
        """Name of the engine's files in the cache, without their suffixes."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return f"{self.model}-{self.precision}-{digest[:24]}"

    def converts_like(self, other: EngineSpec) -> bool:
        """Whether both are built from the same ONNX in the same precision, converted by the same code."""
        names = ("source_sha256", "samples_sha256", "precision", "gate", "conversion")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def difference(self, asked: EngineSpec) -> str | None:
        """In what this, found in a cache, is not what is `asked`; None where they agree."""
        if (self.flavour, self.flavour_version) != (asked.flavour, asked.flavour_version):
            found = title(self.flavour, self.flavour_version)
            return f"it was built by {found}, installed is {title(asked.flavour, asked.flavour_version)}"
        if self.source_sha256 != asked.source_sha256:
            return (
                f"it was built from another ONNX file (sha256 {self.source_sha256[:12]}.., "
                f"the bundle's has {asked.source_sha256[:12]}..)"
            )
        if self.samples_sha256 != asked.samples_sha256:
            return "the samples or costs that its accuracy was judged by have changed since it was built"
        if self.conversion != asked.conversion:
            return "the code that converts models has changed since it was built"
        for name, wanted in asked:
            if (value := getattr(self, name)) != wanted:
                return f"its {name} is {_short(value)}, asked is {_short(wanted)}"
        return None


class Port(_Section):
    """An input or output: its name, dtype such as "uint8", and shape with -1 for the batch."""

    name: Text
    dtype: Text
    shape: list[int]


class Sidecar(_Section):
    """All of the JSON file beside an engine.

    Attributes:
        spec: what was asked for.
        inputs, outputs: from the network definition.
        engine_sha256, engine_bytes: of the engine file.
        onnx_sha256: of the ONNX that TensorRT was given.
        opset: of that ONNX.
        layers: of the network, as TensorRT parsed it.
        host_code: the engine holds code that runs on the CPU.
        options: settings of the builder that took hold, by name.
        prepare_seconds: of the conversion and the accuracy gate.
        build_seconds: of TensorRT.
        gate_report: of the accuracy gate; None in fp32, where there is nothing to compare.
        engine_report: of the engine itself, on the GPU where it was built; None where it did not run.
        trt_moe_version: that wrote this.
    """

    schema_version: Literal[1] = 1
    spec: EngineSpec
    inputs: Annotated[list[Port], Field(min_length=1)]
    outputs: Annotated[list[Port], Field(min_length=1)]
    engine_sha256: Sha256
    engine_bytes: Annotated[int, Field(ge=1, le=MAX_ENGINE_BYTES)]
    onnx_sha256: Sha256
    opset: Count
    layers: Count
    host_code: bool
    options: dict[Text, JsonValue]
    prepare_seconds: Annotated[float, Field(ge=0.0)]
    build_seconds: Annotated[float, Field(ge=0.0)]
    gate_report: dict[Text, JsonValue] | None
    engine_report: dict[Text, JsonValue] | None = None
    trt_moe_version: Text


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}.."
