"""The gater's weights as the core's kernels read them; the kernels themselves are tested in C++ and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from trt_moe import Router
from trt_moe.bundle import Bundle, shipped_bundles
from trt_moe.cuda.gater_source import GaterWeights, weights_of, weights_of_bundle, weights_of_module
from trt_moe.cuda.torch_source import HalfModel
from trt_moe.models import ImageModel, SqueezeNetLight

Array = NDArray[np.float32]


class Packed:
    """Reads what was packed from its beginning, as the kernels do, and computes the network."""

    def __init__(self, weights: GaterWeights, channels: int, experts: int) -> None:
        self._left = weights.packed
        self._weights = weights
        self._channels = channels
        self._experts = experts

    def take(self, *shape: int) -> Array:
        count = int(np.prod(shape))
        taken, self._left = self._left[:count], self._left[count:]
        return taken.reshape(shape)

    def convolve(self, x: Array, side: int, outputs: int, stride: int = 1) -> Array:
        weight, bias = self.take(side, side, x.shape[3], outputs), self.take(outputs)
        ring = side // 2
        padded = np.pad(x, ((0, 0), (ring, ring), (ring, ring), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))[:, ::stride, ::stride]
        return np.maximum(np.einsum("nrcidj,djio->nrco", windows, weight) + bias, 0)

    def fire(self, x: Array, outputs: int) -> Array:
        return self.convolve(self.convolve(x, 1, x.shape[3] // 2), 3, outputs)

    def logits(self, pixels: Array) -> Array:
        """Of images that are resized already."""
        x = pixels * self.take(self._channels) + self.take(self._channels)
        x = pool(self.fire(self.convolve(x, 3, 16, stride=2), 16))
        x = self.fire(x, 32)
        if self._weights.third:
            x = self.fire(pool(x), 64)
        means = x.mean(axis=(1, 2))
        logits = means @ self.take(self._experts, means.shape[1]).T + self.take(self._experts)
        assert not len(self._left), "every weight is read"
        return logits


def pool(x: Array) -> Array:
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    cut = x[:, : 2 * rows, : 2 * columns]
    return cut.reshape(len(x), rows, 2, columns, 2, -1).max(axis=(2, 4))


def gater(side: int, channels: int, experts: int, width: int = 16) -> ImageModel:
    torch.manual_seed(side)
    network = SqueezeNetLight(experts, channels, side, width)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 2.0)
    return ImageModel(network, (side, side), (side, side), [0.3] * channels, [0.4] * channels).eval()


@pytest.mark.parametrize(("side", "channels", "experts"), [(28, 1, 2), (33, 3, 4), (96, 3, 3), (17, 4, 2)])
def test_what_is_packed_computes_the_gater(side: int, channels: int, experts: int) -> None:
    model = gater(side, channels, experts)
    weights = weights_of_module(model)
    assert weights is not None
    assert weights.side == (side, side)
    assert weights.third == (side > 32)
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, channels), np.uint8)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    found = Packed(weights, channels, experts).logits(images.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(shipped_bundles()))
def test_a_shipped_gater_is_read_from_its_file(name: str) -> None:
    bundle = Bundle.load(name)
    weights = weights_of_bundle(bundle)
    assert weights is not None
    images = bundle.golden()["images"]
    found = Packed(weights, images.shape[3], len(bundle.manifest.experts)).logits(images.astype(np.float32))
    with Router(name, precision="fp32", warmup=False) as router:
        expected = router.model(bundle.manifest.gater.name).logits(images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_another_network_is_left_to_an_engine() -> None:
    model = gater(28, 1, 2)
    assert weights_of_module(HalfModel(model)) is None
    assert weights_of_module(torch.nn.Identity()) is None
    assert weights_of_module(gater(28, 1, 2, width=8)) is None
    assert weights_of_module(model.with_temperature(2.0)) is None
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    assert weights_of(state, (28, 28)) is None, "batch norms are not folded"
    with torch.no_grad():
        model.network.head.bias[0] = float("nan")
    assert weights_of_module(model) is None


def _first_convolution(graph: onnx.GraphProto) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == "Conv")


def _stride_of_one(graph: onnx.GraphProto) -> None:
    strides = next(each for each in _first_convolution(graph).attribute if each.name == "strides")
    strides.ints[:] = [1, 1]


def _other_activation(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def _other_names(graph: onnx.GraphProto) -> None:
    graph.initializer[0].name = "weights"
    _first_convolution(graph).input[1] = "weights"


def _typed_values(graph: onnx.GraphProto) -> None:
    tensor = graph.initializer[0]
    tensor.float_data.extend(onnx.numpy_helper.to_array(tensor).ravel().tolist())
    tensor.ClearField("raw_data")


@pytest.mark.parametrize("change", [_stride_of_one, _other_activation, _other_names, _typed_values])
def test_a_file_that_computes_something_else_is_left_to_an_engine(change: Callable[[onnx.GraphProto], None]) -> None:
    bundle = Bundle.load("fashion-mnist")
    model = onnx.load_from_string(bundle.read(bundle.manifest.gater))
    change(model.graph)
    bundle.read = lambda _: model.SerializeToString()  # type: ignore[method-assign]
    assert weights_of_bundle(bundle) is None


def test_a_damaged_file_is_left_to_an_engine() -> None:
    bundle = Bundle.load("fashion-mnist")
    whole = bundle.read(bundle.manifest.gater)
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        bundle.read = lambda _, end=end: whole[:end]  # type: ignore[method-assign,misc]
        assert weights_of_bundle(bundle) is None
