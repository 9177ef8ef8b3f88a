"""The schema of `bundle.json`: what a bundle says about itself, checked field by field."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from trt_moe.errors import BundleError

SCHEMA_VERSION = "1.0"
"""Version that this package writes. A new minor version adds optional fields, a new major breaks readers."""

GOLDEN_IMAGES_KEY = "images"
"""Name of the input array in `golden.npz`; so no model may be called that."""
MIXTURE = "mixture"
"""Name of the gater and experts together in latency tables; so no model may be called that."""

MAX_EXPERTS = 256
MAX_CLASSES = 100_000
MAX_SIDE = 8192
MAX_LATENCY_WEIGHT = 1e6
RESERVED_MODEL_NAMES = frozenset({GOLDEN_IMAGES_KEY, MIXTURE, "file"})
_DEAREST_TOLERANCE = 1e-6


def _printable(text: str) -> str:
    # Manifests come from strangers and are printed: escape sequences would reach the user's terminal.
    if not text.isprintable():
        raise ValueError("has control characters")
    return text


def _relative_file(text: str) -> str:
    parts = text.split("/")
    if text.startswith(("/", "~")) or "\\" in text or ":" in text:
        raise ValueError("is not a relative path with forward slashes")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("leaves the bundle or is not normalised ('..', '.', '//' are refused)")
    return _printable(text)


def _class_name(text: str) -> str:
    # Class names are folder names in samples/ and in image folders.
    if "/" in text or "\\" in text or text.startswith(".") or text != text.strip():
        raise ValueError("cannot be a folder name (no slashes, no leading dot, no outer blanks)")
    return _printable(text)


def _model_name(text: str) -> str:
    if text in RESERVED_MODEL_NAMES:
        raise ValueError("is reserved; rename the model")
    return text


Text = Annotated[str, Field(max_length=4096), AfterValidator(_printable)]
RelativeFile = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_relative_file)]
ClassName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_class_name)]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\z"), AfterValidator(_model_name)]
BundleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
VerifyBy = Literal["dearest", "mirror"]
"""Who answers together with an expert that is unsure: the dearest expert, or itself by a look at the mirrored image."""
SeverityKey = Literal["0", "1", "2", "3", "4", "5"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class _Section(BaseModel):
    # Schemas are built when first used: importing trt_moe is quick, also for those who load no bundle.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class InputSpec(_Section):
    """What every model of the bundle takes: uint8 [N, height, width, channels]."""

    height: Side
    width: Side
    channels: Literal[1, 3, 4]


class ModelEntry(_Section):
    """One ONNX file of the bundle.

    Attributes:
        name: how results, tables and options call the model.
        file: path of the ONNX file, relative to the bundle.
        sha256: of that file, lower-case hex.
        parameters: number of trained values.
        architecture: for people, e.g. "deit_tiny_distilled_patch16_224(img_size=28, patch_size=4, depth=6)".
        graph_size: [height, width] that the network sees after the resize inside its graph.
        relative_cost: mean latency over that of the dearest expert (which has 1.0).
        trained_on: weight of each severity in its training, or None where unknown.
    """

    name: ModelName
    file: Annotated[RelativeFile, Field(pattern=r"\.onnx\z")]
    sha256: Sha256
    parameters: Annotated[int, Field(ge=0)]
    architecture: Text
    graph_size: Annotated[list[Side], Field(min_length=2, max_length=2)]
    relative_cost: Annotated[float, Field(ge=0.0, le=100.0)]
    trained_on: dict[SeverityKey, NonNegative] | None = None


class Latency(_Section):
    """Milliseconds for one image."""

    mean_ms: NonNegative
    p50_ms: NonNegative
    p90_ms: NonNegative
    p99_ms: NonNegative


class LatencyTable(_Section):
    """Latencies measured on one device, by model name ("mixture": gater and experts together)."""

    device: Text
    backend: Text
    precision: Text
    threads: Annotated[int, Field(ge=1)]
    models: dict[str, Latency]


class Corruption(_Section):
    """Gaussian blur (pixels at `reference_side`) and noise (fraction of full range) per severity 0 to 5."""

    blur_sigma: Annotated[list[NonNegative], Field(min_length=6, max_length=6)]
    noise_sigma: Annotated[list[NonNegative], Field(min_length=6, max_length=6)]
    reference_side: Side


class HeldOut(_Section):
    """Of class folders without splits: the share of every class that training kept for the test.

    Attributes:
        share: of the images of a class.
        images: how many there were of all classes.
        sha256: of the paths and sizes of their files, see `files_digest`.
    """

    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    images: Annotated[int, Field(ge=1)]
    sha256: Sha256


class Training(_Section):
    """Where the models come from, and the command that trains them again."""

    dataset: Text
    corruption: Corruption
    latency_weight: NonNegative
    method: Literal["regret", "benefit", "gumbel", "likelihood"]
    seed: int
    commit: Text
    packages: dict[Text, Text]
    command: Text
    held_out: HeldOut | None = None


class SeverityEvaluation(_Section):
    """Fractions, not percent: accuracy of the mixture and of each model, and the share of each expert."""

    mixture: Fraction
    experts: dict[str, Fraction]
    baselines: dict[str, Fraction] = Field(default_factory=dict)
    share: dict[str, Fraction]


class Evaluation(_Section):
    """Test accuracy at the bundle's latency weight, by severity."""

    dataset: Text
    images: Annotated[int, Field(ge=1)]
    severities: dict[SeverityKey, SeverityEvaluation]


