"""Line 10 of Algorithm 3: how the initialisation moves, given the episodes of a meta-batch.

The paper's is TRPO (`trpo.py`). Here are what they share, and two that take gradient steps: the plain policy
gradient, and proximal policy optimisation (Schulman et al. 2017), which with `objective="ratio"` and a penalty on the
inner policy's divergence is ProMP (Rothfuss et al. 2019).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headstart.rl.maml_rl import MAMLRL
from headstart.rl.objectives import Experience, divergence, divergence_at, run, surrogate, surrogate_at
from headstart.rl.rollout import Rollouts
from headstart.types import Metrics, NonFiniteError, Params, Task, generator


class MetaUpdate(ABC):
    """A learner with its meta-update: what the trainer drives.

    Args:
        learner: The learner.
        seed: Of the stream that all rollouts are drawn from.
    """

    def __init__(self, learner: MAMLRL, *, seed: int = 0):
        self.learner, self.generator = learner, generator(seed, "rollouts")

    def update(self, tasks: Tensor) -> Metrics:
        """Explore `tasks`, `[tasks, task]`, adapt, and move the initialisation.

        Returns:
            The mean return before adaptation and after it, and what the meta-update has to tell: `meta_loss`
            before it (on standardised advantages: about zero), the divergence `kl` it caused.

        Raises:
            NonFiniteError: A task's loss or gradient is not finite. The parameters are as they were.
        """
        episodes, seen = self.learner.explore(tasks, self.generator)
        return {**_returns(seen), **self.improve(episodes)}

    @abstractmethod
    def improve(self, episodes: Sequence[Experience]) -> Metrics:
        """Move the initialisation, given what each inner step learns from and what is judged by."""

    def judged(self, episodes: Sequence[Experience]) -> tuple[Tensor, Tensor]:
        """Each task's surrogate loss and divergence from the policy that acted, `[tasks]` both, after adaptation."""
        return self.learner.over(self._judged, episodes)

    def _judged(self, task: Task) -> tuple[Tensor, Tensor]:
        now = run(self.learner.policy, self.learner.adapted(task.support), task.query.observations)
        return surrogate_at(now, task.query), divergence_at(now, task.query)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"learner": self.learner.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.learner.load_state_dict(state_dict["learner"])
        self.generator.set_state(state_dict["generator"])


class PolicyGradient(MetaUpdate):
    """One step of Adam along the meta-gradient.

    Args:
        learner: The learner.
        seed: See `MetaUpdate`.
        meta_lr: Step size of Adam.
    """

    def __init__(self, learner: MAMLRL, *, seed: int = 0, meta_lr: float = 1e-3):
        super().__init__(learner, seed=seed)
        self.optimizer = torch.optim.Adam(learner.parameters(), lr=meta_lr)

    def improve(self, episodes: Sequence[Experience]) -> Metrics:
        """One step."""
        losses = self.learner.losses(surrogate(self.learner.policy), episodes)
        _step(self.optimizer, losses)
        with torch.no_grad():
            _, kl = self.judged(episodes)
        return {"meta_loss": float(losses.mean().detach()), "kl": float(kl.mean())}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class PPO(MetaUpdate):
    """Several steps of Adam on a clipped surrogate, with the inner policy kept near the one that acted.

    Args:
        learner: The learner; ProMP's has `objective="ratio"`.
        seed: See `MetaUpdate`.
        meta_lr: Step size of Adam.
        epochs: Steps per meta-batch.
        clip: Bound on the ratio's distance from 1.
        inner_kl: Weight of the divergence at the inner steps' episodes.
    """

    def __init__(
        self,
        learner: MAMLRL,
        *,
        seed: int = 0,
        meta_lr: float = 1e-3,
        epochs: int = 5,
        clip: float = 0.3,
        inner_kl: float = 5e-4,
    ):
        if epochs < 1 or not clip > 0 or inner_kl < 0:
            raise ValueError(
                f"epochs must be at least 1, clip positive and inner_kl 0 or more, got {epochs}, {clip}, {inner_kl}."
            )
        super().__init__(learner, seed=seed)
        self.optimizer = torch.optim.Adam(learner.parameters(), lr=meta_lr)
        self.epochs, self.clip, self.inner_kl = epochs, clip, inner_kl

    def improve(self, episodes: Sequence[Experience]) -> Metrics:
        """`epochs` steps on the same episodes."""
        before = copy.deepcopy((self.learner.state_dict(), self.optimizer.state_dict()))
        first = 0.0
        for epoch in range(self.epochs):
            losses = self.learner.over(self._loss, episodes)
            first = float(losses.mean().detach()) if epoch == 0 else first
            try:
                _step(self.optimizer, losses)
            except NonFiniteError:
                self.learner.load_state_dict(before[0])
                self.optimizer.load_state_dict(before[1])
                raise
        with torch.no_grad():
            _, kl = self.judged(episodes)
        return {"meta_loss": first, "kl": float(kl.mean())}

    def _loss(self, task: Task) -> Tensor:
        policy = self.learner.policy
        loss = surrogate(policy, self.clip)(self.learner.adapted(task.support), task.query)
        for step, experience in enumerate(task.support):  # the policy that acted there is one of the inner loop's
            acting: Params = self.learner.adapted(task.support[:step])
            loss = loss + self.inner_kl * divergence(policy)(acting, experience) / len(task.support)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


def check_finite(losses: Tensor, grads: Sequence[Tensor]) -> None:
    """Raises `NonFiniteError` where a task's loss is not finite, or a gradient."""
    for task, value in enumerate(losses.tolist()):
        if not torch.isfinite(losses[task]):
            raise NonFiniteError(f"the meta-loss of task {task} (of {len(losses)}) is {value}")
    if not all(bool(grad.isfinite().all()) for grad in grads):
        raise NonFiniteError("the meta-gradient is not finite, the tasks' losses are")


def _step(optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
    optimizer.zero_grad()
    losses.mean().backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    check_finite(losses, [p.grad for p in parameters if p.grad is not None])
    optimizer.step()


def _returns(seen: Sequence[Rollouts]) -> Metrics:
    before, after = (float(rollouts.mean_returns().mean()) for rollouts in (seen[0], seen[-1]))
    return {"return_before": before, "return_after": after}
