"""Many simulations of one robot, stepped together in MuJoCo's own threads."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.rl.envs.extra import require
from headstart.rl.envs.robots import Floats, Robot

POSITION_NOISE, VELOCITY_NOISE = 0.01, 0.1
"""Standard deviations of what a reset adds to the start."""


class Physics:
    """`count` simulations of a robot; every array starts with the simulations and is refreshed by each call.

    Results are the same for any number of threads.

    Args:
        robot: Which robot.
        count: How many simulations.
        timestep: Seconds of a physics step.
        threads: Threads that step them, this one included.
    """

    def __init__(self, robot: Robot, count: int, timestep: float, threads: int):
        mujoco = require("mujoco")
        from mujoco.batch import Batch, SimulationError

        self.robot, self.model = robot, robot.model(timestep)
        stages = mujoco.mjtStage
        self.stage, self.no_stage = (stages.mjSTAGE_ACC if robot.forces else stages.mjSTAGE_VEL), stages.mjSTAGE_NONE
        # With data of its own, a simulation's step goes on from the stages computed after the last one: a fifth
        # faster for the half-cheetah. The ant's are solved anew either way, and shared data stay in the cache.
        self.batch = Batch(self.model, count, min(threads, count), persistent=not robot.forces)
        self.failure: type[RuntimeError] = SimulationError
        self.torso: int = self.model.body("torso").id
        self.free = bool(self.model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE)
        self.start = robot.start(self.model)
        self.qpos, self.qvel, self.ctrl = (self.batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self.centre: Floats = self.batch.sensor("centre").data
        self.velocity: Floats = self.batch.sensor("velocity").data
        kinds = [mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC]
        self.unstable = self.batch.warning[:, min(map(int, kinds)) : max(map(int, kinds)) + 1, 1]
        self.failed = np.zeros(count, bool)
        self.observations = robot.observe(self)  # binds what the robot reads, before a call fills it in

    def field(self, name: str) -> NDArray[Any]:
        """An `MjData` field of all simulations."""
        return self.batch.bind(name)

    def reset(self, generator: torch.Generator) -> None:
        """Every simulation at the start, plus noise drawn from the generator; nothing of its past is left."""
        self.batch.reset(stage=self.no_stage)
        count, positions = self.qpos.shape
        noise = torch.randn(count, positions + self.qvel.shape[1], dtype=torch.float64, generator=generator).numpy()
        self.qpos[:] = self.start + POSITION_NOISE * noise[:, :positions]
        self.qvel[:] = VELOCITY_NOISE * noise[:, positions:]
        if self.free:  # MuJoCo 1.31 left a unit quaternion behind; today's only computes with one
            self.qpos[:, 3:7] /= np.linalg.norm(self.qpos[:, 3:7], axis=1, keepdims=True)
        self.batch.forward()
        self.failed[:] = False
        self.observations = self.robot.observe(self)

    def step(self, actions: Floats, alive: NDArray[np.bool_], frame_skip: int) -> None:
        """Steps the simulations that are `alive`, with `actions` in the actuators' own units.

        Afterwards `failed` tells which simulations became unstable. They are back at the model's default state, as
        MuJoCo itself resets them.
        """
        self.ctrl[:] = actions
        try:
            self.batch.step(alive, nstep=frame_skip, stage=self.stage)
            failed = self.unstable.any(axis=1)
        except self.failure:  # in some simulations; the others did step
            failed = self.unstable.any(axis=1) | (self.batch.status != 0)
        self.observations = self.robot.observe(self)
        if not np.isfinite(self.observations).all():
            failed |= ~np.isfinite(self.observations).all(axis=1)
        self.failed = failed & alive
        if self.failed.any():
            self.batch.reset(self.failed)
            self.observations = self.robot.observe(self)
