"""What a training run is made of, read from YAML and checked before anything starts."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trt_moe.bundle.manifest import MAX_LATENCY_WEIGHT, RESERVED_MODEL_NAMES, VerifyBy
from trt_moe.bundle.safety import sha256_file
from trt_moe.data.corruptions import BLUR_SIGMA, NOISE_SIGMA, REFERENCE_SIDE, SEVERITIES
from trt_moe.errors import InputError
from trt_moe.training.config_errors import describe
from trt_moe.training.run_files import read_json
from trt_moe.training.yaml_file import read_yaml

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=SEVERITIES, max_length=SEVERITIES)]
Temperature = Annotated[float, Field(gt=0)]
Method = Literal["regret", "benefit", "gumbel", "likelihood"]
COST_FREE: tuple[Method, ...] = ("regret", "benefit")
"""Gaters trained by these know no latency weight: one training serves every weight."""
Side = Annotated[int, Field(ge=8, le=4096)]

RESERVED_NAMES = RESERVED_MODEL_NAMES | {"gater", "joint"}


WEIGHTS_FILE = "weights.json"


class Section(BaseModel):
    """Base of every section: unknown keys are refused and nothing changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SplitConfig(Section):
    """How many training images each phase gets; no image serves two phases."""

    experts: int = Field(default=40_000, ge=1)
    gater: int = Field(default=15_000, ge=1)
    validation: int = Field(default=5_000, ge=1)
    seed: int = Field(default=0, ge=0)


class CorruptionConfig(Section):
    """Sigmas per severity, see `trt_moe.data.corrupt`."""

    blur_sigma: Weights = BLUR_SIGMA
    noise_sigma: Weights = NOISE_SIGMA
    reference_side: int = Field(default=REFERENCE_SIDE, ge=1)
    alone: float = Field(
        default=0.0, ge=0, le=1, description="share of training images with blur or noise alone, half of them each"
    )

    def identity(self) -> dict[str, Any]:
        """Return what decides the pixels; checkpoints made before `alone` existed keep their hash."""
        values = self.model_dump(mode="json")
        if self.alone == 0:
            del values["alone"]
        return values


class ExpertConfig(Section):
    """One classifier: an expert, a baseline or a teacher."""

    name: Name
    model: str
    image_size: Side
    options: dict[str, Any] = {}
    pretrained: bool = False
    weights: Path | None = None
    severities: Weights
    epochs: int = Field(default=8, ge=0, description="0: not trained, all weights are those of `weights`")
    batch: int = Field(default=128, ge=1, description="images an optimizer step, over all processes")
    accumulate: int = Field(default=1, ge=1, description="pieces that a step's images are computed in, to save memory")
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.02, ge=0)
    warmup: float = Field(default=0.15, ge=0, lt=1)
    clip: float = Field(default=5.0, gt=0)
    seed: int = Field(default=0, ge=0)
    start_from: Name | None = Field(default=None, description="classifier to go on from, as deep or shallower")
    teacher: Name | None = Field(default=None, description="classifier trained before, to imitate")
    distill_weight: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=2.0, gt=0)
    token_drop: float = Field(default=0.0, ge=0, lt=1, description="share of a transformer's tokens left out")
    token_drop_epochs: int = Field(default=0, ge=0, description="only in this many epochs, the first ones")

    @model_validator(mode="after")
    def _some_severity(self) -> ExpertConfig:
        if sum(self.severities) <= 0:
            raise ValueError(f"{self.name}: at least one severity needs a weight above 0")
        if self.epochs == 0 and self.weights is None:
            raise ValueError(f"{self.name}: epochs is 0, so nothing would be learned; give its weights, or 1 or more")
        # Files of gaters begin like that, in the folder of the experts'.
        if self.name in RESERVED_NAMES or self.name.startswith("gater-"):
            raise ValueError(f"{self.name!r} is reserved; give the expert another name")
        return self


