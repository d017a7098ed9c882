"""ANIL and BOIL: which half of the network adapts (Raghu et al. 2020; Oh et al. 2021).

code            ANIL                          BOIL
head            adapts within a task          meta-learned, held fixed within a task
all the rest    meta-learned, held fixed      adapts within a task
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from headstart.algorithms.maml import MAML
from headstart.algorithms.names import head_of, trainable
from headstart.losses import Criterion


class ANIL(MAML):
    """Almost no inner loop: only the head adapts, to features that are the same for every task.

    >>> learner = ANIL(nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1)), nn.functional.mse_loss)
    >>> learner.adapted_names
    ('2.weight', '2.bias')

    Args:
        model: Any module.
        loss: As in `MAML`.
        head: Name patterns of the parameters that adapt; None for those of the last linear layer.
        settings: As in `MAML`, but for `adapt_only`.

    Reference: Raghu, Raghu, Bengio and Vinyals (2020), "Rapid Learning or Feature Reuse?".
    """

    def __init__(self, model: nn.Module, loss: Criterion, *, head: str | Sequence[str] | None = None, **settings: Any):
        super().__init__(model, loss, adapt_only=_head_patterns(model, head), **settings)


class BOIL(MAML):
    """Body only in the inner loop: the features adapt, to a head that is the same for every task.

    >>> learner = BOIL(nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1)), nn.functional.mse_loss)
    >>> learner.adapted_names
    ('0.weight', '0.bias')

    Args:
        model: Any module.
        loss: As in `MAML`.
        head: Name patterns of the parameters held fixed; None for those of the last linear layer.
        adapt_only: Of the others, those that adapt.
        settings: As in `MAML`.

    Reference: Oh, Yoo, Kim and Yun (2021), "BOIL: Towards Representation Change for Few-shot Learning".
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Criterion,
        *,
        head: str | Sequence[str] | None = None,
        adapt_only: str | Sequence[str] = "*",
        **settings: Any,
    ):
        wanted = [adapt_only] if isinstance(adapt_only, str) else list(adapt_only)
        without = [f"!{pattern}" for pattern in _head_patterns(model, head)]
        super().__init__(model, loss, adapt_only=[*wanted, *without], **settings)


def _head_patterns(model: nn.Module, head: str | Sequence[str] | None) -> list[str]:
    if head is None:
        layer = head_of(model)
        prefix = f"{layer}." if layer else ""
        names = [name for name in trainable(model) if name.startswith(prefix)]  # also a parametrisation's
        if not names:
            raise ValueError(
                f"The last linear layer, {layer!r}, has no trainable parameters of its own (they are frozen, or shared "
                "with another layer): name the head's parameters."
            )
        return names
    return [head] if isinstance(head, str) else list(head)
