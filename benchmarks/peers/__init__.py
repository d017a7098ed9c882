"""One small file per library, each with one function `prepare(work, ...) -> Prepared`.

Every one of them is written as that library's own examples are, in the fastest form that these show, and does
the same work: a second-order meta-gradient of the mean query loss over a meta-batch, and Adam's step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from headstart.types import Params


class Prepared(NamedTuple):
    """A work in the hands of a library."""

    step: Callable[[], None]
    """One whole meta-iteration; returns when it is done."""
    gradient: Callable[[], Params]
    """The meta-gradient at the initial parameters, whatever steps were taken, by the work's parameter names."""


class System(NamedTuple):
    """How something to be timed is prepared: a module of this package, and arguments of its `prepare`."""

    module: str
    options: dict[str, Any]
    package: str
    """Distribution whose version is reported."""
    first_order: bool = False


def _headstart(mode: str, first_order: bool = False, **options: Any) -> System:
    return System("using_headstart", {"mode": mode} | options, "headstart", first_order)


SYSTEMS: dict[str, System] = {
    "Headstart eager": _headstart("eager"),
    "Headstart compiled": _headstart("compiled"),
    "Headstart compiled bfloat16": _headstart("compiled", precision="bfloat16"),
    "plain loop float32": System("plain", {}, "torch"),
    "learn2learn": System("using_learn2learn", {}, "learn2learn"),
    "higher": System("using_higher", {}, "higher"),
    "TorchOpt": System("using_torchopt", {}, "torchopt"),
    "TorchOpt vmap": System("using_torchopt", {"vectorized": True}, "torchopt"),
    "parallel-metalearn": System("using_parallel_metalearn", {}, "parallel-metalearn"),
    "JAX": System("using_jax", {}, "jax"),
    "Headstart eager, first order": _headstart("eager", first_order=True),
    "Headstart compiled, first order": _headstart("compiled", first_order=True),
}
GROWING: dict[str, System] = {
    "Headstart eager, all steps kept": _headstart("eager", recompute=False),
    "Headstart eager, steps recomputed": _headstart("eager", recompute=True),
}
"""Only for how cost grows, see `scaling.py`."""
