"""A learner's methods as pure functions of its parameters, and meta-batches in chunks."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from headstart.swap import call_with
from headstart.types import Params, Task
from headstart.vectorize import count_tasks


def call(learner: Any, method: str, values: Params, *args: Any) -> Any:
    """`learner.method(*args)` with `values` in place of the parameters and buffers of these names."""
    named = {f"learner.{name}": value for name, value in values.items()}
    return call_with(_Method(learner, method), named, args, {})


_CONTAINERS = frozenset({dict, OrderedDict, set})
"""What most attributes of a layer are: left out first, as `isinstance` takes longer than the rest."""


def settings(learner: Any, but: Sequence[str] = ()) -> tuple[Any, ...]:
    """What a recording of `learner` holds constant: its attributes, its layers, and their plain settings.

    Args:
        learner: An `nn.Module`.
        but: Names of attributes on which the recording does not depend.
    """
    own = [value for name, value in vars(learner).items() if not name.startswith("_") and name not in but]
    for layer in learner.modules():
        own.append(layer)
        if layer is not learner:
            values = (value for value in vars(layer).values() if type(value) not in _CONTAINERS)
            own += [value for value in values if isinstance(value, (bool, int, float, str))]
    return tuple(own)


def chunks(tasks: Task | Sequence[Task], size: int | None) -> Iterator[Any]:
    """A meta-batch in parts of `size` tasks, the last one perhaps smaller."""
    total = count_tasks(tasks)
    if size is None or size >= total:
        yield tasks
        return
    for start in range(0, total, size):
        part = slice(start, start + size)
        yield pytree.tree_map(lambda leaf, part=part: leaf[part], tasks) if isinstance(tasks, Task) else tasks[part]


def joined(trees: Sequence[Any]) -> Any:
    """The results of chunks, concatenated along their tasks axes."""
    return trees[0] if len(trees) == 1 else pytree.tree_map(lambda *leaves: torch.cat(leaves), *trees)


def added(total: Params, more: Params) -> Params:
    """The sum of two gradients, either of which may lack names."""
    return {name: total[name] + g if name in total else g for name, g in more.items()} | {
        name: g for name, g in total.items() if name not in more
    }


def gradients(of: Sequence[Tensor], weights: Sequence[Tensor] | None, inputs: Params) -> Params:
    """Gradient of `of`, weighted and summed, by name; without the names on which nothing depends."""
    differentiable = [i for i, tensor in enumerate(of) if tensor.requires_grad]
    if not differentiable:
        return {}
    grads = torch.autograd.grad(
        [of[i] for i in differentiable],
        list(inputs.values()),
        None if weights is None else [weights[i] for i in differentiable],
        allow_unused=True,
    )
    return {name: g for name, g in zip(inputs, grads, strict=True) if g is not None}


class _Method(nn.Module):
    """A module whose forward is a method of another: what `call_with` can call."""

    def __init__(self, learner: Any, method: str):
        super().__init__()
        self.learner, self.method = learner, method

    def forward(self, *args: Any) -> Any:
        return getattr(self.learner, self.method)(*args)
