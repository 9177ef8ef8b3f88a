"""The cache by itself, on plans that no TensorRT has seen."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine_specs import SPEC
from trt_moe.compile.builder import read_timing_cache
from trt_moe.compile.cache import LIMIT_VARIABLE, EngineCache
from trt_moe.compile.host_code import has_host_code
from trt_moe.compile.prepare import conversion_digest
from trt_moe.compile.sidecar import EngineSpec, Sidecar
from trt_moe.engine_folder import CACHE_VARIABLE
from trt_moe.errors import EngineBuildError, InputError

PLAN = b"plan" * 1000
Describe = Callable[..., Sidecar]


def store(cache: EngineCache, spec: EngineSpec, describe: Describe, plan: bytes = PLAN) -> Path:
    engine, built = cache.make(spec, lambda: (plan, describe(plan, spec)), trusted=[spec.model])
    assert built
    return engine.path


def other(spec: EngineSpec, **changes: object) -> EngineSpec:
    return EngineSpec.model_validate(spec.model_dump() | changes)


def files(cache: EngineCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.is_file())


def test_what_was_stored_is_found(cache: EngineCache, spec: EngineSpec, describe: Describe, notes: list[str]) -> None:
    assert cache.find(spec) is None
    path = store(cache, spec, describe)
    found = cache.find(spec)
    assert found is not None
    assert (found.plan, found.path, found.sidecar) == (PLAN, path, describe(PLAN, spec))
    assert path.read_bytes() == PLAN  # a plain plan, nothing around it
    assert files(cache) == [f"{spec.stem}.json", f"{spec.stem}.plan"]
    assert notes == []


def test_make_builds_nothing_that_is_there(cache: EngineCache, spec: EngineSpec, describe: Describe) -> None:
    store(cache, spec, describe)
    engine, built = cache.make(spec, lambda: pytest.fail("built again"))
    assert (engine.plan, built) == (PLAN, False)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "heavy"},
        {"source_sha256": "d" * 64},
        {"samples_sha256": "d" * 64},
        {"samples_sha256": None},
        {"precision": "fp32"},
        {"gate": "fail"},
        {"buckets": (1, 2, 4)},
        {"flavour": "tensorrt"},
        {"flavour_version": "1.7.2"},
        {"device": "8.9"},
        {"platform": "Linux aarch64"},
        {"version_compatible": True},
        {"hardware_compatible": True},
        {"conversion": "d" * 64},
    ],
)
def test_every_field_of_a_spec_makes_another_engine(
    change: dict[str, object], cache: EngineCache, spec: EngineSpec, describe: Describe
) -> None:
    store(cache, spec, describe)
    assert other(spec, **change).stem != spec.stem
    assert cache.find(other(spec, **change)) is None
    assert set(change) <= set(EngineSpec.model_fields)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(old: str, new: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        text = path.with_suffix(".json").read_text()
        assert old in text
        path.with_suffix(".json").write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip, "was changed since it was built"),
        (lambda path: path.write_bytes(PLAN[:-1]), "cut short: 3,999 bytes, its sidecar says 4,000"),
        (lambda path: path.write_bytes(PLAN + b"x"), "it is longer than recorded: 4,001 bytes, its sidecar says 4,000"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.with_suffix(".json").unlink(), "cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{"), "Invalid JSON"),
        (edit('"layers": 7', '"layers": 7, "surplus": 1'), "Extra inputs are not permitted"),
        (edit('"1.7.1"', '"1.6.0"'), "built by TensorRT-RTX 1.6.0, installed is TensorRT-RTX 1.7.1"),
        (edit('"tensorrt_rtx"', '"tensorrt"'), "built by TensorRT 1.7.1, installed is TensorRT-RTX 1.7.1"),
        (edit("a" * 64, "e" * 64), "another ONNX file (sha256 eeeeeeeeeeee.., the bundle's has aaaaaaaaaaaa..)"),
        (edit("9" * 64, "e" * 64), "the samples or costs that its accuracy was judged by have changed"),
        (edit('"8.6"', '"12.0"'), "its device is 12.0, asked is 8.6"),
        (edit("x86_64", "aarch64"), "its platform is Linux aarch64, asked is Linux x86_64"),
    ],
)
def test_what_is_not_what_was_stored_is_explained_and_built_again(
    damage: Callable[[Path], object],
    complaint: str,
    cache: EngineCache,
    spec: EngineSpec,
    describe: Describe,
    notes: list[str],
) -> None:
    path = store(cache, spec, describe)
    damage(path)
    assert cache.find(spec) is None
    assert len(notes) == 1
    assert notes[0].startswith(f"{path.name} is not used: ")
    assert complaint in notes[0]
    store(cache, spec, describe, b"another plan")
    found = cache.find(spec)
    assert found is not None
    assert found.plan == b"another plan"


def test_an_engine_of_another_version_is_named(
    cache: EngineCache, spec: EngineSpec, describe: Describe, notes: list[str]
) -> None:
    path = store(cache, spec, describe)
    assert cache.find(other(spec, flavour_version="1.8.0")) is None
    assert notes == [f"{path.name} is not used: it was built by TensorRT-RTX 1.7.1, installed is TensorRT-RTX 1.8.0"]
    newer = store(cache, other(spec, flavour_version="1.8.0"), describe)
    notes.clear()
    assert cache.find(other(spec, flavour_version="1.9.0")) is None
    assert notes == [f"{newer.name} is not used: it was built by TensorRT-RTX 1.8.0, installed is TensorRT-RTX 1.9.0"]


def test_an_engine_of_other_code_is_explained(
    cache: EngineCache, spec: EngineSpec, describe: Describe, notes: list[str]
) -> None:
    path = store(cache, spec, describe)
    assert cache.find(other(spec, conversion="d" * 64)) is None
    assert notes == [f"{path.name} is not used: the code that converts models has changed since it was built"]


@settings(deadline=None)  # it writes files, which takes as long as the disk takes
@given(st.data())
def test_no_changed_byte_goes_unseen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    from tests.python.compile.conftest import SPEC, sidecar_for

    cache = EngineCache(tmp_path_factory.mktemp("engines"), 1 << 30)
    path = store(cache, SPEC, sidecar_for)
    place = data.draw(st.integers(0, len(PLAN) - 1))
    bits = data.draw(st.integers(1, 255))
    path.write_bytes(PLAN[:place] + bytes([PLAN[place] ^ bits]) + PLAN[place + 1 :])
    assert cache.find(SPEC) is None


def elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 3, machine, 1)


@pytest.mark.parametrize(("machine", "expected"), [(62, True), (183, True), (190, False)])
def test_host_code_is_told_from_cuda_kernels(machine: int, expected: bool) -> None:
    assert has_host_code(b"ftrt" + bytes(100) + elf(190) + bytes(3) + elf(machine) + bytes(50)) is expected
    assert has_host_code(elf(machine)[:-1]) is False


@pytest.mark.parametrize("declared", [True, False])
def test_host_code_is_refused_unless_trusted_by_name(
    declared: bool, cache: EngineCache, spec: EngineSpec, describe: Describe
) -> None:
    plan = b"ftrt" + (b"" if declared else elf(62))
    sidecar = describe(plan, spec, host_code=declared)
    with pytest.raises(EngineBuildError, match=r"runs on the CPU with your rights.*--trust light"):
        cache.make(spec, lambda: (plan, sidecar))
    with pytest.raises(EngineBuildError, match=r"--trust light"):
        cache.find(spec, trusted=["heavy"])
    found = cache.find(spec, trusted=["light"])
    assert found is not None
    assert found.plan == plan


def test_the_least_recently_used_is_evicted(
    cache: EngineCache, spec: EngineSpec, describe: Describe, notes: list[str]
) -> None:
    specs = [other(spec, model=name) for name in ("a", "b", "c")]
    paths = [store(cache, each, describe) for each in specs]
    for age, path in zip((300, 200, 100), paths, strict=True):
        for file in (path, path.with_suffix(".json")):
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - age))
    assert cache.find(specs[0]) is not None  # and so used last
    cache.limit = sum(file.stat().st_size for file in cache.folder.glob("*.*"))
    store(cache, other(spec, model="d"), describe)
    assert [path.exists() for path in paths] == [True, False, True]
    assert notes == [f"{paths[1].name} was evicted: the cache may hold {cache.limit / (1 << 30):g} GiB"]


def test_an_engine_larger_than_the_limit_stays_alone(cache: EngineCache, spec: EngineSpec, describe: Describe) -> None:
    first = store(cache, spec, describe)
    cache.limit = 1
    second = store(cache, other(spec, model="b"), describe)
    assert (first.exists(), second.exists()) == (False, True)


def test_engines_that_are_built_together_stay_together(
    cache: EngineCache, spec: EngineSpec, describe: Describe, notes: list[str]
) -> None:
    bundle = [other(spec, model=name) for name in ("gater", "light", "heavy")]
    unrelated = store(cache, other(spec, model="unrelated"), describe)
    cache.limit = 3 * unrelated.stat().st_size
    for each in bundle:
        plan = each.model.encode() * 1000
        cache.make(each, lambda plan=plan, each=each: (plan, describe(plan, each)), keep=[one.stem for one in bundle])
    assert not unrelated.exists()
    assert [cache.find(each) is not None for each in bundle] == [True] * 3
    assert notes[0].startswith(f"{unrelated.name} was evicted")
    assert "the engines that stay take" in notes[-1]
    assert "give it more (TRT_MOE_CACHE_GIB)" in notes[-1]


def test_what_an_engine_did_on_the_gpu_is_kept_with_it(
    cache: EngineCache, spec: EngineSpec, describe: Describe, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(cache, spec, describe)
    engine = cache.find(spec)
    assert engine is not None
    judged = cache.judge(engine, {"passed": True, "method": "engine"})
    assert judged.sidecar.engine_report == {"passed": True, "method": "engine"}
    assert cache.find(spec) == judged

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trt_moe.compile.cache.write_bytes", full)
    cache.judge(engine, {"method": "other"})
    [note] = notes
    assert note.startswith(f"what an engine did on the GPU is not kept: {engine.path} cannot be written (No space left")
    assert cache.find(spec) == judged  # the old sidecar is whole
    assert cache.remove(engine.path)
    monkeypatch.undo()
    cache.judge(engine, {"method": "other"})
    assert files(cache) == []


def test_entries_and_clear(cache: EngineCache, spec: EngineSpec, describe: Describe) -> None:
    whole, broken = store(cache, spec, describe), store(cache, other(spec, model="v1.2"), describe)
    flip(broken)
    (cache.folder / f".{'x' * 8}.plan.0a0b0c0d.part").write_bytes(b"half")
    (cache.folder / "NVIDIA-Orin.timing").write_bytes(b"t")
    states = {entry.path.name: entry.problem for entry in cache.entries(check=True)}
    assert states.pop(whole.name) is None
    assert "was changed" in str(states.pop(broken.name))
    assert "cannot be read" in str(states.pop("xxxxxxxx.plan"))
    assert states == {}
    assert [entry.problem for entry in cache.entries() if entry.path == broken] == [None]  # not read, so not seen
    assert cache.clear() == []
    assert files(cache) == []


def test_what_is_being_written_is_not_called_damaged(cache: EngineCache, spec: EngineSpec, describe: Describe) -> None:
    path = store(cache, spec, describe)
    path.with_suffix(".json").unlink()
    with FileLock(cache.folder / "locks" / f"{spec.stem}.lock"):
        assert cache.entries(check=True) == []
        assert cache.clear() == []
    assert path.exists()
    assert [entry.problem is None for entry in cache.entries(check=True)] == [False]


def test_clear_leaves_what_another_process_is_at(cache: EngineCache, spec: EngineSpec, describe: Describe) -> None:
    path = store(cache, spec, describe)
    with FileLock(cache.folder / "locks" / f"{spec.stem}.lock"):
        assert [entry.path for entry in cache.clear()] == [path]
    assert path.exists()
    assert cache.clear() == []
    assert not path.exists()


def test_two_writers_of_one_engine(cache: EngineCache, spec: EngineSpec, describe: Describe, notes: list[str]) -> None:
    """The second waits for the first, and takes what it made."""
    code = f"""
