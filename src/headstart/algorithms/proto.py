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
from headstart.precision import widened
from headstart.types import Batch, Params


class ProtoMAML(TaskHead):
    """MAML whose head starts, in every task, as the classifier by distance to the classes' prototypes.

    The outer gradient passes through the prototypes too.

    Reference: Triantafillou et al. (2020), "Meta-Dataset".
    """

    def __init__(self, model: nn.Module, loss: Criterion, **settings: Any):
        super().__init__(model, loss, **settings)
        _check_bias(model, self.head)

    def make_head(self, theta: Params, support: Batch, model: nn.Module, norm: Norm) -> tuple[Tensor, Tensor]:
        """Twice the prototypes, and minus their squared lengths."""
        features = head_inputs(model, self.head, theta, support.inputs, norm)
        return by_distance(features, support.targets, self.present)


class ProtoNet(TaskHead):
    """Prototypical networks: that head, and no inner steps.

    >>> learner = ProtoNet(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), nn.functional.cross_entropy)
    >>> learner.steps
    0

    Reference: Snell, Swersky and Zemel (2017), "Prototypical Networks for Few-shot Learning".
    """

    def __init__(self, model: nn.Module, loss: Criterion, *, steps: int = 0, **settings: Any):
        super().__init__(model, loss, steps=steps, **settings)
        _check_bias(model, self.head)
        self._checked(steps, None)

    def make_head(self, theta: Params, support: Batch, model: nn.Module, norm: Norm) -> tuple[Tensor, Tensor]:
        """Twice the prototypes, and minus their squared lengths."""
        features = head_inputs(model, self.head, theta, support.inputs, norm)
        return by_distance(features, support.targets, self.present)

    def _checked(self, steps: int | None, norm: Norm | None) -> tuple[int, Norm]:
        if steps:
            raise ValueError(f"ProtoNet takes no inner steps, got {steps}; with steps it is ProtoMAML.")
        return super()._checked(steps, norm)


def by_distance(features: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """Weight `[ways, features]` and bias `[ways]` of the classifier by squared distance to the classes' means.

    Args:
        features: `[examples, features]`.
        labels: `[examples]`, 0 to ways - 1, each at least once.
        ways: Number of classes.
    """
    features = widened(features)  # under autocast, squared lengths in half precision would not tell classes apart
    members = nn.functional.one_hot(labels, ways).to(features)  # [examples, ways]
    with torch.autocast(features.device.type, enabled=False):
        prototypes = (members.T @ features) / members.sum(0).unsqueeze(1)
    return 2 * prototypes, -prototypes.square().sum(1)


def _check_bias(model: nn.Module, head: str) -> None:
    if model.get_submodule(head).bias is None:
        raise ValueError(f"The head {head!r} has no bias, without which it cannot measure distances.")
