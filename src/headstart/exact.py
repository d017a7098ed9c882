"""Layers whose derivatives PyTorch gets wrong inside an inner loop, composed so that they are exact.

`Exact` is a `TorchFunctionMode`: while it is active it looks at each torch function that is called and
substitutes the few in `EXACT`. Why each is there (torch 2.13; `tests/contracts/test_any_module.py` fails
without them):

- batch, layer and instance norm: where their scale adapts, the second derivatives of the native kernels are
  wrong under `vmap` by up to a few percent, without an error (their batching rule holds mean and variance
  constant). Computed as in `standardize.py` and `batch_norm.py` they are exact.
- weight norm: the second derivatives of its fused kernel are wrong by a few percent even without `vmap`.
- embedding with a padding index: under `vmap` the padding row is learned in every task but the first.
- embedding bags, scaled dot-product attention: no second derivative; composed, or by the math backend, they have.

Some are there for another reason: a layer that asks `batch_moments` gets those of the norm policy; max-pooling is exact
as it is, but faster as in `pooling.py`, and of large images before a ReLU; autocast, which on a CPU loses sight of
convolutions and linear layers under `vmap`, reaches them too.

Recurrent layers cannot be vectorised over tasks; `vectorize.py` loops for them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from headstart.batch_norm import BatchNormalized
from headstart.once import large_and_once
from headstart.pooling import max_pool2d
from headstart.precision import narrowed, widened
from headstart.standardize import moments, normalized, standardized
from headstart.worthwhile import is_large, worthwhile


class Statistics(NamedTuple):
    """What one batch-norm call normalised with: `[channels]`, or `[examples, channels]` if each has its own.

    The running buffers average the unbiased variance, as PyTorch's do; normalising uses the biased one.
    """

    mean: Tensor
    variance: Tensor
    unbiased: Tensor
    examples: Tensor
    """How many examples they are the statistics of, a scalar; 0 where that is not known."""


def batch_statistics(x: Tensor) -> Statistics:
    """The statistics of the batch at hand, `[examples, channels, ...]`.

    Raises:
        ValueError: There is one value per channel only.
    """
    mean, variance = moments(widened(x), [0, *range(2, x.dim())])
    return _statistics_of(x, mean.flatten(), variance.flatten())


def _statistics_of(x: Tensor, mean: Tensor, variance: Tensor) -> Statistics:
    count = x.numel() // x.shape[1]
    if count == 1:
        raise ValueError(
            f"Batch statistics need more than one value per channel, got input of shape {tuple(x.shape)}: "
            "give more examples at once, or use norm='support', which looks at one query at a time, or 'running'."
        )
    return Statistics(mean, variance, variance.detach() * (count / (count - 1)), mean.new_full((), x.shape[0]))


def batch_moments(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, examples: Tensor | None, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance for a layer that normalises by its batch, and of how many examples they are.

    They are those of the batch at hand in training mode or without buffers, else the buffers; under an `Exact`
    context they come from its `statistics`.

    Args:
        x: `[examples, channels, ...]`.
        running_mean: The layer's buffer `[channels]`, by which the layer is known. Likewise `running_var`.
        examples: A buffer too: how many examples the other two are of, a scalar.
        training: Whether the layer is in training mode.

    Returns:
        Mean and variance, `[channels]` or `[examples, channels]`, and a scalar.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(batch_moments, (x,), x, running_mean, running_var, examples, training)
    if training or running_mean is None or running_var is None or examples is None:
        mean, variance, _, examples = batch_statistics(x)
        return mean, variance, examples
    return running_mean, running_var, examples


def pooled(share: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of two sets taken together, `share` of which is the first, from those of each."""
    (mean_1, variance_1), (mean_2, variance_2) = first, second
    mean = share * mean_1 + (1 - share) * mean_2
    spread_1, spread_2 = (mean_1 - mean).square(), (mean_2 - mean).square()
    return mean, share * (variance_1 + spread_1) + (1 - share) * (variance_2 + spread_2)


OwnStatistics = Callable[[], Statistics]
"""Computes the statistics of the batch at hand."""

Source = Callable[[OwnStatistics, Tensor, Tensor | None, Tensor | None, bool, Tensor | None], Statistics]
"""Where batch norm takes its statistics from.

Called with what computes the batch's own, the input, the running mean and variance that the layer passes, whether the
layer is in training mode, and of how many examples the buffers are (None where the layer does not know).
"""


