"""Meta-learned tensors that belong to a model's parameters: one or several for each of them, by name."""

from collections.abc import Mapping

from torch import Tensor, nn

from headstart.types import Params


def as_parameters(values: Mapping[str, Tensor]) -> nn.ParameterDict:
    """`values` as parameters; names there may not have dots, nor be those of the dictionary's own attributes."""
    own = set(dir(nn.ParameterDict()))
    escaped = {name: name.replace(".", "/") for name in values}
    return nn.ParameterDict(
        [(f"/{key}" if key in own else key, nn.Parameter(values[name])) for name, key in escaped.items()]
    )


def values_of(parameters: nn.ParameterDict) -> Params:
    """The inverse of `as_parameters`."""
    return {name.removeprefix("/").replace("/", "."): value for name, value in parameters.items()}
