"""Normalisers by name, with a shift and no scale as in the paper's networks."""

from typing import Literal, TypeVar, get_args

import torch
from torch import nn

from headstart.task_norm import TaskNorm

Normalizer = Literal["batch", "layer", "instance", "group", "task-instance", "task-layer"]
"""By which mean and variance activations are normalised.

- `"batch"`: each channel's over a batch; which batch is the norm policy's matter, see `headstart.layers.Norm`.
- `"layer"`, `"instance"`, `"group"`: the example's own, over all channels and positions, over each channel's
  positions, over the channels and positions of each of `GROUPS` groups.
- `"task-instance"`, `"task-layer"`: the support set's pooled with the example's own; see `TaskNorm`.
"""
NORMALIZERS: tuple[Normalizer, ...] = get_args(Normalizer)

GROUPS = 8
"""Groups of channels in group norm."""

EPS = 1e-3
"""Added to the variance in the released code (TensorFlow's default)."""

Norm = TypeVar("Norm", bound=nn.Module)


def normalizer(name: Normalizer, channels: int, *, images: bool) -> nn.Module:
    """A new normaliser.

    Layer norm is group norm with one group, for which no size needs to be known.

    Args:
        name: Which.
        channels: Of its inputs.
        images: Whether its inputs are `[examples, channels, height, width]`, or `[examples, channels]`.

    Raises:
        ValueError: The name is unknown, or the normaliser does not suit the inputs.
    """
    if name not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {', '.join(NORMALIZERS)}, got {name!r}.")
    if "instance" in name and not images:
        raise ValueError(
            f"normalizer={name!r} needs images: without positions a channel has no moments of its own. Use 'layer' or "
            "'task-layer'."
        )
    if name == "group" and channels % GROUPS:
        raise ValueError(f"Group norm has {GROUPS} groups, got {channels} channels: give a multiple of {GROUPS}.")
    made = {
        "batch": lambda: (nn.BatchNorm2d if images else nn.BatchNorm1d)(channels, eps=EPS),
        "layer": lambda: nn.GroupNorm(1, channels, eps=EPS),
        "instance": lambda: nn.InstanceNorm2d(channels, eps=EPS, affine=True),
        "group": lambda: nn.GroupNorm(GROUPS, channels, eps=EPS),
        "task-instance": lambda: TaskNorm(channels, "instance", eps=EPS),
        "task-layer": lambda: TaskNorm(channels, "layer", eps=EPS),
    }
    return shift_only(made[name]())


def shift_only(norm: Norm) -> Norm:
    """`norm` without its scale: the released code's batch norm learns a shift only."""
    norm.register_parameter("weight", None)
    if isinstance(norm, nn.GroupNorm):  # in PyTorch 2.13 its kernel has no derivative without a scale: a constant one
        del norm.weight
        norm.register_buffer("weight", torch.ones(norm.num_channels), persistent=False)
    return norm
