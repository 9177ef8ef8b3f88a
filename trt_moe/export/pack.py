"""`trt-moe pack`: a bundle out of a gater and experts that someone already has as ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from trt_moe.bundle import (
    Bundle,
    Golden,
    InputSpec,
    LatencyTable,
    Manifest,
    ModelEntry,
    Samples,
    sha256_file,
    write_manifest,
)
from trt_moe.bundle.manifest import ModelName, VerifyBy, describe_errors
from trt_moe.console import ProgressCallback
from trt_moe.data.choose import evenly
from trt_moe.errors import InputError, MissingDependencyError
from trt_moe.export.destination import check_destination, new_bundle
from trt_moe.logit_error import relative_error

try:
    import onnx

    from trt_moe.export.reference import TOLERANCE, record_golden
    from trt_moe.export.trial import check_runs, noise_images, time_models
    from trt_moe.export.wrap import Preprocessing, Wrapped, read_model, wrap
except ImportError as error:
    raise MissingDependencyError(
        f"packing needs the packages onnx and onnxruntime ({error}); in the checkout: pip install '.[train]'"
    ) from error


@dataclass(frozen=True)
class Source:
    """A model to pack.

    Attributes:
        name: in the bundle: lower-case letters, digits, dots, dashes.
        file: ONNX file.
        preprocessing: what the network expects of its pixels.
        architecture: for people; None: the producer that the file names.
    """

    name: str
    file: Path
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    architecture: str | None = None


@dataclass(frozen=True)
class Packed:
    """The new bundle, the mean latency of every model in milliseconds, what was changed in each, and unused samples."""

    bundle: Bundle
    mean_ms: dict[str, float]
    notes: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...]


def pack(
    out: str | Path,
    *,
    gater: Source,
    experts: Sequence[Source],
    class_names: Sequence[str],
    input_shape: tuple[int, int, int],
    baselines: Sequence[Source] = (),
    name: str | None = None,
    latency_weight: float = 0.0,
    verify_below: float = 0.0,
    verify_by: VerifyBy = "dearest",
    samples: Path | None = None,
    max_samples: int = 600,
    skip_broken: bool = False,
    golden_images: int = 12,
    iterations: int = 400,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = lambda what, done, total: None,
) -> Packed:
    """Wrap, measure and check the models, and write a bundle; `out` is complete or not there.

    Args:
        out: the bundle's folder.
        gater: scores the experts in the order in which `experts` lists them.
        experts: two or more classifiers of the same classes, in any order.
        class_names: in the order of the experts' outputs.
        input_shape: (height, width, channels) of the images that the router will take.
        baselines: models to compare with.
        name: of the bundle; None: the folder's name.
        latency_weight: default of the router.
        verify_below: default of the router: where an expert is less sure, there is a second look; 0: never.
        verify_by: default of the router: whose that look is, "dearest" or "mirror".
        samples: folder of test images, <class>/<file> or <severity>/<class>/<file>, to put into the bundle.
        max_samples: at most so many of them, evenly chosen.
        skip_broken: leave out samples that cannot be used; `Packed.left_out` lists them.
        golden_images: recorded with the logits of each model.
        iterations: timed runs of each model.
        threads: for the measurement; None: all usable CPUs.
        overwrite: replace `out` where it is a bundle.
        progress: called as progress(what, done, total).

    Raises:
        InputError: models that are no such classifiers or do not fit each other; `out` exists, or cannot be written.
        EngineBuildError: a model was exported for a fixed batch size.
        ModelOutputError: a model gives logits that are not finite.
        BundleError: the finished bundle does not validate.
        DataError: it cannot be written.
    """
    target = Path(out).absolute()
    used = {f"the file of {source.name}": source.file for source in (gater, *experts, *baselines)}
    check_destination(target, overwrite, used if samples is None else {**used, "the samples": samples})
    _check_names(gater, experts, baselines)
    try:
        with new_bundle(target) as work:
            defaults = {"latency_weight": latency_weight, "verify_below": verify_below, "verify_by": verify_by}
            draft = _Draft(work, tuple(class_names), input_shape, name or target.name, defaults)
            draft.wrap_all(gater, experts, baselines, progress)
            draft.add_samples(samples, max_samples, skip_broken)
            draft.measure(iterations, threads, progress)
            draft.sort_experts(gater)
            draft.add_golden(golden_images)
            write_manifest(work, draft.manifest())
            draft.check_precision(threads)
    except ValidationError as error:
        raise InputError(f"{target}: {describe_errors(error)}") from None
    return Packed(Bundle.load(target), draft.mean_ms, draft.notes, draft.left_out)


class _Draft:
    """A bundle in the making, in the folder `work`."""

    def __init__(
        self,
        work: Path,
        class_names: tuple[str, ...],
        shape: tuple[int, int, int],
        name: str,
        defaults: Mapping[str, Any],
    ) -> None:
        self.work = work
        self.class_names = class_names
        self.shape = shape
        self.name = name
        self.defaults = defaults
        self.entries: dict[str, ModelEntry] = {}
        self.gater = ""
        self.experts: list[str] = []
        self.baselines: list[str] = []
        self.notes: dict[str, tuple[str, ...]] = {}
        self.mean_ms: dict[str, float] = {}
        self.tables: list[LatencyTable] = []
        self.golden: Golden | None = None
        self.samples: Samples | None = None
        self.left_out: tuple[str, ...] = ()
        self._listed: list[str] = []

    def wrap_all(
        self,
        gater: Source,
        experts: Sequence[Source],
        baselines: Sequence[Source],
        progress: ProgressCallback,
    ) -> None:
        sources = [gater, *experts, *baselines]
        for index, source in enumerate(sources):
            expected = len(experts) if source is gater else len(self.class_names)
            what = "experts" if source is gater else "class names"
            self._wrap(source, expected, what)
            progress("wrapping models", index + 1, len(sources))
        self.gater = gater.name
        self.experts = self._listed = [source.name for source in experts]
        self.baselines = [source.name for source in baselines]

    def measure(self, iterations: int, threads: int | None, progress: ProgressCallback) -> None:
        """Time all models in turns, as "auto" runs them (which gives the relative costs) and in fp32."""
        write_manifest(self.work, self.manifest())
        bundle = Bundle.load(self.work)
        for precision in ("auto", "fp32"):
            table, means = time_models(bundle, precision, iterations, threads, progress)
            if precision == "auto":
                self.mean_ms = means
            if table.precision not in {known.precision for known in self.tables}:
                self.tables.append(table)

    def sort_experts(self, gater: Source) -> None:
        """Order the experts by cost, and with them the gater's outputs; set the relative costs."""
        self.experts = sorted(self._listed, key=lambda name: self.mean_ms[name])
        order = [self._listed.index(name) for name in self.experts]
        if order != sorted(order):
            self._wrap(gater, len(order), "experts", order)
        dearest = self.mean_ms[self.experts[-1]]
        for name, entry in self.entries.items():
            cost = 1.0 if name == self.experts[-1] else round(self.mean_ms[name] / dearest, 6)
            self.entries[name] = entry.model_copy(update={"relative_cost": cost})
        if self.mean_ms[gater.name] >= dearest:
            note = f"costs {self.mean_ms[gater.name] / dearest:.2f} times the dearest expert: routing can save no time"
            self.notes[gater.name] = (*self.notes[gater.name], f"{note}, take a smaller gater or a smaller size")

    def add_golden(self, count: int) -> None:
        """Record inputs and the logits that ONNX Runtime gives for them in float32."""
        if count < 1:
            return
        self.golden = record_golden(self.work, self.entries, self._golden_images(count))

    def check_precision(self, threads: int | None) -> None:
        """Note the models that the device's own precision takes past the golden tolerance."""
        from trt_moe.model import Model

        bundle = Bundle.load(self.work)
        if self.golden is None:
            return
        arrays = bundle.golden()
        for entry in bundle.experts:
            model = Model.load(bundle, entry.name, precision="auto", threads=threads)
            error = relative_error(model.logits(arrays["images"]), arrays[entry.name])
            if error > TOLERANCE[model.precision]:
                note = f"its logits are {error:.2g} off in {model.precision}: route it with precision fp32"
                self.notes[entry.name] = (*self.notes[entry.name], note)

    def add_samples(self, folder: Path | None, most: int, skip_broken: bool) -> None:
        """Copy test images, resized to the bundle's input."""
        if folder is None:
            return
        from PIL import Image

        from trt_moe.data import load_dataset

        data = load_dataset(folder, "test", self.shape, skip_broken)
        self.left_out = data.broken
        unknown = sorted(set(data.class_names) - set(self.class_names))
        if unknown:
            raise InputError(f"{folder} has classes that the experts do not: {', '.join(unknown[:5])}")
        chosen = evenly(len(data), most)
        for index in chosen:
            severity = 0 if data.severities is None else int(data.severities[index])
            place = self.work / "samples" / str(severity) / data.class_names[data.labels[index]]
            place.mkdir(parents=True, exist_ok=True)
            pixels = data.images[index]
            Image.fromarray(pixels[..., 0] if self.shape[2] == 1 else pixels).save(place / f"{index:06d}.png")
        self.samples = Samples(folder="samples", images=len(chosen))

    def manifest(self) -> Manifest:
        """What is known so far; before the costs are measured all experts cost the same."""
        height, width, channels = self.shape
        return Manifest(
            name=self.name,
            class_names=list(self.class_names),
            input=InputSpec(height=height, width=width, channels=channels),  # type: ignore[arg-type]
            **self.defaults,
            gater=self.entries[self.gater],
            experts=[self.entries[name] for name in self.experts],
            baselines=[self.entries[name] for name in self.baselines],
            latency=self.tables,
            golden=self.golden,
            samples=self.samples,
        )

    def _wrap(self, source: Source, expected: int, what: str, order: Sequence[int] | None = None) -> None:
        model = read_model(source.file)
        place = f"{source.name} ({source.file})"
        wrapped = wrap(model, self.shape, source.preprocessing, place, order)
        if wrapped.outputs != expected:
            raise InputError(f"{place}: gives {wrapped.outputs} logits, there are {expected} {what}; they must agree")
        file = self.work / f"{source.name}.onnx"
        _save(wrapped.model, file, place)
        odd = check_runs(file, self.shape, wrapped.batch, place)
        self.notes[source.name] = (*wrapped.notes, *odd)
        self.entries[source.name] = _entry(source, wrapped, model.producer_name, file)

    def _golden_images(self, count: int) -> NDArray[np.uint8]:
        if self.samples is not None:
            bundle = Bundle(self.work, self.manifest())
            images, _, _ = bundle.samples()
            return np.ascontiguousarray(images[evenly(len(images), count)])
        return noise_images(count, self.shape)


def _save(model: onnx.ModelProto, file: Path, what: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise InputError(f"{what}: cannot be wrapped ({str(error).splitlines()[0][:300]})") from error
    onnx.save(model, str(file))


def _entry(source: Source, wrapped: Wrapped, producer: str, file: Path) -> ModelEntry:
    return ModelEntry(
        name=source.name,
        file=file.name,
        sha256=sha256_file(file),
        parameters=wrapped.parameters,
        architecture=source.architecture or f"{source.file.name} ({producer or 'unknown producer'})",
        graph_size=list(wrapped.graph_size),
        relative_cost=1.0,
    )


def _check_names(gater: Source, experts: Sequence[Source], baselines: Sequence[Source]) -> None:
    if len(experts) < 2:
        raise InputError(f"{len(experts)} experts were given; a mixture needs at least 2")
    names = [source.name for source in [gater, *experts, *baselines]]
    for name in names:
        # Before any file is written by that name.
        try:
            TypeAdapter(ModelName).validate_python(name)
        except ValidationError as error:
            reason = f"{describe_errors(error)}; use lower-case letters, digits, . _ -"
            raise InputError(f"model name {name!r} is refused: {reason}") from None
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"model names must differ; {', '.join(repeated)} appears more than once")
