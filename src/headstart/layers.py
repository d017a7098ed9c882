"""Any module, run with given parameters, exactly: what PyTorch gets wrong inside an inner loop is replaced.

While a module runs here, a `TorchFunctionMode` looks at each torch function it calls and substitutes the few
in `EXACT`. Why each is there (torch 2.13; `tests/contracts/test_any_module.py` fails without them):

- batch, layer and instance norm: under `vmap` the second derivatives of the native kernels are wrong by up
  to a few percent where a scale adapts, without an error (the batching rule for the scale's gradient holds
  mean and variance constant). Composed from `var_mean`, subtraction and multiplication they are exact, and faster.
- weight norm: the second derivatives of its fused kernel are wrong by a few percent even without `vmap`.
- embedding with a padding index: under `vmap` the padding row is learned in every task but the first.
- embedding bags, scaled dot-product attention: no second derivative; composed, or by the math backend, they have.
- batch norm besides: its statistics are a choice (`Norm`) and its buffers are not written by the inner loop.

Recurrent layers cannot be vectorised over tasks; `vectorize.py` loops for them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from headstart.types import Params

Norm = Literal["batch", "support", "running"]
"""Where batch norm takes mean and variance from, when a query is predicted.

- `"batch"`: from the queries themselves, support and query each by themselves. Transductive: a prediction
  depends on the other queries. Every published MAML number on images is of this kind.
- `"support"`: from the support set, at the parameters in use. A prediction depends on nothing but the task.
- `"running"`: what PyTorch does: batch statistics where the layer is in training mode, else its buffers.
"""
NORMS: tuple[Norm, ...] = ("batch", "support", "running")


class Statistics(NamedTuple):
    """Mean and (biased) variance that one batch-norm call normalised with, each `[channels]`."""

    mean: Tensor
    variance: Tensor


Seen = dict[str, Statistics]
"""Statistics by batch-norm call: the layer's name, with `#2`, `#3` ... where one layer is called again."""

_BUFFERLESS, _FOREIGN = "(without buffers)", "(not a layer)"
"""What stands for the name of a batch norm whose running buffers are none, or are not those of a layer."""


def run(
    module: nn.Module, params: Params, inputs: Any, *, norm: Norm = "batch", given: Seen | None = None
) -> tuple[Any, Seen]:
    """Outputs of `module` with `params` in place of its own, and the statistics its batch norms used.

    Buffers that the module writes while it runs are scratch copies: the inner loop leaves no trace.

    Args:
        module: Any module; it is not changed.
        params: By name; parameters not named keep the module's own value.
        inputs: A tensor, a tuple passed as `*args`, or a dict passed as `**kwargs`.
        norm: `"batch"` or `"support"`: batch norm uses the statistics of `inputs`, or those `given`;
            `"running"`: what each layer's mode says.
        given: Statistics to normalise with instead, from an earlier run.
    """
    norms = {n: m for n, m in module.named_modules() if isinstance(m, _NormBase)}  # replaced, so nothing writes these
    running = {id(layer.running_mean): name for name, layer in norms.items() if layer.running_mean is not None}
    kept = {f"{name}.{buffer}".removeprefix(".") for name in norms for buffer in ("running_mean", "running_var")}
    scratch = {name: buffer.clone() for name, buffer in module.named_buffers() if name not in kept}
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (_as_tuple(inputs), {})
    mode = _ExactLayers(norm, given, running)  # bound here: a compiler does not see what `with ... as` binds
    with mode:
        outputs = torch.func.functional_call(module, {**params, **scratch}, args, dict(kwargs))
    return outputs, mode.seen


def predict(module: nn.Module, params: Params, inputs: Any, *, norm: Norm, support: Any = None) -> tuple[Any, Seen]:
    """Outputs for query `inputs` under a norm policy, and the statistics used.

    Args:
        module: Any module.
        params: The task's adapted parameters, by name.
        inputs: The query's inputs, as `run` takes them.
        norm: See `Norm`.
        support: The support set's inputs; needed by `"support"` where the module has a batch norm.
    """
    given = None
    if norm == "support":
        given = run(module, params, support)[1] if has_batch_norm(module) else {}
    return run(module, params, inputs, norm=norm, given=given)


def exact() -> TorchFunctionMode:
    """A context in which what `EXACT` names is exact outside a module, too: in a loss."""
    return _ExactLayers("batch", None, {})


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any layer of `module` is a batch norm, and the norm policy therefore matters."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode (no dropout), each layer's own mode restored afterwards."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@torch.no_grad()
def update_running(module: nn.Module, seen: Seen) -> None:
    """Move batch norms' running buffers towards `seen`, as a plain training step would.

    Args:
        module: The module whose layers in training mode are updated.
        seen: Statistics with a leading tasks axis; their mean over tasks counts.
    """
    for call, (mean, variance) in seen.items():
        layer = _batch_norm_named(module, call.partition("#")[0])
        if layer is None or not layer.training or layer.running_mean is None or layer.running_var is None:
            continue
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked += 1
        momentum = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked or 1)
        layer.running_mean.lerp_(mean.mean(0).to(layer.running_mean.dtype), momentum)
        layer.running_var.lerp_(variance.mean(0).to(layer.running_var.dtype), momentum)