class GaterConfig(Section):
    """The gater phase: every method with every seed is trained, the best by validation is kept."""

    methods: tuple[Method, ...] = Field(default=("regret", "benefit", "gumbel"), min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    width: int = Field(default=16, ge=2)
    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: float = Field(default=0.15, ge=0, lt=1)
    clip: float = Field(default=5.0, gt=0)
    passes: int = Field(default=2, ge=1, description="corrupted copies of every gater image")
    loss_clip: float = Field(default=6.0, gt=0, description="nats; regret and benefit clip losses here")
    temperature: tuple[Temperature, Temperature] = Field(
        default=(1.0, 1.0), description="of Gumbel-Softmax, start and end"
    )
    balance: float = Field(
        default=0.0, ge=0, description="weight of the load-balance term; only in gumbel and likelihood"
    )
    entropy: float = Field(default=0.0, ge=0, description="weight of the entropy bonus; only in gumbel and likelihood")

    @model_validator(mode="after")
    def _terms_have_a_loss(self) -> GaterConfig:
        if (self.balance or self.entropy) and set(self.methods) <= set(COST_FREE):
            raise ValueError(
                f"balance and entropy count in the gumbel and likelihood methods only, and methods are "
                f"{', '.join(self.methods)}; leave them out, or add one of those"
            )
        return self

    @property
    def for_every_weight(self) -> Method:
        """The method of gaters that serve every latency weight."""
        return next((method for method in self.methods if method in COST_FREE), COST_FREE[0])


class JointConfig(Section):
    """Fine-tuning of gater and experts together, from what the phases before it found."""

    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=64, ge=1, description="images an optimizer step, over all processes")
    accumulate: int = Field(default=1, ge=1, description="pieces that a step's images are computed in, to save memory")
    learning_rate: float = Field(default=2e-5, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.15, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1.0, gt=0, description="of Gumbel-Softmax")


_OF_PIXELS = "of each channel, of images from 0 to 1"


def _up_to_1(value: float) -> float:
    if value > 1:
        raise ValueError(f"is {value:g}, of images from 0 to 1; divide a mean and std in bytes by 255")
    return value


