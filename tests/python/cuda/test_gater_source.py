"""The gater's weights as the core's kernels read them; the kernels themselves are tested in C++ and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from trt_moe import Router
from trt_moe.bundle import Bundle, shipped_bundles
from trt_moe.cuda.gater_source import GaterWeights, weights_of, weights_of_bundle, weights_of_module
from trt_moe.cuda.torch_source import HalfModel
from trt_moe.export.torch_export import export_onnx
from trt_moe.models import ImageModel, SqueezeNetLight, fused_gater

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
        scale, bias = np.split(self._left[-2 * self._channels :], 2)
        self._left = self._left[: -2 * self._channels]
        x = pixels * scale + bias
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
    weights = weights_of_module(model, (side, side, channels), experts)
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


def _pooled_by_mean(model: ImageModel) -> None:
    model.network.features[4] = torch.nn.AvgPool2d(2)


def _not_finite(model: ImageModel) -> None:
    with torch.no_grad():
        model.network.head.bias[0] = torch.nan


def _with_temperature(model: ImageModel) -> None:
    model.temperature = torch.tensor(2.0)


def _resized_to_itself(model: ImageModel) -> None:
    model.resize = True


class Doubled(SqueezeNetLight):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def _derived(model: ImageModel) -> None:
    model.network.__class__ = Doubled


@pytest.mark.parametrize("change", [_pooled_by_mean, _not_finite, _with_temperature, _resized_to_itself, _derived])
def test_a_module_that_computes_something_else_is_captured_from_torch(change: Callable[[ImageModel], None]) -> None:
    model = gater(28, 1, 2)
    assert weights_of_module(model, (28, 28, 1), 2) is not None
    change(model)
    assert weights_of_module(model, (28, 28, 1), 2) is None


def test_another_network_is_left_to_others() -> None:
    model = gater(28, 1, 2)
    assert weights_of_module(HalfModel(model), (28, 28, 1), 2) is None
    assert weights_of_module(torch.nn.Identity(), (28, 28, 1), 2) is None
    assert weights_of_module(gater(28, 1, 2, width=8), (28, 28, 1), 2) is None
    assert weights_of_module(model, (28, 28, 3), 2) is None, "another number of channels"
    assert weights_of_module(model, (28, 28, 1), 3) is None, "another number of experts"
    assert weights_of_module(fused_gater(model), (28, 28, 1), 2) is not None
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    assert weights_of(state, (28, 28), 1, 2) is None, "batch norms are not folded"
    assert weights_of({}, (28, 28), 1, 2) is None


SHAPE, SIDE = (64, 70, 3), (40, 52)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A gater of three Fire blocks that resizes, as it is exported."""
    torch.manual_seed(1)
    model = gater(min(SIDE), 3, 32)
    model = ImageModel(model.network, SHAPE[:2], SIDE, [0.3] * 3, [0.4] * 3).eval()
    file = tmp_path_factory.mktemp("gater") / "gater.onnx"
    export_onnx(fused_gater(model), file, SHAPE)
    return onnx.load(file)


def read(model: onnx.ModelProto, side: tuple[int, int] = SIDE) -> GaterWeights | None:
    """What is read of a bundle with such a gater."""
    entry = SimpleNamespace(graph_size=list(side))
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(gater=entry),
        read=lambda _: model.SerializeToString(),
        input_shape=SHAPE,
        outputs=lambda _: 32,
    )
    return weights_of_bundle(bundle)  # type: ignore[arg-type]


def test_a_gater_that_resizes_is_read_from_its_file(exported: onnx.ModelProto) -> None:
    weights = read(exported)
    assert weights is not None
    assert (weights.side, weights.third) == (SIDE, True)
    assert read(exported, (40, 51)) is None, "the manifest says another size than the file resizes to"


def test_a_head_without_bias_has_one_of_zeros(tmp_path: Path) -> None:
    """The export leaves out a bias of zeros."""
    network = gater(min(SIDE), 3, 32).network
    torch.nn.init.zeros_(network.head.bias)
    model = ImageModel(network, SHAPE[:2], SIDE, [0.3] * 3, [0.4] * 3).eval()
    export_onnx(fused_gater(model), tmp_path / "gater.onnx", SHAPE)
    file = onnx.load(tmp_path / "gater.onnx")
    assert len(_node(file.graph, "Gemm").input) == 2
    found, expected = read(file), weights_of_module(model, SHAPE, 32)
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.packed, expected.packed)
    _node(file.graph, "Gemm").input.append("network.head.weight")
    assert read(file) is None, "it has a bias, and another one"


