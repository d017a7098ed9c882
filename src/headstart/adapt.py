"""The inner loop: from an initialisation to a task's own parameters, in a few gradient steps.

This is what Algorithms 1, 2 and 3 of Finn, Abbeel and Levine (2017) share, written for one task:

    code        paper           shape
    params      theta           name -> tensor, any shapes
    batch       D, K examples   any tree of tensors; supervised: `Batch(inputs, targets)`
    loss_fn     L_Ti            (params, batch) -> scalar
    inner.lr    alpha           a number, or a tensor per parameter
    adapted     theta'_i        as `params`

Nothing here knows about many tasks (`vectorize.py` maps over them), modules (`layers.py` runs them), or
where batches come from: supervised learning gives the support set once per step, reinforcement learning a
fresh set of rollouts per step.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from headstart.differentiable import grad
from headstart.inner import InnerOptimizer
from headstart.recompute import recomputed
from headstart.types import LossFn, Params


def inner_step(
    loss_fn: LossFn, params: Params, batch: Any, inner: InnerOptimizer, state: Any, *, first_order: bool = False
) -> tuple[Params, Any]:
    """Parameters after one gradient step on `batch`, and the inner optimiser's next state.

    Args:
        loss_fn: The task's loss, `(params, batch) -> scalar`.
        params: What is adapted. Anything held fixed is closed over by `loss_fn`, or part of the batch.
        batch: What this step learns from.
        inner: The inner optimiser.
        state: Its state, from `inner.init(params)` or the step before.
        first_order: Treat the gradient as a constant, so that no outer gradient flows through it.
    """
    grads = grad(loss_fn, differentiable=not first_order)(params, batch)  # Alg. 1, line 5: `torch.func.grad`
    return inner.update(params, grads, state)  # Alg. 1, line 6


def trajectory(
    loss_fn: LossFn,
    params: Params,
    batches: Iterable[Any],
    inner: InnerOptimizer,
    *,
    first_order: bool = False,
    recompute: bool = False,
) -> Iterator[Params]:
    """Parameters before the first step and after each: one more than there are batches. Else as `adapt`."""
    # What is first-order keeps only the parameters anyway.
    step = recomputed(inner_step) if recompute and not first_order else inner_step
    state = inner.init(params)
    yield params
    for batch in batches:
        params, state = step(loss_fn, params, batch, inner, state, first_order=first_order)
        yield params


def adapt(
    loss_fn: LossFn,
    params: Params,
    batches: Iterable[Any],
    inner: InnerOptimizer,
    *,
    first_order: bool = False,
    recompute: bool = False,
) -> Params:
    """Adapted parameters: one step of `inner` per batch, from `params`.

    Args:
        loss_fn: The task's loss, `(params, batch) -> scalar`.
        params: Where to start from.
        batches: What each step learns from.
        inner: The inner optimiser.
        first_order: Treat the gradients as constants.
        recompute: Keep for the outer gradient only the parameters after each step, and compute each step again
            backwards: memory does not grow with the number of steps otherwise. `loss_fn` then must take every
            tensor whose outer gradient counts from `params` or the batch; see `headstart.recompute`.

    >>> import torch
    >>> from headstart.inner import SGD
    >>> square = lambda params, target: (params["w"] - target) ** 2
    >>> adapt(square, {"w": torch.tensor(0.0)}, [torch.tensor(1.0)] * 2, SGD(lr=0.25))
    {'w': tensor(0.7500)}
    """
    path = trajectory(loss_fn, params, batches, inner, first_order=first_order, recompute=recompute)
    for params in path:  # noqa: B007
        pass
    return params