@torch.no_grad()
def freeze_statistics(module: nn.Module, support: Any, norm: Norm) -> None:
    """Make an adapted module's norm layers do by themselves what `norm` says, in place.

    `"support"` stores the support set's statistics in the layers' running buffers, so that the module in
    evaluation mode predicts each query by itself. `"batch"` removes the buffers: the layers then use the
    statistics of whatever batch they are given. `"running"` keeps the buffers as they are.

    Raises:
        ValueError: A batch norm cannot follow the policy by itself: it is called more than once per forward
            pass, or as a function rather than a layer.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    for layer in module.modules():
        if isinstance(layer, _InstanceNorm):  # the inner loop always used the instance's own statistics
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    if norm == "running":
        return
    like = next(iter(module.parameters()))
    for layer in layers.values():
        layer.track_running_stats = norm == "support"
        layer.running_mean = like.new_zeros(layer.num_features) if norm == "support" else None
        layer.running_var = like.new_ones(layer.num_features) if norm == "support" else None
    _, seen = run(module, {}, support)
    for call, (mean, variance) in seen.items():
        if norm == "support" and call in layers:
            layers[call].running_mean, layers[call].running_var = mean.to(like.dtype), variance.to(like.dtype)
        elif norm == "support" or call.startswith(_FOREIGN):
            raise ValueError(
                f"Batch norm {call!r} cannot do norm={norm!r} by itself: it is called more than once per forward "
                "pass, or as a function rather than an nn.BatchNorm layer. Adapt with another norm policy, or use a "
                "layer per call."
            )


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _batch_norm_named(module: nn.Module, name: str) -> _BatchNorm | None:
    layer = dict(module.named_modules()).get(name)
    return layer if isinstance(layer, _BatchNorm) else None


class _ExactLayers(TorchFunctionMode):
    """Substitutes the functions in `EXACT` while active, and keeps the books of batch-norm statistics."""

    def __init__(self, norm: Norm, given: Seen | None, running: Mapping[int, str]):
        super().__init__()
        self.norm, self.given, self.running = norm, given, running
        self.seen: Seen = {}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        substitute = EXACT.get(func.overloadpacket if isinstance(func, OpOverload) else func)
        if substitute is None:
            return func(*args, **(kwargs or {}))
        return substitute(self, *args, **(kwargs or {}))

    def statistics(
        self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool
    ) -> Statistics:
        """What this batch-norm call normalises with, noted under its name."""
        name = _BUFFERLESS if running_mean is None else self.running.get(id(running_mean), _FOREIGN)
        call, times = name, 1
        while call in self.seen:
            times += 1
            call = f"{name}#{times}"
        if self.given is not None:
            if call not in self.given:
                raise ValueError(
                    f"Batch norm {call!r} has no support statistics for the queries: it did not run on the support "
                    "set, or is a function rather than an nn.BatchNorm layer. Use norm='batch' or norm='running'."
                )
            statistics = self.given[call]
        elif self.norm == "running" and not training and running_mean is not None and running_var is not None:
            statistics = Statistics(running_mean, running_var)
        else:
            statistics = _batch_statistics(x)
        self.seen[call] = statistics
        return statistics


def _batch_norm(
    mode: _ExactLayers,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape = [1, -1] + [1] * (x.dim() - 2)
    mean, variance = mode.statistics(x, running_mean, running_var, training)
    normalized = (_wide(x) - mean.reshape(shape)) * (variance + eps).rsqrt().reshape(shape)
    return _affine(normalized, _shaped(weight, shape), _shaped(bias, shape)).to(x.dtype)


def _batch_statistics(x: Tensor) -> Statistics:
    dims = [0, *range(2, x.dim())]
    if x.numel() == x.shape[1]:
        raise ValueError(
            f"Batch statistics need more than one value per channel, got input of shape {tuple(x.shape)}: "
            "give more examples per task, or use norm='running'."
        )
    variance, mean = torch.var_mean(_wide(x), dims, correction=0)
    return Statistics(mean, variance)


def _layer_norm(
    mode: _ExactLayers,
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _affine(_standardized(x, list(range(-len(normalized_shape), 0)), eps), weight, bias).to(x.dtype)


def _instance_norm(
    mode: _ExactLayers,
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape = [1, -1] + [1] * (x.dim() - 2)
    normalized = _standardized(x, list(range(2, x.dim())), eps)
    return _affine(normalized, _shaped(weight, shape), _shaped(bias, shape)).to(x.dtype)


def _standardized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    wide = _wide(x)
    variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    return (wide - mean) * (variance + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _shaped(tensor: Tensor | None, shape: list[int]) -> Tensor | None:
    return None if tensor is None else tensor.reshape(shape)


def _wide(x: Tensor) -> Tensor:
    """`x` in at least single precision, in which the native kernels, too, compute their statistics."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _with_math_attention(func: Callable) -> Callable:
    def attention(mode: _ExactLayers, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return func(*args, **kwargs)

    return attention


def _weight_norm(mode: _ExactLayers, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    norm = v.norm() if dim == -1 else v.movedim(dim, 0).reshape(v.shape[dim], -1).norm(dim=1)  # -1 means: of all
    return v * (g / norm.reshape(g.shape))


def _embedding(
    mode: _ExactLayers,
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
    _: _ExactLayers,
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
    def refuse(mode: _ExactLayers, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{name} has wrong second derivatives under vmap; call the torch.nn.functional form, which is replaced by "
            "an exact one inside the inner loop."
        )

    return refuse


EXACT: dict[Callable, Callable] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.scaled_dot_product_attention: _with_math_attention(F.scaled_dot_product_attention),
    F.multi_head_attention_forward: _with_math_attention(F.multi_head_attention_forward),
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
    torch._weight_norm: _weight_norm,  # pyright: ignore[reportPrivateImportUsage]
    **{function: _refused(function.__name__) for function in (torch.native_batch_norm, torch.native_layer_norm)},
}
"""What is substituted, by the function called."""

# An exported module calls the operators themselves.
EXACT |= {getattr(torch.ops.aten, f.__name__): exact for f, exact in EXACT.items() if f.__module__ != F.__name__}
