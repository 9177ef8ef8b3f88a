"""Fails unless the installed CUDA backend was built for the given architectures, and says plainly what it finds."""

import subprocess
import sys

from trt_moe import Router, _core
from trt_moe.bundle import shipped_bundles
from trt_moe.errors import DeviceError

build = _core.cuda_build()
targets = build.replace(",", "").split()
wanted = [*(f"sm_{architecture}" for architecture in sys.argv[1:]), f"compute_{sys.argv[-1]}"]
if missing := [target for target in wanted if target not in targets]:
    sys.exit(f"the build is {build!r}; it lacks {missing}")

linked = subprocess.run(["ldd", _core.__file__], capture_output=True, text=True, check=True).stdout
if "libcuda" in linked:
    sys.exit(f"the module is linked to the driver or to a shared CUDA runtime:\n{linked}")

try:
    print(f"found {_core.CudaDevice().info}")
except DeviceError as error:
    found = str(error)
    if "libcuda.so.1" not in found:
        sys.exit(f"the error does not say what was looked for: {found}")
    print(f"{build}; here: {found}")
    try:
        Router(next(iter(shipped_bundles())), device="cuda")
    except DeviceError as error:
        if str(error) != found:
            sys.exit(f"the router says something else: {error}")
    else:
        sys.exit("a router opened on a GPU that is not there")
