"""The architectures that `test_any_module.py` holds to the contract: data, nothing more.

Each is what a user would bring, written without a thought of meta-learning. `substitutes` says which torch
functions the library replaces by exact compositions while the module runs, `runs` whether it is vectorised over
tasks or looped over.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from headstart.exact import batch_moments
from headstart.models import MLP, Conv4
from headstart.models.norm import Normalizer

WAYS = 3


class Case(NamedTuple):
    """A module, inputs for it, and how the library is expected to run it."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Any]
    substitutes: frozenset[Callable] = frozenset()
    runs: str = "vmap"
    training: bool = True
    examples: int = 9
    lr: float = 0.1
    kinked: bool = False
    """ReLU behind batch norm. Rounding to bfloat16 pushes units over the kink, in PyTorch's own loop as well: both
    are then wrong by up to a half, and the contract is that the library is no worse. Instance norm divides by the
    deviation of four positions, with the same effect."""


def features(n: int, rng: torch.Generator) -> Tensor:
    return torch.randn(n, 5, generator=rng)


def images(n: int, rng: torch.Generator) -> Tensor:
    return torch.randn(n, 1, 16, 16, generator=rng)


def larger_images(n: int, rng: torch.Generator) -> Tensor:
    """Of which Conv-4 leaves two by two positions."""
    return torch.randn(n, 1, 17, 17, generator=rng)


def sequences(n: int, rng: torch.Generator) -> Tensor:
    return torch.randn(n, 4, 5, generator=rng)


def tokens(n: int, rng: torch.Generator) -> Tensor:
    return torch.randint(0, 7, (n, 4), generator=rng)


def pair(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    return features(n, rng), tokens(n, rng)


def named(n: int, rng: torch.Generator) -> dict[str, Tensor]:
    return {"numbers": features(n, rng), "words": tokens(n, rng)}


class Residual(nn.Module):
    """Two residual blocks with batch norm, the second with a projection."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.GELU())
        self.first, self.second = self.block(channels, channels), self.block(channels, 2 * channels)
        self.project = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.BatchNorm2d(2 * channels))
        self.head = nn.Linear(2 * channels, WAYS)

    @staticmethod
    def block(channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.GELU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.gelu(x + self.first(x))
        x = F.gelu(self.project(x) + self.second(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last output."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.rnn = kind(5, 6, batch_first=True)
        self.head = nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Transformer(nn.Module):
    """PyTorch's own encoder, with dropout, read out at the mean position."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=12, dropout=0.1, batch_first=True)
        self.embed = nn.Linear(5, 8)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Tied(nn.Module):
    """One weight used twice: words are embedded by the matrix that scores them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)
        self.score = nn.Linear(6, 7, bias=False)
        self.score.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.score(self.mix(self.embed(words).mean(1)).tanh())


class FrozenAndUnused(nn.Module):
    """A body that is not trained, a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(5, 8), nn.Linear(8, WAYS), nn.Linear(2, 2)
        self.body.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


class Buffers(nn.Module):
    """Integer and boolean buffers, and one that is written in `forward`."""

    def __init__(self):
        super().__init__()
        self.position = nn.Embedding(4, 5)
        self.head = nn.Linear(5, WAYS)
        self.register_buffer("positions", torch.arange(4))
        self.register_buffer("kept", torch.tensor([True, True, False, True]))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(((x + self.position(self.positions)) * self.kept[:, None]).tanh().mean(1))


class TwoInputs(nn.Module):
    """Numbers and words: `forward` takes two arguments."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.head = nn.Linear(10, WAYS)

    def forward(self, numbers: Tensor, words: Tensor) -> Tensor:
        return self.head(torch.cat([numbers, self.embed(words).mean(1)], -1).tanh())


class Words(nn.Module):
    """Sentences read as a sequence and as a bag of words."""

    def __init__(self):
        super().__init__()
        self.words, self.bag = nn.Embedding(7, 5), nn.EmbeddingBag(7, 5)
        self.head = nn.Linear(10, WAYS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.cat([self.words(words).tanh().mean(1), self.bag(words)], -1))


def conv4(normalizer: Normalizer, filters: int = 4) -> nn.Module:
    return smooth(Conv4(WAYS, filters=filters, normalizer=normalizer))


def convolutions(norm: nn.Module) -> nn.Module:
    first, second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
    return nn.Sequential(first, norm, nn.Tanh(), second, nn.Flatten(), nn.Linear(64, WAYS))


def weight_norm_mlp() -> nn.Module:
    normed = parametrizations.weight_norm
    return nn.Sequential(normed(nn.Linear(5, 8)), nn.Tanh(), normed(nn.Linear(8, WAYS), dim=None))


def smooth(model: nn.Module) -> nn.Module:
    """`model` with each ReLU layer replaced by GELU, in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.GELU())
    return model


BATCH, LAYER, INSTANCE = frozenset([F.batch_norm]), frozenset([F.layer_norm]), frozenset([F.instance_norm])
TASK = frozenset([batch_moments])
WORDS, ATTENTION = frozenset([F.embedding]), frozenset([F.multi_head_attention_forward])

CASES: dict[str, Case] = {
    "MLP": Case(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, WAYS)), features),
    "MLP, batch norm": Case(
        lambda: smooth(MLP(5, WAYS, (8, 8), normalizer="batch")), features, BATCH, examples=30, lr=0.01
    ),
    "Conv-4, batch norm": Case(lambda: Conv4(WAYS, filters=4), images, BATCH, examples=30, lr=0.01, kinked=True),
    "Conv-4, batch norm, GELU": Case(lambda: smooth(Conv4(WAYS, filters=4)), images, BATCH, examples=30, lr=0.01),
    "Conv-4, layer norm": Case(lambda: conv4("layer"), larger_images, lr=0.03),
    "Conv-4, instance norm": Case(lambda: conv4("instance"), larger_images, INSTANCE, lr=0.01, kinked=True),
    "Conv-4, group norm": Case(lambda: conv4("group", filters=16), larger_images, lr=0.002),
    "Conv-4, TaskNorm-I": Case(lambda: conv4("task-instance"), larger_images, TASK, lr=0.03),
    "Conv-4, TaskNorm-L": Case(lambda: conv4("task-layer"), larger_images, TASK, lr=0.03),
    "MLP, TaskNorm-L": Case(lambda: smooth(MLP(5, WAYS, (8, 8), normalizer="task-layer")), features, TASK),
    "residual network, batch norm": Case(Residual, images, BATCH),
    "layer norm": Case(lambda: convolutions(nn.LayerNorm([4, 8, 8])), images, LAYER, lr=0.5),
    "instance norm": Case(lambda: convolutions(nn.InstanceNorm2d(4, affine=True)), images, INSTANCE, lr=0.5),
    "LSTM": Case(lambda: Recurrent(nn.LSTM), sequences, runs="loop"),
    "GRU": Case(lambda: Recurrent(nn.GRU), sequences, runs="loop"),
    "transformer encoder with dropout": Case(Transformer, sequences, LAYER | ATTENTION, training=False),
    "tied weights": Case(Tied, tokens, WORDS),
    "frozen and unused parameters": Case(FrozenAndUnused, features),
    "weight norm": Case(weight_norm_mlp, features, frozenset([torch._weight_norm])),
    "embedding and embedding bag": Case(Words, tokens, WORDS | {F.embedding_bag}),
    "buffers that are not floats": Case(Buffers, sequences, WORDS),
    "tuple inputs": Case(TwoInputs, pair, WORDS),
    "dict inputs": Case(TwoInputs, named, WORDS),
}
