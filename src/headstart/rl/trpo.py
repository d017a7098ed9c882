"""Trust-region policy optimisation of the initialisation: the paper's meta-update (Schulman et al. 2015).

The step is along `F^-1 g`, as long as the mean divergence of the adapted policies allows, and shortened until the
surrogate loss falls. `g` is the surrogate's gradient through adaptation, `F` the curvature of the divergence.

With `y(theta)` the outputs of the adapted policies (means and deviations), the divergence is zero at the old
parameters, and so is its gradient in `y`. Its Hessian there has no term with a second derivative of `y`:

    F = J^T M J,     J = dy / dtheta,     M the Fisher matrix of the distribution in y.

So `F v` is a derivative through adaptation along `v`, a product with the (block-)diagonal `M`, and a gradient through
adaptation: exact, without the third derivatives that the Hessian of adaptation would take. The released code has
finite differences of the divergence's gradient instead: `hessian="finite-differences"`.

Differs: the mean divergence is the mean over tasks of each one's mean, where the released code has one mean over all
time steps; the same where tasks have the same number of them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from headstart import linalg
from headstart.models.policy import Distribution
from headstart.rl.maml_rl import MAMLRL
from headstart.rl.meta_updates import MetaUpdate, check_finite
from headstart.rl.objectives import Experience, divergence, run
from headstart.types import Metrics, NonFiniteError, Params, Task

Hessian = Literal["exact", "finite-differences"]
Product = Callable[[Params], Params]

DIFFERENCE = 1.0
"""Length of the finite difference, over the length of theta. The released code means 1e-8 but passes its number of
slices, 1, into that argument (`docs/lab-log.md`)."""


class TRPO(MetaUpdate):
    """The largest step within a mean divergence of the adapted policies that lowers the surrogate loss.

    Args:
        learner: The learner.
        seed: See `MetaUpdate`.
        max_kl: Bound on the mean divergence (delta); of adapted policies only, as in the released code.
        cg_iterations: Products of the conjugate gradient method.
        damping: Multiple of the identity added to the curvature.
        backtracks: Lengths that the line search tries.
        backtrack_ratio: Each is this share of the one before.
        hessian: How the curvature's products are computed.
        fisher_fraction: Share of the time steps, in inner steps and after adaptation, from which the curvature is
            taken: it is then that of policies adapted to fewer steps, still positive semidefinite. The gradient
            and the line search, which holds `max_kl`, look at all.
    """

    def __init__(
        self,
        learner: MAMLRL,
        *,
        seed: int = 0,
        max_kl: float = 0.01,
        cg_iterations: int = 10,
        damping: float = 1e-5,
        backtracks: int = 15,
        backtrack_ratio: float = 0.8,
        hessian: Hessian = "exact",
        fisher_fraction: float = 1.0,
    ):
        if hessian not in get_args(Hessian):
            raise ValueError(f"hessian must be one of {', '.join(get_args(Hessian))}, got {hessian!r}.")
        if not (max_kl > 0 and 0 < backtrack_ratio < 1 and 0 < fisher_fraction <= 1 and damping >= 0):
            raise ValueError(
                "max_kl must be positive, backtrack_ratio in (0, 1), fisher_fraction in (0, 1] and damping 0 or more, "
                f"got {max_kl}, {backtrack_ratio}, {fisher_fraction} and {damping}."
            )
        if hessian != "exact" and fisher_fraction != 1:
            raise ValueError("fisher_fraction is for the exact Hessian: for finite differences it must be 1.")
        if cg_iterations < 1 or backtracks < 1:
            raise ValueError(f"cg_iterations and backtracks must be at least 1, got {cg_iterations} and {backtracks}.")
        super().__init__(learner, seed=seed)
        self.max_kl, self.cg_iterations, self.damping = max_kl, cg_iterations, damping
        self.backtracks, self.backtrack_ratio = backtracks, backtrack_ratio
        self.hessian: Hessian = hessian
        self.fisher_fraction = fisher_fraction

    def improve(self, episodes: Sequence[Experience]) -> Metrics:
        """One step; none where no length that was tried is good (`accepted` is then 0)."""
        before, gradient = self.gradient(episodes)
        few = self.thinned(episodes)
        curvature_times = self.fisher_product(few) if self.hessian == "exact" else self.difference_product(few)

        def product(v: Params) -> Params:
            return linalg.add_scaled(curvature_times(v), self.damping, v)

        direction = linalg.conjugate_gradient(product, gradient, self.cg_iterations)
        curvature = float(linalg.dot(direction, product(direction)))
        if not math.isfinite(curvature):
            raise NonFiniteError("the curvature of the divergence is not finite, the meta-gradient is")
        length = math.sqrt(2 * self.max_kl / (curvature + 1e-8)) if curvature > 0 else 0.0
        if not length:  # differences of the divergence's gradient need not be positive
            return {"meta_loss": before, "loss_after": before, "kl": 0.0, "backtracks": 0.0, "accepted": 0.0}
        return {"meta_loss": before, **self.search(episodes, linalg.scaled(length, direction), before)}

    def gradient(self, episodes: Sequence[Experience]) -> tuple[float, Params]:
        """The mean surrogate loss of the adapted policies, and its gradient: the meta-gradient."""
        theta = {name: p for name, p in self.learner.policy.named_parameters() if p.requires_grad}
        losses, _ = self.judged(episodes)
        gradient = dict(zip(theta, torch.autograd.grad(losses.mean(), list(theta.values())), strict=True))
        check_finite(losses, list(gradient.values()))
        return float(losses.mean().detach()), gradient

    def fisher_product(self, episodes: Sequence[Experience]) -> Product:
        """From `v` to `F v`: the Hessian, at the parameters now, of the mean divergence of the adapted policies."""
        theta, held = self._split()

        def outputs(theta: Params) -> Distribution:
            def of_task(task: Task) -> Distribution:
                adapted = self.learner.adapted(task.support, {**held, **theta})
                return run(self.learner.policy, adapted, task.query.observations)

            return self.learner.over(of_task, episodes)

        valid = episodes[-1].valid
        taken = (valid.sum((1, 2), keepdim=True) * len(valid)).unsqueeze(-1)
        y, pull_back = torch.func.vjp(outputs, theta)[:2]
        # J^T u is linear in u, so its derivative by u, pulled back, is J v: both are recorded once, for every product.
        push_forward = torch.func.vjp(pull_back, pytree.tree_map(torch.zeros_like, y))[1]

        def product(v: Params) -> Params:
            tangent = push_forward((v,))[0]
            return pull_back(pytree.tree_map(lambda leaf: leaf * valid.unsqueeze(-1) / taken, y.fisher(tangent)))[0]

        return product

    def difference_product(self, episodes: Sequence[Experience]) -> Product:
        """The same by symmetric differences of the divergence's gradient."""
        theta, held = self._split()
        step = DIFFERENCE / (float(linalg.norm(theta)) + 1e-8)

        def product(v: Params) -> Params:
            ahead = self._divergence_gradient(episodes, linalg.add_scaled(theta, step, v), held)
            behind = self._divergence_gradient(episodes, linalg.add_scaled(theta, -step, v), held)
            return linalg.scaled(0.5 / step, linalg.add_scaled(ahead, -1.0, behind))

        return product

    def _divergence_gradient(self, episodes: Sequence[Experience], theta: Params, held: Params) -> Params:
        theta = {name: p.detach().requires_grad_() for name, p in theta.items()}
        measured = divergence(self.learner.policy)

        def of_task(task: Task) -> Tensor:
            return measured(self.learner.adapted(task.support, {**held, **theta}), task.query)

        kl = self.learner.over(of_task, episodes).mean()
        return dict(zip(theta, torch.autograd.grad(kl, list(theta.values())), strict=True))

    def _split(self) -> tuple[Params, Params]:
        """The parameters that move, and those that do not."""
        named = dict(self.learner.policy.named_parameters())
        moving = {name: p.detach() for name, p in named.items() if p.requires_grad}
        return moving, {name: p for name, p in named.items() if not p.requires_grad}

    @torch.no_grad()
    def search(self, episodes: Sequence[Experience], step: Params, before: float) -> Metrics:
        """Moves against `step`, shortened until the loss is below `before` and the divergence in bounds."""
        moving = dict(self.learner.policy.named_parameters())
        start = {name: moving[name].clone() for name in step}
        for tried in range(self.backtracks):
            share = self.backtrack_ratio**tried
            for name, p in linalg.add_scaled(start, -share, step).items():
                moving[name].copy_(p)
            losses, kls = self.judged(episodes)
            loss, kl = float(losses.mean()), float(kls.mean())
            if loss < before and kl <= self.max_kl:
                return {"loss_after": loss, "kl": kl, "backtracks": float(tried), "accepted": 1.0}
        for name, p in start.items():
            moving[name].copy_(p)
        return {"loss_after": before, "kl": 0.0, "backtracks": float(self.backtracks), "accepted": 0.0}

    def thinned(self, episodes: Sequence[Experience]) -> Sequence[Experience]:
        """`fisher_fraction` of the time steps of every episode, evenly spread from the first on."""
        if self.fisher_fraction == 1:
            return episodes

        def thin(one: Experience) -> Experience:
            length = one.valid.shape[2]
            kept = (torch.arange(math.ceil(self.fisher_fraction * length)) / self.fisher_fraction).long()
            return pytree.tree_map(lambda leaf: leaf[:, :, kept[kept < length]], one)

        return [thin(one) for one in episodes]
