"""What a fork, and a signal handler that closes, find of a router."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_bundle import write_tiny_bundle

FORK = """
import os, sys, numpy as np, trt_moe
router = trt_moe.Router(sys.argv[1], check=False)
images = np.full((64, 8, 8, 1), 20, np.uint8)
router.predict(images)
if sys.argv[3] == "submitted":
    router.submit(images[0]).result()
child = os.fork()
if child == 0:
    for call in (
        lambda: router.predict(images),
        lambda: router.submit(images[0]),
        lambda: router.model("expert-0").logits(images),
        lambda: trt_moe.Router(sys.argv[1]),
    ):
        try:
            call()
        except trt_moe.DeviceError as error:
            assert "fork" in str(error) and "spawn" in str(error)
            print("refused", flush=True)
    if sys.argv[2] == "close":
        router.close()
    if sys.argv[2] == "drop":
        del router
    print("child ends", flush=True)
else:
    assert os.waitpid(child, 0)[1] == 0
    print(router.predict(images[:2]).experts.tolist())
"""

SIGNAL = """
import os, signal, sys, threading, numpy as np, trt_moe
router = trt_moe.Router(sys.argv[1], check=False, max_batch=int(sys.argv[2]), max_queue=1 << 20)
images = np.full((100_000, 64, 64, 1), 20, np.uint8)

def close(*_):
    router.close(cancel_pending=True)
    print("closed", flush=True)

signal.signal(signal.SIGTERM, close)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
try:
    router.predict(images)
except trt_moe.RouterClosedError:
    print("refused", flush=True)
router.close()
print("ended", flush=True)
"""


@pytest.mark.parametrize("before", ["submitted", "predicted"])
@pytest.mark.parametrize("end", ["close", "drop", "exit"])
def test_a_fork_is_refused_and_ends(tmp_path: Path, end: str, before: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(bundle.path), end, before],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["refused"] * 4 + ["child ends", "[0, 0]"], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("max_batch", [32, 65536])
def test_a_signal_handler_may_close_the_router_it_interrupts(tmp_path: Path, max_batch: int) -> None:
    """A batch of 32 is done before it is polled for; one of 65,536 is polled while it runs."""
    slow = write_tiny_bundle(tmp_path / "slow", size=(64, 64), work=(60, 60), golden=0)
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL, str(slow.path), str(max_batch)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["closed", "refused", "ended"], done.stderr
    assert done.returncode == 0, done.stderr
