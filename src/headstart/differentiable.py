"""Gradients that are differentiated again, and gradients that are not: these may come from any kernel.

In `.backward()` autograd knows of no second derivative. Transforms such as `torch.func.grad` always expect one, though
an inner step's gradient has none where it is first-order, or where the step is computed for its values alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch._C._functorch import maybe_current_level

_constant: ContextVar[bool] = ContextVar("constant", default=False)
_values: ContextVar[Any] = ContextVar("values", default=())
"""The level of transforms, as a tuple, at which inner steps are computed for their values alone."""


def grad(fn: Callable[..., Any], differentiable: bool) -> Callable[..., Any]:
    """`torch.func.grad(fn)`, or the same as a constant to reverse mode, which then is computed faster."""

    def gradient(*args: Any) -> Any:
        # `torch.func.grad` obeys only a `no_grad` inside it: this one stops the outer gradient, not the inner.
        with nullcontext() if differentiable else torch.no_grad():
            if torch.compiler.is_compiling():  # knows nothing of context variables
                return torch.func.grad(fn)(*args)
            with _set(_constant, not differentiable or _values.get() == _here()), _set(_values, ()):
                return torch.func.grad(value)(*args)

    def value(*args: Any) -> Any:  # whatever gradients are taken in it are differentiated
        with _set(_constant, False):
            return fn(*args)

    return gradient


def constant_gradient() -> bool:
    """Whether the gradient that is being taken is differentiated no more."""
    return _constant.get() or not torch.is_grad_enabled()


def pulling_back() -> AbstractContextManager[None]:
    """A context for a derivative by `torch.func.vjp` inside of a `.backward()`, which is a constant if that is one."""
    return _set(_constant, constant_gradient())


def values_alone() -> AbstractContextManager[None]:
    """A context for computing inner steps of which nothing is differentiated, although autograd may look."""
    return _set(_values, _here())


def _here() -> tuple[int | None]:
    return (maybe_current_level(),)


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
