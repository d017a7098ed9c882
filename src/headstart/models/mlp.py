"""Fully connected networks: the paper's sinusoid regressor and its Omniglot network without convolutions."""

from collections.abc import Sequence

from torch import Tensor, nn

from headstart.models import norm


class MLP(nn.Module):
    """Linear layers with ReLU between them; weights from a truncated normal of deviation 0.01, zero biases.

    With 40-40 this is the sinusoid regressor (Finn et al. 2017, section 5.1), with 256-128-64-64 and batch
    norm the non-convolutional classifier (section 5.2).

    Args:
        features: Input size; inputs `[examples, ...]` are flattened to it.
        outputs: Output size.
        hidden: Sizes of the hidden layers.
        normalizer: Before each ReLU (shift only), see `headstart.models.norm.Normalizer`; None for none.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: Sequence[int] = (40, 40),
        normalizer: norm.Normalizer | None = None,
    ):
        super().__init__()
        body: list[nn.Module] = []
        for size_in, size_out in zip([features, *hidden[:-1]], hidden, strict=True):
            body.append(_linear(size_in, size_out))
            if normalizer is not None:
                body.append(norm.normalizer(normalizer, size_out, images=False))
            body.append(nn.ReLU())
        self.body = nn.Sequential(*body)
        self.head = _linear(hidden[-1], outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[examples, ...]` to `[examples, outputs]`."""
        return self.head(self.body(inputs.flatten(1)))


def _linear(size_in: int, size_out: int) -> nn.Linear:
    layer = nn.Linear(size_in, size_out)
    nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)  # TensorFlow's: cut at two deviations
    nn.init.zeros_(layer.bias)
    return layer
