"""Tiny synthetic data in Fashion-MNIST's files, and a configuration that trains on it in seconds."""

import numpy as np

SIDE = 16


def write_data(folder):
    """Both splits as idx files; every class is a bright bar at a height of its own."""
    _write(folder, "train", 240, 0)
    _write(folder, "t10k", 60, 1)
    return folder


def _write(folder, prefix, count, seed):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = generator.integers(0, 60, (count, SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        image[label : label + 4, 2:14] += 180
    for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / f"{prefix}-{kind}").write_bytes(header + array.astype(np.uint8).tobytes())


def tiny_config(data, checkpoints):
    """Config as plain values: change them, then validate with `TrainConfig.model_validate`."""
    common = {"model": "test_resnet", "image_size": 2 * SIDE, "epochs": 2, "batch": 16}
    return {
        "name": "tiny",
        "data": data,
        "checkpoints": checkpoints,
        "precision": "fp32",
        "mean": [0.3],
        "std": [0.3],
        "splits": {"experts": 120, "gater": 60, "validation": 40},
        "teachers": [{**common, "name": "teacher", "severities": [1] * 6}],
        "experts": [
            {**common, "name": "light", "severities": [1, 1, 0, 0, 0, 0]},
            {
                **common,
                "name": "heavy",
                "model": "deit_tiny_distilled_patch16_224",
                "image_size": SIDE,
                "options": {"patch_size": 4, "depth": 1, "embed_dim": 48, "num_heads": 3},
                "severities": [1] * 6,
                "teacher": "teacher",
                "token_drop": 0.5,
                "token_drop_epochs": 1,
            },
        ],
        "baselines": [{**common, "name": "robust-light", "severities": [1] * 6}],
        "gater": {"seeds": [0], "epochs": 2, "batch": 16},
        "sample_images": 10,
        "golden_images": 6,
    }
