"""The cache of TensorRT engines: found, checked, built once by whoever comes first, and evicted.

An entry is two files, `<stem>.plan` and, written after it, `<stem>.json`. What lies there is not trusted: an engine
reaches TensorRT only if its sidecar names exactly what was asked for and its sha256.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import JsonValue, ValidationError

from trt_moe.bundle.manifest import describe_errors
from trt_moe.bundle.safety import MAX_JSON_BYTES, read_bounded
from trt_moe.bundle.writer import write_bytes
from trt_moe.compile.host_code import has_host_code
from trt_moe.compile.sidecar import EngineSpec, Sidecar
from trt_moe.engine_folder import CACHE_VARIABLE, cache_root
from trt_moe.errors import BundleError, EngineBuildError, InputError

LIMIT_VARIABLE = "TRT_MOE_CACHE_GIB"
"""Environment variable with the most GiB that the TensorRT engines may take."""

BACKEND = "cuda"
_DEFAULT_GIB = 10.0
_GIB = 1 << 30
_PLAN, _SIDECAR, _TIMING = ".plan", ".json", ".timing"

Build = Callable[[], tuple[bytes, Sidecar]]
"""Gives a plan, and the sidecar that describes it."""


@dataclass(frozen=True)
class Engine:
    """A checked engine: a plan whose sha256 is the sidecar's, and where it lies."""

    path: Path
    plan: bytes
    sidecar: Sidecar


@dataclass(frozen=True)
class Entry:
    """What lies in the cache under one stem; `sidecar` is None and `problem` says why where it is unusable."""

    path: Path
    bytes: int
    last_used: float
    sidecar: Sidecar | None
    problem: str | None


