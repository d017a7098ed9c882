"""Linear algebra on parameters: dictionaries of tensors as vectors of one space."""

from collections.abc import Callable

import torch
from torch import Tensor

from headstart.types import Params


def dot(a: Params, b: Params) -> Tensor:
    """The inner product of two vectors, a scalar.

    >>> dot({"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0, 4.0])})
    tensor(11.)
    """
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def norm(a: Params) -> Tensor:
    """The Euclidean length of a vector, a scalar."""
    return dot(a, a).sqrt()


def add_scaled(a: Params, scale: float | Tensor, b: Params) -> Params:
    """`a + scale * b`."""
    return {name: a[name] + scale * b[name] for name in a}


def scaled(scale: float | Tensor, a: Params) -> Params:
    """`scale * a`."""
    return {name: scale * value for name, value in a.items()}


def conjugate_gradient(
    product: Callable[[Params], Params],
    b: Params,
    iterations: int = 10,
    tolerance: float | None = 1e-10,
    start: Params | None = None,
) -> Params:
    """An `x` with `A x` close to `b`, for a symmetric positive definite `A` given by its products.

    Args:
        product: From `x` to `A x`.
        b: The right-hand side.
        iterations: Products at most; exact, but for rounding, when there are as many as dimensions.
        tolerance: Stops where the squared length of `b - A x` falls below; None to never ask, as under `torch.vmap`.

        start: Where to begin; None for zero.

    Stays where it is once a direction has no positive curvature: `A` is not positive definite then.

    Reference: Hestenes and Stiefel (1952).

    >>> conjugate_gradient(lambda x: {"x": 2.0 * x["x"]}, {"x": torch.tensor([2.0, 4.0])})
    {'x': tensor([1., 2.])}
    """
    x = scaled(0.0, b) if start is None else start
    residual = direction = b if start is None else add_scaled(b, -1.0, product(start))
    squared = dot(residual, residual)
    sound = torch.ones_like(squared, dtype=torch.bool)
    for _ in range(iterations):
        if tolerance is not None and squared < tolerance:
            break
        image = product(direction)
        curvature = dot(direction, image)
        sound = sound & (curvature >= 0)
        step = torch.where(sound, _ratio(squared, curvature), 0.0)
        x = add_scaled(x, step, direction)
        residual = add_scaled(residual, -step, image)
        squared, before = dot(residual, residual), squared
        direction = add_scaled(residual, _ratio(squared, before), direction)
    return x


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """`a / b`, or 0 where `b` is: nothing is left to solve there."""
    return torch.where(b == 0, 0.0, a / b)
