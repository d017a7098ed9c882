"""Meta-learn a policy on your own family of Gymnasium environments, given as a function from task to environment.

Here the family is a cart that balances a pole, with a motor that may be wired backwards. No policy can balance both
kinds of cart. A meta-learned one finds out from a few short episodes which kind it has, by one gradient step.

    python examples/own_environments.py
"""

import argparse

import gymnasium
import numpy as np
import torch

import headstart
from headstart.models.policy import CategoricalPolicy
from headstart.rl.envs.gymnasium import GymnasiumProblem
from headstart.rl.maml_rl import MAMLRL
from headstart.rl.trpo import TRPO

FORWARDS, BACKWARDS = 1.0, -1.0


def make(task: np.ndarray) -> gymnasium.Env:
    """The environment of a task: a row of numbers that you give a meaning to."""
    cart = gymnasium.make("CartPole-v1", max_episode_steps=100)
    if task[0] == BACKWARDS:
        return gymnasium.wrappers.TransformAction(cart, lambda action: 1 - action, cart.action_space)
    return cart


def draw(size: int, generator: torch.Generator) -> torch.Tensor:
    """So many tasks, `[size, 1]`."""
    return torch.where(torch.rand(size, 1, generator=generator) < 0.5, FORWARDS, BACKWARDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--tasks", type=int, default=10, help="carts per iteration")
    parser.add_argument("--rollouts", type=int, default=10, help="episodes to adapt on, and to be judged by")
    options = parser.parse_args()

    torch.manual_seed(0)
    problem = GymnasiumProblem(make, draw)
    policy = CategoricalPolicy(problem.observation_size, problem.action_size, hidden=(32, 32))
    learner = MAMLRL(policy, problem, inner=headstart.SGD(lr=0.5), steps=1, rollouts=options.rollouts)
    updater = TRPO(learner, seed=0)
    for iteration, carts in zip(range(1, options.iterations + 1), problem.batches(options.tasks, seed=0), strict=False):
        told = updater.update(carts)
        print(
            f"{iteration:4d}  return before {told['return_before']:6.1f}  after {told['return_after']:6.1f}", flush=True
        )

    generator = torch.Generator().manual_seed(1)
    for name, kind in (("forwards", FORWARDS), ("backwards", BACKWARDS)):
        seen = [
            episodes for _, episodes in learner.trajectory(torch.tensor([[kind]]), generator=generator, rollouts=40)
        ]
        before, after = (float(episodes.mean_returns().mean()) for episodes in seen)
        print(f"A cart wired {name} balances for {before:.0f} steps before adaptation, {after:.0f} after one step.")

    adapted = learner.adapt(torch.tensor([BACKWARDS]), generator=generator)  # an ordinary nn.Module, to save or deploy
    print(f"Its probabilities to push left and right: {adapted(torch.zeros(4)).logits.softmax(-1).tolist()}")


if __name__ == "__main__":
    main()
