"""What the sampler keeps of many robots at once, against one robot after the other that is given the same actions."""

import importlib.util
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from headstart.inner import SGD
from headstart.models import GaussianPolicy
from headstart.rl.envs import AntDirection, AntVelocity, HalfCheetahDirection, HalfCheetahVelocity, Navigation
from headstart.rl.maml_rl import MAMLRL
from headstart.rl.problem import Environments
from headstart.rl.rollout import collect
from headstart.rl.trpo import TRPO
from headstart.training.evaluate import summary
from headstart.types import NonFiniteError

if any(importlib.util.find_spec(name) is None for name in ("mujoco", "gymnasium")):
    pytest.skip("MuJoCo and Gymnasium are not here: pip install 'headstart[rl]'", allow_module_level=True)

import gymnasium
from gymnasium.utils import seeding
from rl.envs import by_hand

TASKS, ROLLOUTS, HORIZON = 3, 4, 80
VELOCITIES, DIRECTIONS = torch.tensor([[0.5], [1.0], [2.0]]), torch.tensor([[1.0], [-1.0], [1.0]])


@dataclass
class Starts(Environments):
    """Environments, and the states that they were reset to."""

    inner: Environments
    states: tuple[np.ndarray, ...] = ()

    def reset(self, tasks, generator):
        seen, physics = self.inner.reset(tasks, generator), self.inner.physics
        self.states = physics.qpos.copy(), physics.qvel.copy(), physics.field("qacc_warmstart").copy()
        return seen

    def step(self, actions, alive):
        return self.inner.step(actions, alive)


def sampled(problem, tasks, std=1.0, spoilt=()):
    """Episodes of a policy with parameters of its own for each task, NaN in those of the `spoilt` ones."""
    torch.manual_seed(1)
    policies = [
        GaussianPolicy(problem.observation_size, problem.action_size, hidden=(8,), initial_std=std) for _ in tasks
    ]
    named = [dict(policy.named_parameters()) for policy in policies]
    params = {name: torch.stack([own[name].detach() for own in named]) for name in named[0]}
    for task in spoilt:
        for p in params.values():
            p[task] = math.nan
    environments = Starts(problem.environments(len(tasks), ROLLOUTS))
    seen = collect(policies[0], params, environments, tasks, HORIZON, torch.Generator().manual_seed(7))
    return seen, environments.states


