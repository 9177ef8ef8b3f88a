"""Images that lie on the GPU: torch by DLPack, cupy by both protocols, pycuda by `__cuda_array_interface__`."""

from __future__ import annotations

import pytest
import torch

from tests.support.gpu_router import check
from tests.support.tiny_bundle import TinyBundle
from trt_moe import InputError, Router


@pytest.mark.parametrize("count", [1, 3, 32, 40])
def test_torch(router: Router, tiny: TinyBundle, count: int) -> None:
    images = tiny.random(count, seed=count)
    check(router.predict(torch.from_numpy(images).cuda()), tiny, images)


def test_what_is_still_being_written_is_waited_for(router: Router, tiny: TinyBundle) -> None:
    images = tiny.random(8, seed=5)
    source = torch.from_numpy(images).cuda()
    big = torch.randn(4096, 4096, device="cuda")
    batch = torch.zeros_like(source)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(50):
            big = big @ big / 64
        batch.copy_(source)
        result = router.predict(batch)
    check(result, tiny, images)


def test_images_may_change_once_predict_returned(router: Router, tiny: TinyBundle) -> None:
    batch = torch.empty((4, *tiny.shape), dtype=torch.uint8, device="cuda")
    for seed in range(20):
        images = tiny.random(4, seed)
        batch.copy_(torch.from_numpy(images))
        check(router.predict(batch), tiny, images)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_answers_stay_on_the_gpu(router: Router, tiny: TinyBundle, count: int) -> None:
    if router.plan != "device-routed":
        pytest.skip(f"host-routed: {router.plan_reason}")
    images = tiny.random(count, seed=count)
    expected = router.predict(images)
    for batch in (images, torch.from_numpy(images).cuda()):
        result = router.predict(batch, device_output=True)
        probabilities = torch.from_dlpack(result.probabilities)
        assert probabilities.is_cuda
        assert probabilities.cpu().numpy().tolist() == expected.probabilities.tolist()
        assert torch.from_dlpack(result.experts).tolist() == expected.experts.tolist()
        assert torch.as_tensor(result.gater_logits, device="cuda").cpu().tolist() == expected.gater_logits.tolist()


def test_torch_tensors_that_do_not_fit(router: Router, tiny: TinyBundle) -> None:
    images = torch.from_numpy(tiny.random(4)).cuda()
    for wrong, words in (
        (images.float(), "float32"),
        (images[0], r"pass image\[None\]"),
        (images[::2], r"strides .* call .contiguous"),
        (images[:0], r"\[0, "),
    ):
        with pytest.raises(InputError, match=words):
            router.predict(wrong)


def test_images_of_no_memory_of_the_gpu(router: Router, tiny: TinyBundle) -> None:
    images = tiny.random(4)

    class Misleading:
        __cuda_array_interface__ = {**images.__array_interface__, "version": 3, "stream": None}  # noqa: RUF012

    with pytest.raises(InputError, match="in no memory of"):
        router.predict(Misleading())


def test_cupy(router: Router, tiny: TinyBundle) -> None:
    cupy = pytest.importorskip("cupy", reason="cupy is not installed")
    images = tiny.random(5)
    batch = cupy.asarray(images)
    check(router.predict(batch), tiny, images)
    with cupy.cuda.Stream(non_blocking=True):
        check(router.predict(cupy.asarray(images)), tiny, images)

    class OnlyInterface:
        __cuda_array_interface__ = batch.__cuda_array_interface__

    check(router.predict(OnlyInterface()), tiny, images)


def test_pycuda(router: Router, tiny: TinyBundle) -> None:
    pytest.importorskip("pycuda", reason="pycuda is not installed")
    pytest.importorskip("pycuda.autoprimaryctx")
    from pycuda import gpuarray  # type: ignore[import-not-found]

    images = tiny.random(5)
    check(router.predict(gpuarray.to_gpu(images)), tiny, images)
