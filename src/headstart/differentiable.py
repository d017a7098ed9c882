"""Gradients that are differentiated again, and gradients that are not: these may come from any kernel.

In `.backward()` autograd knows of no second derivative. Transforms such as `torch.func.grad` always expect one, though an
inner step's gradient has none where it is first-order, or where the step is computed for its values alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch

_constant: ContextVar[bool] = ContextVar("constant", default=False)
_values: ContextVar[bool] = ContextVar("values", default=False)


def grad(fn: Callable[..., Any], differentiable: bool) -> Callable[..., Any]:
    """`torch.func.grad(fn)`, or the same as a constant to all around, which then is computed faster."""

    def gradient(*args: Any) -> Any:
        # `torch.func.grad` obeys only a `no_grad` inside it: this one stops the outer gradient, not the inner.
        stopped = nullcontext() if differentiable else torch.no_grad()
        with stopped, _set(_constant, not differentiable or _values.get()):
            return torch.func.grad(value)(*args)

    def value(*args: Any) -> Any:  # whatever gradients are taken in it are differentiated
        with _set(_constant, False), _set(_values, False):
            return fn(*args)

    return gradient


def constant_gradient() -> bool:
    """Whether the gradient that is being taken is differentiated no more."""
    return _constant.get() or not torch.is_grad_enabled()


def pulling_back() -> Any:
    """A context for a derivative by `torch.func.vjp` inside of a `.backward()`, which is a constant if that is one."""
    return _set(_constant, constant_gradient())


def values_alone() -> Any:
    """A context for computing inner steps of which nothing is differentiated, although autograd may look."""
    return _set(_values, True)


@contextmanager
def _set(variable: ContextVar[bool], value: bool) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
