"""The server that users write today: `trt-moe serve`'s own web server and decoding, around OpenVINO in Python.

python -m benchmarks.http_peer BUNDLE nothing|grouping

nothing: only decodes the image, to tell what HTTP costs. grouping: a thread groups waiting images by expert. Prints its
address as JSON once it answers.
"""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.common import OpenVinoPeer, PythonRouting
from benchmarks.concurrency import GroupingServer
from trt_moe import Bundle, _core
from trt_moe.images import decode_image
from trt_moe.serving.server import address_of, bound, serve


def main() -> None:
    bundle = Bundle.load(sys.argv[1])
    server = (
        GroupingServer(PythonRouting(bundle, OpenVinoPeer(bundle).run_batch)) if sys.argv[2] == "grouping" else None
    )
    readers = ThreadPoolExecutor(_core.usable_cpus())

    async def predict(request: Request) -> Response:
        body = await request.body()
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(readers, decode_image, body, bundle.input_shape)
        if server is None:
            return JSONResponse({"label": None})
        probabilities = await asyncio.wrap_future(server.submit(image[None]))
        label = int(np.argmax(probabilities))
        return JSONResponse({"label": bundle.class_names[label], "probability": float(probabilities[label])})

    app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    with bound("127.0.0.1", 0) as listener:
        serve(app, listener, lambda: print(json.dumps({"address": address_of(listener)}), flush=True))
    if server is not None:
        server.close()


if __name__ == "__main__":
    main()
