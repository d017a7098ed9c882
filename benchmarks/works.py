"""The works: one meta-batch each, and all that a library needs to take a meta-gradient on it.

A work is the same for everyone: initial parameters, tasks, loss, inner steps and rate. Inputs are random
tensors fixed by a seed (prototypes and noise where there are classes), since the arithmetic does not depend on
what an image shows. Every parameter adapts; batch norm normalises support and query each by themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.models import MLP, Conv4
from headstart.models.norm import EPS, shift_only
from headstart.types import Batch, Params, Task, generator

TOKENS, TOKEN_FEATURES, HEADS = 16, 8, 4
"""Length and size of the transformer's input sequences, and its attention heads."""


Sizes = dict[str, float]
"""Fields of a `Work` to replace."""


@dataclass(frozen=True)
class Work:
    """A meta-iteration to be timed."""

    name: str
    family: str
    """Kind of network, a key of `NETWORKS`; the JAX peer writes each again by hand."""
    tasks: int
    shots: int
    """Support examples, per class where there are classes."""
    queries: int
    inner_lr: float
    steps: int = 1
    ways: int = 0
    """Number of classes; 0 for regression."""
    width: int = 40
    """Units of a hidden layer, filters of a convolution, features of a token."""
    vmap_tasks: int | None = None
    """Tasks per `vmap` for peers that vectorise, whichever was fastest; None for the whole meta-batch."""

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Mean squared error, or mean cross-entropy."""
        return F.cross_entropy if self.ways else F.mse_loss

    def model(self) -> nn.Module:
        """The network with its initial parameters, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return NETWORKS[self.family](self)

    def sample(self) -> Task:
        """The meta-batch, the same at every call."""
        rng = generator(0, "benchmark")
        shape = INPUTS[self.family]
        if self.ways:
            prototypes = torch.rand(self.tasks, self.ways, 1, *shape, generator=rng)
            return Task(*(_classified(prototypes, count, rng) for count in (self.shots, self.queries)))
        phases = torch.rand(self.tasks, 1, 1, generator=rng)
        return Task(*(_waves(phases, count, shape, rng) for count in (self.shots, self.queries)))

    def describe(self) -> str:
        """The work in words."""
        examples = f"{self.ways}-way {self.shots}-shot" if self.ways else f"{self.shots} examples"
        each = " per class" if self.ways else ""
        return (
            f"{self.tasks} tasks, {examples}, {self.queries} queries{each}, {self.steps} inner steps of "
            f"{self.inner_lr:g}, {self.family} of width {self.width}"
        )


def _classified(prototypes: Tensor, count: int, rng: torch.Generator) -> Batch:
    """`count` noisy copies of every prototype, and their classes."""
    tasks, ways = prototypes.shape[:2]
    noise = torch.rand(tasks, ways, count, *prototypes.shape[3:], generator=rng)
    labels = torch.arange(ways).repeat_interleave(count).expand(tasks, -1).contiguous()
    return Batch((0.5 * (prototypes + noise)).flatten(1, 2), labels)


def _waves(phases: Tensor, count: int, shape: tuple[int, ...], rng: torch.Generator) -> Batch:
    """Inputs in [-5, 5], and sine waves of their mean."""
    inputs = 10 * torch.rand(len(phases), count, *shape, generator=rng) - 5
    return Batch(inputs, torch.sin(inputs.flatten(2).mean(-1, keepdim=True) + 3 * phases))


class PooledConv4(nn.Module):
    """The paper's MiniImagenet network: four 3x3 convolutions of stride 1, each halved by max-pooling."""

    def __init__(self, outputs: int, channels: int, filters: int, size: int):
        super().__init__()
        blocks = []
        for channels_in, channels_out in pairwise([channels] + [filters] * 4):
            conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
            norm = shift_only(nn.BatchNorm2d(channels_out, eps=EPS))
            blocks.append(nn.Sequential(conv, norm, nn.ReLU(), nn.MaxPool2d(2)))
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(filters * (size // 16) ** 2, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """`[examples, channels, size, size]` to `[examples, outputs]`."""
        return self.head(self.body(images).flatten(1))


class SequenceRegressor(nn.Module):
    """A small transformer encoder (two layers, no dropout); the mean over tokens is read out."""

    def __init__(self, features: int, width: int, heads: int):
        super().__init__()
        self.embed = nn.Linear(features, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)

    def forward(self, sequences: Tensor) -> Tensor:
        """`[examples, tokens, features]` to `[examples, 1]`."""
        return self.head(self.encoder(self.embed(sequences)).mean(1))


NETWORKS: dict[str, Callable[[Work], nn.Module]] = {
    "mlp": lambda work: MLP(1, 1, (work.width, work.width)),
    "strided": lambda work: Conv4(work.ways, filters=work.width),
    "pooled": lambda work: PooledConv4(work.ways, 3, work.width, 84),
    "transformer": lambda work: SequenceRegressor(TOKEN_FEATURES, work.width, HEADS),
}
INPUTS: dict[str, tuple[int, ...]] = {
    "mlp": (1,),
    "strided": (1, 28, 28),
    "pooled": (3, 84, 84),
    "transformer": (TOKENS, TOKEN_FEATURES),
}

WORKS = {
    work.name: work
    for work in (
        Work("sinusoid", "mlp", tasks=25, shots=10, queries=10, inner_lr=0.01),
        Work("omniglot 5-way 1-shot", "strided", 32, 1, 1, inner_lr=2.0, ways=5, width=64),
        Work("omniglot 20-way 5-shot", "strided", 16, 5, 5, inner_lr=2.0, steps=5, ways=20, width=64, vmap_tasks=1),
        Work("mini 5-way 1-shot", "pooled", 4, 1, 15, inner_lr=0.05, steps=5, ways=5, width=32, vmap_tasks=1),
        Work("mini 5-way 5-shot", "pooled", 4, 5, 15, inner_lr=0.05, steps=5, ways=5, width=32, vmap_tasks=1),
        Work("transformer", "transformer", tasks=8, shots=5, queries=5, inner_lr=0.01, width=64),
    )
}
QUICK = ("sinusoid", "omniglot 5-way 1-shot", "transformer")


def work_named(name: str, overrides: Sizes | None = None) -> Work:
    """A work, with some of its sizes replaced.

    Raises:
        ValueError: There is no such work.
    """
    if name not in WORKS:
        raise ValueError(f"There is no work {name!r}; there are: {', '.join(WORKS)}.")
    return replace(WORKS[name], **dict[str, Any](overrides or {}))


def native(model: nn.Module) -> nn.Module:
    """`model`, changed in place so that PyTorch's own layers can differentiate it twice, with the same values.

    Native batch norm with a shift and no scale has no second derivative ("Expected a proper Tensor but got
    None"): it is given a constant scale of one. Running statistics, which nobody here uses, go.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            del layer.weight
            layer.register_buffer("weight", torch.ones(layer.num_features))
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
            layer.num_batches_tracked = None
    return model


def initial(model: nn.Module) -> Params:
    """A copy of the parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def restore(model: nn.Module, values: Params) -> None:
    """Set the parameters to `values`, in place."""
    for name, p in model.named_parameters():
        p.copy_(values[name])
        p.grad = None


def gradients(model: nn.Module) -> Params:
    """A copy of what is in the parameters' `.grad`."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def unbind(tasks: Task) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Support inputs and targets, query inputs and targets, for each task: what peers' loops go over."""
    return list(zip(*tasks.support, *tasks.query, strict=True))
