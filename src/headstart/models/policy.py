"""Policies: networks from observations to a distribution over actions.

What a distribution needs in meta-reinforcement learning is here too, as plain functions of its tensors: these go
through `torch.vmap` and forward- and reverse-mode differentiation, to second order.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Activation = Literal["relu", "tanh"]


class Gaussian(NamedTuple):
    """Independent normal distributions of an action's numbers: means `[..., action]`, and deviations that broadcast."""

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Actions, `[..., action]`."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise.to(self.mean.device)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-density of `actions`, `[...]`."""
        standardized = (actions - self.mean) * (-self.log_std).exp()
        return -(0.5 * standardized.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: "Gaussian") -> Tensor:
        """Kullback-Leibler divergence of this from `other`, `[...]`: the expectation is over this."""
        apart = (self.mean - other.mean).square() * (-2 * other.log_std).exp()
        ratio = (2 * (self.log_std - other.log_std)).exp()
        return 0.5 * (apart + ratio - 1 - 2 * (self.log_std - other.log_std)).sum(-1)

    def fisher(self, tangent: "Gaussian") -> "Gaussian":
        """The Fisher information matrix in `(mean, log_std)` times `tangent`: diagonal, 1 / variance and 2."""
        return Gaussian((-2 * self.log_std).exp() * tangent.mean, 2 * tangent.log_std)


class Categorical(NamedTuple):
    """One of several actions, by unnormalised log-probabilities `[..., choices]`."""

    logits: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Indices of actions, int64 `[...]`."""
        shares = self.logits.softmax(-1).reshape(-1, self.logits.shape[-1]).cpu()
        drawn = torch.multinomial(shares, 1, generator=generator)
        return drawn.reshape(self.logits.shape[:-1]).to(self.logits.device)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability of `actions`, `[...]`."""
        return self.logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def kl(self, other: "Categorical") -> Tensor:
        """Kullback-Leibler divergence of this from `other`, `[...]`: the expectation is over this."""
        ours, theirs = self.logits.log_softmax(-1), other.logits.log_softmax(-1)
        return (ours.exp() * (ours - theirs)).sum(-1)

    def fisher(self, tangent: "Categorical") -> "Categorical":
        """The Fisher information matrix in the logits times `tangent`: `diag(p) - p p^T`."""
        p = self.logits.softmax(-1)
        weighted = p * tangent.logits
        return Categorical(weighted - p * weighted.sum(-1, keepdim=True))


Distribution = Gaussian | Categorical


class GaussianPolicy(nn.Module):
    """A fully connected network to the mean of a Gaussian, and a deviation that does not depend on the state.

    Weights are drawn by Glorot and Bengio's (Xavier's) rule, biases zero. The deviation is a parameter like all
    others: it adapts too (Finn et al. 2017, appendix A.2, and their released code).

    Args:
        observation_size: Numbers per observation.
        action_size: Numbers per action.
        hidden: Sizes of the hidden layers.
        activation: `"relu"` as in the paper, or `"tanh"`.
        initial_std: Standard deviation at the start.
        min_std: The standard deviation used is never below this.
        context: Numbers appended to every observation, parameters at zero (the paper's appendix C.2: only they
            adapt then, by `adapt_only="context"`); 0 for none.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int] = (100, 100),
        activation: Activation = "relu",
        initial_std: float = 1.0,
        min_std: float = 1e-6,
        context: int = 0,
    ):
        super().__init__()
        if not 0 < min_std <= initial_std < math.inf:
            raise ValueError(f"initial_std must be finite and at least min_std > 0, got {initial_std} and {min_std}.")
        self.body = _body(observation_size + context, hidden, activation)
        self.head = _linear(hidden[-1], action_size)
        self.log_std = nn.Parameter(torch.full((action_size,), math.log(initial_std)))
        self.min_log_std = math.log(min_std)
        self.context = nn.Parameter(torch.zeros(context)) if context else None

    def forward(self, observations: Tensor) -> Gaussian:
        """`[..., observation]` to the distribution of actions, `[..., action]`."""
        mean = self.head(self.body(_with_context(observations, self.context)))
        return Gaussian(mean, self.log_std.clamp(min=self.min_log_std).expand_as(mean))

    def stacked(self, params: Mapping[str, Tensor], observations: Tensor) -> Gaussian:
        """`torch.vmap` of `forward` over parameters `[tasks, ...]` and observations `[tasks, rollouts, observation]`.

        Written out: `vmap`'s dispatch costs more than the products when a policy acts.
        """
        mean = _stacked(self.body, self.head, params, observations)
        return Gaussian(mean, params["log_std"].clamp(min=self.min_log_std).unsqueeze(1))


class CategoricalPolicy(nn.Module):
    """A fully connected network to the log-probabilities of the actions there are to choose from.

    Args: as those of `GaussianPolicy`; `choices` is the number of actions.
    """

    def __init__(
        self,
        observation_size: int,
        choices: int,
        hidden: Sequence[int] = (100, 100),
        activation: Activation = "relu",
        context: int = 0,
    ):
        super().__init__()
        self.body = _body(observation_size + context, hidden, activation)
        self.head = _linear(hidden[-1], choices)
        self.context = nn.Parameter(torch.zeros(context)) if context else None

    def forward(self, observations: Tensor) -> Categorical:
        """`[..., observation]` to the distribution of actions, `[..., choices]`."""
        return Categorical(self.head(self.body(_with_context(observations, self.context))))

    def stacked(self, params: Mapping[str, Tensor], observations: Tensor) -> Categorical:
        """As `GaussianPolicy.stacked`."""
        return Categorical(_stacked(self.body, self.head, params, observations))


_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {nn.ReLU: torch.relu_, nn.Tanh: torch.tanh_}
"""What moves half as much memory as the layer."""


def _with_context(observations: Tensor, context: Tensor | None) -> Tensor:
    if context is None:
        return observations
    return torch.cat([observations, context.expand(*observations.shape[:-1], -1)], -1)


def _stacked(body: nn.Sequential, head: nn.Linear, params: Mapping[str, Tensor], observations: Tensor) -> Tensor:
    context = params.get("context")
    x = _with_context(observations, None if context is None else context.unsqueeze(1))
    for name, layer in [*((f"body.{index}", layer) for index, layer in enumerate(body)), ("head", head)]:
        if isinstance(layer, nn.Linear):
            x = torch.baddbmm(params[f"{name}.bias"].unsqueeze(1), x, params[f"{name}.weight"].mT)
        else:
            x = _IN_PLACE[type(layer)](x) if type(layer) in _IN_PLACE else layer(x)
    return x


def _body(size: int, hidden: Sequence[int], activation: Activation) -> nn.Sequential:
    if not hidden:
        raise ValueError("A policy needs at least one hidden layer, got hidden=().")
    if activation not in ("relu", "tanh"):
        raise ValueError(f"activation must be 'relu' or 'tanh', got {activation!r}.")
    layers: list[nn.Module] = []
    for size_in, size_out in zip([size, *hidden[:-1]], hidden, strict=True):
        layers += [_linear(size_in, size_out), nn.ReLU() if activation == "relu" else nn.Tanh()]
    return nn.Sequential(*layers)


def _linear(size_in: int, size_out: int) -> nn.Linear:
    layer = nn.Linear(size_in, size_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
