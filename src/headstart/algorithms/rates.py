"""Inner step sizes that are meta-learned, of Meta-SGD and MAML++.

Adam moves every parameter by about its own step size per update, 0.001: a tenth to a hundredth of the step sizes that
the papers start from, but a two-thousandth of the 2.0 that belongs to a mean loss in 20-way classification. So what is
learned is a number that starts about where the paper's step sizes do, and the step size is a multiple of it: it then
learns alike whatever the scale of the loss (the lab log has the trials). The gradient is in those units, too: clipping
its norm and plain gradient descent depend on them, Adam does not.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from headstart.algorithms.named import as_parameters, values_of
from headstart.inner import SGD, StepwiseSGD
from headstart.types import Params


class _Learned(nn.Module):
    """Step sizes by name, kept as multiples of `unit`."""

    start: ClassVar[float]
    """Where the learned numbers start; the step sizes, which are these times `unit`, start at `lr`."""
    unit: Tensor

    def __init__(self, shapes: Mapping[str, Tensor], lr: float):
        if not lr > 0:
            raise ValueError(f"Learned step sizes start from lr, which must be positive, got {lr}.")
        super().__init__()
        self.multiples = as_parameters({name: torch.full_like(like, self.start) for name, like in shapes.items()})
        self.register_buffer("unit", next(iter(shapes.values())).new_tensor(lr / self.start))

    def rates(self) -> Params:
        """The step sizes, by the names of the parameters that they are for."""
        return {name: self.unit * rate for name, rate in values_of(self.multiples).items()}


class Rates(_Learned):
    """A step size for every element of parameters, all `lr` at first; called, it gives gradient descent with them."""

    start = 0.01
    """Li et al. (2017) draw between 0.005 and 0.1."""

    def forward(self) -> SGD:
        """The inner optimiser."""
        return SGD(lr=self.rates())


class StepRates(_Learned):
    """A step size for every tensor of `params` and each of `steps` steps; called, it gives descent with them."""

    start = 0.1
    """As in the Omniglot experiments of Antoniou et al. (2019)."""

    def __init__(self, params: Params, lr: float, steps: int):
        super().__init__({name: p.new_empty((steps,)) for name, p in params.items()}, lr)

    def forward(self) -> StepwiseSGD:
        """The inner optimiser."""
        return StepwiseSGD(lr=self.rates())
