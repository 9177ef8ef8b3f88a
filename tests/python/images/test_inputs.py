"""What users hand in as images: the advice of the messages, followed, gives what is expected."""

import numpy as np
import pytest

from trt_moe.errors import InputError
from trt_moe.inputs import as_images, as_one_image


@pytest.mark.parametrize(
    ("images", "shape", "advice", "mended"),
    [
        (
            np.zeros((3, 1, 28, 28)),
            (28, 28, 1),
            "np.moveaxis(np.asarray(images), -3, -1)",
            lambda x: np.moveaxis(x, -3, -1),
        ),
        (
            np.zeros((3, 3, 8, 8)),
            (8, 8, 3),
            "np.moveaxis(np.asarray(images), -3, -1)",
            lambda x: np.moveaxis(x, -3, -1),
        ),
        (np.zeros((3, 28, 28)), (28, 28, 1), "images[..., None]", lambda x: x[..., None]),
        (np.zeros((8, 8, 3)), (8, 8, 3), "image[None]", lambda x: x[None]),
    ],
)
def test_advice_for_a_batch(images, shape, advice, mended):
    images = images.astype(np.uint8)
    with pytest.raises(InputError) as error:
        as_images(images, shape)
    assert advice in str(error.value)
    assert as_images(mended(images), shape).shape[1:] == shape


@pytest.mark.parametrize(
    ("image", "advice", "mended"),
    [
        (np.zeros((1, 28, 28)), "np.moveaxis(np.asarray(images), -3, -1)", lambda x: np.moveaxis(x, -3, -1)),
        (np.zeros((28, 28)), "images[..., None]", lambda x: x[..., None]),
        (np.zeros((1, 28, 28, 1)), "images[0]", lambda x: x[0]),
    ],
)
def test_advice_for_one_image(image, advice, mended):
    image = image.astype(np.uint8)
    with pytest.raises(InputError) as error:
        as_one_image(image, (28, 28, 1))
    assert advice in str(error.value)
    assert as_one_image(mended(image), (28, 28, 1)).shape == (28, 28, 1)
