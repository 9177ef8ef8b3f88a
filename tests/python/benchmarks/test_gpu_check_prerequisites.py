"""What the GPU check looks for before it begins, and what its tests do where some of it is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu_check import conformance, prerequisites
from benchmarks.gpu_check.__main__ import why_no_device
from benchmarks.gpu_check.parts import CHECKOUT, PARTS, Work
from benchmarks.gpu_check.prerequisites import PACKAGES, TOOLS, missing, why_not

# Prints the modules that files of ours import, of those that are neither ours nor Python's.
WATCH = """
import builtins, sys
OURS = {"trt_moe", "benchmarks", "tests"}
found, real = set(), builtins.__import__
def watch(name, globals=None, locals=None, fromlist=(), level=0):
    who, top = globals or {}, name.partition(".")[0]
    ours = who.get("__name__", "").partition(".")[0] in OURS or str(who.get("__file__")).startswith(sys.argv[1])
    if level == 0 and ours and top not in OURS | sys.stdlib_module_names:
        found.add(top)
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = watch
"""


def imported(script: str) -> set[str]:
    command = [sys.executable, "-c", f"{WATCH}{script}\nprint('imports', *found)", str(CHECKOUT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    return set(done.stdout.splitlines()[-1].split()[1:])


# The other parts import what `latency` does. What comes last is imported where TensorRT is there.
@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("environment", set()),
        ("device_tests", set()),
        ("probe", {"platformdirs", "onnx", "onnxruntime"}),
        ("latency", set()),
    ],
)
def test_all_that_a_part_imports_is_looked_for_and_no_more(name: str, later: set[str]) -> None:
    assert imported(f"import benchmarks.gpu_check.{name}") | later == set(PACKAGES.get(name, ()))


def test_all_that_the_tests_of_the_gpu_import_is_looked_for() -> None:
    command = ["--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(CHECKOUT / "tests/python/gpu")]
    found = imported(f"import pytest; pytest.main({command!r})")
    # onnx is imported when the tiny bundle is written, filelock where engines are.
    assert found - {"_pytest"} == {*PACKAGES["conformance"]} - {"onnx", "filelock"}


def test_each_part_is_one() -> None:
    assert {*PACKAGES, *TOOLS} <= {part.name for part in PARTS}


def test_what_is_missing_is_named_with_the_parts_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites, "_has_module", lambda name: name not in ("safetensors", "pybind11"))
    monkeypatch.setattr(
        prerequisites, "TOOLS", {"build": {"nvcc": lambda: False}, "device_tests": {"doctest": lambda: True}}
    )
    found = missing()
    assert found == {
        "pybind11": ["build"],
        "nvcc": ["build"],
        "safetensors": ["engines", "latency", "idle", "compiled", "parity", "conformance"],
    }
    assert why_not(found, ["device_tests"]) is None
    needs = "pybind11 (for build); nvcc (for build); safetensors (for latency, idle)"
    words = f"what the check cannot do without is missing: {needs}"
    assert why_not(found, ["build", "latency", "idle"]) == words


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with no tools at all; tools that a test writes here are on its PATH."""
    for name in ("CUDACXX", "CXX", "CMAKE_PREFIX_PATH", "doctest_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(prerequisites, "nvcc_version", lambda: None)
    monkeypatch.setattr(prerequisites, "_has_module", lambda name: False)
    monkeypatch.setattr(prerequisites, "_SYSTEM", ())
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(prerequisites.sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def tool(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "give"),
    [
        ("nvcc", lambda patch, folder: tool(folder / "nvidia/cu13/bin/nvcc")),
        ("nvcc", lambda patch, folder: patch.setenv("CUDACXX", "/opt/nvcc")),
        ("nvcc", lambda patch, folder: patch.setattr(prerequisites, "nvcc_version", lambda: "13.0")),
        ("a C++ compiler", lambda patch, folder: tool(folder / "c++")),
        ("a C++ compiler", lambda patch, folder: patch.setenv("CXX", "icpx")),
        ("CMake", lambda patch, folder: tool(folder / "cmake")),
        ("Ninja or make", lambda patch, folder: tool(folder / "make")),
        ("Python.h", lambda patch, folder: tool(folder / "Python.h")),
        ("doctest", lambda patch, folder: patch.setenv("doctest_DIR", "/opt")),
        ("doctest", lambda patch, folder: give_doctest(patch, folder, "lib/cmake/doctest")),
        ("doctest", lambda patch, folder: give_doctest(patch, folder, "lib/aarch64-linux-gnu/cmake/doctest")),
    ],
)
def test_tools_are_found_where_they_may_lie(
    bare: Path, name: str, give: Callable[[pytest.MonkeyPatch, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = {**TOOLS["build"], **TOOLS["device_tests"]}
    assert not any(has() for has in tools.values())
    give(monkeypatch, bare)
    assert [each for each, has in tools.items() if has()] == [name]


def give_doctest(patch: pytest.MonkeyPatch, folder: Path, where: str) -> None:
    tool(folder / where / "doctestConfig.cmake")
    patch.setenv("CMAKE_PREFIX_PATH", f"/nowhere:{folder}")


def test_the_tests_of_the_gpu_are_there_without_onnx_and_accelerate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why_no_device() is None:
        pytest.skip("here is a GPU: they would run")
    for name in ("onnx", "accelerate"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('there is no {name}')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{CHECKOUT}")
    found = conformance.run(Work(tmp_path, 60, "conformance"))
    assert found["counts"]["SKIPPED"] > 80 and found["wrong"] == []
    assert "accelerate is not installed: training needs it" in found["printed"]
    assert "test_training_gpu.py::" not in found["printed"]
