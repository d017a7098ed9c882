"""The paper's networks, and others: plain modules that know nothing of meta-learning."""

from headstart.models.adapters import WithContext, add_context, add_film, add_low_rank, bias_names
from headstart.models.conv4 import Conv4
from headstart.models.mlp import MLP
from headstart.models.policy import CategoricalPolicy, GaussianPolicy

__all__ = [
    "MLP",
    "CategoricalPolicy",
    "Conv4",
    "GaussianPolicy",
    "WithContext",
    "add_context",
    "add_film",
    "add_low_rank",
    "bias_names",
]
