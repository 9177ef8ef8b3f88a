"""Calls an ASGI application in this process, without a server or an HTTP client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(app: Any, method: str, target: str, body: bytes | Iterable[bytes] = b"", **headers: str) -> Answer:
    """The answer to one request; of a header's name `_` stands for `-`, and a body may come in parts."""
    parts = [body] if isinstance(body, bytes) else list(body)
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0) if parts else b"", "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *rest = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, b"".join(message.get("body", b"") for message in rest))


def ask_now(app: Any, method: str, target: str, body: bytes | Iterable[bytes] = b"", **headers: str) -> Answer:
    """`ask` in an event loop of its own."""
    return asyncio.run(ask(app, method, target, body, **headers))
