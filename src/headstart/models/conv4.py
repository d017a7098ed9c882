"""Conv-4: the few-shot literature's standard small network."""

from itertools import pairwise

from torch import Tensor, nn

from headstart.models import norm


class Conv4(nn.Module):
    """Four 3x3 convolutions with a normaliser (shift only) and ReLU, then a linear head.

    Defaults are the paper's Omniglot network (Finn et al. 2017, section 5.2 and released code): stride 2,
    64 filters, batch norm, the mean over positions, and a head drawn from N(0, 1).

    Differs: padding is 1 on every side, where TensorFlow pads even sizes at the far side only; feature
    maps have the same sizes. The convolutions have no bias: batch norm after each would remove it.

    Args:
        outputs: Number of classes.
        channels: Of the input images.
        filters: Of each convolution.
        normalizer: Behind each convolution; see `headstart.models.norm.Normalizer`.
    """

    def __init__(self, outputs: int, channels: int = 1, filters: int = 64, normalizer: norm.Normalizer = "batch"):
        super().__init__()
        sizes = [channels] + [filters] * 4
        self.body = nn.Sequential(*(_block(a, b, normalizer) for a, b in pairwise(sizes)))
        self.head = nn.Linear(filters, outputs)
        nn.init.normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """`[examples, channels, height, width]` to `[examples, outputs]`."""
        return self.head(self.body(images).mean((-2, -1)))


def _block(channels_in: int, channels_out: int, normalizer: norm.Normalizer) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return nn.Sequential(conv, norm.normalizer(normalizer, channels_out, images=True), nn.ReLU())