class Exact(TorchFunctionMode):
    """A context in which what `EXACT` names is computed exactly.

    Args:
        statistics: Where batch norm takes its statistics from: from the batch at hand, unless given.
    """

    def __init__(self, statistics: Source = lambda own, *_: own()):
        super().__init__()
        self.statistics = statistics
        self.activated: tuple[Tensor, Tensor] | None = None  # input and output of what was called last, if a ReLU

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call `func`, or its substitute."""
        substitute = EXACT.get(func.overloadpacket if isinstance(func, OpOverload) else func)
        activated, kwargs = self.activated, kwargs or {}
        result = func(*args, **kwargs) if substitute is None else substitute(self, *args, **kwargs)
        if self.activated is activated:  # what comes between could change either tensor
            self.activated = None
        return result


def _batch_norm(
    mode: Exact,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape, wide, normalised = [-1, x.shape[1]] + [1] * (x.dim() - 2), widened(x), None

    def own() -> Statistics:
        nonlocal normalised
        native = large_and_once(x)
        if not native and not worthwhile(x):
            return batch_statistics(x)
        weight_and_bias = (p if p is None else p.to(wide.dtype) for p in (weight, bias))
        y, mean, variance = BatchNormalized.apply(x if native else wide, *weight_and_bias, eps, native)
        normalised = y, _statistics_of(x, mean, variance)
        return normalised[1]

    statistics = mode.statistics(own, x, running_mean, running_var, training, None)
    if normalised is not None and statistics is normalised[1]:
        return normalised[0].to(x.dtype)
    mean, variance, _, _ = statistics
    y = normalized(wide, mean.reshape(shape), variance.reshape(shape), eps)
    return affine(y, weight, bias, shape).to(x.dtype)


def _batch_moments(
    mode: Exact,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    examples: Tensor | None,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    own = partial(batch_statistics, x)
    mean, variance, _, examples = mode.statistics(own, x, running_mean, running_var, training, examples)
    return mean, variance, examples


def _layer_norm(
    mode: Exact,
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    y = standardized(widened(x), range(-len(normalized_shape), 0), eps)
    return affine(y, weight, bias).to(x.dtype)


def _instance_norm(
    mode: Exact,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if x.shape[2:].numel() == 1:
        raise ValueError(
            f"Instance norm needs more than one position per channel, got input of shape {tuple(x.shape)}: it would "
            "be zero everywhere. Give larger inputs, or use another normaliser."
        )
    y = standardized(widened(x), range(2, x.dim()), eps)
    return affine(y, weight, bias, [1, -1] + [1] * (x.dim() - 2)).to(x.dtype)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int] | None = None) -> Tensor:
    """`x` scaled and shifted by what there is of both, each in `shape` first."""
    if weight is not None:
        x = x * (weight if shape is None else weight.reshape(shape))
    if bias is not None:
        x = x + (bias if shape is None else bias.reshape(shape))
    return x


def _with_math_attention(func: Callable) -> Callable:
    def attention(mode: Exact, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return _under_autocast(func)(mode, *args, **kwargs)

    return attention


def _under_autocast(func: Callable) -> Callable:
    def cast(mode: Exact, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("out") is not None:
            return func(*args, **kwargs)
        values = narrowed(*args, *kwargs.values())
        return func(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))

    return cast


def _relu(func: Callable) -> Callable:
    def relu(mode: Exact, *args: Any, **kwargs: Any) -> Tensor:
        output = func(*args, **kwargs)
        x = args[0] if len(args) == 1 and kwargs in ({}, {"inplace": False}) else output  # as it is in place
        if is_functorch_wrapped_tensor(x) and x is not output and is_large(x):
            mode.activated = x, output
        return output

    return relu


def _max_pool2d(
    mode: Exact,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Before a ReLU that was called last, which then has a quarter of the positions if windows are of two by two.

    Values are the same, and so are derivatives: they are zero where nothing in a window is positive. Only inside a
    transform: outside, somebody may ask for the derivative by what the ReLU gave.
    """
    before, activated = mode.activated or (None, None)
    window = kernel_size, stride, padding, dilation, ceil_mode
    if before is None or activated is not input or dilation not in (1, (1, 1), [1, 1]):  # a window of padding alone
        return max_pool2d(input, *window)
    return torch.relu(max_pool2d(before, *window))