@pytest.mark.parametrize(
    ("problem", "tasks", "std"),
    [
        (HalfCheetahVelocity, VELOCITIES, 1.0),
        (HalfCheetahDirection, DIRECTIONS, 1.0),
        (AntVelocity, VELOCITIES, 2.0),
        (AntDirection, DIRECTIONS, 2.0),
    ],
)
def test_every_episode_is_that_of_one_robot_given_the_same_actions(problem, tasks, std, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT about the shipped file's deprecated total mass
    kind = "velocity" if "Velocity" in problem.__name__ else "direction"
    cheetah = "HalfCheetah" in problem.__name__
    model = by_hand.cheetah_model() if cheetah else by_hand.ant_model()
    observe = by_hand.cheetah_observation if cheetah else by_hand.ant_observation
    reward = by_hand.cheetah_reward if cheetah else by_hand.ant_reward
    made = gymnasium.make(f"headstart.rl.envs.gymnasium:headstart/{problem.__name__}-v0").unwrapped
    seen, states = sampled(problem(threads=2), tasks, std)
    for index, (task, rollout) in enumerate(np.ndindex(TASKS, ROLLOUTS)):
        alone, state = by_hand.Simulation(model), [values[index] for values in states]
        alone.set(*state)
        made.reset(seed=0, options={"task": tasks[task].tolist()})
        single = made.environments.physics
        single.qpos[0], single.qvel[0] = state[:2]
        single.batch.forward()
        length = int(seen.valid[task, rollout].sum())
        assert seen.valid[task, rollout, :length].all()
        for time in range(length):
            chosen = seen.actions[task, rollout, time].numpy()
            action = np.clip(chosen.astype(np.float64), -1, 1)
            alone.step(action)
            given, paid, ended, _, _ = made.step(chosen)
            over = not cheetah and alone.fallen()
            expected = reward(alone, alone.centre_velocity()[0], action, float(tasks[task]), kind)
            assert seen.rewards[task, rollout, time].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
            assert paid == pytest.approx(expected, rel=1e-5, abs=1e-5)
            assert over == ended == (time == length - 1 and bool(seen.terminated[task, rollout]))
            if time < length - 1:
                kept = seen.observations[task, rollout, time + 1].numpy()
                np.testing.assert_allclose(kept, observe(alone), rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(given, kept, rtol=1e-5, atol=1e-5)
    lengths = seen.valid.sum(2)
    assert torch.equal(seen.terminated, lengths < HORIZON)
    if cheetah:
        assert not seen.terminated.any()
    else:  # so that others went on when one was no longer stepped
        assert seen.terminated.any()
        assert not seen.terminated.all()


@pytest.mark.parametrize("problem", [HalfCheetahVelocity, AntDirection, Navigation])
def test_the_same_seed_is_the_same_trajectory_as_in_gymnasium(problem):
    torch.manual_seed(1)
    family, task = problem(horizon=40), torch.tensor([0.3, -0.4]) if problem is Navigation else torch.ones(1)
    policy = GaussianPolicy(family.observation_size, family.action_size, hidden=(8,), initial_std=0.3)
    given = int(seeding.np_random(11)[0].integers(2**63))  # what `reset(seed=11)` seeds the environment's own with
    params, generator = dict(policy.named_parameters()), torch.Generator().manual_seed(given)
    seen = collect(policy, params, family.environments(1, 1), task[None], 40, generator, per_task=False)
    name = "Navigation2D" if problem is Navigation else problem.__name__
    made = gymnasium.make(f"headstart.rl.envs.gymnasium:headstart/{name}-v0", task=task.tolist())
    observation, _ = made.reset(seed=11)
    length = int(seen.valid.sum())
    for time in range(length):
        assert np.array_equal(observation, seen.observations[0, 0, time].numpy())
        observation, reward, terminated, _, _ = made.step(seen.actions[0, 0, time].numpy())
        assert reward == seen.rewards[0, 0, time].item()
        assert terminated == (time == length - 1 and bool(seen.terminated))
    made.close()


@pytest.mark.parametrize("problem", [HalfCheetahVelocity, AntDirection, Navigation])
def test_the_number_of_threads_changes_no_episode(problem):
    family = problem(horizon=60)
    torch.manual_seed(1)
    tasks = family.sample(20, torch.Generator().manual_seed(3))
    policies = [GaussianPolicy(family.observation_size, family.action_size) for _ in tasks]
    params = torch.func.stack_module_state(policies)[0]
    usual, episodes = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rng = torch.Generator().manual_seed(7)
            episodes.append(collect(policies[0], params, family.environments(20, 20), tasks, 60, rng))
    finally:
        torch.set_num_threads(usual)
    one, two = (torch.utils._pytree.tree_leaves(seen) for seen in episodes)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("problem", [HalfCheetahDirection, AntDirection])
def test_a_policy_that_diverged_on_one_task_is_seen_in_its_returns_alone(problem):
    seen, spoilt = (sampled(problem(), DIRECTIONS, spoilt=which)[0] for which in ((), (1,)))
    others = [0, 2]
    assert spoilt.returns()[1].isnan().all()
    assert summary(1, spoilt.mean_returns()).diverged == 1
    assert spoilt.observations.isfinite().all()
    assert_close(spoilt.returns()[others], seen.returns()[others], rtol=0, atol=0)
    together = [leaf[others, :, : seen.valid.shape[2]] for leaf in (spoilt.observations, seen.observations)]
    assert_close(*together, rtol=0, atol=0)


@pytest.mark.parametrize("problem", [HalfCheetahDirection, AntVelocity, Navigation])
@pytest.mark.parametrize("budget", ["episodes", "steps"])
def test_training_stops_at_a_policy_that_diverged_and_names_its_task(problem, budget):
    family = problem(horizon=8)
    policy = GaussianPolicy(family.observation_size, family.action_size, hidden=(8,))
    learner = MAMLRL(policy, family, inner=SGD(1e38), rollouts=2, budget=budget)
    with pytest.raises(NonFiniteError, match="task 0"):
        TRPO(learner).update(family.sample(2, torch.Generator().manual_seed(0)))
