"""Learners: MAML, and what differs from it in one respect each."""

from headstart.algorithms.adapters import BiasOnly, FiLM, LoRA
from headstart.algorithms.alfa import ALFA
from headstart.algorithms.anil import ANIL, BOIL
from headstart.algorithms.cavia import CAVIA
from headstart.algorithms.imaml import IMAML
from headstart.algorithms.maml import MAML
from headstart.algorithms.maml_plus_plus import MAMLPlusPlus
from headstart.algorithms.meta_curvature import MetaCurvature
from headstart.algorithms.meta_sgd import MetaSGD
from headstart.algorithms.proto import ProtoMAML, ProtoNet
from headstart.algorithms.reptile import Reptile
from headstart.algorithms.shared_head import SharedHead, ZeroHead

__all__ = [
    "ALFA",
    "ANIL",
    "BOIL",
    "CAVIA",
    "IMAML",
    "MAML",
    "BiasOnly",
    "FiLM",
    "LoRA",
    "MAMLPlusPlus",
    "MetaCurvature",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "SharedHead",
    "ZeroHead",
]
