"""From a module and a criterion to the pure loss function the inner loop differentiates; and accuracy."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from headstart.exact import Exact
from headstart.precision import widened
from headstart.types import Params

Criterion = Callable[..., Tensor]
"""`(outputs, targets) -> scalar`, or `(outputs, targets, params) -> scalar` for penalties on the parameters."""


def takes_params(criterion: Criterion) -> bool:
    """Whether `criterion` asks for the parameters: it has an argument named `params`.

    >>> takes_params(lambda outputs, targets, params: outputs.sum())
    True
    >>> import torch
    >>> takes_params(torch.nn.functional.mse_loss)
    False
    """
    called = criterion.forward if isinstance(criterion, nn.Module) else criterion
    try:
        return "params" in inspect.signature(called).parameters
    except ValueError:  # a builtin without a signature
        return False


def criterion_with_params(criterion: Criterion) -> Callable[[Any, Any, Params], Tensor]:
    """`criterion` as a function of outputs, targets and parameters, whether or not it uses the last."""
    wanted = takes_params(criterion)

    def loss(outputs: Any, targets: Any, params: Params) -> Tensor:
        with Exact():
            return _without_autocast(criterion, outputs, targets, **({"params": params} if wanted else {}))

    return loss


def _without_autocast(criterion: Criterion, outputs: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The criterion in single precision: under `vmap` it is taken apart before autocast knows it for a loss."""
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    active = {t.device.type for t in tensors if torch.is_autocast_enabled(t.device.type)}
    if not active:
        return criterion(outputs, *args, **kwargs)
    with torch.autocast(active.pop(), enabled=False):
        return criterion(pytree.tree_map_only(Tensor, widened, outputs), *args, **kwargs)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of examples whose largest output is the target class.

    Args:
        outputs: Scores, `[..., examples, classes]`.
        targets: Class indices, `[..., examples]`.

    Returns:
        `[...]`, each in [0, 1].
    """
    return (outputs.argmax(-1) == targets).float().mean(-1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over examples and features.

    Args:
        outputs: Predictions, `[..., examples, features]`.
        targets: Of the shape of `outputs`, or broadcastable to it.

    Returns:
        `[...]`.
    """
    return (outputs - targets).square().mean((-2, -1))
