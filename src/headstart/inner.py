"""Differentiable inner optimisers: how one inner step turns parameters and gradients into new parameters.

Each is a frozen dataclass of its settings with two pure functions, `init` and `update`. Nothing is changed
in place, so an outer gradient can flow through any number of updates, and every operation is one that
`torch.vmap` maps over tasks.

A rate is a number, a tensor, or a mapping from parameter name to either. A scalar tensor per name is a rate
per tensor, one of the parameter's own shape a rate per element; where such tensors require gradients, the
rates can be meta-learned; whoever passes them gives them to the outer optimiser and saves them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from headstart.types import Params

Rate = float | Tensor | Mapping[str, float | Tensor]


@runtime_checkable
class InnerOptimizer(Protocol):
    """What `adapt` needs of an inner optimiser."""

    def init(self, params: Params) -> Any:
        """The state before the first step: a tree of tensors."""
        ...

    def update(self, params: Params, grads: Params, state: Any) -> tuple[Params, Any]:
        """Parameters after one step, and the state for the next."""
        ...


@dataclass(frozen=True)
class SGD:
    """Gradient descent, `p - lr * g`: the inner update of the paper (Finn et al. 2017, eq. 1).

    >>> SGD(lr=0.5).update({"w": torch.tensor(1.0)}, {"w": torch.tensor(4.0)}, ())
    ({'w': tensor(-1.)}, ())
    """

    lr: Rate = 0.01
    """Step size: a number, or per parameter name a number, scalar or tensor of the parameter's shape."""

    def __post_init__(self):
        _check_rate(self.lr)

    def init(self, params: Params) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def update(self, params: Params, grads: Params, state: tuple[()]) -> tuple[Params, tuple[()]]:
        """`p - lr * g` for every parameter."""
        return _descend(params, grads, self.lr), ()


@dataclass(frozen=True)
class StepwiseSGD:
    """Gradient descent with a step size of its own for each step; steps beyond them use the last one.

    >>> rule = StepwiseSGD(lr={"w": torch.tensor([0.5, 0.1])})
    >>> params, state = rule.update({"w": torch.tensor(1.0)}, {"w": torch.tensor(4.0)}, rule.init({}))
    >>> rule.update(params, {"w": torch.tensor(4.0)}, state)[0]
    {'w': tensor(-1.4000)}
    """

    lr: Mapping[str, Tensor]
    """Step sizes by parameter name, `[steps]`."""

    def init(self, params: Params) -> Tensor:
        """No step taken."""
        first = next(iter(self.lr.values()))
        return torch.zeros((), dtype=torch.long, device=first.device)

    def update(self, params: Params, grads: Params, state: Tensor) -> tuple[Params, Tensor]:
        """`p - lr[step] * g` for every parameter."""
        rates = {name: at_step(rates, state) for name, rates in self.lr.items()}
        return _descend(params, grads, rates), state + 1


@dataclass(frozen=True)
class Momentum:
    """Gradient descent with (Polyak) momentum, as `torch.optim.SGD(momentum=...)` computes it.

    `v <- momentum * v + g`, then `p <- p - lr * v`; with `nesterov`, `p <- p - lr * (g + momentum * v)`.
    """

    lr: Rate = 0.01
    """Step size: a number, or per parameter name a number, scalar or tensor of the parameter's shape."""

    momentum: float = 0.9
    """Share of the velocity kept, in [0, 1)."""

    nesterov: bool = False
    """Look ahead along the new velocity (Nesterov's variant)."""

    def __post_init__(self):
        _check_rate(self.lr)
        _check_fraction("momentum", self.momentum)

    def init(self, params: Params) -> Params:
        """Zero velocities."""
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def update(self, params: Params, grads: Params, state: Params) -> tuple[Params, Params]:
        """One step along the new velocities."""
        velocity = {name: self.momentum * state[name] + g for name, g in grads.items()}
        ahead = {n: g + self.momentum * velocity[n] for n, g in grads.items()} if self.nesterov else velocity
        return _descend(params, ahead, self.lr), velocity


