import subprocess
import sys
import types

import pytest

from headstart.rl.envs import HalfCheetahVelocity
from headstart.rl.envs.extra import MissingExtraError, require

INSTALL = r"pip install 'headstart\[rl\]'"


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingExtraError, match=f"'mujoco': {INSTALL}"):
        HalfCheetahVelocity()


def test_an_old_package_is_named_with_the_command_that_installs_it(monkeypatch):
    for name, version, oldest in (("mujoco", "3.9.1", "4.0"), ("gymnasium", "0.29.1", "1.0")):
        old = types.ModuleType(name)
        old.__version__ = version
        monkeypatch.setitem(sys.modules, name, old)
        with pytest.raises(MissingExtraError, match=f"{name} {version} is too old, {oldest} or newer.*{INSTALL}"):
            require(name)


def test_navigation_and_the_small_problems_need_neither():
    code = (
        "import sys; sys.modules['mujoco'] = sys.modules['gymnasium'] = None\n"
        "import torch; from headstart.rl.envs import Navigation, FourStates, Bandit\n"
        "for problem in (Navigation(), FourStates(), Bandit()):\n"
        "    generator = torch.Generator()\n"
        "    environments = problem.environments(2, 2)\n"
        "    print(tuple(environments.reset(problem.sample(2, generator), generator).shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["(2, 2, 2)", "(2, 2, 9)", "(2, 2, 1)"]
