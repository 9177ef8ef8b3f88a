"""Answers made without models."""

import numpy as np

from trt_moe.evaluation.answers import Answers, SecondLook


def sure(right, margin):
    """Logits of two classes for label 0: how right and how sure."""
    return [margin, 0.0] if right else [0.0, margin]


def made_answers(cheap_right, dear_right, gain, confidence=None, cue=None):
    """Of two experts, "cheap" and "dear"; where both are asked the dear one decides.

    `gain` is the gater's score of the dear expert over the cheap one; label 0 is the truth.
    """
    count = len(gain)
    gater = np.stack([np.zeros(count), np.asarray(gain, float)], axis=1).astype(np.float32)
    predicted = {"cheap": np.where(cheap_right, 0, 1), "dear": np.where(dear_right, 0, 1)}
    sure = np.asarray(confidence if confidence is not None else np.full(count, 0.5), np.float32)
    return Answers(
        severity=0,
        labels=np.zeros(count, np.int64),
        gater_logits=gater,
        predicted=predicted,
        confidence={"cheap": sure, "dear": sure},
        loss={"cheap": -np.log(sure + np.float32(1e-9)), "dear": -np.log(sure + np.float32(1e-9))},
        verify_by="dearest",
        second={"dearest": {name: SecondLook(predicted["dear"], sure) for name in predicted}},
        image_cue=np.asarray(cue if cue is not None else np.zeros(count), float),
    )
