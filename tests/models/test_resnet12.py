import pytest
import torch
from torch import nn
from torch.testing import assert_close

from headstart.models.resnet12 import ResNet12


def test_widths_are_those_of_the_literature():
    model = ResNet12(5)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert len([c for c in convolutions if c.kernel_size == (3, 3)]) == 12
    assert [block.shortcut[0].out_channels for block in model.body] == [64, 160, 320, 640]
    weights = sum(c.weight.numel() for c in convolutions)
    assert weights == sum(
        9 * (a * b + 2 * b * b) + a * b for a, b in ((3, 64), (64, 160), (160, 320), (320, 640))
    )  # 12.4 million


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 33), (3, 84)])
def test_any_image_size(channels, size):
    model = ResNet12(7, channels, width=4)
    x = torch.randn(2, channels, size, size)
    assert model(x).shape == (2, 7)
    assert model.body(x).shape == (2, 40, size // 16, size // 16)


def test_a_block_is_what_its_equation_says():
    torch.manual_seed(0)
    block = ResNet12(5, 3, width=4).eval().body[0]
    x = torch.randn(2, 3, 6, 6)
    conv1, norm1, _, conv2, norm2, _, conv3, norm3 = block.convolutions
    leaky = lambda y: torch.where(y > 0, y, 0.1 * y)  # noqa: E731
    inside = norm3(conv3(leaky(norm2(conv2(leaky(norm1(conv1(x))))))))
    summed = leaky(inside + block.shortcut[1](block.shortcut[0](x)))
    expected = summed.reshape(2, 4, 3, 2, 3, 2).amax((3, 5))
    assert_close(block(x), expected)


def test_the_normaliser_can_be_chosen():
    kinds = {type(m) for m in ResNet12(5, width=16, normalizer="group").modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="even number of channels, got 5"):
        ResNet12(5, width=5)
