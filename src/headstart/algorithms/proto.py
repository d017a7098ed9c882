"""Prototypes: a class is the mean of its examples' features (Snell et al. 2017; Triantafillou et al. 2020).

    code          paper                              shape
    prototypes    c_k                                [ways, features]
    weight        2 c_k                              [ways, features]
    bias          -|c_k|^2                           [ways]

A linear layer with these gives -|f(x) - c_k|^2 up to a term that is the same for every class: it *is* the classifier
by squared distance. So a prototypical network is a head made from the support set, and Proto-MAML adapts from there.
"""

from typing import Any

import torch
from torch import Tensor, nn

from headstart.algorithms.heads import TaskHead, head_inputs
from headstart.layers import Norm
from headstart.losses import Criterion
from headstart.types import Batch, Params


class ProtoMAML(TaskHead):
    """MAML whose head starts, in every task, as the classifier by distance to the classes' prototypes.

    The outer gradient passes through the prototypes too.

    Reference: Triantafillou et al. (2020), "Meta-Dataset", section 3.1.
    """

    def __init__(self, model: nn.Module, loss: Criterion, **settings: Any):
        super().__init__(model, loss, **settings)
        if model.get_submodule(self.head).bias is None:
            raise ValueError(f"The head {self.head!r} has no bias, without which it cannot measure distances.")

    def make_head(self, theta: Params, support: Batch, model: nn.Module, norm: Norm) -> tuple[Tensor, Tensor]:
        """Twice the prototypes, and minus their squared lengths."""
        features = head_inputs(model, self.head, theta, support.inputs, norm)
        members = torch.nn.functional.one_hot(support.targets, self.present).to(features)  # [examples, ways]
        prototypes = (members.T @ features) / members.sum(0).unsqueeze(1)
        return 2 * prototypes, -prototypes.square().sum(1)


class ProtoNet(ProtoMAML):
    """Prototypical networks: Proto-MAML without inner steps.

    >>> learner = ProtoNet(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), nn.functional.cross_entropy)
    >>> learner.steps
    0

    Reference: Snell, Swersky and Zemel (2017), "Prototypical Networks for Few-shot Learning".
    """

    def __init__(self, model: nn.Module, loss: Criterion, **settings: Any):
        if settings.pop("steps", 0):
            raise ValueError("ProtoNet takes no inner steps; with steps it is ProtoMAML.")
        super().__init__(model, loss, steps=0, **settings)
