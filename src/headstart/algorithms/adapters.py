"""Small parts that adapt in place of the network: low-rank changes (LoRA), scales and shifts (FiLM), biases.

MAML with another set of parameters in its inner loop; the network around them is meta-learned and held fixed. What is
added, and where, is in `headstart.models.adapters`.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from headstart.algorithms.maml import MAML
from headstart.losses import Criterion
from headstart.models.adapters import add_film, add_low_rank, bias_names


class LoRA(MAML):
    """MAML in which only low-rank changes of the weights adapt; they are added to `model`, in place.

    >>> learner = LoRA(nn.Linear(3, 2), nn.functional.mse_loss, rank=1)
    >>> [(name, tuple(learner.model.get_parameter(name).shape)) for name in learner.adapted_names]
    [('parametrizations.weight.0.low_rank_a', (1, 3)), ('parametrizations.weight.0.low_rank_b', (2, 1))]

    Args:
        model: Any module with linear layers or convolutions.
        loss: As in `MAML`.
        layers: Name patterns of the layers changed.
        rank: Of the changes.
        settings: As in `MAML`, but for `adapt_only`.

    Reference: Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models".
    """

    def __init__(
        self, model: nn.Module, loss: Criterion, *, layers: str | Sequence[str] = "*", rank: int = 4, **settings: Any
    ):
        super().__init__(model, loss, adapt_only=add_low_rank(model, layers, rank), **settings)


class FiLM(MAML):
    """MAML in which only a scale and a shift of each channel adapt; they are added to `model`, in place.

    Args:
        model: Any module with linear layers, convolutions or norms.
        loss: As in `MAML`.
        layers: Name patterns of the layers whose outputs are scaled and shifted. What a norm follows is in vain.
        settings: As in `MAML`, but for `adapt_only`.

    Reference: Perez, Strub, de Vries, Dumoulin and Courville (2018), "FiLM"; within a task: Requeima et al. (2019).
    """

    def __init__(self, model: nn.Module, loss: Criterion, *, layers: str | Sequence[str] = "*", **settings: Any):
        super().__init__(model, loss, adapt_only=add_film(model, layers), **settings)


class BiasOnly(MAML):
    """MAML in which only biases adapt, the shifts of norms among them.

    >>> BiasOnly(nn.Linear(3, 2), nn.functional.mse_loss).adapted_names
    ('bias',)

    Args:
        model: Any module with biases.
        loss: As in `MAML`.
        settings: As in `MAML`, but for `adapt_only`.

    Reference: Ben Zaken, Goldberg and Ravfogel (2022), "BitFit".
    """

    def __init__(self, model: nn.Module, loss: Criterion, **settings: Any):
        super().__init__(model, loss, adapt_only=bias_names(model), **settings)
