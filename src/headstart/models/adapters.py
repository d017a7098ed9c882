"""Parts added to any module, so that within a task only they adapt: low rank, FiLM, a context vector, biases.

Each `add_*` changes a module in place and returns the names of the parameters it added. The rest of the module stays
meta-learned, or frozen: call `model.requires_grad_(False)` first, and only the parts are trained.

    pattern for `adapt_only`    what it selects                           paper
    "*low_rank_*"               A and B of `add_low_rank`                 Hu et al. 2021, LoRA
    "*film.*"                   gamma and beta of `add_film`              Perez et al. 2018, FiLM
    "*context"                  of `add_context` and `WithContext`        Zintgraf et al. 2019, CAVIA: phi
    `bias_names(model)`         every bias there is

A layer is chosen by name patterns (as in file names, `*` and `?`); one that starts with `!` takes its matches out
again. A module's state dict holds the parts too: to load it, add the same parts first.
"""

import fnmatch
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import register_parametrization


class LowRank(nn.Module):
    """A parametrisation: a weight W becomes W + scale B A, in the shape of W.

    Args:
        a: `[rank, inputs]`; of a convolution, the inputs are channels and positions together.
        b: `[outputs, rank]`.
        scale: Of the product.
    """

    def __init__(self, a: nn.Parameter, b: nn.Parameter, scale: float):
        super().__init__()
        self.low_rank_a, self.low_rank_b, self.scale = a, b, scale

    def forward(self, weight: Tensor) -> Tensor:
        """The weight to use in place of `weight`."""
        return weight + self.scale * (self.low_rank_b @ self.low_rank_a).reshape(weight.shape)