def _node(graph: onnx.GraphProto, operator: str, index: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == operator][index]


def _set(operator: str, name: str, value: Any) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        node = _node(graph, operator)
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


def _input(operator: str, index: int, name: str, at: int = 0) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        _node(graph, operator, at).input[index] = name

    return change


def _other_activation(graph: onnx.GraphProto) -> None:
    _node(graph, "Relu").op_type = "Sigmoid"


def _other_domain(graph: onnx.GraphProto) -> None:
    _node(graph, "Relu").domain = "mine"


def _other_names(graph: onnx.GraphProto) -> None:
    graph.initializer[0].name = "weights"
    _node(graph, "Conv").input[1] = "weights"


def _typed_values(graph: onnx.GraphProto) -> None:
    tensor = graph.initializer[0]
    tensor.float_data.extend(onnx.numpy_helper.to_array(tensor).ravel().tolist())
    tensor.ClearField("raw_data")


def _exchanged_weights(graph: onnx.GraphProto) -> None:
    first, second = _node(graph, "Conv", 1), _node(graph, "Conv", 3)
    first.input[1], second.input[1] = second.input[1], first.input[1]


def _one_more_node(graph: onnx.GraphProto) -> None:
    graph.node[-1].output[0] = "almost"
    graph.node.append(onnx.helper.make_node("Neg", ["almost"], ["logits"]))


CHANGES: dict[str, Callable[[onnx.GraphProto], None]] = {
    "stride": _set("Conv", "strides", [1, 1]),
    "activation": _other_activation,
    "domain": _other_domain,
    "names": _other_names,
    "typed values": _typed_values,
    "exchanged weights": _exchanged_weights,
    "one more node": _one_more_node,
    "alpha": _set("Gemm", "alpha", 3.0),
    "beta": _set("Gemm", "beta", 0.0),
    "transB": _set("Gemm", "transB", 0),
    "perm": _set("Transpose", "perm", [0, 3, 2, 1]),
    "ceil_mode": _set("MaxPool", "ceil_mode", 1),
    "mode": _set("Resize", "mode", "nearest"),
    "corners": _set("Resize", "coordinate_transformation_mode", "align_corners"),
    "antialias": _set("Resize", "antialias", 1),
    "keepdims": _set("ReduceMean", "keepdims", 1),
    "scale for bias": _input("Mul", 1, "bias"),
    "not scaled": _input("Add", 0, "permute"),
    "a ReLU bypassed": _input("Conv", 0, "conv2d", at=1),
    "a tensor that nothing makes": _input("Relu", 0, "nowhere"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_computes_something_else_is_left_to_an_engine(exported: onnx.ModelProto, change: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    CHANGES[change](model.graph)
    assert model != exported
    assert read(model) is None


def test_a_damaged_or_hostile_file_is_left_to_an_engine(exported: onnx.ModelProto) -> None:
    whole = exported.SerializeToString()
    bundle = Bundle.load("fashion-mnist")
    shape = onnx.TensorProto(name="many", data_type=1, dims=[1 << 62] * 100_000, raw_data=b"1234")
    large = onnx.TensorProto(name="large", data_type=1, dims=[1 << 62] * 3, raw_data=b"1234")
    hostile = [
        onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor])).SerializeToString() for tensor in (shape, large)
    ]
    scalar = onnx.ModelProto()
    scalar.CopyFrom(exported)
    next(each for each in scalar.graph.initializer if each.name == "network.head.bias").ClearField("dims")
    for data in (
        *(whole[:end] for end in (0, 1, 100, len(whole) // 2, len(whole) - 1)),
        *hostile,
        scalar.SerializeToString(),
    ):
        bundle.read = lambda _, data=data: data  # type: ignore[method-assign,misc]
        assert weights_of_bundle(bundle) is None
