from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.support.tiny_bundle import TinyBundle, write_tiny_bundle
from trt_moe.cli import app
from trt_moe.compile import tables
from trt_moe.compile.build import BuildReport, Step
from trt_moe.compile.gate import GateReport
from trt_moe.cuda.check import EngineCheck
from trt_moe.errors import EngineBuildError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRT_MOE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cuda"


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def run_json(*arguments: object, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def test_build_and_the_cache_from_end_to_end(tiny: TinyBundle, cache: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    build = ("build", tiny.path, "--device", "cuda", "--buckets", "1,2", "--flavour", "tensorrt_rtx")
    first = run_json(*build)
    assert (first["built"], first["flavour"]) == (3, "tensorrt_rtx")
    for engine in first["engines"]:
        assert Path(engine["path"]).parent == cache
        assert engine["spec"]["precision"] == "fp16"
        assert engine["gate_report"]["passed"] is True
    assert run_json(*build)["built"] == 0
    text = run(*build).stdout
    assert "0 built, 3 from the cache" in text
    assert "expert-1" in text
    assert "emulated" in text

    listed = run_json("cache", "list")
    assert [engine["problem"] for engine in listed["engines"]] == [None] * 3
    assert {engine["sidecar"]["spec"]["model"] for engine in listed["engines"]} == {"gater", "expert-0", "expert-1"}
    assert run("cache", "list").stdout.count("not checked") == 3
    assert "not checked" not in run("cache", "verify").stdout
    damaged = Path(first["engines"][0]["path"])
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    verified = run("cache", "verify", code=1).stdout
    assert "changed since it was built" in verified
    assert "1 cannot be used; the next `trt-moe build` makes them anew" in verified
    again = run(*build)
    assert f"{damaged.name} is not used: it was changed since it was built" in again.stderr
    assert "1 built, 2 from the cache" in again.stdout
    assert "3 engines deleted" in run("cache", "clear").stdout
    assert run_json("cache", "list")["engines"] == []
    cpu = {"deleted": 0, "bytes": 0}
    assert run_json("cache", "clear") == {"folder": str(cache), "deleted": 0, "bytes": 0, "kept": [], "cpu": cpu}


def test_the_cache_of_models_for_the_cpu_is_shown_and_cleared(cache: Path) -> None:
    folder = cache.parent / "openvino"
    folder.mkdir(parents=True)
    for index in range(3):
        (folder / f"{index}.blob").write_bytes(bytes(1 << 20))
    assert run_json("cache", "list")["cpu"] == {"files": 3, "bytes": 3 << 20, "limit_bytes": 4 << 30}
    assert "3 models compiled by OpenVINO, 3.0 MiB of at most 4,096" in run("cache", "list").stdout
    assert "3 models for the CPU deleted, 3.0 MiB freed" in run("cache", "clear").stdout
    assert list(folder.iterdir()) == []


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """Puts a GPU's verdict in the place of the check, which has tests of its own."""

    def set_verdict(failure: BaseException | None) -> None:
        def check_engines(report: BuildReport) -> EngineCheck:
            if failure:
                raise failure
            judged = [engine.sidecar for engine in report.unjudged()]
            reports = [GateReport.model_validate({**(it.gate_report or {}), "method": "engine"}) for it in judged]
            return EngineCheck({it.spec.model: found for it, found in zip(judged, reports, strict=True)})

        monkeypatch.setattr("trt_moe.cuda.check.check_engines", check_engines)

    return set_verdict


def test_an_engine_that_fails_on_the_gpu_is_not_found_by_the_next_call(
    tiny: TinyBundle, judge: Callable[[BaseException | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    build = ("build", tiny.path, "--buckets", "1", "--flavour", "tensorrt_rtx")
    judge(EngineBuildError("expert-0: its engine is not accurate enough"))
    for _ in range(2):
        assert "not accurate enough" in run(*build, code=1).stderr
        assert run_json("cache", "list")["engines"] == []
    monkeypatch.setattr("trt_moe.hardware.has_cuda_driver", lambda: True)
    judge(KeyboardInterrupt())
    assert "interrupted" in run(*build, code=130).stderr.lower()
    assert len(run_json("cache", "list")["engines"]) == 3
    judge(None)  # what the interrupt left is judged now
    first = run_json(*build)
    assert [engine["built"] for engine in first["engines"]] == [False] * 3
    assert run_json(*build)["engines"] == [{**engine, "built": False} for engine in first["engines"]]
    assert {engine["engine_report"]["method"] for engine in first["engines"]} == {"engine"}
    assert run(*build).stdout.count("accuracy of the engine") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--buckets", "none"], 2, "--buckets is none; expected batch sizes such as 1,2,4"),
        (["--buckets", "0"], 2, "--buckets is '0'"),
        (["--compute-capability", "9.0"], 2, "no compute capability 9.0; it knows"),
        (["--precision", "bf16"], 2, "bf16"),
        (["--device", "cpu"], 2, "cpu"),
        (["--trust", "nobody"], 2, "no model is called 'nobody'"),
        (["--version-compatible"], 1, "builds no version-compatible"),
        (["--hardware-compatible"], 1, "hardware-compatible"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, message: str, tiny: TinyBundle, cache: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    assert message in run("build", tiny.path, "--flavour", "tensorrt_rtx", *arguments, code=code).stderr
    assert not cache.exists() or [path for path in cache.iterdir() if path.is_file()] == []


def test_a_flavour_that_is_not_installed(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "no TensorRT can be loaded" in run("build", tiny.path, "--flavour", "tensorrt", code=1).stderr


def test_without_a_cache_there_is_nothing_to_build_into(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
    monkeypatch.setenv("TRT_MOE_CACHE_DIR", "")
    assert "TRT_MOE_CACHE_DIR is ''; set it to a folder" in run("build", tiny.path, code=2).stderr


def test_progress_names_the_batch_size_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(tables, "stderr", lambda: Console(file=screen, force_terminal=True, width=120))
    with tables.build_progress(True) as progress:
        progress(Step("light", "converting", 0.0, None, None))
        progress(Step("heavy", "building", 0.5, 8, 12.3))
    assert "heavy: batch size 8" in screen.getvalue()
    assert "about 12 s left" in screen.getvalue()
    assert screen.getvalue().rstrip().endswith("\x1b[2K")  # wiped at the end
    screen.seek(0)
    screen.truncate()
    with tables.build_progress(False) as progress:
        progress(Step("heavy", "building", 0.5, 8, 12.3))
    assert screen.getvalue() == ""


def test_progress_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        Step("light", "converting", 0.0, None, None),
        Step("light", "building", 0.0, 1, 9.6),
        Step("light", "building", 0.2, 1, 9.4),
        Step("light", "building", 0.6, 8, 5.0),
    ]
    for show in (True, False):
        with tables.build_progress(show) as progress:
            for step in steps:
                progress(step)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "light: conversion and accuracy",
        "light: batch size 1, about 10 s left",
        "light: batch size 8, about 5 s left",
    ]
