"""Image files over HTTP, from connections that each send one after the other."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from benchmarks.common import Images
from benchmarks.tables import markdown, percentiles, speed_cells
from trt_moe import Bundle

TITLE = "PNG files over HTTP, from connections that send one after the other"
CONNECTIONS = (1, 16, 64)
CONTENDERS = {
    "trt-moe serve": ["trt_moe", "serve", "{bundle}", "--port", "0", "--json"],
    "its web server, OpenVINO in Python, grouping thread": ["benchmarks.http_peer", "{bundle}", "grouping"],
    "its web server alone, which only decodes": ["benchmarks.http_peer", "{bundle}", "nothing"],
}


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """Contenders are processes of their own, and take turns; the client is on the same CPUs."""
    turns, seconds = (1, 0.3) if quick else (5, 2.0)
    requests = [_request(image) for image in images]
    times: dict[tuple[str, int], list[float]] = {(name, n): [] for name in CONTENDERS for n in CONNECTIONS}
    walls = dict.fromkeys(times, 0.0)
    with ExitStack() as stack:
        ports = {name: stack.enter_context(_server(bundle, command)) for name, command in CONTENDERS.items()}
        for port in ports.values():
            asyncio.run(_drive(port, CONNECTIONS[-1], requests, 0.5))
        for _ in range(turns):
            for name, connections in times:
                begin = perf_counter()
                times[name, connections] += asyncio.run(_drive(ports[name], connections, requests, seconds))
                walls[name, connections] += perf_counter() - begin
    return {
        "rows": [
            {"runtime": name, "connections": n, "images_per_s": len(ms) / walls[name, n], **percentiles(ms)}
            for (name, n), ms in times.items()
        ]
    }


@contextmanager
def _server(bundle: Bundle, command: list[str]) -> Iterator[int]:
    arguments = [part.format(bundle=bundle.path) for part in command]
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = ""
        while not said.rstrip().endswith("}"):
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{' '.join(arguments)} ended before it answered")
            said += line
        port = urlsplit(json.loads(said)["address"]).port
        assert port is not None
        yield port
    finally:
        process.terminate()
        process.wait()


def _request(image: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    body = file.getvalue()
    return f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _drive(port: int, connections: int, requests: list[bytes], seconds: float) -> list[float]:
    times: list[float] = []
    end = perf_counter() + seconds

    async def client(index: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = index
        while (before := perf_counter()) < end:
            writer.write(requests[turn % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
            if not head.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"{head!r} {body!r}")
            times.append((perf_counter() - before) * 1e3)
            turn += connections
        writer.close()

    await asyncio.gather(*(client(index) for index in range(connections)))
    return times


def table(report: dict[str, Any]) -> str:
    rows = [
        [str(row["connections"]), row["runtime"], *speed_cells(row)]
        for row in sorted(report["rows"], key=lambda row: row["connections"])
    ]
    return markdown(["connections", "runtime", "images/s", "p50 ms", "p90 ms", "p99 ms"], rows)
