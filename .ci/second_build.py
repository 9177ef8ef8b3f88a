"""Fails unless a second call of a `trt-moe build` command builds nothing and takes under 1 s of CPU time."""

import json
import os
import subprocess
import sys
import time

for call in ("first", "second"):
    before, start = os.times(), time.perf_counter()
    done = subprocess.run([*sys.argv[1:], "--json"], check=True, stdout=subprocess.PIPE)
    seconds, after = time.perf_counter() - start, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])  # user and system time of finished children
    built = json.loads(done.stdout)["built"]
    print(f"{call} call: {built} engines built in {seconds:.2f} s, {cpu:.2f} s of CPU time")
if built or cpu >= 1:
    sys.exit("the second call must build nothing and take under 1 s")
