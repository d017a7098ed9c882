"""Meta-SGD: the step size of every single parameter is meta-learned (Li et al. 2017).

    code        paper      shape
    rates       alpha      name -> that parameter's shape, see `rates.py`
    inner       theta - alpha o grad L(theta)

The one difference from `maml.py`: `lr` is a tensor that learns. A rate may become negative.
"""

from typing import Any

from torch import nn

from headstart.algorithms.maml import MAML
from headstart.algorithms.rates import Rates
from headstart.inner import SGD
from headstart.losses import Criterion


class MetaSGD(MAML):
    """MAML with a meta-learned step size, and direction, for every parameter.

    >>> learner = MetaSGD(nn.Linear(1, 1), nn.functional.mse_loss, lr=0.1)
    >>> [name for name, _ in learner.named_parameters()]
    ['model.weight', 'model.bias', 'inner.multiples.weight', 'inner.multiples.bias']

    Args:
        model: Any module.
        loss: As in `MAML`.
        lr: What every rate starts from.
        steps: As in `MAML`; at least 1.
        settings: As in `MAML`, but for `inner`.

    Differs: the rates start from one number; the paper draws them at random.

    Reference: Li, Zhou, Chen and Li (2017), "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning".
    """

    def __init__(self, model: nn.Module, loss: Criterion, *, lr: float = 0.01, steps: int = 1, **settings: Any):
        if steps < 1:
            raise ValueError(f"Meta-SGD learns how inner steps are taken: steps must be at least 1, got {steps}.")
        super().__init__(model, loss, inner=SGD(lr), steps=steps, **settings)
        self.inner = Rates(self.adapted_parameters(), lr)
