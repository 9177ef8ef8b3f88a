"""The GPU check, rehearsed where there is no GPU."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import runner
from benchmarks.gpu_check.goals import goals
from benchmarks.gpu_check.parts import BUDGET_S, CHECKOUT, PARTS, Part, seconds_for
from benchmarks.gpu_check.prerequisites import PACKAGES
from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.runner import Outcome, run_logged, run_part
from benchmarks.gpu_check.turns import WARMUP, take_turns


def test_the_rehearsal_stops_where_a_device_is_needed(tmp_path: Path) -> None:
    if gpu_check.why_no_device() is None:
        pytest.skip("here is a GPU: nothing to rehearse")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--skip-build", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert done.returncode == 3, done.stderr
    assert "Stopped: no NVIDIA device: " in done.stdout
    assert "looked for nvidia-smi and NVML (no device), the driver's libcuda.so.1" in done.stdout
    waiting = done.stdout.split("these parts would run")[1]
    assert [part.name for part in PARTS if f"- {part.name}: {part.what}" in waiting] == [
        part.name for part in PARTS if part.needs_device
    ]
    report = json.loads((tmp_path / "out/gpu_check.json").read_text())
    assert report["no_device"] in done.stdout
    assert report["command"] == f"python -m benchmarks.gpu_check --skip-build --out {tmp_path / 'out'}"
    assert {name: part["status"] for name, part in report["parts"].items()} == {
        part.name: "ran" if part.name == "environment" else "skipped" for part in PARTS
    }
    assert report["parts"]["environment"]["result"]["packages"]["numpy"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["gpu_check.json", "gpu_check.md"]


def test_all_parts_fit_into_nine_minutes() -> None:
    assert BUDGET_S <= 9 * 60 - 20
    assert all((CHECKOUT / f"benchmarks/gpu_check/{part.name}.py").is_file() for part in PARTS)


def test_what_runs_on_a_gpu_machine_needs_neither_openvino_nor_tensorrt() -> None:
    code = (
        "import importlib, sys\n"
        "for name in ('openvino', 'tensorrt', 'tensorrt_rtx', 'pycuda', 'cupy', 'onnx'): sys.modules[name] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    modules = ["benchmarks.full_size", *(f"benchmarks.gpu_check.{part.name}" for part in PARTS)]
    subprocess.run([sys.executable, "-c", code, *modules], check=True, cwd=CHECKOUT)


def run_main(monkeypatch: pytest.MonkeyPatch, out: Path, run: Any, *options: str) -> int:
    """The check with `run` in place of what runs a part, where there is a device."""
    monkeypatch.setattr(gpu_check, "run_part", run)
    monkeypatch.setattr(gpu_check, "why_no_device", lambda: None)
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *given: None)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(out), *options])
    return gpu_check.main()


@pytest.mark.parametrize(
    ("only", "answering"),
    [
        ("environment,build,device_tests,memcheck,racecheck,conformance,probe,engines,latency,idle,compiled,parity",
         {"latency": 160, "idle": 70, "compiled": 130}),
        ("latency,idle,compiled,parity", {"latency": 170, "idle": 70, "compiled": 130}),
        ("build,latency,idle", {"latency": 250, "idle": 70}),
        ("build,idle", {"idle": 320}),
    ],
)  # fmt: skip
def test_no_slow_part_starves_those_that_answer_the_goals(
    only: str, answering: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, given = 0.0, {}
    monkeypatch.setattr(gpu_check, "monotonic", lambda: now)

    def run(part: Part, folder: Path, environment: dict[str, str], seconds: float) -> Outcome:
        nonlocal now
        given[part.name] = max(0.0, min(seconds, 200) if part.name == "build" else seconds)
        now += given[part.name]
        return Outcome("ended", given[part.name])

    assert run_main(monkeypatch, tmp_path, run, "--only", only) == gpu_check.FAILED
    assert list(given) == only.split(",")
    assert {part.name: given[part.name] for part in PARTS if part.answers and part.name in given} == answering
    assert sum(given.values()) <= BUDGET_S


def test_a_part_takes_what_later_ones_can_do_without() -> None:
    last, answering = part("last", 30.0), Part("latency", 50.0, True, "a test", answers=True)
    assert seconds_for(part("first", 20.0), [answering, last], 100.0) == 20.0
    assert seconds_for(part("first", 20.0), [answering, last], 120.0) == 40.0, "all have theirs"
    assert seconds_for(part("first", 20.0), [answering, last], 60.0) == 10.0, "less, for the one that answers"
    assert seconds_for(part("first", 20.0), [last], 40.0) == 20.0, "the later one has what is left"
    assert seconds_for(answering, [], 300.0) == 300.0


def test_the_check_stops_where_what_it_cannot_do_without_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing: dict[str, list[str]] = {}
    ran: list[str] = []

    def run(part: Part, folder: Path, environment: dict[str, str], seconds: float) -> Outcome:
        ran.append(part.name)
        return Outcome("ran", 1.0, {"missing": missing} if part.name == "environment" else {})

    # Parts of which nothing else is made do without.
    missing |= {"doctest": ["device_tests"], "onnx": ["engines", "conformance"]}
    assert run_main(monkeypatch, tmp_path, run) == 0
    assert ran == [part.name for part in PARTS]
    capsys.readouterr()
    missing |= {"nvcc": ["build"], "timm": ["latency", "compiled", "parity"], "triton": ["compiled"]}
    ran.clear()
    assert run_main(monkeypatch, tmp_path, run) == gpu_check.LACKING
    assert ran == ["environment"]
    lack = (
        "what the check cannot do without is missing: nvcc (for build); timm (for latency, compiled); "
        "triton (for compiled)"
    )
    assert f"Stopped: {lack}. Install it where {sys.executable} and CMake find it." in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu_check.json").read_text())["lack"] == lack
    assert run_main(monkeypatch, tmp_path, run, "--only", "environment,parity") == 0
    del missing["timm"], missing["triton"]
    monkeypatch.setattr(gpu_check, "installed", lambda folder: [])
    assert run_main(monkeypatch, tmp_path, run, "--skip-build") == 0


def test_a_part_that_fails_counts_also_where_there_is_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "run_part", lambda *given: Outcome("failed", 1.0))
    monkeypatch.setattr(gpu_check, "why_no_device", lambda: "no NVIDIA device: none found")
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *given: None)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path), "--only", "build,latency"])
    assert gpu_check.main() == gpu_check.FAILED


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Finds parts of our own before those of the checkout: `say`, `fail`, `keep`, `hang`."""
    package = tmp_path / "first/benchmarks/gpu_check"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text(
            f"__path__.append({str(CHECKOUT / folder.relative_to(tmp_path / 'first'))!r})\n"
        )
    (package / "say.py").write_text("def run(work):\n    return {'seconds': work.seconds}\n")
    (package / "fail.py").write_text("def run(work):\n    print('so far')\n    raise ValueError('and no further')\n")
    (package / "keep.py").write_text(
        "import os\ndef run(work):\n    work.keep({'found': 1, 'left': work.left})\n    os._exit(9)\n"
    )
    (package / "hang.py").write_text(
        "import subprocess, sys, pathlib\n"
        "def run(work):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    (work.folder / 'pid').write_text(str(child.pid))\n"
        "    work.keep('so far')\n"
        "    print('begun', flush=True)\n"
        "    child.wait()\n"
    )
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'first'}:{CHECKOUT}"}


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_found_is_kept_where_the_check_is_interrupted(tmp_path: Path, signal_number: int) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--only", "environment,build", "--out", str(out)]
    # A build must seem to be possible.
    for module in PACKAGES["build"]:
        (tmp_path / f"{module}.py").touch()
    has_all = {**os.environ, "PYTHONPATH": f"{tmp_path}:{CHECKOUT}", "CUDACXX": "nvcc"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT, env=has_all
    ) as check:
        assert check.stderr is not None
        while "build: " not in check.stderr.readline():
            pass
        check.send_signal(signal_number)
        printed, _ = check.communicate(timeout=30)
    assert check.returncode == gpu_check.INTERRUPTED
    parts = json.loads((out / "gpu_check.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {"environment": "ran", "build": "interrupted"}
    assert "| build | interrupted |" in printed


def test_the_installed_package_is_looked_for_from_outside_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nmkdir -p "$PWD/there/trt_moe" && echo "$PWD/there/trt_moe"\n')
    python.chmod(0o755)
    monkeypatch.setattr(gpu_check.sys, "executable", str(python))
    [site] = gpu_check.installed(tmp_path)
    assert [path.name for path in Path(site).iterdir()] == ["trt_moe"]
    assert (Path(site) / "trt_moe").resolve() == (tmp_path / "there/trt_moe").resolve()
    python.write_text("#!/bin/sh\necho no module >&2\nexit 1\n")
    assert gpu_check.installed(tmp_path) == []
    assert "no trt_moe is installed here: no module" in capsys.readouterr().err


def test_parts_are_asked_for_by_name() -> None:
    assert [part.name for part in gpu_check.parts_named("environment,idle")] == ["environment", "idle"]
    with pytest.raises(argparse.ArgumentTypeError, match="no part is called nope, ; there are environment, build"):
        gpu_check.parts_named("nope,,idle")


def part(name: str, seconds: float = 20.0) -> Part:
    return Part(name, seconds, False, "a test")


def test_a_part_gives_its_result(tmp_path: Path, environment: dict[str, str]) -> None:
    outcome = run_part(part("say"), tmp_path, environment, 20.0)
    # What starting took is no longer its to use.
    assert outcome.status == "ran" and 10 < outcome.result["seconds"] < 20
    assert 0 < run_part(part("say"), tmp_path, environment, 7.0).result["seconds"] < 7


def test_a_part_that_fails_says_what_it_printed(tmp_path: Path, environment: dict[str, str]) -> None:
    outcome = run_part(part("fail"), tmp_path, environment, 20.0)
    assert outcome.status == "failed"
    assert outcome.reason is not None
    assert "exit code 1" in outcome.reason and "so far" in outcome.reason and "and no further" in outcome.reason


def test_a_part_that_dies_leaves_what_it_had_found(
    tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_part(part("keep"), tmp_path, environment, 20.0)
    assert outcome.status == "failed" and "exit code 9" in str(outcome.reason)
    assert outcome.result["found"] == 1
    assert 0 < outcome.result["left"] < 20
    report = Report(tmp_path, "command")
    report.add(part("keep"), outcome)
    assert report.failed
    written = (tmp_path / "gpu_check.md").read_text()
    assert "exit code 9" in written and '"found": 1' in written


def test_a_part_that_hangs_is_ended_with_all_it_started(tmp_path: Path, environment: dict[str, str]) -> None:
    outcome = run_part(part("hang"), tmp_path, environment, 6.0)
    assert outcome.status == "ended"
    assert "not done after 6 s; it printed: begun" in str(outcome.reason)
    assert outcome.result == "so far"
    pid = (tmp_path / "pid").read_text()
    end = monotonic() + 10
    while is_alive(pid) and monotonic() < end:
        sleep(0.05)
    assert not is_alive(pid)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_part_starts_prints_into_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = "import os, sys; print(os.getcwd()); print('wrong', file=sys.stderr); sys.exit(3)"
    code, printed = run_logged([sys.executable, "-c", script], cwd=tmp_path)
    assert code == 3
    assert sorted(printed.split()) == sorted([str(tmp_path), "wrong"])
    assert capfd.readouterr().out == printed


def test_every_line_is_told_and_the_ends_are_kept() -> None:
    lines: list[str] = []
    script = "print('the first error'); print('x' * 50_000); print('the summary')"
    _, printed = run_logged([sys.executable, "-c", script], each=lines.append)
    assert [len(line) for line in lines] == [16, 50_001, 12]
    assert printed.startswith("the first error\n") and printed.endswith("the summary\n") and len(printed) < 13_000
    assert runner.ends("short") == "short"


def test_a_part_for_which_no_time_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.subprocess, "Popen", None)
    assert run_part(part("say"), tmp_path, {}, 4.0) == Outcome("ended", 0.0, reason="no time was left")


@pytest.mark.parametrize(
    ("result", "state"),
    [
        ({"works": False}, "ran"),
        ({"passed": True}, "ran"),
        ({"passed": False}, "found errors"),
        ({"memcheck": {"clean": False}}, "found errors"),
        ({"racecheck": {"clean": None}}, "ran"),
        ({"plans": {"device-routed": {"routes_right": False}}}, "found errors"),
    ],
)
def test_a_part_that_ran_may_have_found_errors(
    result: Any, state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path, "command")
    report.add(part("say"), Outcome("ran", 1.0, result))
    report.finish(None, None)
    assert report.failed is (state == "found errors")
    assert f"| say | {state} | 1 | a test |" in capsys.readouterr().out


def timing(p50: float) -> dict[str, float]:
    return {"mean_ms": p50, "p50_ms": p50, "p90_ms": 2 * p50, "p99_ms": 3 * p50}


def results() -> dict[str, Any]:
    def case(bare: float) -> dict[str, Any]:
        return {
            "our device-routed plan": timing(bare * 1.04),
            "our host-routed plan": timing(bare * 1.3),
            "our device-routed plan, speculating": timing(bare * 0.936),
            "torch eager, routed in Python": timing(bare * 4.16),
            "bare gater + bare expert": timing(bare),
            "bare gater": timing(0.05),
            "bare expert": timing(bare - 0.05),
        }

    cases: dict[str, Any] = {"squeezenet": case(0.15), "deit-small": case(1.05)}
    cases["mixed batch of 8"] = {key: value for key, value in case(2.0).items() if key.startswith(("our", "torch"))}
    return {
        "latency": {
            "milliseconds": cases,
            "plan": "device-routed",
            "plan_reason": "",
            "dearest": "deit-small",
            "host_us": {"p50_us": 31.0},
        },
        "idle": {
            "engines": "torch, not compiled",
            "busy": {"p50_ms": 0.2},
            "after idleness": {"calls": 12, "p50_ms": 0.5, "max_ms": 0.9},
            "after idleness, with keep-alive": {"calls": 12, "p50_ms": 0.3, "max_ms": 0.4},
        },
    }


def test_figures_stand_beside_their_goals() -> None:
    rows = {row[0]: row[1:] for row in goals(results())}
    assert rows["device-routed predict(1) over bare gater + bare expert, p50, worst expert"] == (
        "1.04",
        "<= 1.05",
        "yes",
    )
    assert rows["host-routed over device-routed, batch 1, p50, worst"] == ("1.25", ">= 1", "yes")
    assert rows["mean of the mixture, each expert as often, over DeiT-S alone"] == ("0.624", "<= 0.6", "no")
    assert rows["gater over DeiT-S, p50"] == ("0.05", "<= 0.1", "yes")
    assert rows["host time of predict(1), us, p50"] == ("31", "<= 30", "no")
    assert rows["torch eager, routed in Python over ours, batch 1, p50, worst"] == ("4", ">= 3", "yes")
    assert rows["torch.compile, routed in Python over ours, batch 8, p50, worst"] == ("not measured", ">= 1.5", "-")
    easy = "predict(1), 90% easy images, speculation on over off, mean"
    assert rows[easy] == ("0.9 (0.225 over 0.250 ms)", "reported", "-")
    found = "0.900 ms is the largest of 12; p50 0.500 ms, busy 0.200 ms; engines: torch, not compiled"
    assert rows["predict(1) after idleness"][0] == found


def test_plans_are_not_compared_where_there_is_one() -> None:
    found = results()
    found["latency"] |= {"plan": "host-routed", "plan_reason": "the driver has no conditional nodes"}
    rows = {row[0]: row[1:] for row in goals(found)}
    assert rows["host-routed over device-routed, batch 8, p99, worst"] == (
        "the driver has no conditional nodes", ">= 1", "-",
    )  # fmt: skip
    assert rows["host time of predict(1), us, p50"] == ("the driver has no conditional nodes", "<= 30", "-")


def test_a_figure_that_was_not_measured_is_a_row_too() -> None:
    whole = goals(results())
    partial = results()
    del partial["latency"]["milliseconds"]["deit-small"]
    for found in ({}, partial, {"idle": results()["idle"]}):
        assert [(row[0], row[2]) for row in goals(found)] == [(row[0], row[2]) for row in whole]
    assert {row[1] for row in goals({})} == {"not measured"}
    rows = {row[0]: row[1] for row in goals(partial)}
    # A worst or a mean over some of the experts would look better than it is.
    assert rows["device-routed predict(1) over bare gater + bare expert, p50, worst expert"] == "not measured"
    assert rows["mean of the mixture, each expert as often, over DeiT-S alone"] == "not measured"
    assert rows["host-routed over device-routed, batch 8, p50, worst"] == "1.25"
    assert rows["host time of predict(1), us, p50"] == "31"


def test_figures_are_doubted_until_what_is_timed_was_found_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path, "command")
    report.add(Part("latency", 1.0, True, "a test"), Outcome("ran", 1.0, {"routes_right": False}))
    report.add(Part("parity", 1.0, True, "a test"), Outcome("ended", 1.0))
    report.finish(None, None)
    doubts = "device_tests (not run), latency (found errors), parity (ended)"
    assert f"Believe no figure before these ran and found no error: {doubts}." in capsys.readouterr().out
    for name in ("device_tests", "latency", "parity"):
        report.add(Part(name, 1.0, True, "a test"), Outcome("ran", 1.0, {}))
    report.finish(None, None)
    assert "Believe no figure" not in capsys.readouterr().out


def test_the_table_of_figures_is_printed_where_a_device_was_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path, "command")
    report.add(Part("parity", 1.0, True, "a test"), Outcome("failed", 1.0, reason="it broke"))
    report.finish(None, None)
    assert "| gater over DeiT-S, p50 | not measured | <= 0.1 | - |" in capsys.readouterr().out


def test_missing_packages_are_in_the_short_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path, "command")
    report.add(part("environment"), Outcome("ran", 1.0, {"missing": {"onnx": ["engines"], "yaml": ["parity"]}}))
    report.finish(None, None)
    assert "| environment | ran | 1 | missing: onnx, yaml |" in capsys.readouterr().out


def test_contenders_take_turns() -> None:
    calls: list[str] = []

    def contender(name: str, milliseconds: float) -> Any:
        return lambda: calls.append(name) or milliseconds

    found = take_turns({"a": contender("a", 1.0), "b": contender("b", 2.0)}, rounds=30, seconds=60.0)
    assert (found["a"]["p50_ms"], found["b"]["p99_ms"], found["a"]["rounds"]) == (1.0, 2.0, 30)
    rounds = [tuple(calls[at : at + 2]) for at in range(0, len(calls), 2)]
    assert len(rounds) == WARMUP + 30
    assert set(rounds) == {("a", "b"), ("b", "a")}


def test_the_turns_end_with_the_time() -> None:
    found = take_turns({"a": lambda: 1.0}, rounds=10**9, seconds=0.0)
    assert found["a"]["rounds"] <= 2 * WARMUP
