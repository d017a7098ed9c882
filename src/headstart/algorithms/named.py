"""Meta-learned tensors that belong to a model's parameters: one or several for each of them, by name."""

from collections.abc import Mapping

from torch import Tensor, nn

from headstart.types import Params


def as_parameters(values: Mapping[str, Tensor]) -> nn.ParameterDict:
    """`values` as parameters; names there may not have dots."""
    return nn.ParameterDict([(name.replace(".", "/"), nn.Parameter(value)) for name, value in values.items()])


def values_of(parameters: nn.ParameterDict) -> Params:
    """The inverse of `as_parameters`."""
    return {name.replace("/", "."): value for name, value in parameters.items()}
