"""The meta-gradient of several inner steps from three compiled pieces, whatever the number of steps.

    forwards    step by step, keeping what the way back needs     piece: one inner step
    the last    step, the query loss, and the gradient of both    piece: one step and the query loss
    backwards   from step to step                                 piece: the derivative of one inner step

Compile time does not depend on the number of steps. Where the learner recomputes, only the parameters before each step
are kept, and its derivative computes the step again: memory hardly grows with their number either.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from headstart.once import differentiated_once
from headstart.training.functional import added, call, gradients
from headstart.training.tracing import Flat, Traced
from headstart.training.vjp import TracedVjp
from headstart.types import Params, Task

Carry = tuple[Params, Any]
"""Adapted parameters and inner optimiser's state, each tensor with a leading tasks axis."""
Derivative = Callable[[list[Tensor]], tuple[Params, list[Tensor]]]
"""What cotangents of the carry after a step are in the meta-parameters and in the carry before it."""


class Sweep:
    """Losses, statistics and meta-gradient of a learner that adapts step by step.

    Args:
        learner: See `headstart.training.engine.StepwiseLearner`.
        static: What the recorded pieces hold constant.
        context: Entered while a piece runs: precision, and how products are computed.
    """

    def __init__(self, learner: Any, static: Callable[[], Any], context: Callable[[], AbstractContextManager[Any]]):
        self.learner, self.context = learner, context
        self.forwards = Traced(self._step, static, repeatable=True)
        self.last = Traced(self._last, static, repeatable=True)
        self.backwards = Traced(self._derivative, static, repeatable=True)
        self.keeping = TracedVjp(self._step, self._step_and_derivative, static)

    def __call__(self, meta: Params, buffers: Params, tasks: Task) -> tuple[Tensor, Any, Params]:
        """Losses `[tasks]`, statistics, and the gradient of the sum of the losses."""
        leaves = _leaves(meta)

        def start(task: Task) -> Carry:
            return call(self.learner, "start", leaves | buffers, task)

        with self.context():
            tensors, structure = pytree.tree_flatten(torch.vmap(start, randomness="different")(tasks))
        carry = pytree.tree_unflatten([t.detach().contiguous() for t in tensors], structure)
        constant = [Flat(tree, dense=True) for tree in (meta, buffers, tasks)]  # for all steps: the path refers to them
        path: list[Derivative] = []
        for _ in range(self.learner.steps - 1):
            carry = self._forwards(path, carry, *constant)
        losses, seen, total, cotangents = self.last(carry, *constant)
        while path:
            more, cotangents = path.pop()(cotangents)
            total = added(total, more)
        return losses, seen, added(total, gradients(tensors, cotangents, leaves))

    def _forwards(self, path: list[Derivative], *given: Any) -> Carry:
        """The carry after a step; `path` gets what takes cotangents of it back through the step."""
        if self.learner.recomputes:
            path.append(partial(self.backwards, *given))
            return self.forwards(*given)
        carry, product = self.keeping(*given)
        path.append(product)
        return carry

    def _step(self, carry: Carry, meta: Params, buffers: Params, tasks: Task) -> Carry:
        """One inner step of every task."""

        def step(carry: Carry, task: Task) -> Carry:
            return call(self.learner, "step", meta | buffers, *carry, task)

        with self.context():
            return torch.vmap(step, randomness="different")(carry, tasks)

    def _last(
        self, carry: Carry, meta: Params, buffers: Params, tasks: Task
    ) -> tuple[Tensor, Any, Params, list[Tensor]]:
        """The last step and the query losses, with the gradient of their sum in meta-parameters and carry."""
        leaves, (carry, inputs) = _leaves(meta), _differentiable(carry)
        adapting, _ = self._step(carry, leaves, buffers, tasks)

        def query_loss(adapting: Params, task: Task) -> tuple[Tensor, Any]:
            return call(self.learner, "query_loss", leaves | buffers, adapting, task)

        with self.context(), differentiated_once():
            losses, seen = torch.vmap(query_loss, randomness="different")(adapting, tasks)
        grads = gradients([losses.sum()], None, leaves | inputs)
        seen = pytree.tree_map(torch.Tensor.detach, seen)
        return losses.detach(), seen, _only(grads, leaves), _cotangents(grads, carry)

    def _derivative(
        self, carry: Carry, meta: Params, buffers: Params, tasks: Task, cotangents: list[Tensor]
    ) -> tuple[Params, list[Tensor]]:
        """What `cotangents` of the carry after a step are in the meta-parameters and in the carry before it."""
        return self._step_and_derivative(carry, meta, buffers, tasks, cotangents)[1]

    def _step_and_derivative(
        self, carry: Carry, meta: Params, buffers: Params, tasks: Task, cotangents: list[Tensor]
    ) -> tuple[Carry, tuple[Params, list[Tensor]]]:
        """Both the carry after a step, and what `_derivative` returns."""
        leaves, (carry, inputs) = _leaves(meta), _differentiable(carry)
        after = self._step(carry, leaves, buffers, tasks)
        grads = gradients(pytree.tree_leaves(after), cotangents, leaves | inputs)
        return pytree.tree_map(torch.Tensor.detach, after), (_only(grads, leaves), _cotangents(grads, carry))


def _leaves(values: Params) -> Params:
    return {name: value.detach().requires_grad_() for name, value in values.items()}


def _differentiable(carry: Carry) -> tuple[Carry, Params]:
    """`carry` with tensors that record gradients, and these by names that no parameter has."""
    tensors, structure = pytree.tree_flatten(carry)
    tensors = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    return pytree.tree_unflatten(tensors, structure), {
        f"carry/{i}": t for i, t in enumerate(tensors) if t.requires_grad
    }


def _only(grads: Params, names: Params) -> Params:
    return {name: g for name, g in grads.items() if name in names}


def _cotangents(grads: Params, carry: Carry) -> list[Tensor]:
    """One gradient for each tensor of `carry`, zero where nothing depends on it."""
    tensors = pytree.tree_leaves(carry)
    return [grads[f"carry/{i}"] if f"carry/{i}" in grads else torch.zeros_like(t) for i, t in enumerate(tensors)]
