"""The words everything else is written in: parameters, batches, tasks, and what a learner offers.

The paper needs two things only, parameters and a loss. Nothing here knows a data set or a file.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""Parameters by name, as `nn.Module.named_parameters()` names them."""

LossFn = Callable[[Params, Any], Tensor]
"""A pure function `(params, batch) -> scalar`; a batch is any tree of tensors."""

Metrics = dict[str, float]


class NonFiniteError(ArithmeticError):
    """A meta-loss or meta-gradient was not finite; names the task."""


class Batch(NamedTuple):
    """Examples and what is to be predicted for them.

    `inputs` is a tensor, a tuple (passed as `*args`) or a dict (passed as `**kwargs`), whose tensors
    have a leading examples axis; `targets` is any tree of tensors.
    """

    inputs: Any
    targets: Any


class Task(NamedTuple):
    """A support set to adapt on and a query set to judge by.

    A meta-batch is a `Task` too: its tensors have one more, leading, tasks axis.
    """

    support: Any
    query: Any


def generator(seed: int, purpose: str, rank: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator of its own for each (seed, rank, purpose), so that no two samplers share a stream."""
    digest = hashlib.sha256(f"{seed}/{rank}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class TaskSource(ABC):
    """Where tasks come from: an endless supply, drawn a meta-batch at a time."""

    @abstractmethod
    def sample(self, size: int, generator: torch.Generator) -> Any:
        """A meta-batch of `size` tasks, drawn with `generator` and on its device.

        What a task is, the learner knows: for supervised ones a `Task`, for policies a row of numbers.
        """

    def batches(self, size: int, seed: int = 0, device: torch.device | str = "cpu") -> Iterator[Any]:
        """Meta-batches of `size` tasks, without end, the same ones for the same seed."""
        rng = generator(seed, "batches", device=device)
        while True:
            yield self.sample(size, rng)


@runtime_checkable
class Updater(Protocol):
    """What the trainer drives: a learner together with how it is updated.

    A gradient learner's update is forward, backward and an optimiser step; another algorithm (TRPO,
    say) brings its own, and the trainer does not change.
    """

    def update(self, tasks: Any) -> Metrics:
        """One meta-update on a meta-batch; returns numbers worth logging, `meta_loss` among them."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
