"""TaskNorm: batch normalisation for few examples per task, whose predictions do not depend on each other.

    code                      paper                           shape
    context                   mu_c, sigma_c^2: support set    [channels]
    own                       mu_+, sigma_+^2: the example    [examples, channels, 1, 1] or [examples, 1, 1, 1]
    share                     alpha                           scalar
    blend_scale               SCALE                           scalar
    blend_offset              OFFSET                          scalar

Bronskill, Gordon, Requeima, Nowozin and Turner 2020, "TaskNorm: Rethinking Batch Normalization for Meta-Learning".
Differs: variances are biased, as everywhere in batch norm, where the released code has unbiased ones.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.exact import affine, batch_moments, pooled
from headstart.precision import widened
from headstart.standardize import moments, normalized

Own = Literal["instance", "layer"]
"""Of what an example's own moments are taken: `"instance"` of each channel, `"layer"` of all channels together."""


class TaskNorm(_BatchNorm):
    """Normalisation by the support set's moments pooled with the example's own: TaskNorm-I and TaskNorm-L.

    The support set's `share` in the pool is `sigmoid(blend_scale * examples + blend_offset)`, learned in each layer:
    the more examples there are, the more their moments can be relied on. Both begin at zero, half and half, as in
    the released code.

    Where the support set's moments come from is the norm policy's matter, as for batch norm; see
    `headstart.layers.Norm`. On its own the layer takes them from the batch in training mode, and from its buffers in
    evaluation mode; the buffers hold what `MAML.adapt` or meta-training stored, and the layer never writes them.

    >>> layer = TaskNorm(8, "instance")
    >>> layer(torch.randn(5, 8, 7, 7)).shape
    torch.Size([5, 8, 7, 7])

    Args:
        channels: Second axis of the inputs, `[examples, channels, ...]`.
        own: Which moments of the example; `"instance"` needs inputs with positions behind the channels.
        eps: Added to the variance.

    Raises:
        ValueError: `own` is not one of the two.
    """

    examples: Tensor | None

    def __init__(self, channels: int, own: Own = "instance", eps: float = 1e-5):
        super().__init__(channels, eps=eps)
        if own not in ("instance", "layer"):
            raise ValueError(f"own must be 'instance' or 'layer', got {own!r}.")
        self.own: Own = own
        self.blend_scale, self.blend_offset = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.register_buffer("examples", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        """Normalised `input`, of the same shape `[examples, channels, ...]`."""
        if self.own == "instance" and input.dim() < 3:
            raise ValueError(
                f"TaskNorm by instance needs inputs [examples, channels, positions], got {tuple(input.shape)}: without "
                "positions a channel has no moments of its own. Use own='layer'."
            )
        wide, shape = widened(input), [-1, input.shape[1]] + [1] * (input.dim() - 2)
        training = self.training or self.running_mean is None
        mean, variance, examples = batch_moments(input, self.running_mean, self.running_var, self.examples, training)
        share = torch.sigmoid(widened(self.blend_scale) * examples + widened(self.blend_offset))
        context = widened(mean).reshape(shape), widened(variance).reshape(shape)
        own = moments(wide, list(range(2 if self.own == "instance" else 1, input.dim())))
        mean, variance = pooled(share, context, own)
        return affine(normalized(wide, mean, variance, self.eps), self.weight, self.bias, shape).to(input.dtype)

    def extra_repr(self) -> str:
        """What `print` shows in the brackets."""
        return f"{self.num_features}, own={self.own!r}, eps={self.eps}"
