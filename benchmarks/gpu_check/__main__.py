"""Builds the CUDA core, tests it and measures it on the GPU of this machine, offline, within 9 minutes.

python -m benchmarks.gpu_check --out DIR [--skip-build] [--only PART,PART]

Writes DIR/gpu_check.json and DIR/gpu_check.md, anew after every part, and prints a short table last. A part that
fails or takes too long is recorded, and the next one runs; Ctrl-C and SIGTERM end the part that runs, and with it the
check. Exit code: 0 when all parts ran, 1 when one failed, 3 when there is no device: then only those parts ran that
need none; 4 when the part environment missed what nothing can be built or measured without: then nothing else ran;
130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from benchmarks.gpu_check.parts import BUDGET_S, CHECKOUT, PARTS, Part, seconds_for
from benchmarks.gpu_check.prerequisites import why_not
from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.runner import Outcome, run_part
from trt_moe.hardware import gpu_report, library

FAILED, NO_DEVICE, LACKING, INTERRUPTED = 1, 3, 4, 130
_NEEDS = "memcheck and racecheck need device_tests beside them, those from probe on need build or --skip-build"


def main() -> int:
    names = ", ".join(part.name for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the two report files")
    parser.add_argument("--skip-build", action="store_true", help="use the trt_moe that this Python has")
    parser.add_argument("--only", type=parts_named, default=PARTS, metavar="PARTS", help=f"{names}\n{_NEEDS}")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out, f"python -m benchmarks.gpu_check {' '.join(sys.argv[1:])}")
    no_device = why_no_device()
    lack = stopped = None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The built package first, the checkout for benchmarks and tests.
        paths = installed(folder) if options.skip_build else [str(folder / "site")]
        paths += [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

        def outcome_of(part: Part, later: Sequence[Part]) -> Outcome:
            if part.name == "build" and options.skip_build:
                return Outcome("skipped", 0.0, reason="--skip-build: the installed module is checked")
            if part.needs_device and no_device:
                return Outcome("skipped", 0.0, reason="no device")
            try:
                print(f"{part.name}: {part.what} ...", file=sys.stderr, flush=True)
                left = BUDGET_S - (monotonic() - start)
                return run_part(part, folder, environment, seconds_for(part, later, left))
            except KeyboardInterrupt:  # before it had begun
                return Outcome("interrupted", 0.0)

        parts = [part for part in PARTS if part in options.only]
        for index, part in enumerate(parts):
            outcome = outcome_of(part, parts[index + 1 :])
            report.add(part, outcome)
            if outcome.status == "interrupted":
                stopped = INTERRUPTED
            elif part.name == "environment":
                builds = not options.skip_build
                needed = [each.name for each in parts if each.answers or (each.name == "build" and builds)]
                lack = why_not((outcome.result or {}).get("missing", {}), needed)
                stopped = LACKING if lack else None
            if stopped:
                break
    report.finish(no_device, lack)
    if stopped:
        return stopped
    if report.failed:
        return FAILED
    return NO_DEVICE if no_device else 0


def parts_named(text: str) -> tuple[Part, ...]:
    """Parts by their names, for --only."""
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in text.split(",") if name not in known]:
        raise argparse.ArgumentTypeError(f"no part is called {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name] for name in text.split(","))


def installed(folder: Path) -> list[str]:
    """Make a folder in `folder` that holds this Python's trt_moe and nothing else, to be looked into first.

    The checkout has a trt_moe as well, which may lack the module. Nothing, where there is none but the checkout's.
    """
    look = "import trt_moe; from pathlib import Path; print(Path(trt_moe.__file__).parent)"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False, cwd=folder)
    if found.returncode != 0:
        print(f"no trt_moe is installed here: {found.stderr.strip()[-500:]}", file=sys.stderr)
        return []
    site = folder / "installed"
    site.mkdir()
    (site / "trt_moe").symlink_to(found.stdout.strip())
    return [str(site)]


def why_no_device() -> str | None:
    """What was looked for in vain; None where there is a device."""
    found = gpu_report()
    if found["devices"]:
        return None
    nodes = sorted(str(node) for node in Path("/dev").glob("nvidia[0-9]*"))
    return (
        f"no NVIDIA device: {found['why_none']}; looked for nvidia-smi and NVML (no device), the driver's libcuda.so.1 "
        f"({library('cuda') or 'none'}), /dev/nvidia* ({', '.join(nodes) or 'none'}), the kernel module "
        f"({found['driver'] or 'not loaded'}), NVIDIA on the PCI bus ({', '.join(found['pci_devices']) or 'none'})"
    )


if __name__ == "__main__":
    sys.exit(main())
