import numpy as np

from trt_moe.softmax import log_softmax, softmax

LOGITS = np.array([[[1e4, 0.0]], [[0.0, 0.0]]], np.float32)


def test_large_logits_survive():
    np.testing.assert_allclose(log_softmax(LOGITS), [[[0, -1e4]], [[np.log(0.5), np.log(0.5)]]])
    np.testing.assert_allclose(softmax(LOGITS), [[[1, 0]], [[0.5, 0.5]]])


def test_probabilities_sum_to_1_over_the_last_axis():
    shares = softmax(np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32))
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=-1), 1, rtol=1e-6)
