"""Batch norm as the paper's networks have it."""

from torch import nn


def shift_only(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """`norm` without its scale: the released code's batch norm learns a shift only."""
    norm.weight = None
    return norm


EPS = 1e-3
"""Added to the variance in the released code (TensorFlow's default)."""
