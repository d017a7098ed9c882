"""MAML++: five changes to MAML, each of which can be had alone (Antoniou, Edwards and Storkey 2019).

    code                paper                                                    where
    multi_step_loss     multi-step loss optimisation (MSL), annealed             `outcome`, `weights`
    step_rates          per-layer per-step learning rates (LSLR)                 `rates.StepRates`
    first_order_until   derivative-order annealing (DA)                          `keep_statistics`
    step_norms          per-step batch-norm weights and biases (BNWB)            `theta`, `batches`
    (the schedule)      cosine annealing of the meta-optimiser's rate (CA)       the meta-optimiser's, not the learner's

Differs: per-step running statistics (BNRS) are left out: the released code keeps them, but normalises by the batch at
hand, in training and evaluation. Parameters of batch norm that differ by step are held fixed within a task.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.adapt import trajectory
from headstart.algorithms.maml import MAML
from headstart.algorithms.named import as_parameters, values_of
from headstart.algorithms.names import refuse
from headstart.algorithms.rates import StepRates
from headstart.inner import SGD
from headstart.layers import Seen
from headstart.losses import Criterion
from headstart.types import Batch, Params, Task

FLOOR = 0.03
"""Smallest weight of a step's loss while there is one, in parts of an equal share, as in the released code."""


class MAMLPlusPlus(MAML):
    """MAML with any of the five changes of MAML++.

    Steps beyond those trained with use the last one's step sizes and norms.

    >>> learner = MAMLPlusPlus(nn.Linear(1, 1), nn.functional.mse_loss, lr=0.1, steps=3, multi_step_loss=100)
    >>> learner.inner.rates()["weight"].shape, learner.weights()
    (torch.Size([3]), tensor([0.3333, 0.3333, 0.3333]))

    Args:
        model: Any module.
        loss: As in `MAML`.
        lr: Inner step size, or where the learned ones start.
        steps: As in `MAML`; at least 1.
        step_rates: Learn a step size for each tensor and step.
        multi_step_loss: Meta-updates over which the meta-loss goes from the mean of the query losses after every
            step to that after the last, which is the meta-loss from then on; 0 for it from the beginning.
        first_order_until: Meta-updates with first-order gradients, before those of second order.
        step_norms: Give batch norm, where there is any, a shift, and scale if it has one, for each step.
        adapt_only: As in `MAML`; with `step_norms` parameters of batch norm never adapt.
        settings: As in `MAML`, but for `inner` and `first_order`.

    Reference: Antoniou, Edwards and Storkey (2019), "How to train your MAML".
    """

    updates: Tensor

    def __init__(
        self,
        model: nn.Module,
        loss: Criterion,
        *,
        lr: float = 0.01,
        steps: int = 5,
        step_rates: bool = True,
        multi_step_loss: int = 0,
        first_order_until: int = 0,
        step_norms: bool = True,
        adapt_only: str | Sequence[str] = "*",
        **settings: Any,
    ):
        _check(steps, multi_step_loss, first_order_until)
        refuse("MAMLPlusPlus", settings, {"first_order": "its order is annealed, see first_order_until"})
        super().__init__(model, loss, inner=SGD(lr), steps=steps, adapt_only=adapt_only, **settings)
        norms = _norm_parameters(model) if step_norms else {}
        self.adapted_names = tuple(name for name in self.adapted_names if name not in norms)
        if not self.adapted_names:
            raise ValueError(
                f"adapt_only leaves nothing but parameters of norms ({', '.join(norms)}), and with step_norms these do "
                "not adapt: name others too, or set step_norms=False."
            )
        self.norms = as_parameters({name: torch.stack([p.detach()] * steps) for name, p in norms.items()})
        if step_rates:
            self.inner = StepRates(self.adapted_parameters(), lr, steps)
        self.multi_step_loss, self.first_order_until = multi_step_loss, first_order_until
        device = next(model.parameters()).device
        self.register_buffer("updates", torch.zeros((), dtype=torch.long, device=device))
        # Of the learner that is loaded, which may be a copy of this one.
        self.register_load_state_dict_post_hook(lambda learner, _: learner._set_phase())
        self._set_phase()

    def outcome(self, task: Task) -> tuple[Tensor, Seen]:
        """One task's weighted query losses after every step; the batch norms' statistics are the last one's."""
        if not (self.annealing and self.training):
            return super().outcome(task)
        adapting, _ = self.start(task)
        support_loss, batches = self.support_loss(self.model), self.batches(task.support, self.steps)
        settings = {"first_order": self.first_order, "recompute": self.recomputes}
        path = trajectory(support_loss, adapting, batches, self.rule(), **settings)
        results = [self.query_loss(params, task, taken) for taken, params in enumerate(path) if taken]
        losses = torch.stack([loss for loss, _ in results])
        return (self.weights().to(losses) * losses).sum(), results[-1][1]

    def weights(self) -> Tensor:
        """Weight of the query loss after each step, `[steps]`: of sum 1, equal at first, the last one's growing.

        After `multi_step_loss` meta-updates these are not used any more, but the last step's loss alone.
        """
        share = 1 / self.steps
        done = (self.updates / max(self.multi_step_loss, 1)).clamp(max=1)
        others = (share * (1 - done)).clamp(min=FLOOR * share)
        last = 1 - (self.steps - 1) * others
        return torch.cat([others.expand(self.steps - 1), last.reshape(1)])

    def theta(self, model: nn.Module, steps: int = 0) -> Params:
        """Parameters after `steps` inner steps: a norm's are those of the last step taken, or of the first."""
        own = {name: rows[min(max(steps, 1), len(rows)) - 1] for name, rows in values_of(self.norms).items()}
        return super().theta(model) | own

    def batches(self, support: Batch, steps: int, model: nn.Module | None = None) -> list[tuple[Params, Batch]]:
        """What each inner step is given: the parameters held fixed in that very step, and the support set."""
        model = self.model if model is None else model
        return [(self._parts(self.theta(model, step + 1))[1], support) for step in range(steps)]

    def keep_statistics(self, seen: Seen) -> None:
        """Count a meta-update, besides."""
        super().keep_statistics(seen)
        if self.training:
            self.updates += 1
            self._set_phase()

    def _set_phase(self) -> None:
        """What a compiled graph holds constant, and is made anew for."""
        updates = int(self.updates)
        self.first_order, self.annealing = updates < self.first_order_until, updates < self.multi_step_loss


def _norm_parameters(model: nn.Module) -> Params:
    """Trained shifts and scales of batch norms, by name."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
    kinds = {f"{layer}.{kind}".removeprefix(".") for layer in layers for kind in ("weight", "bias")}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and name in kinds}


def _check(steps: int, multi_step_loss: int, first_order_until: int) -> None:
    if steps < 1:
        raise ValueError(f"MAML++ is about what differs from step to step: steps must be at least 1, got {steps}.")
    for name, value in (("multi_step_loss", multi_step_loss), ("first_order_until", first_order_until)):
        if value < 0:
            raise ValueError(f"{name} is a number of meta-updates, 0 or more, got {value}.")
