"""A module called with other tensors in place of its own, which it has again afterwards.

`torch.func.functional_call` does it, but a module that is registered under two names it leaves with the other tensors
(pytorch/pytorch#164759): it puts them in twice, and the second time takes the first ones for the module's own. Here
each place is named once; what is tied is one tensor in several places, and stays tied.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def call_with(module: nn.Module, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`module(*args, **kwargs)` with `values`, by name, in place of its parameters and buffers of these names.

    >>> call_with(nn.Linear(1, 1), {"weight": torch.ones(1, 1), "bias": torch.ones(1)}, (torch.ones(1),), {})
    tensor([2.])
    """
    places = dict(_places(module))
    unknown = [name for name in values if name not in places]
    if unknown:
        raise ValueError(f"{type(module).__name__} has no parameter or buffer {', '.join(unknown)}.")
    by_identity = {id(places[name]): value for name, value in values.items()}
    everywhere = {name: by_identity[id(own)] for name, own in places.items() if id(own) in by_identity}
    return torch.func.functional_call(module, everywhere, args, kwargs, tie_weights=False)


def _places(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every place where a parameter or buffer is, once, under the name that `named_parameters` would give it."""
    for prefix, layer in module.named_modules():
        for own in (layer._parameters, layer._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    yield f"{prefix}.{name}" if prefix else name, tensor
