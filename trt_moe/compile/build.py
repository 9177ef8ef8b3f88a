"""`trt-moe build`: every model of a bundle as an engine in the cache, built only where it is not there."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

import trt_moe
from trt_moe.bundle import Bundle, ModelEntry
from trt_moe.bundle.manifest import describe_errors
from trt_moe.compile.builder import EngineBuilder, refuse_unsupported
from trt_moe.compile.cache import Engine, EngineCache
from trt_moe.compile.device import check_capabilities_rtx, device_for
from trt_moe.compile.estimate import estimate
from trt_moe.compile.flavour import Flavour
from trt_moe.compile.prepare import conversion_digest, prepare, samples_digests
from trt_moe.compile.sidecar import EngineSpec, Precision, Sidecar
from trt_moe.errors import EngineBuildError, InputError

BUCKETS = (1, 2, 4, 8, 16, 32)
"""Batch sizes that engines are built for unless told otherwise."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build; see `EngineSpec` for what is not explained here.

    Attributes:
        precision: of the experts; the gater is fp16 where they are int8, since coarser scores tie.
        compute_capabilities: such as "8.6"; empty: this machine's GPU, or all that TensorRT-RTX chooses.
        trusted: names of models whose engines may hold code that runs on the CPU.
        models: names of those to build; empty: all.
    """

    buckets: Sequence[int] = BUCKETS
    precision: Precision = "fp16"
    compute_capabilities: Sequence[str] = ()
    gate: Literal["fallback", "fail"] = "fallback"
    version_compatible: bool = False
    hardware_compatible: bool = False
    trusted: Collection[str] = ()
    models: Collection[str] = ()


@dataclass(frozen=True)
class Step:
    """Where a build is.

    Attributes:
        model: being built.
        stage: "converting", which includes the accuracy gate, or "building".
        fraction: of the stage that is done, 0 to 1, as far as TensorRT tells.
        bucket: being built for; None while converting.
        seconds_left: until all models are built, by earlier builds; None where there were none to go by.
    """

    model: str
    stage: Literal["converting", "building"]
    fraction: float
    bucket: int | None
    seconds_left: float | None


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of the bundle, and whether it was built now or lay in the cache."""

    engine: Engine
    built: bool


@dataclass(frozen=True)
class BuildReport:
    """What `build_bundle` did, in the order of `Bundle.models()`."""

    bundle: Bundle
    flavour: Flavour
    engines: list[BuiltEngine]
    seconds: float

    def unjudged(self) -> list[Engine]:
        """Engines that are less precise than float32 and have not been compared with it on the GPU."""
        found = [each.engine for each in self.engines]
        return [each for each in found if each.sidecar.spec.precision != "fp32" and each.sidecar.engine_report is None]

    def judged(self, cache: EngineCache, reports: Mapping[str, BaseModel]) -> BuildReport:
        """The same with what engines did on the GPU, by model, which the cache keeps with them."""
        engines = []
        for each in self.engines:
            report = reports.get(each.engine.sidecar.spec.model)
            engine = each.engine if report is None else cache.judge(each.engine, report.model_dump(mode="json"))
            engines.append(replace(each, engine=engine))
        return replace(self, engines=engines)

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "bundle": str(self.bundle.path),
            "flavour": self.flavour.name,
            "flavour_version": self.flavour.version,
            "built": sum(each.built for each in self.engines),
            "seconds": self.seconds,
            "engines": [
                {
                    "path": str(each.engine.path),
                    "built": each.built,
                    **each.engine.sidecar.model_dump(mode="json"),
                }
                for each in self.engines
            ],
        }


def build_bundle(
    bundle: Bundle,
    flavour: Flavour,
    cache: EngineCache,
    options: BuildOptions | None = None,
    progress: Progress = lambda step: None,
) -> BuildReport:
    """Build the gater and the experts of a bundle, or some of them, where the cache does not have them.

    Raises:
        EngineBuildError: a model cannot be converted, misses the accuracy gate or is refused by TensorRT; engines
            that were finished before stay in the cache.
        DeviceError: TensorRT does not start, or builds only where there is a GPU.
        MissingDependencyError: onnx or onnxruntime is not installed.
        InputError: buckets that are no batch sizes, a device that the flavour cannot build for, or a trusted name
            that no engine has.
    """
    start = time.perf_counter()
    options = options or BuildOptions()
    entries = [entry for entry in bundle.models() if not options.models or entry.name in options.models]
    specs = _specs(bundle, entries, flavour, options)
    for spec in specs:
        refuse_unsupported(flavour, spec)
    _check_trust(bundle, options)
    engines = {spec.model: cache.find(spec, options.trusted) for spec in specs}
    missing = [spec for spec in specs if engines[spec.model] is None]
    built: dict[str, bool] = {}
    if missing:
        if flavour.is_rtx:
            check_capabilities_rtx(flavour, missing[0].device)
        earlier = [entry.sidecar for entry in cache.entries() if entry.sidecar is not None]
        run = _Run(bundle, flavour, cache, missing, earlier, progress)
        for entry, spec in zip(entries, specs, strict=True):
            if spec in missing:
                engines[spec.model], built[spec.model] = cache.make(
                    spec, run.builder(entry, spec), options.trusted, keep=[each.stem for each in specs]
                )
    return BuildReport(
        bundle,
        flavour,
        [BuiltEngine(engine, built.get(name, False)) for name, engine in engines.items() if engine is not None],
        time.perf_counter() - start,
    )


