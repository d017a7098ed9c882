"""MuJoCo and Gymnasium, imported when first needed: everything else works without them."""

import importlib
from pathlib import Path
from types import ModuleType

NEEDED = {"mujoco": (4, 0), "gymnasium": (1, 0)}
"""The oldest versions this package works with."""

INSTALL = "pip install 'headstart[rl]'"


class MissingExtraError(ImportError):
    """A package of the `rl` extra is not installed, or is too old."""


def require(name: str) -> ModuleType:
    """The package `name`, imported.

    Raises:
        MissingExtraError: It is missing or too old; the message has the command that installs it.
    """
    oldest = NEEDED[name]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"This environment needs the package {name!r}: {INSTALL}", name=name) from error
    version = str(getattr(module, "__version__", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < oldest:
        wanted = ".".join(map(str, oldest))
        raise MissingExtraError(f"{name} {version} is too old, {wanted} or newer is needed: {INSTALL}", name=name)
    return module


def robot_file(name: str) -> Path:
    """Where Gymnasium keeps the robot model `name`, such as "ant.xml".

    Raises:
        MissingExtraError: Gymnasium is missing or too old, or no longer has this model.
    """
    package = require("gymnasium")
    path = Path(str(package.__file__)).parent / "envs" / "mujoco" / "assets" / name
    if not path.is_file():
        raise MissingExtraError(f"gymnasium {package.__version__} has no robot model {name} at {path}: {INSTALL}")
    return path
