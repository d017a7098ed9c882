"""ResNet-12: the few-shot literature's standard large network for photographs."""

from torch import Tensor, nn

from headstart.models import norm

SLOPE = 0.1
"""Of the leaky ReLU below zero."""


class ResNet12(nn.Module):
    """Four residual blocks of three 3x3 convolutions, each halving the image; the mean over positions; a linear head.

    The widths are those of Lee et al. (2019), "Meta-Learning with Differentiable Convex Optimization", section 4.1:
    64, 160, 320 and 640 channels, a leaky ReLU of slope 0.1, max-pooling behind each block; the blocks are those of
    TADAM (Oreshkin, Rodriguez and Lacoste 2018).

    Differs: no DropBlock, and the normalisers have a shift and no scale, as everywhere in this package.

    Args:
        outputs: Number of classes.
        channels: Of the input images.
        width: Channels of the first block; the others have 2.5, 5 and 10 times as many.
        normalizer: Behind each convolution; see `headstart.models.norm.Normalizer`.

    Raises:
        ValueError: `width` is odd.
    """

    def __init__(self, outputs: int, channels: int = 3, width: int = 64, normalizer: norm.Normalizer = "batch"):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"The first block of ResNet-12 has an even number of channels, got {width}.")
        sizes = (channels, width, width * 5 // 2, width * 5, width * 10)
        self.body = nn.Sequential(*(_Block(sizes[i], sizes[i + 1], normalizer) for i in range(4)))
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        """`[examples, channels, height, width]` to `[examples, outputs]`; height and width are 16 or more."""
        return self.head(self.body(images).mean((-2, -1)))


class _Block(nn.Module):
    """Three convolutions beside one of 1x1, their sum activated and pooled."""

    def __init__(self, channels_in: int, channels_out: int, normalizer: norm.Normalizer):
        super().__init__()
        self.convolutions = nn.Sequential(
            *_convolution(channels_in, channels_out, 3, normalizer),
            nn.LeakyReLU(SLOPE),
            *_convolution(channels_out, channels_out, 3, normalizer),
            nn.LeakyReLU(SLOPE),
            *_convolution(channels_out, channels_out, 3, normalizer),
        )
        self.shortcut = nn.Sequential(*_convolution(channels_in, channels_out, 1, normalizer))

    def forward(self, x: Tensor) -> Tensor:
        activated = nn.functional.leaky_relu(self.convolutions(x) + self.shortcut(x), SLOPE)
        return nn.functional.max_pool2d(activated, 2)


def _convolution(
    channels_in: int, channels_out: int, size: int, normalizer: norm.Normalizer
) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return conv, norm.normalizer(normalizer, channels_out, images=True)
