"""The paper's two robots: what Gymnasium ships, brought back to the models of the paper's day.

The paper ran rllab's environments. Gymnasium's robot models descend from the same files, so a few numbers set in the
loaded specification give rllab's robots back: no model file is kept here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.rl.envs.extra import require, robot_file

if TYPE_CHECKING:
    from headstart.rl.envs.physics import Physics

Floats = NDArray[np.float64]

HALF_CHEETAH_MASS = 14.0
"""Kilograms, the whole body."""

MEMORY = 1 << 19
"""Bytes of working memory per simulation; these robots were seen to need 17,000."""


@dataclass(frozen=True)
class Robot:
    """A robot: its model, what it observes, what its movements cost and when it has fallen."""

    name: str
    file: str
    """The model's name among Gymnasium's."""

    timestep: float
    """Seconds of a physics step."""

    observation_size: int
    action_size: int

    forces: bool
    """Whether it observes contact forces, for which MuJoCo solves for the new state's accelerations too."""

    edit: Callable[[Any], None]
    """Changes the loaded `MjSpec` in place."""

    start: Callable[[Any], Floats]
    """From the compiled model to the positions an episode starts from, before noise."""

    observe: Callable[["Physics"], Floats]
    """Observations, `[simulations, observation_size]`."""

    pose: Callable[[Floats], Floats]
    """From one observation back to the positions, but for where the robot is along x."""

    bonus: Callable[["Physics", Floats], Floats]
    """From the simulations and their clipped actions to the rewards besides the task's own, `[simulations]`."""

    fallen: Callable[["Physics"], NDArray[np.bool_]] | None
    """Which episodes the robot itself ended, `[simulations]`; none ever, if absent."""

    def model(self, timestep: float | None = None) -> Any:
        """The compiled `MjModel`, with `timestep` seconds per physics step (the robot's own by default)."""
        mujoco = require("mujoco")
        spec = mujoco.MjSpec.from_file(str(robot_file(self.file)))
        self.edit(spec)
        spec.option.timestep = timestep or self.timestep
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND  # one robot is one island: a tenth faster
        spec.memory = MEMORY
        # rllab took the velocity and position of the whole body's centre of mass, at the state after the step.
        sensors = mujoco.mjtSensor
        for name, sensor in (("centre", sensors.mjSENS_SUBTREECOM), ("velocity", sensors.mjSENS_SUBTREELINVEL)):
            spec.add_sensor(name=name, type=sensor, objtype=mujoco.mjtObj.mjOBJ_BODY, objname="torso")
        return spec.compile()


def _edit_half_cheetah(spec: Any) -> None:
    mujoco = require("mujoco")
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
    spec.compiler.settotalmass = -1  # deprecated: the densities are scaled instead
    scale = HALF_CHEETAH_MASS / spec.compile().body_mass.sum()
    for geom in spec.geoms:
        geom.density *= scale


def _observe_half_cheetah(physics: "Physics") -> Floats:
    return np.concatenate([physics.qpos[:, 1:], physics.qvel, physics.centre], axis=1)


def _half_cheetah_bonus(physics: "Physics", actions: Floats) -> Floats:
    return -0.05 * np.square(actions).sum(axis=1)


HALF_CHEETAH = Robot(
    name="half-cheetah",
    file="half_cheetah.xml",
    timestep=0.01,
    observation_size=20,
    action_size=6,
    forces=False,
    edit=_edit_half_cheetah,
    start=lambda model: model.qpos0.copy(),
    observe=_observe_half_cheetah,
    pose=lambda observation: np.concatenate([[0.0], observation[:8]]),
    bonus=_half_cheetah_bonus,
    fallen=None,
)


def _edit_ant(spec: Any) -> None:
    mujoco = require("mujoco")
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_RK4
    for geom in spec.geoms:  # rllab's contacts; Gymnasium's file leaves them at MuJoCo's defaults
        geom.solref[:2] = 0.02, 1.0
        geom.solimp[:3] = 0.8, 0.8, 0.01
    # MuJoCo computes contact forces on bodies (`cfrc_ext`) only for a sensor of accelerations or forces to read.
    sensor = mujoco.mjtSensor.mjSENS_FRAMELINACC
    spec.add_sensor(name="forces", type=sensor, objtype=mujoco.mjtObj.mjOBJ_XBODY, objname="torso")


CONTACTS = slice(29, 113)
"""Where the ant's observation has its contact forces: a torque and a force on each of 14 bodies, clipped to [-1, 1]."""


def _observe_ant(physics: "Physics") -> Floats:
    contacts = physics.field("cfrc_ext").reshape(len(physics.qpos), -1).clip(-1.0, 1.0)
    rotation = physics.field("xmat")[:, physics.torso]
    return np.concatenate([physics.qpos, physics.qvel, contacts, rotation, physics.centre], axis=1)


def _ant_bonus(physics: "Physics", actions: Floats) -> Floats:
    contacts = physics.observations[:, CONTACTS]
    effort, impact = np.square(actions).sum(axis=1), np.square(contacts).sum(axis=1)
    return 0.05 - 0.005 * effort - 0.0005 * impact


def _ant_fallen(physics: "Physics") -> NDArray[np.bool_]:
    height = physics.qpos[:, 2]
    return ~((height >= 0.2) & (height <= 1.0))


ANT = Robot(
    name="ant",
    file="ant.xml",
    timestep=0.02,
    observation_size=125,
    action_size=8,
    forces=True,
    edit=_edit_ant,
    start=lambda model: np.array(model.numeric("init_qpos").data),
    observe=_observe_ant,
    pose=lambda observation: observation[:15],
    bonus=_ant_bonus,
    fallen=_ant_fallen,
)
