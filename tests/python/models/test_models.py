"""Gater, registry and the preprocessing wrapper."""

from urllib.error import URLError

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
pytest.importorskip("timm")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from trt_moe.errors import BundleError, InputError  # noqa: E402
from trt_moe.models import ImageModel, Mixture, SqueezeNetLight, create_expert, expert_names, fused_gater  # noqa: E402
from trt_moe.training.checkpoint import save_checkpoint  # noqa: E402


def _parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_an_untrained_gater_has_no_preference():
    gater = SqueezeNetLight(3, channels=1, side=28).eval()
    assert gater(torch.randn(2, 1, 28, 28)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("side", [28, 96])
def test_the_gater_has_a_few_thousand_parameters(side):
    gater = SqueezeNetLight(2, channels=3, side=side)
    assert gater(torch.randn(2, 3, side, side)).shape == (2, 2)
    assert 2_000 < _parameters(gater) < 15_000


@pytest.mark.parametrize(("side", "width"), [(28, 16), (96, 16), (28, 6)])
def test_a_fused_gater_scores_the_same_with_two_convolutions_a_block(side, width):
    torch.manual_seed(3)
    network = SqueezeNetLight(3, channels=1, side=side, width=width)
    torch.nn.init.normal_(network.head.weight)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.bias, -0.5, 0.5)
    gater = ImageModel(network, (side, side), (side, side), [0.3], [0.3])
    images = torch.randint(0, 256, (8, side, side, 1), dtype=torch.uint8)
    for _ in range(20):  # running means and variances of their own
        gater.train()(images)
    fused = fused_gater(gater)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), gater.eval()(images), atol=1e-5, rtol=1e-5)
    assert isinstance(fused.network, SqueezeNetLight)
    assert not any(layer.training for layer in fused.modules())
    with torch.no_grad():
        torch.testing.assert_close(fused_gater(fused)(images), fused(images))  # fused already
    layers = [type(layer).__name__ for layer in fused.network.modules()]
    blocks = 3 if side > 32 else 2
    assert (layers.count("Conv2d"), layers.count("BatchNorm2d")) == (1 + 2 * blocks, 0)
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in gater.modules())


@pytest.mark.parametrize("arguments", [{"experts": 1}, {"experts": 2, "width": 3}, {"experts": 2, "side": 4}])
def test_a_gater_that_cannot_be_is_refused(arguments):
    with pytest.raises(InputError, match="experts >= 2"):
        SqueezeNetLight(**arguments)


def test_experts_of_both_libraries_have_names():
    assert {"squeezenet1_1", "mobilenetv3_small_100", "deit_small_patch16_224"} <= set(expert_names())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("squeezenet1_1", {"in_chans": 1}),
        ("test_resnet", {"in_chans": 1}),
        ("deit_tiny_distilled_patch16_224", {"image_size": 28, "options": {"patch_size": 7, "depth": 1}}),
    ],
)
def test_an_expert_has_the_head_and_the_channels_asked_for(name, arguments):
    model = create_expert(name, num_classes=4, **arguments).eval()
    side, channels = arguments.get("image_size", 64), arguments.get("in_chans", 3)
    assert model(torch.randn(2, channels, side, side)).shape == (2, 4)


def test_squeezenet_logits_can_be_negative():
    model = create_expert("squeezenet1_1", num_classes=10, in_chans=1).eval()
    nn.init.constant_(model.classifier[1].bias, -3.0)
    assert model(torch.randn(1, 1, 64, 64)).min() < 0


def test_an_unknown_name_is_answered_with_near_matches():
    with pytest.raises(InputError, match=r"'squeezenet_1_1'; near matches: .*squeezenet1_1"):
        create_expert("squeezenet_1_1", num_classes=2)
    with pytest.raises(InputError, match="near matches: deit_small_"):
        create_expert("DeiT-Small-Patch16", num_classes=2)
    with pytest.raises(InputError, match="expert_names"):
        create_expert("zzzzzzzz", num_classes=2)


@pytest.mark.parametrize("name", ["squeezenet1_1", "test_resnet"])
def test_options_that_the_constructor_refuses_are_named(name):
    with pytest.raises(InputError, match="wings"):
        create_expert(name, num_classes=2, options={"wings": 2})


def test_weights_come_from_a_local_file_without_the_head(tmp_path):
    source = create_expert("test_resnet", num_classes=10)
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    model = create_expert("test_resnet", num_classes=3, weights=tmp_path / "w.safetensors")
    state, own = source.state_dict(), model.state_dict()
    same = [k for k in own if own[k].shape == state[k].shape and torch.equal(own[k], state[k])]
    assert len(own) - len(same) == 2  # weight and bias of the head


