"""CAVIA: only a context vector adapts, from zero in every task (Zintgraf et al. 2019); the paper's context vector.

    code                     CAVIA      Finn et al. 2017, appendix C.2
    the context parameter    phi        z, appended to the network's input
    all the rest             theta      theta

The difference from MAML with `adapt_only`: where the context starts is not learned, but zero. Finn et al. learn it too:
that is `MAML(model, loss, adapt_only="*context")`. What a start adds to the first layer, that layer's bias can add, so
that both can express the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from headstart.algorithms.maml import MAML
from headstart.layers import Norm
from headstart.losses import Criterion
from headstart.types import Batch, Params


class CAVIA(MAML):
    """MAML whose inner loop adapts a context, reset to zero for each task.

    Args:
        model: A module with a context parameter; `headstart.models.adapters` adds one to any module.
        loss: As in `MAML`.
        context: Name patterns of the context.
        settings: As in `MAML`, but for `adapt_only`.

    Reference: Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson (2019), "Fast Context Adaptation via Meta-Learning".
    """

    def __init__(
        self, model: nn.Module, loss: Criterion, *, context: str | Sequence[str] = ("*context",), **settings: Any
    ):
        super().__init__(model, loss, adapt_only=context, **settings)

    def initial(self, model: nn.Module, support: Batch, norm: Norm) -> Params:
        """All parameters that a task starts from: the context at zero."""
        theta = super().initial(model, support, norm)
        return theta | {name: torch.zeros_like(theta[name]) for name in self.adapted_names}
