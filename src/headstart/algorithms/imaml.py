"""iMAML: the meta-gradient at the end of the inner loop, whatever way led there (Rajeswaran et al. 2019).

    code           paper                              shape
    start          theta                              name -> tensor
    adapted        phi, minimising L_S(phi) + strength / 2 |phi - theta|^2
    strength       lambda                             a number
    weights        w = (H + lambda I)^-1 grad L_Q(phi), H the Hessian of L_S at phi

At the minimum  F = grad L_S(phi) + lambda (phi - theta) = 0, so that (implicit functions) the meta-gradient is
`-w . dF`: lambda w for theta, and what `-w . grad L_S` gives for what is held fixed. Nothing of the inner loop is
kept: memory does not depend on the number of steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from headstart.adapt import adapt
from headstart.algorithms.maml import MAML
from headstart.algorithms.names import refuse
from headstart.layers import Norm, Seen
from headstart.linalg import add_scaled, conjugate_gradient, dot, scaled
from headstart.losses import Criterion
from headstart.types import Batch, LossFn, Params, Task


class IMAML(MAML):
    """MAML with a proximal inner loss and an implicit meta-gradient.

    Args:
        model: Any module.
        loss: As in `MAML`.
        strength: How strongly adapted parameters are pulled to where they started; positive.
        solver_steps: Conjugate-gradient iterations, each a Hessian-vector product of the support loss.
        steps: Inner steps. The gradient is exact at the inner minimum: rather too many than too few.
        settings: As in `MAML`, but for `first_order` and `recompute`: no gradient flows through the inner loop.

    Raises:
        ValueError: `strength` is not positive, or there is no inner or no solver step.

    The solver starts from the first-order gradient, and stays where it is once it meets a direction in which
    H + lambda I is not positive: there the inner loop has not ended at a minimum, and there is no implicit gradient.
    A larger `strength` mends that. Layers of dropout are off in training: each product must be of the same matrix.

    Differs: the pull is part of every inner step, where the released code takes plain steps and one pull at the end,
    and regularises the solve further.

    Reference: Rajeswaran, Finn, Kakade and Levine (2019), "Meta-Learning with Implicit Gradients", algorithm 2.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Criterion,
        *,
        strength: float = 2.0,
        solver_steps: int = 5,
        steps: int = 16,
        **settings: Any,
    ):
        if not strength > 0 or solver_steps < 1:
            raise ValueError(
                f"strength must be positive and solver_steps at least 1, got {strength} and {solver_steps}: "
                "without a pull to the start the implicit gradient is zero."
            )
        no_graph = "no gradient flows through the inner loop anyway"
        refuse("IMAML", settings, {"first_order": no_graph, "recompute": no_graph})
        if steps < 1:
            raise ValueError(f"iMAML differentiates the end of an inner loop: steps must be at least 1, got {steps}.")
        super().__init__(model, loss, steps=steps, **settings)
        self.strength, self.solver_steps = strength, solver_steps

    def outcome(self, task: Task) -> tuple[Tensor, Seen]:
        """One task's query loss after adaptation, with the implicit gradient."""
        with _without_dropout(self.model):
            return self._outcome(task)

    def _outcome(self, task: Task) -> tuple[Tensor, Seen]:
        inner_loss, batch = self.support_loss(self.model), self.batches(task.support, 1)[0]

        def slope(params: Params) -> Params:
            """F: zero where the inner loop has converged."""
            return torch.func.grad(inner_loss)(params, batch)

        with torch.no_grad():
            adapted = adapt(inner_loss, self.start(task)[0], [batch] * self.steps, self.rule(), first_order=True)
            query_slope, _ = torch.func.grad(self.query_loss, has_aux=True)(adapted, task)

            def product(direction: Params) -> Params:
                """(H + lambda I) times `direction`."""
                return torch.func.grad(lambda params: dot(slope(params), direction))(adapted)

            first = scaled(1 / self.strength, query_slope)  # as if H were zero: the first-order gradient
            weights = conjugate_gradient(product, query_slope, self.solver_steps, tolerance=None, start=first)
        value, seen = self.query_loss(adapted, task)
        implicit = dot(weights, slope(adapted))  # its gradient, w . dF, is minus that of the way through `adapted`
        return value - implicit + implicit.detach(), seen

    def support_loss(self, model: nn.Module, norm: Norm | None = None) -> LossFn:
        """The inner loss, with the pull to the start."""
        plain = super().support_loss(model, norm)

        def proximal(adapting: Params, batch: tuple[tuple[Params, Params], Batch]) -> Tensor:
            (held, start), support = batch
            apart = add_scaled(adapting, -1.0, start)
            return plain(adapting, (held, support)) + 0.5 * self.strength * dot(apart, apart)

        return proximal

    def batches(self, support: Batch, steps: int, model: nn.Module | None = None) -> list[Any]:
        """What each inner step is given: the parameters held fixed, the start, and the support set."""
        start, held = self._parts(self.theta(self.model if model is None else model))
        return [((held, start), support)] * steps


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """`model` with its layers of dropout in evaluation mode, which they leave afterwards."""
    active = [layer for layer in model.modules() if isinstance(layer, _DropoutNd) and layer.training]
    for layer in active:
        layer.eval()
    try:
        yield
    finally:
        for layer in active:
            layer.train()