def test_weights_may_be_a_checkpoint_of_a_run(tmp_path):
    network = create_expert("test_resnet", num_classes=3)
    save_checkpoint(tmp_path / "w.safetensors", ImageModel(network, (8, 8), (16, 16), [0.5] * 3, [0.5] * 3), "hash", 1)
    model = create_expert("test_resnet", num_classes=3, weights=tmp_path / "w.safetensors")
    for key, value in network.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_where_all_weights_are_needed_a_head_for_other_classes_will_not_do(tmp_path):
    source = create_expert("test_resnet", num_classes=10)
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    create_expert("test_resnet", num_classes=10, weights=tmp_path / "w.safetensors", all_weights=True)
    with pytest.raises(BundleError, match=r"lacks .*weight.* such as a head .*epochs: 0"):
        create_expert("test_resnet", num_classes=3, weights=tmp_path / "w.safetensors", all_weights=True)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        create_expert("test_resnet", num_classes=3, weights=tmp_path / "broken.safetensors")
    # A few names and shapes may agree by chance.
    own = create_expert("test_resnet", num_classes=3).state_dict()
    some = {name: value.contiguous() for name, value in list(own.items())[: len(own) // 2]}
    save_file(some, tmp_path / "other.safetensors")
    with pytest.raises(BundleError, match=rf"fits {len(some)} of the {len(own)} tensors .*another architecture"):
        create_expert("test_resnet", num_classes=3, weights=tmp_path / "other.safetensors")
    torch.save(own, tmp_path / "other.pth")
    with pytest.raises(BundleError, match=r"is a pickle file.*weights_only=True.*other\.safetensors"):
        create_expert("test_resnet", num_classes=3, weights=tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["squeezenet1_1", "test_resnet"])
def test_pretrained_weights_that_cannot_be_fetched_are_named_with_the_way_out(name, monkeypatch):
    def no_network(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr("timm.models._builder.load_pretrained", no_network)
    with pytest.raises(InputError, match=rf"weights of {name} cannot be had: .*not known.*weights: FILE\.safetensors"):
        create_expert(name, num_classes=2, pretrained=True)


def test_a_model_without_pretrained_weights_is_named():
    with pytest.raises(InputError, match=r"weights of resnet18\.nobodys cannot be had"):
        create_expert("resnet18.nobodys", num_classes=2, pretrained=True)


def test_pretrained_weights_get_a_head_and_a_stem_of_ones_own(monkeypatch):
    given = torchvision.models.squeezenet1_1().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: given)
    model = create_expert("squeezenet1_1", num_classes=6, in_chans=1, pretrained=True)
    other = {name for name, value in model.state_dict().items() if not torch.equal(value, given[name])}
    assert other <= {"features.0.weight", "features.0.bias", "classifier.1.weight", "classifier.1.bias"}
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 6)


class _Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def test_preprocessing_is_scaling_by_mean_and_std_in_channel_order():
    model = ImageModel(_Flat(), (1, 2), (1, 2), mean=[0.5, 0.0], std=[0.5, 0.25])
    images = torch.tensor([[[[0, 255], [255, 51]]]], dtype=torch.uint8)  # two pixels of two channels
    torch.testing.assert_close(model(images), torch.tensor([[-1.0, 1.0, 4.0, 0.8]]))


def test_the_resize_is_inside_and_bilinear():
    model = ImageModel(_Flat(), (2, 2), (4, 4), mean=[0.0], std=[1.0])
    images = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).reshape(1, 2, 2, 1)
    rows = model(images).reshape(4, 4)[:, 0]
    torch.testing.assert_close(rows, torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_a_temperature_divides_the_logits_of_the_same_network():
    model = ImageModel(_Flat(), (1, 2), (1, 2), mean=[0.0], std=[1.0])
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 2, 1)
    calibrated = model.with_temperature(4.0)
    torch.testing.assert_close(calibrated(images), torch.tensor([[0.0, 0.25]]))
    torch.testing.assert_close(model(images), torch.tensor([[0.0, 1.0]]))
    assert calibrated.state_dict().keys() == model.state_dict().keys()  # checkpoints know nothing of it


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.5, 0.5]), ([], []), ([0.5], [0.0])])
def test_a_normalisation_that_cannot_be_is_refused(mean, std):
    with pytest.raises(InputError, match="one value per channel"):
        ImageModel(_Flat(), (2, 2), (2, 2), mean, std)


class _Constant(nn.Module):
    """Answers its own number to all, or to each image its first pixel; remembers how many images it saw."""

    def __init__(self, scores=None):
        super().__init__()
        self.scores, self.seen = scores, 0

    def forward(self, x):
        self.seen += len(x)
        return x[:, :, 0, 0] if self.scores is None else torch.tensor([self.scores]).repeat(len(x), 1)


def _mixture(count):
    identity = {"input_size": (1, 1), "graph_size": (1, 1), "mean": [0.0] * count, "std": [1.0] * count}
    experts = [_Constant([float(number), 0.0]) for number in range(count)]
    return Mixture(ImageModel(_Constant(), **identity), [ImageModel(expert, **identity) for expert in experts]), experts


@pytest.mark.parametrize("count", [2, 3])
def test_a_mixture_trains_densely_and_answers_sparsely(count):
    mixture, experts = _mixture(count)
    # An image's channels are the gater's scores: image n is for expert n % count.
    images = (torch.eye(count)[torch.arange(7) % count] * 255).to(torch.uint8)[:, None, None]
    scores, logits = mixture(images)
    assert (scores.shape, logits.shape) == ((7, count), (7, count, 2))
    assert [expert.seen for expert in experts] == [7] * count
    routes, answers = mixture.answer(images, torch.zeros(count), 1.0)
    assert routes.tolist() == [n % count for n in range(7)]
    assert answers[:, 0].tolist() == [float(n % count) for n in range(7)]
    assert [expert.seen - 7 for expert in experts] == [routes.tolist().count(n) for n in range(count)]


def test_a_mixture_subtracts_weighted_costs():
    mixture, experts = _mixture(2)
    images = torch.tensor([[[[0, 102]]], [[[0, 255]]]], dtype=torch.uint8)
    assert mixture.answer(images, torch.tensor([0.0, 1.0]), 0.5)[0].tolist() == [0, 1]
    assert mixture.answer(images, torch.tensor([0.0, 1.0]), 2.0)[0].tolist() == [0, 0]
    assert experts[1].seen == 1
