"""Meta-Curvature: a learned linear transform of the inner gradient (Park and Oliva 2019).

    code         paper           shape, for a weight [outputs, inputs, *kernel]
    outputs      M_o             [outputs, outputs]
    inputs       M_i             [inputs, inputs]
    kernel       M_f             [kernel elements, kernel elements]
    transformed  MC(G) = G x_o M_o x_i M_i x_f M_f

The difference from `maml.py`: the gradient is multiplied by a meta-learned matrix along each of its axes. All of
them begin as the identity, that is, as MAML.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.algorithms.maml import MAML
from headstart.algorithms.named import as_parameters, values_of
from headstart.inner import SGD
from headstart.losses import Criterion
from headstart.types import Params


@dataclass(frozen=True)
class CurvedSGD:
    """Gradient descent along a transformed gradient.

    >>> rule = CurvedSGD(lr=0.5, axes=({"w": torch.tensor([[0.0, 1.0], [1.0, 0.0]])},))
    >>> rule.update({"w": torch.zeros(2)}, {"w": torch.tensor([2.0, 4.0])}, ())
    ({'w': tensor([-2., -1.])}, ())
    """

    lr: float
    """Step size."""

    axes: tuple[Mapping[str, Tensor], ...]
    """A square matrix by parameter name, for the first axis, the second, and all further ones as one."""

    def init(self, params: Params) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def update(self, params: Params, grads: Params, state: tuple[()]) -> tuple[Params, tuple[()]]:
        """`p - lr * MC(g)` for every parameter."""
        return SGD(self.lr).update(params, {name: self._transformed(name, g) for name, g in grads.items()}, state)

    def _transformed(self, name: str, grad: Tensor) -> Tensor:
        curved = grad.reshape(_axes_of(grad))
        for axis, matrices in enumerate(self.axes):
            if name in matrices:
                with torch.autocast(grad.device.type, enabled=False):  # parameters are updated in their own precision
                    curved = (curved.movedim(axis, -1) @ matrices[name].mT).movedim(-1, axis)
        return curved.reshape(grad.shape)


class Curvature(nn.Module):
    """Matrices for every tensor of `params`, identities at first; called, it gives descent with them."""

    def __init__(self, params: Params, lr: float):
        super().__init__()
        self.lr = lr
        self.axes = nn.ModuleList(
            as_parameters(
                {
                    name: torch.eye(_axes_of(p)[axis], dtype=p.dtype, device=p.device)
                    for name, p in params.items()
                    if len(_axes_of(p)) > axis
                }
            )
            for axis in range(3)
        )

    def forward(self) -> CurvedSGD:
        """The inner optimiser."""
        return CurvedSGD(self.lr, tuple(values_of(axis) for axis in self.axes))  # pyright: ignore[reportArgumentType]


class MetaCurvature(MAML):
    """MAML with a meta-learned linear transform of each tensor's gradient.

    >>> learner = MetaCurvature(nn.Linear(3, 2), nn.functional.mse_loss)
    >>> [tuple(p.shape) for name, p in learner.named_parameters() if name.startswith("inner")]
    [(2, 2), (2, 2), (3, 3)]

    Args:
        model: Any module. A layer with many inputs needs a matrix with their number squared.
        loss: As in `MAML`.
        lr: Inner step size.
        settings: As in `MAML`, but for `inner`.

    Reference: Park and Oliva (2019), "Meta-Curvature", equations 9 to 11 (MC2).
    """

    def __init__(self, model: nn.Module, loss: Criterion, *, lr: float = 0.01, **settings: Any):
        super().__init__(model, loss, inner=SGD(lr), **settings)
        self.inner = Curvature(self.adapted_parameters(), lr)


def _axes_of(p: Tensor) -> tuple[int, ...]:
    """Outputs, inputs, and kernel elements, as far as there are such axes; a scalar has one of length 1."""
    if p.dim() < 3:
        return tuple(p.shape) or (1,)
    return (*p.shape[:2], math.prod(p.shape[2:]))