class Film(nn.Module):
    """A forward hook: a layer's output is scaled by 1 + gamma and shifted by beta, per channel; both start at zero.

    Args:
        channels: Of the layer's output.
        axis: Where they are in it.
        like: A tensor of the parameters' dtype and device.
    """

    def __init__(self, channels: int, axis: int, like: Tensor):
        super().__init__()
        self.gamma = nn.Parameter(like.new_zeros(channels))
        self.beta = nn.Parameter(like.new_zeros(channels))
        self.axis = axis

    def forward(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """What `layer` gives in place of its `output`."""
        return _modulated(output, self.gamma, self.beta, self.axis)


class ContextFilm(nn.Module):
    """A forward hook: FiLM whose gamma and beta are an affine function of a context vector.

    Args:
        size: Of the context.
        channels: Of the layer's output.
        axis: Where they are in it.
        like: A tensor of the parameters' dtype and device.
        owner: The one of a module's `ContextFilm`s whose parameter the context is; None for that one itself.
    """

    def __init__(self, size: int, channels: int, axis: int, like: Tensor, owner: "ContextFilm | None"):
        super().__init__()
        self.context = nn.Parameter(like.new_zeros(size)) if owner is None else None
        self.weight = nn.Parameter(like.new_empty(2 * channels, size))
        self.bias = nn.Parameter(like.new_zeros(2 * channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Linear: at zero, no gradient would ever flow
        self.axis = axis
        self._owner = () if owner is None else (owner,)  # in a tuple it is no child: the context has one name

    def forward(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """What `layer` gives in place of its `output`."""
        context = (self._owner[0] if self._owner else self).context
        assert context is not None
        gamma, beta = nn.functional.linear(context, self.weight, self.bias).chunk(2, -1)
        return _modulated(output, gamma, beta, self.axis)


class WithContext(nn.Module):
    """A network on features that is given a context vector with each example (Zintgraf et al. 2019, section 3).

    >>> model = WithContext(nn.Linear(1 + 4, 1), size=4)
    >>> [name for name, _ in model.named_parameters()]
    ['context', 'model.weight', 'model.bias']
    >>> model(torch.ones(10, 1)).shape
    torch.Size([10, 1])

    With `adapt_only="*context"` it is CAVIA: every task starts from the same context, and only that adapts.

    Differs: where the context starts from is a meta-parameter, zero at first; there it stays zero. The bias of the
    layer it enters can express the same. Leave it out of the outer optimiser to hold it at zero.

    Args:
        model: A network on `[..., features + size]`.
        size: Numbers in the context.
    """

    def __init__(self, model: nn.Module, size: int):
        super().__init__()
        _check_positive("size", size)
        self.context = nn.Parameter(_like(model).new_zeros(size))
        self.model = model

    def forward(self, inputs: Tensor) -> Any:
        """The network's outputs for `[..., features]`."""
        return self.model(torch.cat([inputs, self.context.expand(*inputs.shape[:-1], -1)], -1))


def add_low_rank(
    model: nn.Module, layers: str | Sequence[str] = "*", rank: int = 4, scale: float = 1.0
) -> tuple[str, ...]:
    """Names of A and B, added to the weights of linear and convolution layers: W + scale B A (Hu et al. 2021, eq. 3).

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> add_low_rank(model, "0", rank=1)
    ('0.parametrizations.weight.0.low_rank_a', '0.parametrizations.weight.0.low_rank_b')

    A is drawn and B zero: the module computes what it did. W itself is then named `parametrizations.weight.original`,
    while `layer.weight` is the sum. Layers that share a weight share its A and B.

    Not `torch.nn.utils.parametrize.remove_parametrizations` on a copy, such as an adapted module: PyTorch takes the
    weight from all copies with it. Copy `layer.weight` into a plain module to merge it.

    Args:
        model: Any module; changed in place.
        layers: Name patterns of the layers.
        rank: Of the product, for every layer.
        scale: Of the product; alpha / rank in the paper.

    Raises:
        ValueError: A pattern matches no such layer, a layer has a low-rank part already, or `rank` is below 1.
    """
    _check_positive("rank", rank)
    chosen = _matching(model, layers, _has_matrix, "linear or convolution layer")
    _refuse_second(chosen, LowRank, "a low-rank part")
    parts: list[LowRank] = []
    factors: dict[Tensor, tuple[nn.Parameter, nn.Parameter]] = {}  # by identity of the weight
    for layer in chosen.values():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if weight not in factors:
            factors[weight] = _factors(weight.detach(), rank)
        parts.append(LowRank(*factors[weight], scale))
        register_parametrization(layer, "weight", parts[-1])
    return _names(model, parts)


def add_film(model: nn.Module, layers: str | Sequence[str] = "*") -> tuple[str, ...]:
    """Names of gamma and beta, added to layers with channels: the output times 1 + gamma, plus beta.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    >>> add_film(model, "1")
    ('1.film.gamma', '1.film.beta')

    Suitable are linear and convolution layers, and batch, instance, group, layer and RMS norm. Modulate the norm
    rather than the convolution before it: batch norm takes a scale and shift out again. The names of the parameters
    there were stay as they are. A layer that is called twice is modulated twice, by the same gamma and beta; one whose
    weight is used without calling it (`F.linear(x, layer.weight)`) is not.

    Differs from Perez et al. (2018), eq. 2: gamma and beta are parameters, not a function of another input.

    Args:
        model: Any module; changed in place.
        layers: Name patterns of the layers.

    Raises:
        ValueError: A pattern matches no such layer, or a layer has FiLM already.
    """
    chosen = _matching(model, layers, _has_channels, "layer with channels")
    _refuse_second(chosen, Film, "FiLM")
    parts = []
    for layer in chosen.values():
        parts.append(Film(*_channels(layer), like=_like(layer, model)))
        _hook(layer, "film", parts[-1])
    return _names(model, parts)


def add_context(model: nn.Module, size: int, layers: str | Sequence[str] = "*") -> tuple[str, ...]:
    """Names of one context vector and of the maps from it to the modulation of layers, as `add_film`'s.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    >>> add_context(model, 2, "1")
    ('1.modulation.context', '1.modulation.weight', '1.modulation.bias')

    The context is a parameter of the first of the layers. It starts at zero, and the module computes what it did.
    With `adapt_only="*context"` it is CAVIA on images (Zintgraf et al. 2019, section 3.3), where the third block is
    modulated: `layers="body.2.1"`, its batch norm, of our Conv-4.

    Differs: the scale is 1 + gamma and the maps' biases start at zero, so that a pretrained module is left intact.
    What the context starts from is a meta-parameter, as in `WithContext`.

    Args:
        model: Any module; changed in place.
        size: Numbers in the context.
        layers: Name patterns of the layers, of the kinds that `add_film` takes.

    Raises:
        ValueError: A pattern matches no such layer, a layer has a context already, or `size` is below 1.
    """
    _check_positive("size", size)
    chosen = _matching(model, layers, _has_channels, "layer with channels")
    _refuse_second(chosen, ContextFilm, "a context")
    parts: list[ContextFilm] = []
    for layer in chosen.values():
        owner = parts[0] if parts else None
        parts.append(ContextFilm(size, *_channels(layer), like=_like(layer, model), owner=owner))
        _hook(layer, "modulation", parts[-1])
    return _names(model, parts)


def bias_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the trainable biases, shifts of norms included: `adapt_only=bias_names(model)` adapts these alone.

    >>> bias_names(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
    ('0.bias', '1.bias')

    Reference: Ben Zaken et al. 2022, BitFit.

    Raises:
        ValueError: There are none.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = tuple(name for name in trainable if _is_bias(name))
    if not found:
        raise ValueError(f"No trainable parameter is a bias; there are: {', '.join(trainable) or 'none'}.")
    return found


def _is_bias(name: str) -> bool:
    """Also those of recurrent and attention layers (`bias_ih_l0`, `in_proj_bias`), and parametrised ones."""
    *_, last = name.replace(".parametrizations.", ".").removesuffix(".original").split(".")
    return last == "bias" or last.startswith("bias_") or last.endswith("_bias")


def _has_matrix(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _has_channels(layer: nn.Module) -> bool:
    if isinstance(layer, NonDynamicallyQuantizableLinear):  # attention's: its weight is read, it is never called
        return False
    kinds = (nn.Linear, _ConvNd, _BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return isinstance(layer, kinds)


def _channels(layer: nn.Module) -> tuple[int, int]:
    """How many channels the layer's output has, and on which axis."""
    match layer:
        case nn.Linear():
            return layer.out_features, -1
        case _ConvNd():
            return layer.out_channels, -len(layer.kernel_size) - 1
        case _InstanceNorm():
            return layer.num_features, -layer._get_no_batch_dim()
        case _BatchNorm():
            return layer.num_features, 1
        case nn.GroupNorm():
            return layer.num_channels, 1
        case nn.LayerNorm() | nn.RMSNorm():
            return layer.normalized_shape[0], -len(layer.normalized_shape)
    raise AssertionError(f"{type(layer).__name__} has no known channels")


def _modulated(output: Tensor, gamma: Tensor, beta: Tensor, axis: int) -> Tensor:
    """`output`, in its own dtype."""
    shape = [-1] + [1] * (output.dim() - 1 - axis % output.dim())
    return (output * (1 + gamma.reshape(shape)) + beta.reshape(shape)).to(output.dtype)


def _matching(
    model: nn.Module, patterns: str | Sequence[str], suits: Callable[[nn.Module], bool], kind: str
) -> dict[str, nn.Module]:
    """The layers that suit and that `patterns` select, each once, by name and in the module's order."""
    suitable = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if suits(layer)}
    there_are = ", ".join(name or "'' (the module itself)" for name in suitable) or "none"
    chosen: set[nn.Module] = set()  # by identity: a layer may have two names
    for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
        hits = {suitable[name] for name in fnmatch.filter(suitable, pattern.removeprefix("!"))}
        if not hits:
            raise ValueError(f"The pattern {pattern!r} matches no {kind}; there are: {there_are}.")
        chosen = chosen - hits if pattern.startswith("!") else chosen | hits
    if not chosen:
        raise ValueError(f"The patterns {patterns!r} leave no {kind}; there are: {there_are}.")
    named = {name: layer for name, layer in model.named_modules() if layer in chosen}
    for name, layer in named.items():
        if isinstance(layer, LazyModuleMixin):
            raise ValueError(f"Layer {name!r} does not know its sizes yet: run the module once on inputs first.")
    return named


def _refuse_second(layers: dict[str, nn.Module], part: type[nn.Module], what: str) -> None:
    for name, layer in layers.items():
        if any(isinstance(child, part) for child in layer.modules()):
            raise ValueError(f"Layer {name!r} has {what} already; choose others, or take it out with '!{name}'.")


def _hook(layer: nn.Module, name: str, part: nn.Module) -> None:
    """Make `part` a child of `layer`, whose parameters are seen, and the last word on its output."""
    layer.add_module(name, part.train(layer.training))
    layer.register_forward_hook(part)


def _names(model: nn.Module, parts: Iterable[nn.Module]) -> tuple[str, ...]:
    added = {id(parameter) for part in parts for parameter in part.parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in added)


def _factors(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A, drawn as nn.Linear and LoRA's released code do, and B, zero."""
    outputs, inputs = weight.flatten(1).shape
    a, b = weight.new_empty(rank, inputs), weight.new_zeros(outputs, rank)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    return nn.Parameter(a), nn.Parameter(b)


def _like(*modules: nn.Module) -> Tensor:
    """A tensor whose dtype and device new parameters take: the first there is, of real numbers."""
    tensors = (itertools.chain(module.parameters(), module.buffers()) for module in modules)
    return next((t.detach() for t in itertools.chain(*tensors) if t.is_floating_point()), torch.empty(0))


def _check_positive(what: str, given: int) -> None:
    if given < 1:
        raise ValueError(f"{what} must be 1 or more, got {given}.")
