"""Reinforcement learning: Algorithm 3 of the paper; `headstart.rl.envs` has the environments."""

from headstart.rl.maml_rl import MAMLRL
from headstart.rl.meta_updates import PPO, MetaUpdate, PolicyGradient
from headstart.rl.problem import Environments, Problem, Step
from headstart.rl.rollout import Rollouts
from headstart.rl.trpo import TRPO

__all__ = ["MAMLRL", "PPO", "TRPO", "Environments", "MetaUpdate", "PolicyGradient", "Problem", "Rollouts", "Step"]
