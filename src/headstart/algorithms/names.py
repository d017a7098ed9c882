"""Parameters of a module by name: which of them, and putting new ones in."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from headstart.types import Params


def trainable(model: nn.Module) -> list[str]:
    """Names of the parameters that require gradients."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def matching(names: Sequence[str], patterns: str | Sequence[str]) -> tuple[str, ...]:
    """The names that `patterns` select, in their own order.

    >>> matching(["body.weight", "body.bias", "head.weight"], ["*", "!body.*"])
    ('head.weight',)

    Raises:
        ValueError: A pattern matches no name, or none is left.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: set[str] = set()
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        # A name is a pattern for itself, also with brackets in it.
        hits = {name for name in names if name == wanted or fnmatch.fnmatchcase(name, wanted)}
        if not hits:
            raise ValueError(f"The pattern {pattern!r} matches no trainable parameter; there are: {', '.join(names)}.")
        chosen = chosen - hits if pattern.startswith("!") else chosen | hits
    if not chosen:
        raise ValueError(f"The patterns {patterns} leave nothing to adapt; there are: {', '.join(names)}.")
    return tuple(name for name in names if name in chosen)


def refuse(learner: str, settings: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """See that `settings` has none of what a learner would not look at.

    Args:
        learner: Its name.
        settings: What it was given besides its own arguments.
        reasons: Why each of these has no place there.

    Raises:
        ValueError: It was given one of them.
    """
    for name, reason in reasons.items():
        if name in settings:
            raise ValueError(f"{learner} takes no {name}: {reason}. Leave it out.")


def put(module: nn.Module, params: Params) -> None:
    """Give `module` the values of `params`, in place; a linear layer may change its number of outputs."""
    for name, value in params.items():
        parameter = module.get_parameter(name)
        if parameter.shape == value.shape:
            parameter.data.copy_(value)
            continue
        owner = module.get_submodule(name.rpartition(".")[0])
        if not isinstance(owner, nn.Linear):
            raise ValueError(
                f"{name!r} has the shape {tuple(parameter.shape)} and cannot become {tuple(value.shape)}: only linear "
                "layers change their size."
            )
        setattr(owner, name.rpartition(".")[2], nn.Parameter(value.clone(), parameter.requires_grad))
        owner.out_features = len(owner.weight)


def head_of(model: nn.Module) -> str:
    """The name of the last linear layer, which makes the outputs in most networks.

    Raises:
        ValueError: There is no linear layer.
    """
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError(
            f"{type(model).__name__} has no linear layer to take for its head: name the head's parameters."
        )
    return linear[-1]
