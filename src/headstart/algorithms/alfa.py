"""ALFA: step sizes and decay of the inner loop, made anew in each step by a small network (Baik et al. 2020).

    code                 paper               shape
    rates                alpha^0, per step   [steps, tensors]
    decays               beta^0, per step    [steps, tensors]
    generator            g_phi               2 numbers per tensor in, 2 out
    state                tau: mean gradient and mean parameter of every tensor
    update               theta <- beta o theta - alpha o grad L(theta)

The difference from `maml.py`: alpha and beta depend on the task and on how far it has come.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.algorithms.maml import MAML
from headstart.inner import SGD, at_step
from headstart.losses import Criterion
from headstart.types import Params


@dataclass(frozen=True)
class GeneratedSGD:
    """Gradient descent whose step sizes and decay a two-layer network makes from gradients and parameters."""

    rates: Tensor
    """`[steps, tensors]`, in the order of the parameters."""
    decays: Tensor
    """`[steps, tensors]`: what is kept of the parameters."""
    network: Mapping[str, Tensor]
    """Weights and biases of the network's two linear layers."""

    def init(self, params: Params) -> Tensor:
        """No step taken."""
        return torch.zeros((), dtype=torch.long, device=self.rates.device)

    def update(self, params: Params, grads: Params, state: Tensor) -> tuple[Params, Tensor]:
        """`beta * p - alpha * g` for every parameter."""
        seen = torch.stack([grads[name].mean() for name in params] + [p.mean() for p in params.values()])
        with torch.autocast(seen.device.type, enabled=False):  # parameters are updated in their own precision
            hidden = (self.network["0.weight"] @ seen + self.network["0.bias"]).relu()
            factors = 1 + self.network["2.weight"] @ hidden + self.network["2.bias"]
        for_rates, for_decays = factors.chunk(2)
        rates, decays = at_step(self.rates, state) * for_rates, at_step(self.decays, state) * for_decays
        stepped = {name: decays[i] * p - rates[i] * grads[name] for i, (name, p) in enumerate(params.items())}
        return stepped, state + 1


class Generator(nn.Module):
    """What ALFA learns for `tensors` tensors; at first `lr` and no decay, whatever the task.

    At a large `lr` the base values hardly move by an optimiser's steps; what the network makes are shares of them.
    """

    def __init__(self, tensors: int, lr: float, steps: int):
        super().__init__()
        self.rates = nn.Parameter(torch.full((steps, tensors), lr, dtype=torch.float64))  # no digits lost
        self.decays = nn.Parameter(torch.ones(steps, tensors))
        last = nn.Linear(2 * tensors, 2 * tensors)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(2 * tensors, 2 * tensors), nn.ReLU(), last)

    def forward(self) -> GeneratedSGD:
        """The inner optimiser."""
        return GeneratedSGD(self.rates, self.decays, dict(self.network.named_parameters()))


class ALFA(MAML):
    """MAML with step sizes and decay generated for each task, step and tensor.

    Steps beyond those trained with use the last one's base values.

    Args:
        model: Any module.
        loss: As in `MAML`.
        lr: Inner step size to start from.
        steps: As in `MAML`; at least 1.
        settings: As in `MAML`, but for `inner`.

    Differs: the network's outputs are factors 1 + h(tau) with h zero at first, so that training starts from MAML; the
    released code has an ordinary initialisation, and decays that start from a weight decay times the step size. Outer
    gradients pass through tau, where it holds gradients constant.

    Reference: Baik, Choi, Choi, Kim and Lee (2020), "Meta-Learning with Adaptive Hyperparameters".
    """

    def __init__(self, model: nn.Module, loss: Criterion, *, lr: float = 0.01, steps: int = 1, **settings: Any):
        if steps < 1:
            raise ValueError(f"ALFA learns how inner steps are taken: steps must be at least 1, got {steps}.")
        super().__init__(model, loss, inner=SGD(lr), steps=steps, **settings)
        like = next(iter(self.adapted_parameters().values()))
        self.inner = Generator(len(self.adapted_names), lr, steps).to(like)
