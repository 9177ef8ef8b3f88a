"""Fails unless a `trt-moe demo --json` output has all that the demo promises, on real images."""

import json
import sys
from pathlib import Path

demo = json.loads(Path(sys.argv[1]).read_text())
assert demo["images"] >= 600, demo["images"]
assert len(demo["experts"]) >= 2
assert sorted(demo["severities"]) == list("012345")
for row in demo["severities"].values():
    assert abs(sum(row["share"].values()) - 1) < 1e-6, row
    assert 0 <= row["accuracy"] <= 1 and row["mean_ms"] > 0, row
for name in ("mixture", "cheapest", "dearest"):
    assert 0 < demo[name]["accuracy"] <= 1 and 0 < demo[name]["mean_ms"] <= demo[name]["p99_ms"], demo[name]
# A sample of the test set; `trt-moe eval` on all of it is where the claims are checked.
assert demo["severities"]["0"]["share"][demo["experts"][0]] >= 0.9, "clean images must mostly take the cheapest expert"
assert demo["severities"]["5"]["share"][demo["experts"][-1]] >= 0.85, "harsh images must mostly take the dearest expert"
picture = Path(demo["picture"])
assert picture.read_bytes().startswith(b"\x89PNG"), picture
print(f"demo: {demo['images']} images, mixture {demo['mixture']}, dearest {demo['dearest']}")
