import importlib.util

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from headstart.rl.envs import AntDirection, AntVelocity, HalfCheetahDirection, HalfCheetahVelocity

if any(importlib.util.find_spec(name) is None for name in ("mujoco", "gymnasium")):
    pytest.skip("MuJoCo and Gymnasium are not here: pip install 'headstart[rl]'", allow_module_level=True)

from rl.envs import by_hand

from headstart.rl.envs.robots import ANT, HALF_CHEETAH

PROBLEMS = [HalfCheetahVelocity, HalfCheetahDirection, AntVelocity, AntDirection]
BY_HAND = {
    "half-cheetah": (by_hand.cheetah_model, by_hand.cheetah_observation, by_hand.cheetah_reward),
    "ant": (by_hand.ant_model, by_hand.ant_observation, by_hand.ant_reward),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def alive(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def random_actions(problem, *shape, scale=0.6, seed=5):
    return scale * torch.randn(*shape, problem.action_size, generator=seeded(seed))


def episode(environments, tasks, actions, seed=0, ends=True):
    """Every tensor an episode gives, one after the other."""
    out = [environments.reset(tasks, seeded(seed))]
    on = alive(*out[0].shape[:2])
    for action in actions:
        step = environments.step(action, on)
        out += [torch.where(on.unsqueeze(-1), step.observations, 0.0), torch.where(on, step.rewards, 0.0)]
        out.append(step.terminated & on)
        on = on & ~step.terminated if ends else on
    return out


def about(problem, tasks, size):
    return problem().environments(size, 1).reset(torch.tensor(tasks), seeded())


def test_the_robots_are_the_papers():
    cheetah, ant = HALF_CHEETAH.model(), ANT.model()
    assert cheetah.body_mass.sum() == pytest.approx(14)
    assert cheetah.opt.timestep == 0.01
    assert cheetah.opt.integrator == 0  # semi-implicit Euler
    assert cheetah.actuator_gear[:, 0].tolist() == [120, 90, 60, 120, 60, 30]
    np.testing.assert_allclose(cheetah.geom_solimp[1:, :3], [[0, 0.8, 0.01]] * (cheetah.ngeom - 1))
    assert ant.opt.timestep == 0.02
    assert ant.opt.integrator == 1  # RK4
    assert (ant.nq, ant.nv, ant.nbody) == (15, 14, 14)
    np.testing.assert_array_equal(ant.dof_armature[6:], 1)
    np.testing.assert_array_equal(ant.dof_damping[6:], 1)
    np.testing.assert_allclose(ant.actuator_gear[:, 0] * ant.actuator_ctrlrange[:, 1], 150)
    np.testing.assert_allclose(ant.geom_solimp[:, :3], [[0.8, 0.8, 0.01]] * ant.ngeom)
    sphere = 4 / 3 * np.pi * 0.25**3
    assert ant.body("torso").mass[0] == pytest.approx(5 * sphere)
    assert ANT.start(ant)[2] == 0.55
    for model in (cheetah, ant):
        np.testing.assert_array_equal(model.actuator_ctrlrange, [[-1, 1]] * model.nu)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("modern", [False, True], ids=["paper", "modern"])
def test_single_steps_are_those_of_plain_mujoco(problem, modern, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT about the shipped file's deprecated total mass
    options = {"frame_skip": 5, "velocity": "position-difference", "timestep": 0.01} if modern else {}
    problem = problem(threads=2, **options)
    make_model, observation, reward = BY_HAND[problem.robot.name]
    model = make_model(problem.timestep)
    kind = "velocity" if "Velocity" in type(problem).__name__ else "direction"
    tasks = torch.tensor([[1.3], [0.4]]) if kind == "velocity" else torch.tensor([[1.0], [-1.0]])
    environments = problem.environments(2, 3)
    first = environments.reset(tasks, seeded())
    physics, simulations = environments.physics, [by_hand.Simulation(model, problem.frame_skip) for _ in range(6)]
    forces = []
    for i, simulation in enumerate(simulations):
        simulation.set(physics.qpos[i], physics.qvel[i], 0.0)
        simulation.stay()
        np.testing.assert_allclose(environments.observe()[i], observation(simulation), rtol=1e-9, atol=1e-9)
    assert torch.equal(first.flatten(0, 1), torch.from_numpy(environments.observe()).float())
    for action in random_actions(problem, 25, 2, 3):
        flat = action.reshape(6, -1).double().numpy()
        befores = [
            (physics.qpos[i].copy(), physics.qvel[i].copy(), physics.field("qacc_warmstart")[i].copy())
            for i in range(6)
        ]
        rewards = environments.advance(flat.clip(-1, 1), np.ones(6, bool))
        for i, simulation in enumerate(simulations):
            simulation.set(*befores[i])
            clipped = [min(1.0, max(-1.0, a)) for a in flat[i]]
            simulation.step(clipped)
            velocity = simulation.centre_velocity()[0]
            if modern:
                velocity = (simulation.data.qpos[0] - befores[i][0][0]) / 0.05
            expected = reward(simulation, velocity, clipped, float(tasks[i // 3, 0]), kind)
            np.testing.assert_allclose(environments.observe()[i], observation(simulation), rtol=1e-9, atol=1e-9)
            assert rewards[i] == pytest.approx(expected, rel=1e-9, abs=1e-9)
            forces.append((simulation.data.ncon > 0, np.abs(environments.observe()[i, 29:113]).max(initial=0.0)))
    assert first.shape == (2, 3, {"half-cheetah": 20, "ant": 125}[problem.robot.name])
    if problem.robot is ANT:
        assert sum(force > 0.1 for _, force in forces) > 20  # feet press on the ground
        assert all(force == 0.0 for contact, force in forces if not contact)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_reset_is_the_start_plus_noise(problem):
    problem = problem()
    environments = problem.environments(40, 50)
    environments.reset(problem.sample(40, seeded()), seeded())
    qpos, qvel = environments.physics.qpos, environments.physics.qvel
    if problem.robot is ANT:
        start = [0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
        np.testing.assert_allclose(np.linalg.norm(qpos[:, 3:7], axis=1), 1)
    else:
        start = [0.0] * 9
    np.testing.assert_allclose(qpos.mean(0), start, atol=2e-3)
    noisy = np.arange(len(start)) != (3 if problem.robot is ANT else -1)  # a unit quaternion's first is nearly 1
    np.testing.assert_allclose(qpos.std(0)[noisy], 0.01, rtol=0.1)
    np.testing.assert_allclose(qvel.std(0), 0.1, rtol=0.1)
    np.testing.assert_allclose(qvel.mean(0), 0, atol=0.02)


def test_tasks_are_drawn_as_the_paper_did():
    for problem, high in ((HalfCheetahVelocity(), 2), (AntVelocity(), 3)):
        tasks = problem.sample(4000, seeded())
        assert tasks.shape == (4000, 1)
        assert 0 <= tasks.min() < 0.01
        assert high - 0.01 < tasks.max() <= high
        assert tasks.mean().item() == pytest.approx(high / 2, abs=0.05)
    for problem in (HalfCheetahDirection(), AntDirection()):
        tasks = problem.sample(4000, seeded())
        assert set(tasks.flatten().tolist()) == {-1.0, 1.0}
        assert abs(tasks.mean().item()) < 0.05


@pytest.mark.parametrize("problem", [HalfCheetahVelocity, AntDirection])
def test_the_number_of_threads_changes_nothing(problem):
    tasks = torch.tensor([[1.0], [-1.0]])
    one, two = (
        episode(problem(threads=n).environments(2, 3), tasks, random_actions(problem(), 60, 2, 3, scale=1.0))
        for n in (1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("problem", [HalfCheetahVelocity, AntVelocity])
def test_environments_keep_nothing_of_an_earlier_episode(problem):
    problem = problem()
    tasks, actions = torch.tensor([[1.0], [0.5]]), random_actions(problem, 40, 2, 2, scale=1.0)
    used = problem.environments(2, 2)
    episode(used, tasks, 1.5 * actions[:29].flip(0), seed=3)
    again = episode(used, tasks, actions)
    fresh = episode(problem.environments(2, 2), tasks, actions)
    assert all(torch.equal(a, b) for a, b in zip(again, fresh, strict=True))


@pytest.mark.parametrize("problem", [HalfCheetahVelocity, AntVelocity])
def test_environments_do_not_influence_each_other(problem):
    problem = problem()
    environments, tasks = problem.environments(2, 2), torch.tensor([[1.0], [0.5]])
    actions = random_actions(problem, 20, 2, 2)
    episodes = [episode(environments, tasks, actions, ends=False)]
    changed = actions.clone()
    changed[:, 1, 1] = 0.0
    episodes.append(episode(environments, tasks, changed, ends=False))
    for a, b in zip(*episodes, strict=True):
        assert torch.equal(a.flatten(0, 1)[:3], b.flatten(0, 1)[:3])
    assert not torch.equal(episodes[0][-2][1, 1], episodes[1][-2][1, 1])


def test_only_what_goes_on_is_stepped():
    problem = AntVelocity()
    environments = problem.environments(1, 3)
    environments.reset(torch.tensor([[1.0]]), seeded())
    before = environments.physics.qpos.copy()
    environments.step(torch.zeros(1, 3, 8), torch.tensor([[True, False, True]]))
    moved = (environments.physics.qpos != before).any(axis=1)
    assert moved.tolist() == [True, False, True]
    environments.step(torch.zeros(1, 3, 8), torch.zeros(1, 3, dtype=torch.bool))


def test_an_ant_ends_its_episode_too_high_or_too_low_and_a_cheetah_never():
    heights = torch.tensor([0.55, 1.1, 0.15])
    ant = AntVelocity().environments(1, 3)
    ant.reset(torch.tensor([[1.0]]), seeded())
    ant.physics.qpos[:, 2] = heights.numpy()
    assert ant.step(torch.zeros(1, 3, 8), alive(1, 3)).terminated.tolist() == [[False, True, True]]
    cheetah = HalfCheetahVelocity().environments(1, 3)
    cheetah.reset(torch.tensor([[1.0]]), seeded())
    cheetah.physics.qpos[:, 1] = [0.0, 5.0, -0.5]
    assert not cheetah.step(torch.zeros(1, 3, 6), alive(1, 3)).terminated.any()


@pytest.mark.parametrize("problem", [HalfCheetahDirection, AntDirection])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
@pytest.mark.parametrize("velocity", ["subtree", "position-difference"])
def test_an_unstable_simulation_ends_finite(problem, bad, velocity, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT
    problem = problem(velocity=velocity)
    environments = problem.environments(1, 3)
    environments.reset(torch.tensor([[1.0]]), seeded())
    environments.physics.qpos[:, 0] = -10.0
    environments.physics.qvel[1, 0] = bad
    step = environments.step(torch.zeros(1, 3, problem.action_size), alive(1, 3))
    assert step.observations.isfinite().all()
    assert step.rewards.abs().max() < 2.0  # being put back at the start, ten metres on, is no progress
    assert environments.physics.failed.tolist() == [False, True, False]
    assert step.terminated.tolist() == [[False, problem.robot is ANT, False]]
    step = environments.step(torch.zeros(1, 3, problem.action_size), alive(1, 3))
    assert not environments.physics.failed.any()
    assert step.observations.isfinite().all()


@pytest.mark.parametrize("problem", [HalfCheetahDirection, AntDirection])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_robot_given_an_action_that_is_not_finite_stays_as_it_is_and_is_rewarded_with_nan(
    problem, bad, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # where MuJoCo would write MUJOCO_LOG.TXT
    problem = problem()
    spoilt, sound = problem.environments(2, 2), problem.environments(2, 2)
    tasks, actions = torch.tensor([[1.0], [-1.0]]), random_actions(problem, 4, 2, 2)
    first, _ = (environments.reset(tasks, seeded()) for environments in (spoilt, sound))
    stuck = torch.tensor([[False, False], [True, False]])
    for time, action in enumerate(actions):
        expected = sound.step(action, alive(2, 2) & ~stuck)
        action[1, 0, time % problem.action_size] = bad
        step = spoilt.step(action, alive(2, 2))
        assert torch.equal(step.rewards.isnan(), stuck)
        assert torch.equal(step.rewards[~stuck], expected.rewards[~stuck])
        assert torch.equal(step.observations[~stuck], expected.observations[~stuck])
        assert torch.equal(step.observations[stuck], first[stuck])
        assert not step.terminated.any()
    assert not spoilt.physics.failed.any()
    assert list(tmp_path.iterdir()) == []


def test_velocities_may_be_others_than_those_drawn():
    environments = HalfCheetahVelocity().environments(2, 1)
    assert environments.reset(torch.tensor([[-1.0], [7.5]]), seeded()).isfinite().all()


def test_a_time_step_is_the_robots_own_unless_given():
    for problem, own in ((HalfCheetahVelocity, 0.01), (AntVelocity, 0.02)):
        for given, expected in ((None, own), (0.005, 0.005)):
            made = problem(timestep=given)
            assert made.timestep == made.environments(1, 1).physics.model.opt.timestep == expected


def test_an_error_in_one_simulation_ends_that_one_only():
    problem = AntDirection(threads=1)
    environments = problem.environments(1, 3)
    environments.reset(torch.tensor([[1.0]]), seeded())
    physics, real = environments.physics, environments.physics.batch

    class Failing:
        status = np.array([0, 1, 0], np.int32)
        reset, bind = staticmethod(real.reset), staticmethod(real.bind)

        @staticmethod
        def step(*arguments, **options):
            real.step(*arguments, **options)
            raise physics.failure(np.array([1]), "out of memory")

    physics.batch = Failing
    step = environments.step(torch.zeros(1, 3, 8), alive(1, 3))
    assert step.terminated.tolist() == [[False, True, False]]
    assert step.observations.isfinite().all()


def test_the_oracle_sees_the_task():
    for problem in (p(oracle=True) for p in PROBLEMS):
        environments = problem.environments(2, 2)
        tasks = problem.sample(2, seeded(1))
        seen = environments.reset(tasks, seeded())
        assert seen.shape[-1] == problem.observation_size == problem.robot.observation_size + 1
        assert_close(seen[..., -1], tasks.expand(2, 2))
        seen = environments.step(torch.zeros(2, 2, problem.action_size), alive(2, 2)).observations
        assert_close(seen[..., -1], tasks.expand(2, 2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: HalfCheetahVelocity(frame_skip=0), "frame_skip=0"),
        (lambda: HalfCheetahVelocity(threads=0), "threads=0"),
        (lambda: HalfCheetahVelocity(timestep=-1.0), "timestep=-1.0"),
        (lambda: HalfCheetahVelocity(velocity="torso"), "velocity='torso'.*'subtree', 'position-difference'"),
        (lambda: HalfCheetahVelocity().environments(1, 0), "rollouts=0"),
        (lambda: about(HalfCheetahVelocity, [0.0, 1.0], 2), r"for 2 tasks of 1 number each, shape \[2, 1\]"),
        (lambda: about(HalfCheetahVelocity, [[0.0], [1.0]], 1), "for 1 task of 1 number, shape"),
        (lambda: about(AntVelocity, [[torch.nan]], 1), "tasks hold nan: give finite numbers"),
        (lambda: about(HalfCheetahDirection, [[-1.0], [0.3]], 2), "tasks hold 0.3: give -1 or 1"),
        (lambda: about(AntDirection, [[0.0]], 1), "tasks hold 0: give -1 or 1"),
        (lambda: about(AntDirection, [[torch.inf]], 1), "tasks hold inf: give finite numbers"),
    ],
)
def test_what_a_user_gets_wrong_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