import sys, time
from pathlib import Path
from tests.python.compile.conftest import SPEC, sidecar_for
from trt_moe.compile.cache import EngineCache
def build():
    print("building", flush=True)
    sys.stdin.readline()
    return {PLAN!r}, sidecar_for({PLAN!r})
EngineCache(Path(sys.argv[1]), 1 << 30).make(SPEC, build)
"""
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(cache.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stdout.readline() == "building\n"
    waiting: list[str] = []

    def note(line: str) -> None:
        waiting.append(line)
        first.stdin.write("\n")  # type: ignore[union-attr]
        first.stdin.flush()  # type: ignore[union-attr]

    second = EngineCache(cache.folder, 1 << 30, note)
    engine, built = second.make(spec, lambda: pytest.fail("built twice"))
    assert (engine.plan, built) == (PLAN, False)
    assert waiting == ["another process builds light for the same device; waiting for it"]
    assert first.wait(timeout=30) == 0


def run_writer(cache: EngineCache, before: str, size: int) -> subprocess.Popen[str]:
    code = f"""
import os, sys
from pathlib import Path
from tests.python.compile.conftest import SPEC, sidecar_for
from trt_moe.bundle import writer
from trt_moe.compile.cache import EngineCache
{before}
plan = bytes({size})
EngineCache(Path(sys.argv[1]), 1 << 30).make(SPEC, lambda: (plan, sidecar_for(plan)))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(cache.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_writer_leaves_no_engine_and_what_it_left_is_swept(
    cache: EngineCache, spec: EngineSpec, describe: Describe
) -> None:
    # Killed in the middle of writing: the file is synced to the disk before it gets its name.
    writer = run_writer(cache, "writer.os.fsync = lambda file: os.kill(os.getpid(), 9)", 100_000)
    assert writer.wait(timeout=30) == -signal.SIGKILL
    assert [name for name in files(cache) if name.endswith(".part")] == files(cache) != []
    assert cache.find(spec) is None
    store(cache, spec, describe)
    assert files(cache) == [f"{spec.stem}.json", f"{spec.stem}.plan"]


def test_a_disk_that_gets_full(cache: EngineCache, spec: EngineSpec) -> None:
    """No file may grow past 64 KiB, which fails inside the write as a full disk does."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
    writer = run_writer(cache, limit, 1_000_000)
    _, errors = writer.communicate(timeout=30)
    assert writer.returncode == 1
    assert "EngineBuildError" in errors
    assert (
        "the engine of 1,000,000 bytes cannot be written (File too large); make room (`trt-moe cache clear`)" in errors
    )
    assert files(cache) == []
    assert cache.find(spec) is None


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), EngineBuildError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_sidecar_that_is_not_written_leaves_no_plan_behind(
    failure: BaseException,
    expected: type[BaseException],
    cache: EngineCache,
    spec: EngineSpec,
    describe: Describe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise failure
        path.write_bytes(data)

    monkeypatch.setattr("trt_moe.compile.cache.write_bytes", write)
    with pytest.raises(expected):
        store(cache, spec, describe)
    assert files(cache) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], EngineCache]]:
    """Mounts a tmpfs with the options given, for a cache of its own."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(options: str) -> EngineCache:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True)
        if done.returncode != 0:
            pytest.skip("no right to mount a tmpfs here")
        return EngineCache(folder, 1 << 30)

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(small_disk: Callable[[str], EngineCache], spec: EngineSpec, describe: Describe) -> None:
    cache = small_disk("size=512k")
    store(cache, spec, describe)
    second = other(spec, model="second")
    with pytest.raises(EngineBuildError, match=r"No space left on device.*trt-moe cache clear"):
        store(cache, second, describe, bytes(1_000_000))
    assert cache.find(second) is None
    assert cache.find(spec) is not None
    assert files(cache) == [f"{spec.stem}.json", f"{spec.stem}.plan"]


def test_a_disk_with_room_for_the_plan_only(
    small_disk: Callable[[str], EngineCache], spec: EngineSpec, describe: Describe
) -> None:
    cache = small_disk("size=512k,nr_inodes=4")  # the root, the folder of locks, the lock and one file
    with pytest.raises(EngineBuildError, match="No space left on device"):
        store(cache, spec, describe)
    assert files(cache) == []


def test_a_folder_that_may_only_be_read(
    small_disk: Callable[[str], EngineCache], spec: EngineSpec, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, missing = small_disk("size=1m"), other(spec, model="missing")
    cache.folder = cache.folder / "cuda"
    cache.folder.mkdir()
    whole, broken = store(cache, spec, describe), store(cache, other(spec, model="broken"), describe)
    flip(broken)
    subprocess.run(["mount", "-o", "remount,ro", str(cache.folder.parent)], check=True)
    monkeypatch.setenv(CACHE_VARIABLE, str(cache.folder.parent))
    notes: list[str] = []
    cache = EngineCache.of_user(notes.append)
    engine = cache.find(spec)
    assert engine is not None and (engine.path, engine.plan) == (whole, PLAN)
    assert cache.find(missing) is None
    assert [bool(entry.problem) for entry in cache.entries(check=True)] == [False, True]
    problem = r"Read-only file system\); set TRT_MOE_CACHE_DIR to a folder that you may write"
    for write in (
        lambda: cache.make(missing, lambda: pytest.fail("built for nothing")),
        lambda: cache.remove(whole),
        cache.clear,
    ):
        with pytest.raises(InputError, match=problem):
            write()
    notes.clear()
    assert cache.judge(engine, {"passed": True}).sidecar.engine_report == {"passed": True}
    assert len(notes) == 1 and "is not kept" in notes[0] and "Read-only file system" in notes[0]


def test_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "c"))
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    assert EngineCache.of_user().folder == tmp_path / "c" / "cuda"
    assert EngineCache.of_user().limit == 10 << 30
    monkeypatch.setenv(LIMIT_VARIABLE, "0.5")
    assert EngineCache.of_user().limit == 1 << 29
    for wrong in ("much", "0", "-1", "nan"):
        monkeypatch.setenv(LIMIT_VARIABLE, wrong)
        with pytest.raises(InputError, match=f"{LIMIT_VARIABLE} is '{wrong}'; expected"):
            EngineCache.of_user()
    monkeypatch.setenv(CACHE_VARIABLE, "/proc/nowhere")
    with pytest.raises(InputError, match=r"/proc/nowhere/cuda cannot be written \(.*\); set TRT_MOE_CACHE_DIR to"):
        EngineCache.of_user()
    monkeypatch.setenv(CACHE_VARIABLE, "")
    with pytest.raises(InputError, match="TRT_MOE_CACHE_DIR is ''; set it to a folder"):
        EngineCache.of_user()


@pytest.mark.parametrize("key", ["source_sha256", "samples_sha256", "conversion", "precision", "gate"])
def test_a_conversion_of_anything_else_is_not_taken_over(key: str) -> None:
    other = {"precision": "fp32", "gate": "fail"}.get(key, "f" * 64)
    assert SPEC.converts_like(SPEC.model_copy(update={"device": "9.0", "buckets": (8,)}))
    assert not SPEC.converts_like(SPEC.model_copy(update={key: other}))


@pytest.mark.parametrize("file", ["builder.py", "gate.py", "half.py", "int8.py", "opset.py", "prepare.py"])
def test_the_code_of_the_conversion_has_a_digest(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def changed(path: Path) -> bytes:
        return read(path) + (b"# changed" if path.name == file else b"")

    before = conversion_digest()
    monkeypatch.setattr(Path, "read_bytes", changed)
    assert conversion_digest() != before


def test_a_damaged_timing_cache_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_bytes(bytes(32) + b"damaged")
    assert read_timing_cache(file) == b""
    file.write_bytes(hashlib.sha256(b"whole").digest() + b"whole")
    assert read_timing_cache(file) == b"whole"
