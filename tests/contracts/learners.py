"""The learners that `test_learners.py` holds to the contract: data, and how one is made for a test."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from contracts.modules import WAYS
from torch import Tensor, nn

from headstart import (
    ALFA,
    ANIL,
    BOIL,
    CAVIA,
    IMAML,
    MAML,
    SGD,
    Batch,
    BiasOnly,
    FiLM,
    LoRA,
    MAMLPlusPlus,
    MetaCurvature,
    MetaSGD,
    ProtoMAML,
    ProtoNet,
    Reptile,
    SharedHead,
    Task,
    ZeroHead,
)
from headstart.models import add_context
from headstart.vectorize import stack


class Entry(NamedTuple):
    """A learner: its class, its settings, and what holds for it."""

    cls: type[MAML]
    settings: Mapping[str, Any] = MappingProxyType({})
    names: Sequence[str] = ()
    """What `headstart train --learner` calls it."""
    prepare: Callable[[nn.Module], Any] = lambda model: None
    """What a model needs first, in place."""
    exact: bool = True
    """Whether the meta-gradient is that of the meta-loss, rather than a stated approximation."""
    own_rule: bool = False
    """Whether it makes its inner optimiser itself, from `lr`."""


LEARNERS: dict[str, Entry] = {
    "MAML": Entry(MAML, names=["maml"]),
    "first-order MAML": Entry(MAML, {"first_order": True}, ["fomaml"], exact=False),
    "ANIL": Entry(ANIL, names=["anil"]),
    "BOIL": Entry(BOIL, names=["boil"]),
    "Meta-SGD": Entry(MetaSGD, names=["meta-sgd"], own_rule=True),
    "MAML++": Entry(MAMLPlusPlus, {"multi_step_loss": 3}, ["maml++"], own_rule=True),
    "MAML++, first order at first": Entry(
        MAMLPlusPlus, {"first_order_until": 2, "step_rates": False}, own_rule=True, exact=False
    ),
    "Meta-Curvature": Entry(MetaCurvature, names=["meta-curvature"], own_rule=True),
    "ALFA": Entry(ALFA, names=["alfa"], own_rule=True),
    "Reptile": Entry(Reptile, names=["reptile"], exact=False),
    "iMAML": Entry(IMAML, {"strength": 1.5, "solver_steps": 3}, ["imaml"], exact=False),
    "CAVIA": Entry(CAVIA, names=["cavia"], prepare=lambda model: add_context(model, 3)),
    "LoRA": Entry(LoRA, {"rank": 2}, ["lora"]),
    "FiLM": Entry(FiLM, names=["film"]),
    "bias only": Entry(BiasOnly, names=["bias-only"]),
    "shared head": Entry(SharedHead, {"ways": WAYS}, ["shared-head"]),
    "zero head": Entry(ZeroHead, {"ways": WAYS}, ["zero-head"]),
    "ProtoNet": Entry(ProtoNet, {"ways": WAYS, "steps": 0}, ["protonet"]),
    "Proto-MAML": Entry(ProtoMAML, {"ways": WAYS}, ["proto-maml"]),
}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, WAYS)),
    "batch norm": lambda: nn.Sequential(nn.Linear(2, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, WAYS)),
}


def build(name: str, model: nn.Module, lr: float = 0.3, **settings: Any) -> MAML:
    """The learner on `model`, as a user would make it; two inner steps."""
    entry = LEARNERS[name]
    entry.prepare(model)
    rule = {"lr": lr} if entry.own_rule else {"inner": SGD(lr)}
    return entry.cls(model, F.cross_entropy, **{"steps": 2, **rule, **entry.settings, **settings})


def made(name: str, model: str = "batch norm", seed: int = 0, **settings: Any) -> MAML:
    """In double precision and evaluation mode, with no meta-parameter left at the value that it begins with."""
    torch.manual_seed(seed)
    learner = build(name, MODELS[model]().double(), **settings)
    with torch.no_grad():
        for parameter_name, parameter in learner.named_parameters():
            # Learned step sizes are multiples of a unit: they vary by a share, lest the steps become huge.
            size = 0.6 * parameter.abs() if parameter_name.startswith("inner.multiples.") else 0.2
            parameter.add_(size * torch.randn_like(parameter))
        for buffer_name, buffer in learner.named_buffers():
            if buffer_name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
            elif buffer_name == "updates":
                buffer.add_(1)
    return learner.eval()


def steps_of(name: str, steps: int) -> int:
    """A number of steps other than trained with, for learners that take any."""
    return 0 if LEARNERS[name].cls is ProtoNet else steps


def tasks_of(count: int = 3, ways: int = WAYS, shots: int = 2, queries: int = 3) -> Task:
    """Points of the plane, in classes around centres."""
    rng = torch.Generator().manual_seed(0)

    def points(centres: Tensor, each: int) -> Batch:
        noise = torch.randn(each * ways, 2, generator=rng, dtype=torch.float64)
        return Batch(centres.repeat(each, 1) + noise, torch.arange(ways).repeat(each))

    centres = [torch.randn(ways, 2, generator=rng, dtype=torch.float64) for _ in range(count)]
    return stack([Task(points(c, shots), points(c, queries)) for c in centres])
