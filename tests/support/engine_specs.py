"""What an engine could have been built from, for tests of the cache and of what takes engines from it."""

from __future__ import annotations

import hashlib

from trt_moe.compile.sidecar import EngineSpec, Port, Sidecar

SPEC = EngineSpec(
    model="light",
    source_sha256="a" * 64,
    samples_sha256="9" * 64,
    precision="fp16",
    gate="fallback",
    buckets=(1, 2),
    flavour="tensorrt_rtx",
    flavour_version="1.7.1",
    device="8.6",
    platform="Linux x86_64",
    conversion="b" * 64,
)


def sidecar_for(plan: bytes, spec: EngineSpec = SPEC, host_code: bool = False) -> Sidecar:
    return Sidecar(
        spec=spec,
        inputs=[Port(name="images", dtype="uint8", shape=[-1, 4, 4, 1])],
        outputs=[Port(name="logits", dtype="float32", shape=[-1, 3])],
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        onnx_sha256="c" * 64,
        opset=20,
        layers=7,
        host_code=host_code,
        options={},
        prepare_seconds=1.0,
        build_seconds=2.0,
        gate_report=None,
        trt_moe_version="0.1.0",
    )
