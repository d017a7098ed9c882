"""Robots drawn offscreen by MuJoCo's renderer: without a display, by whichever OpenGL is there."""

import ctypes.util
import importlib
import os
import sys
from typing import Any

import numpy as np

from headstart.rl.envs.drawing import Picture
from headstart.rl.envs.extra import require
from headstart.rl.envs.robots import Floats, Robot

LIBRARIES = {"osmesa": "OSMesa", "egl": "EGL"}
"""What draws without a display, in order of preference, and its library."""

INSTALL = "On Debian or Ubuntu: apt-get install libosmesa6, or libegl1 libegl-mesa0 libgl1-mesa-dri."


class RenderingError(RuntimeError):
    """There is no OpenGL here to draw with."""


def backend() -> str:
    """What is to draw: `MUJOCO_GL` if it is set, else "glfw" where there is a display, else "osmesa" or "egl".

    macOS always has its own, "cgl".

    Raises:
        RenderingError: There is neither a display nor a library that draws without one.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen not in ("", "enable", "enabled", "on", "true", "1"):
        return {"glx": "glfw", "wgl": "glfw"}.get(chosen, chosen)
    if sys.platform == "darwin":
        return "cgl"
    if not sys.platform.startswith("linux") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return "glfw"
    for name, library in LIBRARIES.items():
        if ctypes.util.find_library(library):
            return name
    raise RenderingError(f"There is no display and no library to draw without one. {INSTALL}")


class Studio:
    """Draws one robot from its observations, with a camera that follows it.

    Args:
        robot: Which robot.
        size: Height and width of the pictures, in pixels.

    Raises:
        RenderingError: There is no OpenGL to draw with; the message says what to install.
    """

    def __init__(self, robot: Robot, size: tuple[int, int]):
        self.mujoco = mujoco = require("mujoco")
        self.robot, self.model = robot, robot.model()
        self.data = mujoco.MjData(self.model)
        self.torso: int = self.model.body("torso").id
        height, width = size
        self.pixels, self.rectangle = np.zeros((height, width, 3), np.uint8), mujoco.MjrRect(0, 0, width, height)
        offscreen = self.model.vis.global_
        offscreen.offwidth, offscreen.offheight = width, height
        self.context, self.canvas = _open(self.model, width, height)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self.canvas)
        self.scene, self.options = mujoco.MjvScene(self.model, maxgeom=1000), mujoco.MjvOption()
        self.camera = mujoco.MjvCamera()
        self.camera.type, self.camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self.model.camera("track").id

    def draw(self, observation: Floats) -> Picture:
        """The robot as `observation` (of any problem with this robot) has it."""
        mujoco, model, data = self.mujoco, self.model, self.data
        data.qpos[:] = self.robot.pose(observation)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        centre = self.robot.observation_size - 3  # both robots' observations end with their centre of mass
        data.qpos[0] += observation[centre] - data.subtree_com[self.torso, 0]
        mujoco.mj_forward(model, data)
        self.context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, self.options, None, self.camera, everything, self.scene)
        mujoco.mjr_render(self.rectangle, self.scene, self.canvas)
        mujoco.mjr_readPixels(self.pixels, None, self.rectangle, self.canvas)
        return self.pixels[::-1].copy()

    def close(self) -> None:
        """Frees what OpenGL holds."""
        self.context.make_current()
        self.canvas.free()
        self.context.free()


def _open(model: Any, width: int, height: int) -> tuple[Any, Any]:
    """An OpenGL context, current, and what MuJoCo draws on in it.

    MuJoCo's own choice of context is fixed when it is imported, and assumes a display.
    """
    name = backend()
    os.environ["MUJOCO_GL"] = name  # by which MuJoCo's library finds OpenGL's functions
    mujoco = require("mujoco")
    try:
        context = importlib.import_module(f"mujoco.{name}").GLContext(width, height)
        context.make_current()
        canvas = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
    except Exception as error:  # each backend fails in its own way
        hint = "" if name in LIBRARIES else " Without a display, set MUJOCO_GL to osmesa or egl."
        raise RenderingError(f"OpenGL by {name} does not work here ({error}).{hint} {INSTALL}") from error
    return context, canvas
