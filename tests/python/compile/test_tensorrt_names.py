"""Every name of TensorRT that our code takes exists in every TensorRT that is supported.

The bindings of `tensorrt` come from wheels without its libraries, which `TRT_MOE_TENSORRT_BINDINGS` must lead to:

    pip install --no-deps --target bindings/10.3 'tensorrt_cu12_bindings==10.3.*'
    pip install --no-deps --target bindings/11.4 'tensorrt_cu13_bindings==11.4.*'
    TRT_MOE_TENSORRT_BINDINGS=bindings pytest tests/python/compile/test_tensorrt_names.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmarks.gpu_check
import trt_moe.compile
import trt_moe.cuda
from tests.support.tensorrt_names import CLASSES, Names, Use, missing, uses

PACKAGES = (trt_moe.compile, trt_moe.cuda, benchmarks.gpu_check)
FOLDERS = [Path(str(package.__file__)).parent for package in PACKAGES]
SOURCES = sorted(file for folder in FOLDERS for file in folder.glob("*.py"))
ALL = [use for file in SOURCES for use in uses(file.read_text())]


def test_every_name_exists(tensorrt: tuple[str, Names]) -> None:
    flavour, names = tensorrt
    assert missing(ALL, names, flavour) == []


def test_every_name_would_be_missed(tensorrt: tuple[str, Names]) -> None:
    flavour, names = tensorrt
    for use in ALL:
        if use.flavour in (None, flavour):
            without = {**names, use.owner: [name for name in names[use.owner] if name != use.name]}
            assert use in missing(ALL, without, flavour)


@pytest.mark.parametrize(
    "name", ["build_serialized_network", "STRONGLY_TYPED", "max_aux_streams", "node_operator", "set_device_memory"]
)
def test_a_misspelt_name_is_found(name: str, tensorrt: tuple[str, Names]) -> None:
    flavour, names = tensorrt
    sources = [text for file in SOURCES if f".{name}" in (text := file.read_text())]
    wrong = [use for text in sources for use in uses(text.replace(f".{name}", f".{name}s"))]
    assert {use.name for use in missing(wrong, names, flavour)} == {f"{name}s"}


def test_the_code_was_read() -> None:
    found = {(use.owner, use.name, use.flavour) for use in ALL}
    assert found >= {
        ("", "Builder", None),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", None),
        ("OnnxParser", "parse", None),
        ("INetworkDefinition", "get_input", None),
        ("IBuilderConfig", "progress_monitor", None),
        ("IProgressMonitor", "step_complete", None),
        ("ILogger", "log", None),
        ("BuilderFlag", "REQUIRE_USER_ALLOCATION", "tensorrt_rtx"),
        ("IBuilderConfig", "set_timing_cache", "tensorrt"),
        ("ICudaEngine", "hardware_compatibility_level", "tensorrt"),
        ("ParserError", "node_name", None),
        ("IExecutionContext", "execute_async_v3", None),
        ("IExecutionContext", "is_stream_capturable", "tensorrt_rtx"),
        ("IRuntimeConfig", "cuda_graph_strategy", "tensorrt_rtx"),
    }
    assert {use.owner for use in ALL} - {""} > CLASSES


def test_annotations_are_followed_and_asked_for() -> None:
    def read(body: str) -> list[tuple[str, str]]:
        return [(use.owner, use.name) for use in uses(f"def work(builder: Builder, trt: Any):\n    {body}\n")]

    assert read("builder.reset()") == [("Builder", "reset")]
    assert read("trt.BuilderFlag.TF32.name") == [("", "BuilderFlag"), ("BuilderFlag", "TF32")]
    assert read("network: INetworkDefinition = builder.create_network(0); network.num_layers") == [
        ("Builder", "create_network"),
        ("INetworkDefinition", "num_layers"),
    ]
    with pytest.raises(ValueError, match="line 2: annotate the value that 'num_layers' is taken from"):
        read("network = builder.create_network(0); network.num_layers")
    with pytest.raises(ValueError, match="line 2: give the value that 'num_layers' is taken from a name"):
        read("builder.create_network(0).num_layers")


def test_a_flavour_is_told_by_the_end_of_a_functions_name() -> None:
    source = "def a_rtx(b: Builder):\n    b.x\ndef a_classic(b: Builder):\n    b.y\ndef a(b: Builder):\n    b.z\n"
    names: Names = {"Builder": []}
    assert missing(uses(source), names, "tensorrt_rtx") == [
        Use("Builder", "x", "tensorrt_rtx", 2),
        Use("Builder", "z", None, 6),
    ]