def _weight_norm(mode: Exact, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    norm = v.norm() if dim == -1 else v.movedim(dim, 0).reshape(v.shape[dim], -1).norm(dim=1)  # -1 means: of all
    return v * (g / norm.reshape(g.shape))


def _embedding(
    mode: Exact,
    indices: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if scale_grad_by_freq:
        raise NotImplementedError("Embedding with scale_grad_by_freq has wrong second derivatives: set it False.")
    rows = _rows(indices, weight, max_norm, norm_type)
    if padding_idx is None:
        return rows
    return torch.where((indices == padding_idx % len(weight)).unsqueeze(-1), rows.detach(), rows)


def _rows(indices: Tensor, weight: Tensor, max_norm: float | None, norm_type: float) -> Tensor:
    """Rows of `weight`, cut to `max_norm` with the native gradient, but not in place: it may be a meta-parameter."""
    rows = F.embedding(indices, weight)
    if max_norm is None:
        return rows
    cut = (max_norm / (rows.norm(norm_type, dim=-1, keepdim=True) + 1e-7)).clamp(max=1)
    return rows + (rows * cut - rows).detach()


def _embedding_bag(
    _: Exact,
    /,
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    if mode == "max" or scale_grad_by_freq:
        raise NotImplementedError("Embedding bags with mode='max' or scale_grad_by_freq have no second derivative.")
    if offsets is None:
        bags = len(indices)
        bag = torch.arange(bags, device=indices.device).repeat_interleave(indices.shape[1])
    else:
        bags = len(offsets) - include_last_offset
        bag = torch.searchsorted(offsets[:bags], torch.arange(len(indices), device=indices.device), right=True) - 1
    indices, kept = indices.flatten(), weight.new_ones(bag.shape)
    if padding_idx is not None:
        kept = (indices != padding_idx % len(weight)).to(weight.dtype)
    scale = kept if per_sample_weights is None else kept * per_sample_weights.flatten()
    rows = _rows(indices, weight, max_norm, norm_type) * scale.unsqueeze(-1)
    total = rows.new_zeros(bags, rows.shape[-1]).index_add(0, bag, rows)
    count = kept.new_zeros(bags).index_add(0, bag, kept).clamp(min=1)
    return total if mode == "sum" else total / count.unsqueeze(-1)


def _refused(name: str) -> Callable:
    def refuse(mode: Exact, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{name} has wrong second derivatives under vmap; call its torch.nn.functional form, which has exact ones."
        )

    return refuse


def _operator(function: Callable) -> Callable:
    """The operator behind a function, which an exported module calls in its place."""
    return getattr(torch.ops.aten, function.__name__)


AUTOCAST = (
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    *(F.linear, torch.addmm, torch.baddbmm, torch.addbmm, torch.linalg.vecdot),
    *(torch.Tensor.addmm, torch.Tensor.baddbmm, torch.Tensor.addbmm),
)
"""What autocast computes in half precision, but not under `vmap` on a CPU."""

RELU = F.relu, torch.relu, torch.Tensor.relu  # computed as ever; their input is kept for a `max_pool2d` right after

EXACT: dict[Callable, Callable] = {
    batch_moments: _batch_moments,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.scaled_dot_product_attention: _with_math_attention(F.scaled_dot_product_attention),
    F.multi_head_attention_forward: _with_math_attention(F.multi_head_attention_forward),
    F.max_pool2d: _max_pool2d,
    # The native functions behind them order their arguments differently.
    torch.batch_norm: lambda mode, x, w, b, rm, rv, training, momentum, eps, cudnn: _batch_norm(
        mode, x, rm, rv, w, b, training, momentum, eps
    ),
    torch.layer_norm: lambda mode, x, shape, w=None, b=None, eps=1e-5, cudnn=True: _layer_norm(
        mode, x, shape, w, b, eps
    ),
    torch.instance_norm: lambda mode, x, w, b, rm, rv, use_input, momentum, eps, cudnn: _instance_norm(
        mode, x, rm, rv, w, b, use_input, momentum, eps
    ),
    torch.embedding: lambda mode, w, indices, padding_idx=-1, scale=False, sparse=False: _embedding(
        mode, indices, w, padding_idx if padding_idx >= 0 else None, scale_grad_by_freq=scale
    ),
    torch.max_pool2d: _max_pool2d,
    torch._weight_norm: _weight_norm,  # pyright: ignore[reportPrivateImportUsage]
    **{function: _under_autocast(function) for function in (*AUTOCAST, *map(_operator, AUTOCAST))},
    **{function: _relu(function) for function in (*RELU, *map(_operator, RELU))},
    **{function: _refused(function.__name__) for function in (torch.native_batch_norm, torch.native_layer_norm)},
}
"""What is substituted, by the function called."""

EXACT = {
    _operator(function): substitute
    for function, substitute in EXACT.items()
    if getattr(function, "__module__", None) not in (F.__name__, __name__)
} | EXACT
