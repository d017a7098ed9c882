"""What every family of environments checks of what it is given, once, at the boundary."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_size(num_tasks: int, rollouts: int) -> None:
    """Raises a `ValueError` unless there is at least one environment."""
    for name, count in (("num_tasks", num_tasks), ("rollouts", rollouts)):
        if count < 1:
            raise ValueError(f"{name}={count}: give at least 1")


def check_tasks(tasks: Tensor, shape: tuple[int, int], allowed: Sequence[float] | None = None) -> None:
    """Raises a `ValueError` unless `tasks` has a row for each task, of finite numbers, or of `allowed` ones."""
    if tuple(tasks.shape) != shape:
        count, numbers = shape
        raise ValueError(
            f"tasks of shape {list(tasks.shape)}: these environments were made for {count} task{'s' * (count != 1)} "
            f"of {numbers} number{'s' * (numbers != 1)}{' each' * (count != 1)}, shape {list(shape)}"
        )
    for value in tasks[~torch.isfinite(tasks)].tolist():
        raise ValueError(f"tasks hold {value:g}: give finite numbers")
    if allowed is not None:
        for value in tasks[~torch.isin(tasks, torch.tensor(allowed, dtype=tasks.dtype))].tolist():
            raise ValueError(f"tasks hold {value:g}: give {' or '.join(f'{known:g}' for known in allowed)}")


def check_shape(name: str, given: Tensor, shape: tuple[int, ...]) -> None:
    """Raises a `ValueError` unless `given` has exactly this shape."""
    if tuple(given.shape) != shape:
        raise ValueError(f"{name} of shape {list(given.shape)}: these environments take {list(shape)}")


def lost(actions: Tensor) -> Tensor:
    """Which environments cannot take their `[..., action]`, as it is not finite: the policy that chose it diverged.

    They stay as they are and are rewarded with NaN, which makes training stop, and evaluation count the task as
    diverged. Their episodes go on: `rollout.filled` would make up for ever so many that end at once.
    """
    return ~torch.isfinite(actions).all(-1)


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers drawn evenly from [low, high), float32."""
    return torch.empty(shape, dtype=torch.float32, device=generator.device).uniform_(low, high, generator=generator)