class TrainConfig(Section):
    """A whole run: data to bundle."""

    name: Name
    data: Path | None = None
    image_shape: tuple[Side, Side, Literal[1, 3]] | None = Field(
        default=None, description="height, width, channels that image files are converted to; default: as they are"
    )
    held_out: float = Field(
        default=0.0, ge=0, lt=1, description="share of every class kept for the test, where the folder has no splits"
    )
    skip_broken: bool = Field(default=False, description="leave out unreadable files instead of stopping")
    checkpoints: Path = Path("runs")
    latency_weight: float = Field(default=0.7, ge=0, le=MAX_LATENCY_WEIGHT)
    verify_below: float = Field(default=0.0, ge=0, le=1, description="of the bundle; training does not use it")
    verify_by: VerifyBy = Field(default="dearest", description="of the bundle; training does not use it")
    seed: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    mean: tuple[Annotated[float, Field(ge=0), AfterValidator(_up_to_1)], ...] = Field(
        min_length=1, description=_OF_PIXELS
    )
    std: tuple[Annotated[float, Field(gt=0), AfterValidator(_up_to_1)], ...] = Field(
        min_length=1, description=_OF_PIXELS
    )
    flip: bool = True
    splits: SplitConfig = SplitConfig()
    corruption: CorruptionConfig = CorruptionConfig()
    teachers: tuple[ExpertConfig, ...] = ()
    experts: tuple[ExpertConfig, ...]
    baselines: tuple[ExpertConfig, ...] = ()
    gater: GaterConfig = GaterConfig()
    joint: JointConfig | None = None
    latencies_ms: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None, description="latency of gater, experts and baselines on the target device; default: measured here"
    )
    latency_device: Literal["cpu", "auto", "cuda"] = Field(
        default="cpu", description="whose measured latencies make the costs; auto: a GPU's where there is one"
    )
    sample_images: int = Field(default=120, ge=1, description="test images shipped, at each severity")
    golden_images: int = Field(default=12, ge=1)
    evaluation_images: int = Field(10_000, ge=1, description="test images in the manifest's accuracies, at most")
    _source: Path | None = None

    @property
    def source(self) -> Path | None:
        """The file that this came from."""
        return self._source

    @field_validator("experts", mode="before")
    @classmethod
    def _two_or_more(cls, experts: object) -> object:
        # As they are given: a list with one wrong entry is not too short as well.
        if isinstance(experts, list | tuple) and len(experts) < 2:
            raise ValueError(f"has {len(experts)}; a mixture needs two or more")
        return experts

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        names = [e.name for e in self.classifiers()]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"names must be unique among teachers, experts and baselines; twice: {twice}")
        trained: list[str] = []
        for entry in self.classifiers():
            for named in (entry.teacher, entry.start_from):
                if named is not None and named not in trained:
                    raise ValueError(
                        f"{entry.name} learns from {named!r}, but trained before it is {', '.join(trained) or 'none'}; "
                        "teachers come first, then experts, each after what it learns from"
                    )
            trained.append(entry.name)
        if self.verify_by == "mirror" and not self.flip:
            raise ValueError(
                "verify_by is mirror, but flip is false: no expert learns from mirrored images; set flip: true, or "
                "verify_by: dearest"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels, std {len(self.std)}")
        if self.latencies_ms is not None:
            expected = ["gater", *(e.name for e in (*self.experts, *self.baselines))]
            if set(self.latencies_ms) != set(expected):
                raise ValueError(f"latencies_ms has {sorted(self.latencies_ms)}; expected one each of {expected}")
        return self

    def classifiers(self) -> tuple[ExpertConfig, ...]:
        """Return teachers, experts and baselines, in the order in which they are trained."""
        return (*self.teachers, *self.experts, *self.baselines)

    def classifier(self, name: str) -> ExpertConfig:
        """Return the teacher, expert or baseline of that name."""
        return next(e for e in self.classifiers() if e.name == name)

    def expert_hash(self, expert: ExpertConfig) -> str:
        """Identify everything that decides the expert's weights (not the machine)."""
        # Defaults are left out: a field that a later version adds does not invalidate old checkpoints.
        parts: dict[str, Any] = {
            "expert": expert.model_dump(mode="json", exclude_defaults=True),
            "splits": self.splits.model_dump(mode="json"),
            "corruption": self.corruption.identity(),
            "common": [self.seed, self.precision, list(self.mean), list(self.std), self.flip],
        }
        if self.image_shape is not None:
            parts["image_shape"] = list(self.image_shape)
        if (weights := self._weights_sha256(expert)) is not None:
            parts["weights_sha256"] = weights
        if expert.teacher is not None:
            parts["teacher"] = self.expert_hash(self.classifier(expert.teacher))
        if expert.start_from is not None:
            parts["start_from"] = self.expert_hash(self.classifier(expert.start_from))
        return digest(parts)

    def _weights_sha256(self, expert: ExpertConfig) -> str | None:
        """Of the file that it starts from; once trained it can do without the file, so the run remembers."""
        if expert.weights is None:
            return None
        if expert.weights.is_file():
            return _sha256(expert.weights, expert.weights.stat().st_mtime_ns)
        kept = read_json(self.checkpoints / self.name / WEIGHTS_FILE)
        return kept.get(expert.name) if isinstance(kept, dict) else None

    def weights_sha256(self) -> dict[str, str]:
        """By classifier, of the files that some start from: what a run keeps as `WEIGHTS_FILE`."""
        found = {expert.name: self._weights_sha256(expert) for expert in self.classifiers()}
        return {name: value for name, value in found.items() if value is not None}

    def gater_hashes(self, method: Method) -> tuple[str, ...]:
        """Identify everything that decides a gater's weights, except the measured costs and the experts' logits.

        Returns:
            The hash of new checkpoints, then others that are as good.
        """
        gater = self.gater.model_dump(mode="json", exclude={"methods", "seeds"})
        # These came later: at their defaults, gaters trained before them keep their hash.
        for key in ("balance", "entropy"):
            if gater[key] == 0:
                del gater[key]
        parts = {"gater": gater, "experts": [self.expert_hash(e) for e in self.experts]}
        weighted = digest({**parts, "latency_weight": self.latency_weight})
        # Before one gater was known to serve every weight, all had the weight in their hash.
        return (digest(parts), weighted) if method in COST_FREE else (weighted,)


def digest(value: Any) -> str:
    """Return the sha256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@functools.cache
def _sha256(file: Path, changed: int) -> str:
    """Of the file as it was `changed`: a run asks for it many times."""
    return sha256_file(file)


def load_config(path: str | Path) -> TrainConfig:
    """Read a YAML file.

    Raises:
        InputError: no such file, not YAML, or values that do not fit; names the key and what was expected.
    """
    file = Path(path)
    raw = read_yaml(file)
    if not isinstance(raw, dict):
        raise InputError(f"{file} holds {type(raw).__name__}; expected keys and values, see configs/")
    try:
        config = TrainConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{file}: {describe(error, TrainConfig)}") from error
    config._source = file
    return config
