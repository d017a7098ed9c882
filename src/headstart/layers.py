"""Any module, run with given parameters, and where its batch norms take their statistics from.

What PyTorch computes wrongly inside an inner loop is replaced while the module runs; see `exact.py`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as pytree

from headstart.exact import Exact, OwnStatistics, Statistics, pooled
from headstart.precision import widened
from headstart.standardize import moments
from headstart.swap import call_with
from headstart.task_norm import TaskNorm
from headstart.types import Params

Norm = Literal["batch", "support", "running", "support+query"]
"""Where batch norm takes mean and variance from, when a query is predicted.

- `"batch"`: from the queries themselves, support and query each by themselves. Transductive: a prediction
  depends on the other queries. Every published MAML number on images is of this kind.
- `"support"`: from the support set, at the parameters in use. A prediction depends on nothing but the task.
- `"running"`: what PyTorch does: batch statistics where the layer is in training mode, else its buffers.
- `"support+query"`: for each query from the support set and that query, every example counting the same (the
  support set's as under `"support"`). Independent of the other queries. With one batch norm this is evaluating
  each query in one batch with the support set, as Reptile does (Nichol, Achiam and Schulman 2018). Differs: with
  more of them, a query does not change how the support set itself is normalised on the way.

`headstart.task_norm.TaskNorm` takes its batch moments from there too, and pools them with the example's own.
Layer, group and instance norm use the example's own statistics under each of them.
"""
NORMS: tuple[Norm, ...] = ("batch", "support", "running", "support+query")


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
        norm: `"running"`: what each layer's mode says; else batch norm uses the statistics of `inputs`, or those
            `given`.
        given: Statistics to normalise with instead, from an earlier run; under `"support+query"` each example's
            own are pooled with them.
    """
    norms = {n: m for n, m in module.named_modules() if isinstance(m, _NormBase)}  # replaced, so nothing writes these
    running = {id(layer.running_mean): name for name, layer in norms.items() if layer.running_mean is not None}
    kept = {f"{name}.{buffer}".removeprefix(".") for name in norms for buffer in ("running_mean", "running_var")}
    scratch = {name: buffer.clone() for name, buffer in module.named_buffers() if name not in kept}
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (_as_tuple(inputs), {})
    policy = _Policy(norm, given, running)
    with Exact(policy.statistics):
        outputs = call_with(module, {**params, **scratch}, args, dict(kwargs))
    return outputs, policy.seen


def predict(
    module: nn.Module, params: Params, inputs: Any, *, norm: Norm, support: Any = None, one_at_a_time: bool = False
) -> tuple[Any, Seen]:
    """Outputs for query `inputs` under a norm policy, and the statistics used.

    Args:
        module: Any module.
        params: The task's adapted parameters, by name.
        inputs: The query's inputs, as `run` takes them.
        norm: See `Norm`.
        support: The support set's inputs; needed by `"support"` and `"support+query"` where the module has a
            batch norm.
        one_at_a_time: Predict each query as if it were the only one; then no statistics are returned.
    """
    given = None
    if norm in ("support", "support+query"):
        given = run(module, params, support)[1] if has_batch_norm(module) else {}
    if not one_at_a_time:
        return run(module, params, inputs, norm=norm, given=given)
    count = len(pytree.tree_leaves(inputs)[0])
    alone = [pytree.tree_map(lambda leaf, i=i: leaf[i : i + 1], inputs) for i in range(count)]
    outputs = [run(module, params, query, norm=norm, given=given)[0] for query in alone]
    return pytree.tree_map(lambda *leaves: torch.cat(leaves), *outputs), {}


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any layer of `module` is a batch norm or a `TaskNorm`, and the norm policy therefore matters."""
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
    for call, (mean, _, unbiased, examples) in seen.items():
        layer = _batch_norm_named(module, call.partition("#")[0])
        if layer is None or not layer.training or layer.running_mean is None or layer.running_var is None:
            continue
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked += 1
        momentum = layer.momentum if layer.momentum is not None else 1 / float(layer.num_batches_tracked or 1)
        layer.running_mean.lerp_(mean.mean(0).to(layer.running_mean.dtype), momentum)
        layer.running_var.lerp_(unbiased.mean(0).to(layer.running_var.dtype), momentum)
        if isinstance(layer, TaskNorm) and layer.examples is not None:
            layer.examples.copy_(examples.mean(0))


@torch.no_grad()
def freeze_statistics(module: nn.Module, support: Any, norm: Norm) -> None:
    """Make an adapted module's norm layers do by themselves what `norm` says, in place.

    `"support"` stores the support set's statistics in the layers' running buffers, so that the module in
    evaluation mode predicts each query by itself. `"batch"` removes the buffers: the layers then use the
    statistics of whatever batch they are given. `"running"` keeps the buffers as they are.

    Raises:
        ValueError: A batch norm cannot follow the policy by itself: it is called more than once per forward
            pass, or as a function rather than a layer; or the policy is `"support+query"`.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    if norm == "support+query" and run(module, {}, support)[1]:
        raise ValueError(
            "A batch norm cannot do norm='support+query' by itself: its buffers hold the support set's statistics "
            "and not a query's. Adapt with norm='support', or predict with the learner's `predict`."
        )
    for layer in module.modules():
        if isinstance(layer, _InstanceNorm):  # the inner loop always used the instance's own statistics
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    if norm == "running":
        return
    like = next(iter(module.parameters()))
    for layer in layers.values():
        if norm == "support":
            _set_buffers(
                layer, like.new_zeros(layer.num_features), like.new_ones(layer.num_features), like.new_zeros(())
            )
        else:
            _set_buffers(layer, None, None, None)
    _, seen = run(module, {}, support)
    for call, (mean, variance, _, examples) in seen.items():
        if norm == "support" and call in layers:
            _set_buffers(layers[call], mean.to(like.dtype), variance.to(like.dtype), examples.to(like.dtype))
        elif norm == "support" or call.startswith(_FOREIGN):
            raise ValueError(
                f"Batch norm {call!r} cannot do norm={norm!r} by itself: it is called more than once per forward "
                "pass, or as a function rather than an nn.BatchNorm layer. Adapt with another norm policy, or use a "
                "layer per call."
            )


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _set_buffers(layer: _BatchNorm, mean: Tensor | None, variance: Tensor | None, examples: Tensor | None) -> None:
    layer.track_running_stats = mean is not None
    layer.running_mean, layer.running_var = mean, variance
    if isinstance(layer, TaskNorm):
        layer.examples = examples


def _batch_norm_named(module: nn.Module, name: str) -> _BatchNorm | None:
    layer = dict(module.named_modules()).get(name)
    return layer if isinstance(layer, _BatchNorm) else None


class _Policy:
    """A norm policy at work on one run of a module: it gives statistics, and keeps the books of them."""

    def __init__(self, norm: Norm, given: Seen | None, running: Mapping[int, str]):
        self.norm, self.given, self.running = norm, given, running
        self.seen: Seen = {}

    def statistics(
        self,
        own: OwnStatistics,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        examples: Tensor | None,
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
            examples = running_mean.new_zeros(()) if examples is None else examples
            statistics = Statistics(running_mean, running_var, running_var, examples)
        else:
            statistics = own()
        self.seen[call] = statistics
        if self.given is not None and self.norm == "support+query":
            return _with_each(x, statistics)
        return statistics


def _with_each(x: Tensor, support: Statistics) -> Statistics:
    """The support set's statistics pooled with those of each example of `x`, which counts as one more."""
    mean, variance = moments(widened(x).reshape(*x.shape[:2], -1), [2])
    share = support.examples / (support.examples + 1)
    own = mean.squeeze(2), variance.squeeze(2)
    mean, variance = pooled(share, (support.mean, support.variance), own)
    return support._replace(mean=mean, variance=variance)