class EngineCache:
    """Engines in one folder, shared by any number of processes.

    Args:
        folder: where the files are. Where it may only be read, as in a container's image, engines are found, and
            nothing is built, judged or deleted.
        limit: most bytes of engines and sidecars together; engines that are built together always stay.
        note: gets one line for people whenever an engine is found wanting, waited for or evicted.
    """

    def __init__(self, folder: Path, limit: int, note: Callable[[str], None] = lambda line: None) -> None:
        """See the class."""
        self.folder = folder
        self.limit = limit
        self._note = note

    @classmethod
    def of_user(cls, note: Callable[[str], None] = lambda line: None) -> EngineCache:
        """The user's cache, or the one that `TRT_MOE_CACHE_DIR` names; its folder is made if need be.

        Raises:
            InputError: engines are not kept, their folder cannot be made, or `TRT_MOE_CACHE_GIB` is no size.
        """
        root = cache_root()
        if root is None:
            raise InputError(f"engines are not kept: {CACHE_VARIABLE} is ''; set it to a folder that you may write")
        folder = root / BACKEND
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, _limit(os.environ.get(LIMIT_VARIABLE)), note)

    def find(self, spec: EngineSpec, trusted: Collection[str] = ()) -> Engine | None:
        """The engine of a spec, checked from its first byte to its last; None, with a note why, where there is none.

        Args:
            spec: what to find.
            trusted: names of models whose engines may hold code that runs on the CPU.

        Raises:
            EngineBuildError: the engine is sound, but holds host code and is not trusted.
        """
        try:
            engine = self._read(spec)
        except FileNotFoundError:
            self._explain_absence(spec)
            return None
        except _UnusableError as problem:
            self._note(f"{spec.stem}{_PLAN} is not used: {problem}")
            return None
        refuse_host_code(engine, trusted)
        return engine

    def make(
        self, spec: EngineSpec, build: Build, trusted: Collection[str] = (), keep: Collection[str] = ()
    ) -> tuple[Engine, bool]:
        """The engine of a spec that `find` did not give; of several processes one builds it, the others wait.

        Args:
            spec: what is wanted.
            build: gives the plan, and the sidecar that describes it.
            trusted: as for `find`.
            keep: stems of engines that are of no use without each other, and so do not give way to this one.

        Returns:
            The engine, and whether it was built here.

        Raises:
            EngineBuildError: as `find`, or it cannot be written, as when the disk is full.
            InputError: the folder may only be read.
        """
        with self._lock(spec.stem, f"another process builds {spec.model} for the same device; waiting for it"):
            built = False
            try:
                engine = self._read(spec)  # by whoever had the lock before
            except (FileNotFoundError, _UnusableError):
                engine = self._store(*build())
                built = True
        refuse_host_code(engine, trusted)
        if built:
            self._evict({spec.stem, *keep})
        return engine, built

    def entries(self, check: bool = False) -> list[Entry]:
        """All that lies in the cache, but for what is being written, the least recently used first.

        Args:
            check: read every engine and compare its sha256 instead of its size only.
        """
        found = (self._settled(_entry(self.folder / f"{stem}{_PLAN}", check), check) for stem in self._stems())
        return sorted(filter(None, found), key=lambda entry: (entry.last_used, entry.path.name))

    def _settled(self, entry: Entry, check: bool) -> Entry | None:
        """The entry; where it looks damaged, as nobody writes it. None where somebody does, or it is gone."""
        if entry.problem is None:
            return entry
        try:
            with self._held(entry.path.stem, timeout=0):
                again = _entry(entry.path, check)
        except Timeout:
            return None
        except InputError:
            return entry
        return again if again.bytes else None

    def judge(self, engine: Engine, report: dict[str, JsonValue]) -> Engine:
        """Keep with an engine what it did on the GPU; a note says so where that cannot be."""
        sidecar = engine.sidecar.model_copy(update={"engine_report": report})
        try:
            with self._held(engine.path.stem), _writing(engine.path):
                # Evicted meanwhile: a sidecar alone would be damage.
                if engine.path.exists():
                    _write_sidecar(engine.path, sidecar)
        except InputError as error:
            self._note(f"what an engine did on the GPU is not kept: {error}")
        return replace(engine, sidecar=sidecar)

    def remove(self, path: Path) -> bool:
        """Delete an engine; False where another process is at it.

        Raises:
            InputError: the folder may only be read.
        """
        try:
            with self._held(path.stem, timeout=0), _writing(path):
                # The sidecar first: without it nobody takes the plan for whole.
                path.with_suffix(_SIDECAR).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                self._sweep(path.stem)
        except Timeout:
            return False
        return True

    def timing_cache(self, device: str) -> Path:
        """File of the kernels that `tensorrt` measured on a GPU."""
        return self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', device)}{_TIMING}"

    def clear(self) -> list[Entry]:
        """Delete all engines and timing caches; returns what another process is at just now and so stays.

        Raises:
            InputError: the folder may only be read.
        """
        with _writing(self.folder):
            for file in self.folder.glob(f"*{_TIMING}"):
                file.unlink(missing_ok=True)
        return [entry for entry in self.entries() if not self.remove(entry.path)]

    def _read(self, spec: EngineSpec) -> Engine:
        path = self.folder / f"{spec.stem}{_PLAN}"
        if not path.exists() and not path.with_suffix(_SIDECAR).exists():
            raise FileNotFoundError(path)
        engine = _read(path)
        if difference := engine.sidecar.spec.difference(spec):
            raise _UnusableError(difference)
        with suppress(OSError):  # evicted meanwhile, or another user's; what was read is sound all the same
            os.utime(path)
        return engine

    def _store(self, plan: bytes, sidecar: Sidecar) -> Engine:
        path = self.folder / f"{sidecar.spec.stem}{_PLAN}"
        if hashlib.sha256(plan).hexdigest() != sidecar.engine_sha256:
            raise ValueError("the sidecar is of another plan")
        self._sweep(path.stem)
        try:
            # A reader between the two writes finds a plan without sidecar, or with one whose sha256 it has not.
            path.with_suffix(_SIDECAR).unlink(missing_ok=True)
            write_bytes(path, plan)
            _write_sidecar(path, sidecar)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise EngineBuildError(
                f"{path}: the engine of {len(plan):,} bytes cannot be written ({error.strerror or error}); make room "
                f"(`trt-moe cache clear`), or set {CACHE_VARIABLE} to a folder on another disk"
            ) from error
        return Engine(path, plan, sidecar)

    @contextmanager
    def _lock(self, stem: str, waiting: str) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._held(stem, timeout=0))
            except Timeout:
                self._note(waiting)
                stack.enter_context(self._held(stem))
            yield

    @contextmanager
    def _held(self, stem: str, timeout: float = -1) -> Iterator[None]:
        """The lock of an engine; raises Timeout where another process has it, InputError where nobody can."""
        folder = self.folder / "locks"
        with _writing(self.folder / f"{stem}{_PLAN}"):
            folder.mkdir(exist_ok=True)
            lock = FileLock(folder / f"{stem}.lock")
            lock.acquire(timeout)
        try:
            yield
        finally:
            lock.release()

    def _sweep(self, stem: str) -> None:
        # What a killed builder left; called by whoever holds the lock, so nobody is writing them.
        for leftover in self.folder.glob(f".{stem}.*.part"):
            leftover.unlink(missing_ok=True)

    def _stems(self) -> set[str]:
        files = [path for path in self.folder.iterdir() if path.is_file()]
        finished = {path.stem for path in files if path.suffix in (_PLAN, _SIDECAR)}
        # .<stem>.plan.<token>.part, as write_bytes calls them
        return finished | {path.name[1:].rsplit(".", 3)[0] for path in files if path.suffix == ".part"}

    def _evict(self, keep: Collection[str]) -> None:
        entries = self.entries()
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            if total <= self.limit:
                return
            if entry.path.stem not in keep and self.remove(entry.path):
                self._note(f"{entry.path.name} was evicted: the cache may hold {self.limit / _GIB:g} GiB")
                total -= entry.bytes
        if total > self.limit:
            self._note(
                f"the engines that stay take {total / _GIB:.3g} GiB, the cache may hold {self.limit / _GIB:g}: "
                f"give it more ({LIMIT_VARIABLE})"
            )

    def _explain_absence(self, spec: EngineSpec) -> None:
        """Say so where the last engine of its kind is of another TensorRT, or converted or judged in another way."""
        changes = {"flavour_version", "conversion", "samples_sha256"}
        wanted = spec.model_dump(exclude=changes)
        for entry in reversed(self.entries()):
            if entry.sidecar and entry.sidecar.spec.model_dump(exclude=changes) == wanted:
                self._note(f"{entry.path.name} is not used: {entry.sidecar.spec.difference(spec)}")
                return


