"""INT8 by explicit Q/DQ nodes, calibrated on sample images."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from trt_moe.compile.half import prepare
from trt_moe.errors import EngineBuildError, InputError

_BATCH = 16
_OPERATORS = ("Conv", "Gemm", "MatMul")


def quantize(
    model: onnx.ModelProto,
    images: NDArray[np.uint8],
    exclude: Collection[str] = (),
    zero_points: bool = False,
) -> onnx.ModelProto:
    """Put Q/DQ nodes around the inputs and weights of convolutions and of products with weights.

    Weights are int8 per output channel, activations int8 per tensor with the range seen on `images`; biases and
    everything else stay float32. TensorRT and OpenVINO both fuse such nodes into int8 kernels. For TensorRT,
    `half.to_half` makes the rest float16.

    Ranges reach from the smallest value seen to the largest. On the shipped experts percentiles (99.9, 99.99) at least
    doubled the largest logit error, entropy chose these same ranges, and float32 ends changed little.

    onnxruntime's static quantizer does it: it is needed for the accuracy gate anyway and works on any CPU, where
    NVIDIA ModelOpt 0.47 pins an older onnx, wants the GPU build of onnxruntime, cupy and torch, and writes the same
    kind of graph.

    Args:
        model: float32, images uint8 [N, H, W, C] to logits float32 [N, K]; it is not changed.
        images: to calibrate on, uint8 [N, H, W, C]; clean and corrupted ones, and not those it is judged on.
        exclude: nodes, by their name in `half.prepare(model)`, that stay float32.
        zero_points: activations as uint8 with a zero point, which TensorRT refuses. For OpenVINO: with symmetric int8
            it was far off these nodes' arithmetic on CPUs with and without VNNI, with zero points it was not.

    Raises:
        InputError: no images.
        EngineBuildError: the model cannot be quantized, or has nothing to quantize.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    if len(images) == 0:
        raise InputError("calibration needs images; got none")
    prepared = prepare(model)
    # Else a warning asks for what `prepare` has done: shapes are inferred.
    add_pre_process_metadata(prepared)
    with tempfile.TemporaryDirectory(prefix="trt-moe-") as folder:
        out = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                prepared,
                out,
                _Reader(prepared.graph.input[0].name, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_OPERATORS),
                per_channel=True,
                activation_type=QuantType.QUInt8 if zero_points else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(exclude),
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": not zero_points,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "MatMulConstBOnly": True,
                    # Only inputs: a result is rounded where the next product reads it, after its activation.
                    "OpTypesToExcludeOutputQuantization": list(_OPERATORS),
                },
            )
            result = onnx.load(out)
            onnx.checker.check_model(result, full_check=True)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise EngineBuildError(f"the model cannot be quantized to int8 ({reason}); build it in fp16") from error
    if not any(node.op_type == "QuantizeLinear" for node in result.graph.node):
        what = f"it has no {', '.join(_OPERATORS)} to quantize"
        if exclude:
            what += f" but those that have to stay float32 ({', '.join(sorted(exclude)[:5])})"
        raise EngineBuildError(f"{what}; build it in fp16")
    return result


class _Reader:
    """Hands the images to onnxruntime's calibrator, batch by batch."""

    def __init__(self, name: str, images: NDArray[np.uint8]) -> None:
        self._batches: Iterator[dict[str, NDArray[np.uint8]]] = (
            {name: images[start : start + _BATCH]} for start in range(0, len(images), _BATCH)
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)
