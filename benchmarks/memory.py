"""Resident memory after loading, and after many images, in a process of its own."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from typing import Any

from benchmarks.common import Images, load_mixed_images, rss_mb
from benchmarks.tables import markdown
from trt_moe import Bundle, Router

TITLE = "Memory"


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """A fresh interpreter, so that no peer's memory hides ours."""
    command = [sys.executable, "-m", "benchmarks.memory", str(bundle.path), str(10_000 if quick else 100_000)]
    report: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return report


def measure(path: str, total: int) -> dict[str, Any]:
    """Single images, batches and submissions in turn, so that every path has run before and during the count."""
    bundle = Bundle.load(path)
    images = load_mixed_images(bundle)
    before = rss_mb()
    with Router(bundle) as router:

        def answer(count: int) -> None:
            done = 0
            while done < count:
                router.predict(images[done % len(images)][None])
                router.predict(images[:64])
                for future in [router.submit(image) for image in images[:35]]:
                    future.result()
                done += 100

        loaded = rss_mb()
        answer(1000)
        gc.collect()
        warm = rss_mb()
        answer(total)
        gc.collect()
        after = rss_mb()
    return {
        "images": total,
        "before_load_mb": before,
        "after_load_mb": loaded,
        "after_1000_images_mb": warm,
        "after_images_mb": after,
        "growth_since_load": after / loaded - 1,
        "growth_since_1000_images": after / warm - 1,
    }


def table(report: dict[str, Any]) -> str:
    row = [
        f"{report['before_load_mb']:.0f}",
        f"{report['after_load_mb']:.0f}",
        f"{report['after_1000_images_mb']:.0f}",
        f"{report['after_images_mb']:.0f}",
        f"{report['growth_since_load']:+.2%}",
        f"{report['growth_since_1000_images']:+.2%}",
    ]
    last = f"after {report['images']:,} more"
    header = ["MB before load", "loaded", "after 1,000 images", last, "growth since load", "since 1,000 images"]
    return markdown(header, [row])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