def refuse_host_code(engine: Engine, trusted: Collection[str]) -> None:
    """Raise EngineBuildError where an engine holds code that runs on the CPU, unless its model is trusted by name."""
    model = engine.sidecar.spec.model
    if (engine.sidecar.host_code or has_host_code(engine.plan)) and model not in trusted:
        raise EngineBuildError(
            f"{engine.path}: the engine of {model} embeds code that runs on the CPU with your rights, as "
            f"version-compatible engines do; if you trust it, say so: --trust {model}"
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise InputError where what is written does not get there."""
    try:
        yield
    except Timeout:  # an OSError too
        raise
    except OSError as error:
        found = f"{path} cannot be written ({error.strerror or error})"
        raise InputError(f"{found}; set {CACHE_VARIABLE} to a folder that you may write") from error


class _UnusableError(Exception):
    """Why an entry of the cache is not used."""


def _read(path: Path) -> Engine:
    sidecar = _read_sidecar(path)
    try:
        plan = read_bounded(path, sidecar.engine_bytes, path.name)
    except BundleError as error:
        if path.exists() and (size := path.stat().st_size) > sidecar.engine_bytes:
            raise _UnusableError(
                f"it is longer than recorded: {size:,} bytes, its sidecar says {sidecar.engine_bytes:,}"
            ) from None
        raise _UnusableError(str(error)) from None
    if len(plan) != sidecar.engine_bytes:
        raise _UnusableError(f"it is cut short: {len(plan):,} bytes, its sidecar says {sidecar.engine_bytes:,}")
    found = hashlib.sha256(plan).hexdigest()
    if found != sidecar.engine_sha256:
        raise _UnusableError(
            f"it was changed since it was built: sha256 {found[:12]}.., its sidecar says {sidecar.engine_sha256[:12]}.."
        )
    return Engine(path, plan, sidecar)


def _read_sidecar(path: Path) -> Sidecar:
    file = path.with_suffix(_SIDECAR)
    try:
        return Sidecar.model_validate_json(read_bounded(file, MAX_JSON_BYTES, file.name))
    except BundleError as error:
        raise _UnusableError(str(error)) from None
    except ValidationError as error:
        raise _UnusableError(f"{file.name}: {describe_errors(error)}") from None


def _write_sidecar(path: Path, sidecar: Sidecar) -> None:
    write_bytes(path.with_suffix(_SIDECAR), sidecar.model_dump_json(indent=2).encode() + b"\n")


def _entry(path: Path, check: bool) -> Entry:
    sidecar, problem = None, None
    try:
        sidecar = _read(path).sidecar if check else _read_sidecar(path)
    except _UnusableError as error:
        problem = str(error)
    bytes_, last_used = 0, 0.0
    for file in (path, path.with_suffix(_SIDECAR), *path.parent.glob(f".{path.stem}.*.part")):
        # Another process may evict it meanwhile.
        with suppress(FileNotFoundError):
            status = file.stat()
            bytes_ += status.st_size
            last_used = max(last_used, status.st_mtime)
    return Entry(path, bytes_, last_used, sidecar, problem)


def _limit(text: str | None) -> int:
    try:
        gib = _DEFAULT_GIB if text is None else float(text)
    except ValueError:
        gib = math.nan
    if not 0 < gib < 1e6:
        raise InputError(f"{LIMIT_VARIABLE} is {text!r}; expected the most GiB that engines may take, such as 10")
    return int(gib * _GIB)
