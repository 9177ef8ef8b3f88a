"""The web application: what is asked over HTTP goes to a router."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as write_metrics
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trt_moe import __version__, _core
from trt_moe.arguments import call_times, whole
from trt_moe.errors import (
    DataError,
    DeadlineError,
    InputError,
    QueueFullError,
    RouterClosedError,
    TrtMoeError,
)
from trt_moe.images import decode_image
from trt_moe.prediction import likeliest
from trt_moe.router import Router
from trt_moe.serving.metrics import LIMITS_S, RouterMetrics
from trt_moe.serving.protocol import HEADER_LENGTH, describe_model, format_answer, parse_request

MAX_BODY = 32 << 20
"""Bytes of the largest request that is read."""

_STATUS: tuple[tuple[type[TrtMoeError], int], ...] = (
    (InputError, 400),
    (DataError, 400),
    (QueueFullError, 503),
    (RouterClosedError, 503),
    (DeadlineError, 504),
)
_CLIENT_LEFT = 499  # nginx's, of no standard
_FILE = Path("the request's body")
_EXPECTED = (
    "expected POST /predict, POST /v2/models/NAME/infer, GET /v2/models/NAME, GET /v2/health/ready, GET /metrics"
)

T = TypeVar("T")
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class _Due:
    """When a request came, and in how many milliseconds it is to be answered; None: whenever it is."""

    began: float
    deadline_ms: float | None

    @property
    def left_ms(self) -> float | None:
        """What is left of them.

        Raises:
            DeadlineError: nothing.
        """
        if self.deadline_ms is None:
            return None
        left = self.deadline_ms - 1e3 * (time.perf_counter() - self.began)
        if left < _core.MIN_DEADLINE_MS:
            raise DeadlineError(
                f"reading the request took all of its {self.deadline_ms:g} ms; allow more time, or send less at once"
            )
        return left


def make_app(router: Router, *, deadline_ms: float | None = None, max_requests: int = 1024) -> Starlette:
    """An ASGI application that answers with a router: to be run by a server, or mounted into another application.

    Args:
        router: answers; it stays the caller's to close.
        deadline_ms: of requests that name none, as in `Router.predict`. It counts from when a request's headers are
            read.
        max_requests: most unfinished requests; past that status 503.

    Raises:
        InputError: an option is out of range.
    """
    call_times(deadline_ms)
    service = _Service(router, deadline_ms, whole("max_requests", max_requests, 1, 1 << 20))
    name = router.bundle.name
    routes = [
        Route("/predict", service.counted("predict", service.predict), methods=["POST"]),
        Route(f"/v2/models/{name}/infer", service.counted("infer", service.infer), methods=["POST"]),
        Route(f"/v2/models/{name}", service.model),
        Route(f"/v2/models/{name}/ready", service.answering("ready", name=name)),
        Route("/v2/health/ready", service.answering("ready")),
        Route("/v2/health/live", service.answering("live")),
        Route("/v2", service.server),
        Route("/metrics", service.metrics),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refused})


class _Service:
    def __init__(self, router: Router, deadline_ms: float | None, max_requests: int) -> None:
        self._router = router
        self._deadline_ms = deadline_ms
        self._max_requests = max_requests
        self._under_way = 0
        # Of our own: asyncio's threads wait in the router for the batches of others.
        self._readers = ThreadPoolExecutor(_core.usable_cpus(), thread_name_prefix="trt-moe-reader")
        self._registry = CollectorRegistry()
        self._registry.register(RouterMetrics(router))
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "trt_moe_requests", "HTTP requests, by status.", ("endpoint", "status"), registry=self._registry
        )
        under_way = Gauge("trt_moe_requests_under_way", "Unfinished HTTP requests.", registry=self._registry)
        under_way.set_function(lambda: self._under_way)
        self._seconds = Histogram(
            "trt_moe_request_seconds",
            "From a request's headers to its answer.",
            ("endpoint",),
            buckets=LIMITS_S,
            registry=self._registry,
        )

    def counted(
        self, endpoint: str, answer: Callable[[Request, float], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint whose requests are limited, counted and timed, and whose errors have a status."""
        seconds = self._seconds.labels(endpoint)

        async def endpoint_of(request: Request) -> Response:
            began = time.perf_counter()
            status = 500
            self._under_way += 1
            try:
                if self._under_way > self._max_requests:
                    raise QueueFullError(f"{self._max_requests} requests are under way; send fewer at once, or wait")
                response = await answer(request, began)
                status = response.status_code
            except TrtMoeError as error:
                status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
                response = _error(status, str(error))
            except HTTPException as error:
                status = error.status_code
                raise
            except ClientDisconnect:
                status = _CLIENT_LEFT
                response = Response(status_code=status)
            finally:
                self._under_way -= 1
                self._requests.labels(endpoint, str(status)).inc()
                seconds.observe(time.perf_counter() - began)
            return response

        return endpoint_of

    async def predict(self, request: Request, began: float) -> Response:
        """One image file to its class."""
        asked = dict(request.query_params)
        due = self._due(began, _number(asked.pop("deadline_ms", None), "deadline_ms", float))
        classes = self._router.bundle.class_names
        top = whole("top", _number(asked.pop("top", "1"), "top", int), 1, len(classes))
        if asked:
            raise InputError(f"/predict?{next(iter(asked))}= is not known; expected top or deadline_ms")
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(415, "a form was sent; send the image file itself: curl --data-binary @FILE")
        body = await _body(request)
        remarks: list[str] = []
        image = await self._in_thread(due, decode_image, body, self._router.bundle.input_shape, remarks.append, _FILE)
        row = (await self._router.predict_async(image[None], deadline_ms=due.left_ms))[0]
        return JSONResponse(
            {
                "label": row.class_name,
                "probability": float(row.probabilities[row.label]),
                "expert": row.expert_name,
                "ms": row.latency_ms,
                "top": likeliest(row.probabilities, classes, top),
                "remarks": remarks,
            }
        )

    async def infer(self, request: Request, began: float) -> Response:
        """A batch by the Open Inference Protocol."""
        body = await _body(request)
        name = self._router.bundle.name
        whenever = _Due(began, None)  # when it is due stands in what is read
        asked = await self._in_thread(whenever, parse_request, body, request.headers.get(HEADER_LENGTH), name)
        due = self._due(began, asked.deadline_ms)
        result = await self._router.predict_async(asked.images, deadline_ms=due.left_ms)
        content, headers = await self._in_thread(whenever, format_answer, asked, name, result)
        return Response(content, headers=headers)

    async def server(self, request: Request) -> Response:
        """The protocol's metadata of the server."""
        return JSONResponse({"name": "trt-moe", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def model(self, request: Request) -> Response:
        """The protocol's metadata of the bundle."""
        bundle = self._router.bundle
        return JSONResponse(
            describe_model(bundle.name, bundle.input_shape, len(bundle.class_names), len(bundle.experts))
        )

    def answering(self, key: str, **told: str) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint: whether images are answered. Not any more where the GPU was lost, which takes a new process."""

        async def endpoint_of(request: Request) -> Response:
            if self._router.closed:
                return _error(503, "the router is closed; restart the server")
            return JSONResponse({**told, key: True})

        return endpoint_of

    async def metrics(self, request: Request) -> Response:
        """Everything, for Prometheus."""
        return Response(write_metrics(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _due(self, began: float, deadline_ms: float | None) -> _Due:
        call_times(deadline_ms)
        return _Due(began, self._deadline_ms if deadline_ms is None else deadline_ms)

    async def _in_thread(self, due: _Due, work: Callable[..., T], *arguments: Any) -> T:
        """What a thread makes of a request, unless it is late before its turn comes."""

        def in_time() -> T:
            _ = due.left_ms
            return work(*arguments)

        return await asyncio.get_running_loop().run_in_executor(self._readers, in_time)


async def _body(request: Request) -> bytes:
    body = bytearray()
    told = request.headers.get("content-length", "")
    too_large = told.isdecimal() and len(told) < 20 and int(told) > MAX_BODY
    if not too_large:
        async for chunk in request.stream():
            body += chunk
            if too_large := len(body) > MAX_BODY:
                break
    if too_large:
        raise HTTPException(413, f"the request has more than {MAX_BODY >> 20} MiB; send less at once")
    return bytes(body)


def _number(text: str | None, name: str, kind: type[N]) -> N | None:
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {text[:40]!r}; expected {expected}") from None


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _error(404, f"nothing is at {request.url.path}; {_EXPECTED}")
    if error.status_code == 405:
        return _error(405, f"{request.url.path} takes no {request.method}; {_EXPECTED}", error.headers)
    return _error(error.status_code, error.detail)


def _error(status: int, message: str, headers: Any = None) -> Response:
    return JSONResponse({"error": message}, status, headers)