class Golden(_Section):
    """An npz of input images and the logits of every model for them.

    `tolerance` is the greatest allowed max |logit error| / max(1, max |logit|), by the engine's precision.
    """

    file: Annotated[RelativeFile, Field(pattern=r"\.npz\z")]
    sha256: Sha256
    tolerance: dict[Literal["fp32", "fp16", "bf16"], Positive]

    @model_validator(mode="after")
    def _all_precisions(self) -> Golden:
        missing = [precision for precision in ("fp32", "fp16", "bf16") if precision not in self.tolerance]
        if missing:
            raise ValueError(f"tolerance lacks {', '.join(missing)}")
        return self


class Samples(_Section):
    """Real test images: `folder`/<severity>/<class>/<index>.png."""

    folder: RelativeFile
    images: Annotated[int, Field(ge=1, le=1_000_000)]


class Manifest(_Section):
    """All of `bundle.json`. See the attribute types; `experts` go from the cheapest to the dearest."""

    schema_version: Annotated[str, Field(pattern=r"^1\.\d{1,4}\z")] = SCHEMA_VERSION
    name: BundleName
    class_names: Annotated[list[ClassName], Field(min_length=2, max_length=MAX_CLASSES)]
    input: InputSpec
    latency_weight: Annotated[float, Field(ge=0.0, le=MAX_LATENCY_WEIGHT)]
    verify_below: Fraction = 0.0
    verify_by: VerifyBy = "dearest"
    gater: ModelEntry
    experts: Annotated[list[ModelEntry], Field(min_length=2, max_length=MAX_EXPERTS)]
    baselines: Annotated[list[ModelEntry], Field(max_length=MAX_EXPERTS)] = Field(default_factory=list)
    latency: list[LatencyTable] = Field(default_factory=list)
    training: Training | None = None
    evaluation: Evaluation | None = None
    golden: Golden | None = None
    samples: Samples | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        _check_unique("class_names", self.class_names)
        names = [entry.name for entry in self.all_models()]
        _check_unique("model names", names)
        _check_costs(self.experts)
        known = {*names, MIXTURE}
        for table in self.latency:
            _check_known("latency", table.models, known)
        if self.evaluation is not None:
            experts = {entry.name for entry in self.experts}
            baselines = {entry.name for entry in self.baselines}
            for severity, row in self.evaluation.severities.items():
                where = f"evaluation.severities.{severity}"
                _check_known(f"{where}.experts", row.experts, experts)
                _check_known(f"{where}.share", row.share, experts)
                _check_known(f"{where}.baselines", row.baselines, baselines)
        return self

    def all_models(self) -> list[ModelEntry]:
        """Gater, experts, baselines, in that order."""
        return [self.gater, *self.experts, *self.baselines]


def parse_manifest(data: Any, where: str) -> Manifest:
    """Validate decoded JSON; `where` starts the messages.

    Raises:
        BundleError: the schema version is unknown (checked before anything else) or a field is wrong.
    """
    if not isinstance(data, dict):
        raise BundleError(f"{where}: expected a JSON object, found {type(data).__name__}")
    version = data.get("schema_version")
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    if match is None:
        raise BundleError(f'{where}: schema_version is {_short(version)}; expected text such as "{SCHEMA_VERSION}"')
    ours, minor = SCHEMA_VERSION.split(".")
    if int(match[1]) != int(ours):
        direction = "install a newer trt-moe" if int(match[1]) > int(ours) else "rebuild the bundle"
        raise BundleError(f"{where}: schema version {version} is unknown; this trt-moe reads {ours}.x; {direction}")
    try:
        # Strict, so that "3" is not taken for 3: whoever wrote that would be surprised elsewhere.
        return Manifest.model_validate(data, strict=True)
    except ValidationError as error:
        hint = ""
        if int(match[2]) > int(minor):
            hint = f"; it is of the newer schema {version}, install a newer trt-moe"
        raise BundleError(f"{where}: {describe_errors(error)}{hint}") from None


def describe_errors(error: ValidationError, most: int = 5) -> str:
    """What is wrong with a manifest in one line: place, complaint and the value found, of the first few."""
    errors = error.errors(include_url=False)
    lines = []
    for each in errors[:most]:
        place = ".".join(str(part) for part in each["loc"])
        message = each["msg"].removeprefix("Value error, ")
        whole = isinstance(each["input"], dict | list | BaseModel) or each["type"] == "missing"
        found = "" if whole else f" (found {_short(each['input'])})"
        lines.append(f"{place}: {message}{found}" if place else f"{message}{found}")
    if len(errors) > most:
        lines.append(f"and {len(errors) - most} more")
    return "; ".join(lines)


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_unique(what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what}: {name!r} appears twice; every name must be unique")
        seen.add(name)


def _check_costs(experts: list[ModelEntry]) -> None:
    costs = [entry.relative_cost for entry in experts]
    for entry in experts:
        if not 0.0 < entry.relative_cost <= 1.0 + _DEAREST_TOLERANCE:
            raise ValueError(f"experts: {entry.name} has relative_cost {entry.relative_cost:g}; expected (0, 1]")
    if costs != sorted(costs):
        order = ", ".join(f"{entry.name} {entry.relative_cost:g}" for entry in experts)
        raise ValueError(f"experts must go from the cheapest to the dearest; their relative costs are {order}")
    if abs(costs[-1] - 1.0) > _DEAREST_TOLERANCE:
        raise ValueError(f"experts: the dearest, {experts[-1].name}, must have relative_cost 1, not {costs[-1]:g}")


def _check_known(where: str, names: Any, known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: {name!r:.80} is none of {', '.join(sorted(known))}")
