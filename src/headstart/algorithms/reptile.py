"""Reptile: the meta-gradient is the way that adaptation went, backwards (Nichol, Achiam and Schulman 2018).

    code         paper
    start        phi, the initialisation
    adapted      W, after k steps of the inner optimiser
    gradient     phi - W

There is no query set: a task's support and query examples are learned from alike. No gradient flows through the
inner loop. The loss is a scalar whose backward pass deposits that gradient; its value is the loss after adaptation.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from headstart.adapt import adapt
from headstart.algorithms.maml import MAML
from headstart.algorithms.names import refuse
from headstart.layers import Seen
from headstart.linalg import dot
from headstart.losses import Criterion
from headstart.types import Task


class Reptile(MAML):
    """MAML's initialisation, moved towards adapted parameters instead of along a meta-gradient.

    Meta-parameters that do not adapt get no gradient, and stay.

    Args:
        model: Any module.
        loss: As in `MAML`.
        steps: As in `MAML`, but at least 1. With one step this is joint training.
        settings: As in `MAML`, but for `first_order` and `recompute`.

    Differs: each inner step learns from all examples of a task, where the released code draws minibatches of them; and
    the meta-optimiser is whatever the learner is given to (Adam, in the recipes), where the released code moves the
    initialisation by a share of the gradient that is annealed to zero.

    Reference: Nichol, Achiam and Schulman (2018), "On First-Order Meta-Learning Algorithms", in batches of tasks.
    """

    def __init__(self, model: nn.Module, loss: Criterion, *, steps: int = 5, **settings: Any):
        no_graph = "no gradient flows through the inner loop anyway"
        refuse("Reptile", settings, {"first_order": no_graph, "recompute": no_graph})
        if steps < 1:
            raise ValueError(f"Reptile learns from the way that inner steps go: steps must be at least 1, got {steps}.")
        super().__init__(model, loss, steps=steps, **settings)

    def outcome(self, task: Task) -> tuple[Tensor, Seen]:
        """One task's loss after adaptation, its gradient replaced by the initial minus the adapted parameters."""
        examples = pytree.tree_map(lambda *leaves: torch.cat(leaves), task.support, task.query)
        adapting, _ = self.start(task)
        with torch.no_grad():
            batches = self.batches(examples, self.steps)
            adapted = adapt(self.support_loss(self.model), adapting, batches, self.rule(), first_order=True)
            value, seen = self.query_loss(adapted, Task(examples, examples))
            backwards = {name: adapting[name] - adapted[name] for name in adapting}
        towards = dot(adapting, backwards)  # its gradient is `backwards`
        return value + towards - towards.detach(), seen
