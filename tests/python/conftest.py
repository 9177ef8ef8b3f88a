"""Makes `support` (tests/support) importable, trains on the CPU, and lets Ctrl-C work in child processes.

TRT_MOE_CORE_ON_HOST names the build folder of a core to test in place of the installed one.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Tests of training compare bits, which the kernels of a GPU do not repeat.
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

# In the background of a script this process ignores Ctrl-C, and its children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if build := os.environ.get("TRT_MOE_CORE_ON_HOST"):
    from tests.support.core_on_host import load_core

    load_core(Path(build).resolve())
