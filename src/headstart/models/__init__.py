"""The paper's networks, and others: plain modules that know nothing of meta-learning."""

from headstart.models.conv4 import Conv4
from headstart.models.mlp import MLP

__all__ = ["MLP", "Conv4"]
