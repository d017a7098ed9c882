"""What every family of environments checks of what it is given, once, at the boundary."""

import torch
from torch import Tensor


def check_size(num_tasks: int, rollouts: int) -> None:
    """Raises a `ValueError` unless there is at least one environment."""
    for name, count in (("num_tasks", num_tasks), ("rollouts", rollouts)):
        if count < 1:
            raise ValueError(f"{name}={count}: give at least 1")


def check_tasks(tasks: Tensor, shape: tuple[int, int]) -> None:
    """Raises a `ValueError` unless `tasks` holds finite numbers, a row for each task."""
    if tuple(tasks.shape) != shape:
        raise ValueError(
            f"tasks of shape {list(tasks.shape)}: these environments were made for {shape[0]} tasks "
            f"of {shape[1]} number{'s' * (shape[1] != 1)} each, shape {list(shape)}"
        )
    if not bool(torch.isfinite(tasks).all()):
        raise ValueError("tasks hold numbers that are not finite")


def check_shape(name: str, given: Tensor, shape: tuple[int, ...]) -> None:
    """Raises a `ValueError` unless `given` has exactly this shape."""
    if tuple(given.shape) != shape:
        raise ValueError(f"{name} of shape {list(given.shape)}: these environments take {list(shape)}")


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers drawn evenly from [low, high), float32."""
    return torch.empty(shape, dtype=torch.float32, device=generator.device).uniform_(low, high, generator=generator)
