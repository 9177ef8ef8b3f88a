"""Resident memory after loading, and after many images."""

from __future__ import annotations

import gc
from typing import Any

from benchmarks.common import Images, markdown, rss_mb
from trt_moe import Bundle, Router

TITLE = "Memory"


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """Single images, batches and submissions in turn, so that every path has run before and during the count."""
    total = 10_000 if quick else 100_000
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

        answer(1000)
        gc.collect()
        loaded = rss_mb()
        answer(total)
        gc.collect()
        after = rss_mb()
    return {
        "images": total,
        "before_load_mb": before,
        "after_load_mb": loaded,
        "after_images_mb": after,
        "growth": after / loaded - 1,
    }


def table(report: dict[str, Any]) -> str:
    row = [
        f"{report['before_load_mb']:.0f}",
        f"{report['after_load_mb']:.0f}",
        f"{report['after_images_mb']:.0f}",
        f"{report['growth']:+.2%}",
    ]
    header = ["before load MB", "loaded, 1,000 images MB", f"after {report['images']:,} more MB", "growth"]
    return markdown(header, [row])
