"""What the tests compare with, written independently of the library.

A meta-gradient here is a plain loop over tasks and steps: `torch.autograd.grad(create_graph=True)` through the
module's own native layers, which are exact without `vmap`. Finite differences need no second derivative at all.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

from headstart import Batch, Task
from headstart.vectorize import stack

Update = Callable[[dict[str, Tensor], dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]


def call(model: nn.Module, params: Mapping[str, Tensor], inputs: Any) -> Any:
    """The module as PyTorch runs it, with the attention kernel that has a second derivative."""
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    with sdpa_kernel(SDPBackend.MATH):
        return functional_call(model, dict(params), args, kwargs)


def evaluated(model: nn.Module, params: Mapping[str, Tensor], support: Any, inputs: Any) -> Any:
    """Evaluation mode with running buffers set by hand to the support set's statistics at `params`."""
    model = copy.deepcopy(model)
    model.load_state_dict(params, strict=False)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    noted = {}
    for layer in norms:
        layer.register_forward_pre_hook(lambda layer, args: noted.update({layer: args[0].detach()}))
    call(model.train(), {}, support)
    for layer, x in noted.items():
        dims = [d for d in range(x.dim()) if d != 1]
        layer.running_mean, layer.running_var = x.mean(dims), x.var(dims, correction=0)
    return call(model.eval(), {}, inputs)


def native(model: nn.Module) -> nn.Module:
    """`model`, changed in place where PyTorch 2.13 itself has no right second derivative, with the same values.

    - Batch and instance norm with a shift and no scale raise ("Expected a proper Tensor but got None"): a constant
      scale of one.
    - Weight norm is wrong by some percent (`gradgradcheck` of `torch._weight_norm` fails): its formula.
    - Embedding bags have none: the mean of embeddings, written out.
    """
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.weight is None and layer.bias is not None:
            layer.weight = nn.Parameter(torch.ones_like(layer.bias), requires_grad=False)
        elif isinstance(layer, parametrizations._WeightNorm):
            dims = [1] if layer.dim == 0 else None
            layer.forward = lambda g, v, dims=dims: g * v / v.square().sum(dims, keepdim=dims is not None).sqrt()
        elif isinstance(layer, nn.EmbeddingBag):
            layer.forward = lambda words, layer=layer: layer.weight[words].mean(1)
    return model


def gradient_descent(lr: float) -> Update:
    return lambda params, grads, state: {n: p - lr * grads[n] for n, p in params.items()}


def adapted(
    model: nn.Module, criterion: Callable, support: Batch, update: Update, steps: int, first_order: bool = False
) -> dict[str, Tensor]:
    """All parameters after `steps` updates of the trained ones, differentiable through them unless `first_order`."""
    params, state = dict(model.named_parameters()), {}
    moving = {n: p for n, p in params.items() if p.requires_grad}
    for _ in range(steps):
        loss = criterion(call(model, params | moving, support.inputs), support.targets)
        grads = torch.autograd.grad(
            loss, list(moving.values()), create_graph=not first_order, allow_unused=True, materialize_grads=True
        )
        moving = update(moving, dict(zip(moving, grads, strict=True)), state)
    return params | moving


def task_loss(
    model: nn.Module, criterion: Callable, task: Task, update: Update, steps: int, first_order: bool = False
) -> Tensor:
    """Query loss of one task after adaptation."""
    params = adapted(model, criterion, task.support, update, steps, first_order)
    return criterion(call(model, params, task.query.inputs), task.query.targets)


def meta_loss(
    model: nn.Module, criterion: Callable, tasks: Task, update: Update, steps: int, first_order: bool = False
) -> Tensor:
    """Mean query loss of a meta-batch, one task at a time."""
    losses = [task_loss(model, criterion, task, update, steps, first_order) for task in unstack(tasks)]
    return torch.stack(losses).mean()


def meta_gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """The gradient as one vector, zero where a parameter has none."""
    return flat(torch.autograd.grad(loss, trained(module), allow_unused=True, materialize_grads=True))


def trained(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def directional_derivatives(
    fn: Callable[[], Tensor], params: list[Tensor], directions: Tensor, step: float = 1e-7
) -> Tensor:
    """Central differences of `fn()` as `params` move along each row of `directions`, in place."""
    start = flat(params).detach()

    def at(vector: Tensor) -> float:
        nn.utils.vector_to_parameters(vector, params)
        return fn().item()

    slopes = [(at(start + step * d) - at(start - step * d)) / (2 * step) for d in directions]
    nn.utils.vector_to_parameters(start, params)
    return torch.tensor(slopes, dtype=start.dtype)


def unstack(tasks: Task) -> list[Task]:
    count = len(pytree.tree_leaves(tasks)[0])
    return [pytree.tree_map(lambda leaf, i=i: leaf[i], tasks) for i in range(count)]


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.reshape(-1) for t in pytree.tree_leaves(tensors)])


def error(given: Tensor, expected: Tensor) -> float:
    """Relative error of a whole vector in norm."""
    return ((given.double() - expected.double()).norm() / expected.double().norm()).item()


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """`tree` with its floating-point tensors in `dtype`."""
    return pytree.tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, tree)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)


def normed(dtype: torch.dtype = torch.float64, **settings) -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, **settings), nn.Tanh())
    return nn.Sequential(body, nn.Linear(4, 1)).to(dtype)


def task_of(seed: int, shots: int = 5, queries: int = 7, dtype: torch.dtype = torch.float64) -> Task:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shots + queries, 2, generator=generator, dtype=dtype)
    y = (x * torch.randn(2, generator=generator, dtype=dtype)).sum(-1, keepdim=True).sin()
    return Task(Batch(x[:shots], y[:shots]), Batch(x[shots:], y[shots:]))


def tasks_of(count: int = 3, dtype: torch.dtype = torch.float64) -> Task:
    return cast(stack([task_of(seed) for seed in range(count)]), dtype)
