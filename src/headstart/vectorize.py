"""Over tasks: a function written for one task, applied to a whole meta-batch.

`torch.vmap` does it in one go or in chunks; a plain loop does it where a module cannot be vectorised, with
the same result. Tasks of unequal sizes are grouped by shape: padding would change batch statistics.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from headstart.types import Task

Vectorize = Literal["auto", "vmap", "loop"]

_log = logging.getLogger(__name__)


def over_tasks(
    fn: Callable[[Task], Any], tasks: Task | Sequence[Task], how: Vectorize = "auto", chunk_size: int | None = None
) -> tuple[Any, Vectorize]:
    """What `fn` returns for each task, stacked along a new first axis, and how to compute it next time.

    Args:
        fn: From one task to any tree of tensors.
        tasks: A `Task` whose tensors have a leading tasks axis, or a sequence of single tasks, which may
            differ in their numbers of examples.
        how: `"vmap"`, `"loop"`, or `"auto"`: `vmap`, and a loop where `vmap` fails and the loop does not, or where
            there is one task, or one at a time.
        chunk_size: Tasks per `vmap`; None for all at once. The result does not depend on it,
            but for the random numbers that dropout draws.

    Returns:
        The stacked tree, in the order of the tasks, and what to pass as `how` next time: `"loop"` where
        `vmap` failed, so that it is not tried again.

    Raises:
        ValueError: No tasks, or tensors whose tasks axes disagree.
    """
    if isinstance(tasks, Task):
        return _over_stacked(fn, tasks, how, chunk_size)
    if not tasks:
        raise ValueError("The meta-batch is empty: give at least one task.")
    outputs: list[Any] = [None] * len(tasks)
    for positions in _positions_by_shape(tasks).values():
        stacked = stack([tasks[i] for i in positions])
        results, how = _over_stacked(fn, stacked, how, chunk_size)
        for row, position in enumerate(positions):
            outputs[position] = pytree.tree_map(lambda leaf, row=row: leaf[row], results)
    return stack(outputs), how


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose tensors are those of `trees`, stacked along a new first axis."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def count_tasks(tasks: Task | Sequence[Task]) -> int:
    """The number of tasks in a meta-batch of either form."""
    if not isinstance(tasks, Task):
        return len(tasks)
    sizes = {leaf.shape[0] if leaf.dim() else 0 for leaf in pytree.tree_leaves(tasks)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"Every tensor of a meta-batch needs the same leading tasks axis, of one task at least; got lengths "
            f"{sorted(sizes)}. Pass tasks of unequal sizes as a list of single tasks."
        )
    return sizes.pop()


def _over_stacked(fn: Callable[[Task], Any], tasks: Task, how: Vectorize, chunk_size: int | None):
    count = count_tasks(tasks)
    alone = count == 1 or chunk_size == 1  # then `vmap` gives nothing, and takes a little time for each operation
    if how == "loop" or (how == "auto" and alone):
        return _loop(fn, tasks, count), how
    # Dropout draws its own mask for every task. A failed attempt must not move the random state: a
    # resumed run would then differ from an uninterrupted one.
    # One part is no parts: `vmap` would copy its results, and the recorded graph would be another.
    part = chunk_size if chunk_size is not None and chunk_size < count else None
    vectorized = torch.vmap(fn, randomness="different", chunk_size=part)
    if how == "vmap":
        return vectorized(tasks), how
    random_state, random_state_cuda = torch.get_rng_state(), _cuda_random_state()
    try:
        return vectorized(tasks), how
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.set_rng_state(random_state)
        if random_state_cuda:
            torch.cuda.set_rng_state_all(random_state_cuda)
        result = _loop(fn, tasks, count)  # an error of the caller's own shows here, without vmap's wrapping
        reason = str(error).strip().splitlines()[0]
        _log.warning("This module cannot be vectorised over tasks; looping over them instead (%s).", reason)
        return result, "loop"


def _cuda_random_state() -> list[Tensor]:
    if not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():  # a capture may not ask for it
        return []
    return torch.cuda.get_rng_state_all()


def _loop(fn: Callable[[Task], Any], tasks: Task, count: int) -> Any:
    return stack([fn(pytree.tree_map(lambda leaf, i=i: leaf[i], tasks)) for i in range(count)])


def _positions_by_shape(tasks: Sequence[Task]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for position, task in enumerate(tasks):
        leaves, structure = pytree.tree_flatten(task)
        key = (str(structure), tuple(_signature(leaf) for leaf in leaves))
        groups.setdefault(key, []).append(position)
    return groups


def _signature(leaf: Tensor) -> tuple[Any, ...]:
    return tuple(leaf.shape), leaf.dtype, leaf.device
