"""Half-cheetah and ant as the paper had them, one simulation at a time in plain MuJoCo; shares no code with ours."""

import warnings
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


def cheetah_model(timestep=0.01):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the shipped file asks for a total mass in a deprecated way
        model = mujoco.MjModel.from_xml_path(str(ASSETS / "half_cheetah.xml"))
    model.opt.timestep = timestep
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
    return model


def ant_model(timestep=0.02):
    model = mujoco.MjModel.from_xml_path(str(ASSETS / "ant.xml"))
    model.opt.timestep = timestep
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_RK4
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
    model.geom_solref[:] = [0.02, 1]
    model.geom_solimp[:, :3] = [0.8, 0.8, 0.01]
    return model


class Simulation:
    """One robot; `step` sets its state, steps, and computes everything anew at the state after."""

    def __init__(self, model, frame_skip=1):
        self.model, self.data, self.frame_skip = model, mujoco.MjData(model), frame_skip

    def set(self, qpos, qvel, warm_start):
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:], self.data.qacc_warmstart[:] = qpos, qvel, warm_start

    def step(self, controls):
        self.data.ctrl[:] = controls
        for _ in range(self.frame_skip):
            mujoco.mj_step(self.model, self.data)
        self.stay()

    def stay(self):
        """Computes everything at the state that was set."""
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_rnePostConstraint(self.model, self.data)

    def fallen(self):
        return not 0.2 <= self.data.qpos[2] <= 1.0

    def centre(self):
        masses = self.model.body_mass[1:, None]
        return (masses * self.data.xipos[1:]).sum(0) / masses.sum()

    def centre_velocity(self):
        momentum, velocity = np.zeros(3), np.zeros(6)
        for body in range(1, self.model.nbody):
            mujoco.mj_objectVelocity(self.model, self.data, mujoco.mjtObj.mjOBJ_BODY, body, velocity, 0)
            momentum += self.model.body_mass[body] * velocity[3:]
        return momentum / self.model.body_mass.sum()


def cheetah_observation(simulation):
    return np.concatenate([simulation.data.qpos[1:], simulation.data.qvel, simulation.centre()])


def ant_observation(simulation):
    data = simulation.data
    forces = np.clip(data.cfrc_ext, -1, 1).flatten()
    return np.concatenate([data.qpos, data.qvel, forces, data.body("torso").xmat, simulation.centre()])


def cheetah_reward(simulation, velocity, action, task, kind):
    run_cost = abs(velocity - task) if kind == "velocity" else -task * velocity
    return -run_cost - 1e-1 * 0.5 * sum(a**2 for a in action)


def ant_reward(simulation, velocity, action, task, kind):
    forward = -abs(velocity - task) + 1.0 if kind == "velocity" else task * velocity
    control = 0.5e-2 * sum(a**2 for a in action)
    contact = 0.5e-3 * np.sum(np.clip(simulation.data.cfrc_ext, -1, 1) ** 2)
    return forward - control - contact + 0.05