class AdamState(NamedTuple):
    """Number of steps taken, and running means of the gradients and of their squares."""

    taken: Tensor
    mean: Params
    square: Params


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015), differentiable at zero gradients.

    Differs: the small constant stands inside the root, `m / sqrt(v + eps_root)`. With the usual
    `m / (sqrt(v) + eps)` the derivative of the root is infinite where a gradient is exactly zero (a dead
    ReLU is enough), and the meta-gradient is NaN. `eps_root` bounds the step per element by
    `lr * |m| / sqrt(eps_root)` and its derivative by `lr / sqrt(eps_root)`.
    """

    lr: Rate = 0.001
    """Step size: a number, or per parameter name a number, scalar or tensor of the parameter's shape."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two running means, each in [0, 1)."""

    eps_root: float = 1e-8
    """Added to the mean square under the root; positive."""

    def __post_init__(self):
        _check_rate(self.lr)
        for beta in self.betas:
            _check_fraction("betas", beta)
        if not self.eps_root > 0:
            raise ValueError(f"eps_root must be positive, got {self.eps_root}: at 0 meta-gradients become NaN.")

    def init(self, params: Params) -> AdamState:
        """No steps taken, zero means."""
        first = next(iter(params.values()))
        wide = torch.promote_types(first.dtype, torch.float32)  # in bfloat16 256 + 1 is 256
        zeros = {name: torch.zeros_like(p) for name, p in params.items()}
        return AdamState(torch.zeros((), dtype=wide, device=first.device), zeros, zeros)

    def update(self, params: Params, grads: Params, state: AdamState) -> tuple[Params, AdamState]:
        """One bias-corrected step."""
        (b1, b2), taken = self.betas, state.taken + 1
        mean = {name: b1 * state.mean[name] + (1 - b1) * g for name, g in grads.items()}
        square = {name: b2 * state.square[name] + (1 - b2) * g * g for name, g in grads.items()}
        c1, c2 = _bias_correction(b1, taken), _bias_correction(b2, taken)
        direction = {name: (mean[name] / c1) / (square[name] / c2 + self.eps_root).sqrt() for name in grads}
        return _descend(params, direction, self.lr), AdamState(taken, mean, square)


def _bias_correction(beta: float, taken: Tensor) -> Tensor:
    """`1 - beta ** taken`, without its cancellation: in single precision that alone is an error of 1e-5."""
    return -torch.expm1(taken * math.log(beta)) if beta else torch.ones_like(taken)


def at_step(rows: Tensor, step: Tensor) -> Tensor:
    """The row of `[steps, ...]` that belongs to a step; the last one beyond them."""
    return rows.index_select(0, step.clamp(max=len(rows) - 1).reshape(1)).squeeze(0)


def _descend(params: Params, direction: Params, lr: Rate) -> Params:
    if isinstance(lr, Mapping):
        missing = [name for name in params if name not in lr]
        if missing:
            raise ValueError(f"lr has no rate for {missing}; it names {sorted(lr)}. Give every adapted parameter one.")
        return {name: _stepped(name, p, lr[name], direction[name]) for name, p in params.items()}
    return {name: _stepped(name, p, lr, direction[name]) for name, p in params.items()}


def _stepped(name: str, p: Tensor, rate: float | Tensor, direction: Tensor) -> Tensor:
    stepped = p - rate * direction
    if stepped.shape != p.shape:
        raise ValueError(
            f"The inner rate of {name!r} must be a number, a scalar tensor, or of the parameter's shape "
            f"{tuple(p.shape)}, got shape {tuple(torch.as_tensor(rate).shape)}."
        )
    return stepped.to(p.dtype)


def _check_rate(lr: Rate) -> None:
    for name, rate in lr.items() if isinstance(lr, Mapping) else [("lr", lr)]:
        if isinstance(rate, (int, float)) and not 0 <= rate < float("inf"):
            raise ValueError(f"The inner rate {name} must be a finite number >= 0, got {rate}.")


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}.")
