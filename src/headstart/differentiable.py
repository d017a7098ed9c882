"""Whether a gradient taken by `torch.func.grad` is itself differentiated, which autograd does not say.

An inner step's is not where it is first-order, and where the step is computed for its values alone. Then kernels may
give it that have no right derivative (`batch_norm.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch

_constant: ContextVar[bool] = ContextVar("constant", default=False)
_values: ContextVar[bool] = ContextVar("values_alone", default=False)


@contextmanager
def differentiable(again: bool) -> Iterator[None]:
    """A context for taking gradients by `torch.func.grad`: `again` if they are differentiated, else they are constants.

    Constants are computed by kernels whose derivatives nobody asks for.
    """
    tokens = _constant.set(not again or _values.get()), _values.set(False)  # for gradients inside of this one
    try:
        # `torch.func.grad` obeys only a `no_grad` inside it: this one stops the outer gradient, not the inner.
        with nullcontext() if again else torch.no_grad():
            yield
    finally:
        _constant.reset(tokens[0])
        _values.reset(tokens[1])


@contextmanager
def values_alone() -> Iterator[None]:
    """A context for computing what is never differentiated although autograd records it: the next `differentiable`."""
    token = _values.set(True)
    try:
        yield
    finally:
        _values.reset(token)


def constant_gradient() -> bool:
    """Whether the gradient that is being taken is a constant to all around."""
    return _constant.get()
