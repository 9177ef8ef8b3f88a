"""Ctrl-C while the core works."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.tiny_bundle import write_tiny_bundle

PREDICT = """
import sys, numpy as np, trt_moe
router = trt_moe.Router(sys.argv[1], check=False)
images = np.full((50_000, 64, 64, 1), 20, np.uint8)
router.predict(images[:64])
try:
    print("started", flush=True)
    router.predict(images)
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert router.stats()["in_flight"] == 0
print(router.predict(images[:3]).experts.tolist())
"""


TIMED = """
import sys, numpy as np, trt_moe
model = trt_moe.Model.load(sys.argv[1], "expert-0")
try:
    print("started", flush=True)
    model.time(np.full((64, 64, 1), 20, np.uint8), iterations=1, warmup=1 << 30)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def interrupted(script: str, tmp_path: Path, seconds: float = 0.0) -> str:
    """What a script prints that gets Ctrl-C so many seconds after it printed "started", of a slow bundle."""
    slow = write_tiny_bundle(tmp_path / "slow", size=(64, 64), work=(60, 60), golden=0)
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(slow.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    time.sleep(seconds)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return out


def test_ctrl_c_stops_a_long_predict_and_leaves_the_router_usable(tmp_path: Path) -> None:
    assert interrupted(PREDICT, tmp_path) == "interrupted\n[0, 0, 0]\n"


def test_ctrl_c_stops_a_long_warm_up(tmp_path: Path) -> None:
    assert interrupted(TIMED, tmp_path, seconds=0.2) == "interrupted\n"