class _Run:
    """The builds of one call, and the time that they are expected to take."""

    def __init__(
        self,
        bundle: Bundle,
        flavour: Flavour,
        cache: EngineCache,
        specs: Sequence[EngineSpec],
        earlier: Sequence[Sidecar],
        progress: Progress,
    ) -> None:
        self._bundle = bundle
        self._flavour = flavour
        self._cache = cache
        self._builder = EngineBuilder(flavour)
        self._progress = progress
        self._earlier = earlier
        self._expected = {spec.model: estimate(spec, earlier) for spec in specs}

    def builder(self, entry: ModelEntry, spec: EngineSpec) -> Callable[[], tuple[bytes, Sidecar]]:
        """What builds one model."""
        return lambda: self._build(entry, spec)

    def _build(self, entry: ModelEntry, spec: EngineSpec) -> tuple[bytes, Sidecar]:
        start = time.perf_counter()

        def tell(stage: Literal["converting", "building"], fraction: float) -> None:
            at = min(int(fraction * len(spec.buckets)), len(spec.buckets) - 1)
            bucket = spec.buckets[at] if stage == "building" else None
            left = self._seconds_left(spec.model, time.perf_counter() - start)
            self._progress(Step(spec.model, stage, fraction, bucket, left))

        tell("converting", 0.0)
        alike = next((known for known in self._earlier if known.spec.converts_like(spec)), None)
        prepared = prepare(self._bundle, entry, spec, self._flavour, alike)
        tell("building", 0.0)
        built = self._builder.build(
            prepared.onnx, spec, self._cache.timing_cache(spec.device), lambda fraction: tell("building", fraction)
        )
        tell("building", 1.0)
        del self._expected[spec.model]
        sidecar = Sidecar(
            spec=spec,
            inputs=built.inputs,
            outputs=built.outputs,
            engine_sha256=hashlib.sha256(built.plan).hexdigest(),
            engine_bytes=len(built.plan),
            onnx_sha256=hashlib.sha256(prepared.onnx).hexdigest(),
            opset=prepared.opset,
            layers=built.layers,
            host_code=built.host_code,
            options=built.options,
            prepare_seconds=round(prepared.seconds, 3),
            build_seconds=round(built.seconds, 3),
            gate_report=prepared.gate_report,
            trt_moe_version=trt_moe.__version__,
        )
        return built.plan, sidecar

    def _seconds_left(self, model: str, elapsed: float) -> float | None:
        left = 0.0
        for name, expected in self._expected.items():
            if expected is None:
                return None
            left += max(0.0, expected - elapsed) if name == model else expected
        return left


def _specs(bundle: Bundle, entries: Sequence[ModelEntry], flavour: Flavour, options: BuildOptions) -> list[EngineSpec]:
    device = device_for(flavour, options.compute_capabilities)
    conversion = conversion_digest()
    samples = {} if options.precision == "fp32" else samples_digests(bundle)
    try:
        return [
            EngineSpec(
                model=entry.name,
                source_sha256=entry.sha256,
                samples_sha256=samples.get(entry.name),
                precision="fp16"
                if options.precision == "int8" and entry.name == bundle.gater.name
                else options.precision,
                gate=options.gate,
                buckets=tuple(sorted(set(options.buckets))),
                flavour=flavour.name,
                flavour_version=flavour.version,
                device=device,
                platform=f"{platform.system()} {platform.machine()}",
                version_compatible=options.version_compatible,
                hardware_compatible=options.hardware_compatible,
                conversion=conversion,
            )
            for entry in entries
        ]
    except ValidationError as error:
        raise InputError(f"this cannot be built: {describe_errors(error)}") from None


def _check_trust(bundle: Bundle, options: BuildOptions) -> None:
    names = [entry.name for entry in bundle.models()]
    for name in options.trusted:
        if bundle.entry(name).name not in names:
            raise InputError(
                f"{bundle.path}: {name} is a baseline and gets no engine; those get one: {', '.join(names)}"
            )
    if options.version_compatible and (untrusted := [name for name in names if name not in options.trusted]):
        raise EngineBuildError(
            "version-compatible engines embed code that runs on the CPU with your rights, and are refused unless you "
            f"trust them by name: {' '.join(f'--trust {name}' for name in untrusted)}"
        )
