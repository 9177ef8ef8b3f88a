"""Engines on stand-ins that have the names of one TensorRT and no others.

What this shows is which calls are made, and what is made of their answers; not that a GPU runs anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.support.engine_specs import SPEC, sidecar_for
from tests.support.fake_cuda import FakeCapture, FakeDevice
from tests.support.fake_tensorrt import FakeTensorRt
from tests.support.tensorrt_names import Names
from trt_moe.compile.cache import Engine
from trt_moe.compile.flavour import FlavourName
from trt_moe.cuda.tensorrt_source import TensorRt, TensorRtSource
from trt_moe.errors import DeviceError, EngineBuildError

COMMAND = "trt-moe build tiny"


@pytest.fixture
def fake(tensorrt: tuple[FlavourName, Names]) -> FakeTensorRt:
    return FakeTensorRt(*tensorrt)


@pytest.fixture
def engine(fake: FakeTensorRt) -> Engine:
    spec = SPEC.model_copy(update={"flavour": fake.flavour.name})
    return Engine(Path("light.plan"), b"plan", sidecar_for(b"plan", spec))


def bound(fake: FakeTensorRt, engine: Engine) -> tuple[TensorRtSource, FakeCapture]:
    capture = FakeCapture(FakeDevice(), input_shape=(4, 4, 1), outputs=3, buckets=[1, 2])
    source = TensorRtSource(TensorRt(fake.flavour), engine, COMMAND)
    source.bind(capture)
    return source, capture


def test_a_context_for_each_bucket_in_memory_of_the_core(fake: FakeTensorRt, engine: Engine) -> None:
    _, capture = bound(fake, engine)
    fake.runtime.deserialize_cuda_engine.assert_called_once_with(b"plan")
    assert capture.events == [("reserve", 200)]  # the larger of 100 and 200: they share it
    for index, context in enumerate(fake.contexts):
        context.set_optimization_profile_async.assert_called_once_with(index, capture.stream)
        context.set_input_shape.assert_called_once_with("images", (index + 1, 4, 4, 1))
        context.set_device_memory.assert_called_once_with(capture.activation_address, 200)
        addresses = [call.args for call in context.set_tensor_address.call_args_list]
        assert addresses == [("images", capture.input_address), ("logits", capture.output_address)]
        order = [call[0] for call in context.method_calls]
        assert order.index("set_input_shape") < order.index("update_device_memory_size_for_shapes")
        assert order.index("update_device_memory_size_for_shapes") < order.index("set_device_memory")


def test_contexts_own_no_memory(fake: FakeTensorRt, engine: Engine) -> None:
    bound(fake, engine)
    given = fake.engine.create_execution_context.call_args.args[0]
    if fake.config is None:
        assert given == "ExecutionContextAllocationStrategy.USER_MANAGED"
        return
    assert given is fake.config
    fake.config.set_execution_context_allocation_strategy.assert_called_with(
        "ExecutionContextAllocationStrategy.USER_MANAGED"
    )
    assert (
        fake.config.dynamic_shapes_kernel_specialization_strategy == "DynamicShapesKernelSpecializationStrategy.EAGER"
    )
    assert fake.config.cuda_graph_strategy == "CudaGraphStrategy.DISABLED"


def test_a_run_is_of_its_bucket_and_on_the_stream(fake: FakeTensorRt, engine: Engine) -> None:
    source, capture = bound(fake, engine)
    source.enqueue(2)
    fake.contexts[1].execute_async_v3.assert_called_once_with(capture.stream)
    fake.contexts[0].execute_async_v3.assert_not_called()


def test_no_activation_memory_is_asked_for_where_none_is_needed(fake: FakeTensorRt, engine: Engine) -> None:
    make = fake.engine.create_execution_context.side_effect

    def without(argument: Any) -> Mock:
        context: Mock = make(argument)
        context.update_device_memory_size_for_shapes.return_value = 0
        return context

    fake.engine.create_execution_context.side_effect = without
    _, capture = bound(fake, engine)
    assert capture.events == []
    fake.contexts[0].set_device_memory.assert_not_called()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("set_optimization_profile_async", "profile 0"),
        ("set_input_shape", "a batch of 1"),
        ("set_tensor_address", "its input"),
        ("execute_async_v3", "to run a batch of 1"),
    ],
)
def test_a_refusal_is_an_error(fake: FakeTensorRt, engine: Engine, call: str, words: str) -> None:
    make = fake.engine.create_execution_context.side_effect

    def refusing(argument: Any) -> Mock:
        context: Mock = make(argument)
        getattr(context, call).return_value = False
        return context

    fake.engine.create_execution_context.side_effect = refusing
    with pytest.raises(DeviceError, match=rf"light: TensorRT.* 1\.7\.1 refuses {words}: it gives no reason"):
        bound(fake, engine)[0].enqueue(1)


def test_an_engine_with_another_number_of_logits(fake: FakeTensorRt, engine: Engine) -> None:
    fake.outputs = 5
    with pytest.raises(
        EngineBuildError, match=r"light: of a batch of 1 its engine gives logits \[1, 5\]; expected \[1, 3\]"
    ):
        bound(fake, engine)


def test_a_context_that_cannot_be_captured(fake: FakeTensorRt, engine: Engine) -> None:
    if fake.config is None:
        pytest.skip("only TensorRT-RTX can be asked")
    make = fake.engine.create_execution_context.side_effect

    def uncapturable(argument: Any) -> Mock:
        context: Mock = make(argument)
        context.is_stream_capturable.return_value = False
        return context

    fake.engine.create_execution_context.side_effect = uncapturable
    with pytest.raises(DeviceError, match="refuses to be captured with a batch of 1"):
        bound(fake, engine)


def test_an_engine_that_does_not_open_names_both_versions_and_the_way_out(fake: FakeTensorRt, engine: Engine) -> None:
    def fail(plan: bytes) -> None:
        fake.logger.log(fake.module.ILogger.ERROR, "Version tag does\nnot match")

    fake.runtime.deserialize_cuda_engine.side_effect = fail
    spec = engine.sidecar.spec.model_copy(update={"flavour_version": "1.2.3"})
    other = Engine(engine.path, engine.plan, sidecar_for(engine.plan, spec))
    words = (
        r"light.plan: TensorRT.* 1\.7\.1 cannot open the engine of light, built by TensorRT.* 1\.2\.3 for 8\.6: "
        rf"Version tag does not match; build it again: `trt-moe cache clear`, then `{COMMAND}`"
    )
    with pytest.raises(EngineBuildError, match=words):
        TensorRtSource(TensorRt(fake.flavour), other, COMMAND)


def test_a_tensorrt_that_does_not_start(fake: FakeTensorRt) -> None:
    def fail(logger: Any) -> None:
        raise TypeError("factory function returned nullptr")

    fake.module.Runtime = fail
    with pytest.raises(DeviceError, match=r"does not start: .*doctor"):
        TensorRt(fake.flavour)
