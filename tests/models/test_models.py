import pytest
import torch
from torch import nn
from torch.testing import assert_close

from headstart.models import MLP, Conv4


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "shape", "outputs", "parameters"),
    [
        # weights and biases of the sinusoid regressor
        (lambda: MLP(1, 1), (10, 1), (10, 1), 40 + 40 + 40 * 40 + 40 + 40 + 1),
        # linear layers with biases, as in the released code, and one shift per hidden unit
        (
            lambda: MLP(784, 5, (256, 128, 64, 64), batch_norm=True),
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


@pytest.mark.parametrize("model", [MLP(3, 2, (4, 4), batch_norm=True), Conv4(2, filters=4)], ids=["MLP", "Conv4"])
def test_batch_norm_has_a_shift_and_no_scale(model):
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == (2 if isinstance(model, MLP) else 4)
    for norm in norms:
        assert norm.weight is None
        assert norm.bias.requires_grad
        assert norm.eps == 1e-3
    assert not any("weight" in name for name, _ in norms[0].named_parameters())


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
