"""The parts that run tests and sanitizers, with programs in place of those."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu_check import conformance, device_tests, memcheck, racecheck, sanitizer
from benchmarks.gpu_check.parts import CHECKOUT, Work


@pytest.fixture
def tests_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of the C++ tests, and nothing that builds it. Without --no-skip it succeeds."""
    program = tmp_path / "tests/cpp" / device_tests.EXECUTABLE
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "given: $*"\ncase "$*" in *--no-skip*) exit 1;; esac\n')
    program.chmod(0o755)
    monkeypatch.setattr(device_tests, "subprocess", SimpleNamespace(run=lambda command, check: None))
    return program


def test_the_tests_of_the_device_and_the_one_that_loses_it(tests_of_the_device: Path, tmp_path: Path) -> None:
    found = device_tests.run(Work(tmp_path, 60, "device_tests"))
    assert found == {
        "tests": {"passed": True, "printed": "given: --duration=true\n"},
        "device lost": {"passed": False, "printed": "given: --no-skip --test-case=an illegal access*\n"},
    }
    assert json.loads((tmp_path / "device_tests.json").read_text()) == found


@pytest.mark.parametrize(("code", "printed"), [(0, "skipped: no device\n"), (1, "1 failed\n")])
def test_tests_that_did_not_run_have_not_passed(code: int, printed: str) -> None:
    assert device_tests.passed(0, "H200\n25 passed\n")
    assert not device_tests.passed(code, printed)


def test_the_kernels_under_each_sanitizer(
    tests_of_the_device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "given: $*"; if [ "$2" = memcheck ]; then exit 86; fi\n')
    tool.chmod(0o755)
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: str(tool))
    for part, clean in ((memcheck, False), (racecheck, True)):
        name = part.__name__.rpartition(".")[2]
        found = part.run(Work(tmp_path, 60, name))
        assert found["clean"] is clean
        assert f"given: --tool {name} --error-exitcode 86 {tests_of_the_device} --test-case=" in found["printed"]
    text = "".join((CHECKOUT / f"tests/cpp/test_cuda_{part}.cc").read_text() for part in ("device", "gater", "routed"))
    for case in sanitizer._CASES.split(","):
        assert f'TEST_CASE("{case.removesuffix("*")}' in text
    assert f'TEST_CASE("{device_tests._LOST[1].partition("=")[2].removesuffix("*")}' in text


def test_no_sanitizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: str(tmp_path / "none"))
    assert memcheck.run(Work(tmp_path, 60, "memcheck"))["found"] is None


TESTS = """
import pytest
pytestmark = pytest.mark.gpu
def test_right(): pass
def test_wrong(): assert False
@pytest.mark.skip(reason="no cupy")
def test_skipped(): pass
@pytest.mark.parametrize("name", ["PASSED"])
def test_broken(no_fixture, name): pass
"""


def test_conformance_counts_tests_and_names_those_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tests/python/gpu"
    folder.mkdir(parents=True)
    (folder / "test_all.py").write_text(TESTS)
    (folder / "test_unimportable.py").write_text("import there_is_no_such_module\n")
    monkeypatch.setattr(conformance, "CHECKOUT", tmp_path)
    found = conformance.run(Work(tmp_path, 60, "conformance"))
    assert found["counts"] == {"PASSED": 1, "FAILED": 1, "ERROR": 1, "SKIPPED": 1}
    assert [test.rpartition("::")[2] for test in found["wrong"]] == ["test_wrong", "test_broken[PASSED]"]
    assert found["passed"] is False
    assert "there_is_no_such_module" in found["printed"]
    kept = json.loads((tmp_path / "conformance.json").read_text())
    assert kept["counts"] == found["counts"] and "passed" not in kept
    (folder / "test_unimportable.py").unlink()
    (folder / "test_all.py").write_text(TESTS.partition("def test_wrong")[0])
    assert conformance.run(Work(tmp_path, 60, "conformance"))["passed"] is True
    (folder / "test_all.py").write_text("import pytest\n@pytest.mark.gpu\n@pytest.mark.skip\ndef test_a(): pass\n")
    assert conformance.run(Work(tmp_path, 60, "conformance"))["passed"] is False
