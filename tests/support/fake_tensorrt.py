"""A stand-in for TensorRT that has the names of one version and no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from tests.support.tensorrt_names import Names
from trt_moe.compile.flavour import Flavour, FlavourName


class FakeTensorRt:
    """A TensorRT whose objects know the names of one version only, and what they were told."""

    def __init__(self, flavour: FlavourName, names: Names) -> None:
        self.names = names
        self.contexts: list[Mock] = []
        self.outputs = 3
        self.config = Mock(spec_set=names["IRuntimeConfig"]) if flavour == "tensorrt_rtx" else None
        self.engine = Mock(spec_set=names["ICudaEngine"])
        self.engine.create_execution_context.side_effect = self._context
        if self.config is not None:
            self.engine.create_runtime_config.return_value = self.config
        self.runtime = Mock(spec_set=names["Runtime"])
        self.runtime.deserialize_cuda_engine.return_value = self.engine
        constants = {
            kind: SimpleNamespace(**{name: f"{kind}.{name}" for name in names[kind] if name.isupper()})
            for kind in (
                "ExecutionContextAllocationStrategy", "DynamicShapesKernelSpecializationStrategy", "CudaGraphStrategy",
            )
            if kind in names
        }  # fmt: skip
        self.module = SimpleNamespace(
            __version__="1.7.1",
            ILogger=type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2}),
            Runtime=self._start,
            **constants,
        )
        self.flavour = Flavour(flavour, self.module)

    def _start(self, logger: Any) -> Mock:
        self.logger = logger
        return self.runtime

    def _context(self, strategy_or_config: Any) -> Mock:
        context = Mock(spec_set=self.names["IExecutionContext"])
        context.infer_shapes.return_value = []
        context.get_tensor_shape.side_effect = lambda name: (context.set_input_shape.call_args.args[1][0], self.outputs)
        context.update_device_memory_size_for_shapes.return_value = 100 * (len(self.contexts) + 1)
        self.contexts.append(context)
        return context
