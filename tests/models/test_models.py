import pytest
import torch
from torch import nn
from torch.testing import assert_close

from headstart.models import MLP, Conv4
from headstart.models.norm import NORMALIZERS
from headstart.task_norm import TaskNorm


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "shape", "outputs", "parameters"),
    [
        # weights and biases of the sinusoid regressor
        (lambda: MLP(1, 1), (10, 1), (10, 1), 40 + 40 + 40 * 40 + 40 + 40 + 1),
        # linear layers with biases, as in the released code, and one shift per hidden unit
        (
            lambda: MLP(784, 5, (256, 128, 64, 64), normalizer="batch"),
            (10, 1, 28, 28),
            (10, 5),
            (784 * 256 + 256 * 128 + 128 * 64 + 64 * 64) + 2 * (256 + 128 + 64 + 64) + 64 * 5 + 5,
        ),
        # 3x3 kernels without bias, a shift per filter, the head
        (lambda: Conv4(5), (10, 1, 28, 28), (10, 5), 9 * 64 + 3 * 9 * 64 * 64 + 4 * 64 + 64 * 5 + 5),
        (lambda: Conv4(20, channels=3, filters=8), (4, 3, 17, 23), (4, 20), 9 * 24 + 3 * 9 * 64 + 4 * 8 + 8 * 20 + 20),
    ],
    ids=["sinusoid", "omniglot without convolutions", "omniglot", "any image size"],
)
def test_sizes(make, shape, outputs, parameters):
    model = make()
    assert model(torch.randn(shape)).shape == outputs
    assert count(model) == parameters


def test_conv4_halves_the_image_four_times():
    sizes, model, x = [], Conv4(5, filters=4), torch.randn(3, 1, 28, 28)
    for block in model.body:
        x = block(x)
        sizes.append(x.shape[-1])
    assert sizes == [14, 7, 4, 2]  # as TensorFlow's "same" padding at stride 2
    model.eval()
    x = torch.randn(3, 1, 28, 28)
    assert_close(model(x), model.head(model.body(x).mean((-2, -1))))


def test_mlp_is_linear_layers_with_relu_between():
    model, x = MLP(3, 2, (4, 5)), torch.randn(6, 3)
    first, second = (layer for layer in model.body if isinstance(layer, nn.Linear))
    expected = model.head((second((first(x)).relu())).relu())
    assert_close(model(x), expected)


@pytest.mark.parametrize("model", [MLP(3, 2, (4, 4), normalizer="batch"), Conv4(2, filters=4)], ids=["MLP", "Conv4"])
def test_batch_norm_has_a_shift_and_no_scale(model):
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == (2 if isinstance(model, MLP) else 4)
    for norm in norms:
        assert norm.weight is None
        assert norm.bias.requires_grad
        assert norm.eps == 1e-3
    assert not any("weight" in name for name, _ in norms[0].named_parameters())


KINDS = {
    "batch": nn.BatchNorm2d,
    "layer": nn.GroupNorm,
    "instance": nn.InstanceNorm2d,
    "group": nn.GroupNorm,
    "task-instance": TaskNorm,
    "task-layer": TaskNorm,
}
OVER = {"batch": (0, 3, 4), "layer": (1, 2, 3, 4), "instance": (3, 4), "group": (2, 3, 4)}
"""Which axes of `[examples, groups, channels of a group, height, width]` have mean 0 and variance 1."""


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers_have_a_shift_and_no_scale(name):
    model = Conv4(2, filters=16, normalizer=name)
    norm, x = model.body[0][1], torch.randn(6, 16, 5, 5) * 3 + torch.arange(16.0).reshape(1, 16, 1, 1)
    assert type(norm) is KINDS[name]
    assert norm.eps == 1e-3
    learned = {n: tuple(p.shape) for n, p in norm.named_parameters()}
    assert learned == {"bias": (16,)} | ({"blend_scale": (), "blend_offset": ()} if "task" in name else {})
    assert norm.bias.count_nonzero() == 0
    if name in OVER:
        standard = norm(x).unflatten(1, (8, 2))
        mean, variance = standard.mean(OVER[name]), standard.var(OVER[name], correction=0)
        assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        assert_close(variance, torch.ones_like(variance), atol=1e-2, rtol=0)
    else:
        assert norm.own == name.removeprefix("task-")
    assert not any("weight" in name for name in norm.state_dict())
    nn.init.constant_(norm.bias, 7.0)
    moved = norm(x)
    nn.init.zeros_(norm.bias)
    assert_close(moved, norm(x) + 7)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_networks_train_as_any_module_does(name):
    model = Conv4(2, filters=8, normalizer=name)
    model(torch.randn(4, 1, 20, 20)).square().mean().backward()
    gradients = {n: p.grad.abs().max() for n, p in model.named_parameters()}
    assert all(gradient > 0 for n, gradient in gradients.items() if not n.endswith("scale")), gradients


def test_which_normalizers_suit_features():
    for name in NORMALIZERS:
        if "instance" in name:
            with pytest.raises(ValueError, match=f"normalizer='{name}' needs images: .* Use 'layer' or"):
                MLP(3, 2, (8,), normalizer=name)
        else:
            assert MLP(3, 2, (8,), normalizer=name)(torch.randn(4, 3)).shape == (4, 2)


def test_normalizers_that_cannot_be_made():
    with pytest.raises(ValueError, match=r"normalizer must be one of batch, layer, .*, got 'bath'"):
        Conv4(2, normalizer="bath")
    with pytest.raises(ValueError, match="Group norm has 8 groups, got 12 channels: give a multiple of 8"):
        Conv4(2, filters=12, normalizer="group")


def test_parameter_names_that_checkpoints_hold():
    blocks = [f"body.{i}.{name}" for i in range(4) for name in ("0.weight", "1.bias")]
    assert [name for name, _ in Conv4(2).named_parameters()] == [*blocks, "head.weight", "head.bias"]
    names = [name for name, _ in MLP(3, 2, (4, 4), normalizer="batch").named_parameters()]
    assert names == [
        *(f"body.{name}" for name in ("0.weight", "0.bias", "1.bias", "3.weight", "3.bias", "4.bias")),
        "head.weight",
        "head.bias",
    ]


def test_initial_values():
    torch.manual_seed(0)
    mlp, conv = MLP(100, 100, (100, 100)), Conv4(100, filters=64)
    for layer in (*(m for m in mlp.modules() if isinstance(m, nn.Linear)),):
        assert layer.bias.count_nonzero() == 0
        assert layer.weight.abs().max() <= 0.02  # cut at two deviations
        assert layer.weight.std().item() == pytest.approx(0.88 * 0.01, rel=0.02)  # what the cut leaves of 0.01
    assert conv.head.bias.count_nonzero() == 0
    assert conv.head.weight.std().item() == pytest.approx(1.0, rel=0.03)
    for block, channels in zip(conv.body, (1, 64, 64, 64), strict=True):
        assert block[0].bias is None
        bound = (6 / (9 * channels + 9 * 64)) ** 0.5  # Glorot's uniform
        assert bound * 0.97 < block[0].weight.abs().max() <= bound
