"""The paper's control problems, two small ones for meta-RL studies, and families of your own Gymnasium environments.

Navigation and the small problems need PyTorch alone; the robots need the extra `rl`.
"""

from headstart.rl.envs.locomotion import AntDirection, AntVelocity, HalfCheetahDirection, HalfCheetahVelocity
from headstart.rl.envs.navigation import Navigation
from headstart.rl.envs.small import Bandit, FourStates

__all__ = [
    "AntDirection",
    "AntVelocity",
    "Bandit",
    "FourStates",
    "HalfCheetahDirection",
    "HalfCheetahVelocity",
    "Navigation",
]
