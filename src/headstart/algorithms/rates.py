"""Inner step sizes that are meta-learned, of Meta-SGD and MAML++."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from headstart.algorithms.named import as_parameters, values_of
from headstart.inner import SGD, StepwiseSGD
from headstart.types import Params

START = 0.01
"""What a learned step size is stored as before training, whatever size it stands for.

Adam moves every parameter by about its own step size per update. An inner step size of 2.0, the mean loss's in 20-way
classification, would change by a two-thousandth of itself; that of the papers, 0.01 to 0.1, by a tenth to a hundredth.
Stored in parts of what it starts from it changes by the same share for any loss: by a tenth for an Adam of 0.001.
"""


class _Learned(nn.Module):
    """Step sizes by name, kept in parts of `lr / START`."""

    unit: Tensor

    def __init__(self, shapes: Mapping[str, Tensor], lr: float):
        super().__init__()
        self.scaled = as_parameters({name: torch.full_like(like, START) for name, like in shapes.items()})
        self.register_buffer("unit", next(iter(shapes.values())).new_tensor(lr / START))

    def rates(self) -> Params:
        """The step sizes, by the names of the parameters that they are for."""
        return {name: self.unit * rate for name, rate in values_of(self.scaled).items()}


class Rates(_Learned):
    """A step size for every element of `params`, all `lr` at first; called, it gives gradient descent with them."""

    def __init__(self, params: Params, lr: float):
        super().__init__(params, lr)

    def forward(self) -> SGD:
        """The inner optimiser."""
        return SGD(lr=self.rates())


class StepRates(_Learned):
    """A step size for every tensor of `params` and each of `steps` steps; called, it gives descent with them."""

    def __init__(self, params: Params, lr: float, steps: int):
        super().__init__({name: p.new_empty((steps,)) for name, p in params.items()}, lr)

    def forward(self) -> StepwiseSGD:
        """The inner optimiser."""
        return StepwiseSGD(lr=self.rates())
