"""Batch norm as the paper's networks have it."""

from typing import TypeVar

from torch import nn

BatchNorm = TypeVar("BatchNorm", nn.BatchNorm1d, nn.BatchNorm2d)


def shift_only(norm: BatchNorm) -> BatchNorm:
    """`norm` without its scale: the released code's batch norm learns a shift only."""
    norm.register_parameter("weight", None)
    return norm


EPS = 1e-3
"""Added to the variance in the released code (TensorFlow's default)."""
