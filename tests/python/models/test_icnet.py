import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from safetensors.torch import save_file  # noqa: E402

from trt_moe.errors import BundleError  # noqa: E402
from trt_moe.models.icnet import ICNet, complexity, load_icnet  # noqa: E402


def weights(model):
    """Weights that any implementation with the published names can be given."""
    made = {}
    for index, (name, value) in enumerate(sorted(model.state_dict().items())):
        if not value.is_floating_point():
            made[name] = value
            continue
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + index).reshape(value.shape)
        if name.endswith("running_var"):
            made[name] = (1 + 0.5 * wave).float()
        elif value.dim() > 1:
            made[name] = (wave * 1.2 / value[0].numel() ** 0.5).float()
        else:
            made[name] = (0.1 * wave + (0.8 if name.endswith("weight") else 0)).float()
    return made


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    file = tmp_path_factory.mktemp("w") / "icnet.safetensors"
    # The published file also has the head of the complexity map.
    save_file({**weights(ICNet()), "to_map.to_map.0.bias": torch.zeros(1)}, file)
    return file


def pictures():
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::8] = [200, 120, 40]
    noise = (np.arange(40 * 40, dtype=np.int64) * 7919 % 256).astype(np.uint8).reshape(40, 40, 1)
    return stripes, noise


def test_scores_are_those_of_the_original(stored):
    # Computed with the authors' ICNet.py and preprocessing (resize to 512, ImageNet mean and std).
    model, seen = load_icnet(stored), []
    for image, expected in zip(pictures(), (0.328802, 0.322364), strict=True):
        scores = complexity(model, image[None], lambda *progress: seen.append(progress))
        assert scores.shape == (1,)
        assert scores[0] == pytest.approx(expected, abs=1e-4)
    assert seen == [("complexity", 1, 1)] * 2


def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path):
    file = tmp_path / "ck.pth"
    torch.save({"b1_1.0.weight": torch.zeros(1)}, file)
    with pytest.raises(BundleError, match=r"is a pickle file.*weights_only=True.*ck\.safetensors"):
        load_icnet(file)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        load_icnet(tmp_path / "gone.safetensors")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk")
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        load_icnet(junk)
    save_file({"conv.weight": torch.zeros(1)}, junk)
    with pytest.raises(BundleError, match=r"not hold the weights of ICNet: it starts with conv\.weight"):
        load_icnet(junk)
