"""A plain loop over tasks and steps with PyTorch's native layers: exact without `vmap`, and the yardstick.

In float64 it is what every meta-gradient is compared with; in float32 it shows what error single precision
itself makes of a work.
"""

import torch
from torch.func import functional_call

from benchmarks.peers import Prepared
from benchmarks.works import Work, gradients, initial, native, restore, unbind
from headstart.types import Params


def prepare(work: Work, first_order: bool = False, dtype: torch.dtype = torch.float32) -> Prepared:
    """The work as a loop, in `dtype`."""
    model = native(work.model()).to(dtype)
    start, tasks = initial(model), unbind(work.sample())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def backward() -> None:
        theta: Params = dict(model.named_parameters())
        for support, labels, query, answers in ([_cast(t, dtype) for t in task] for task in tasks):
            params = theta
            for _ in range(work.steps):
                loss = work.loss(functional_call(model, params, (support,)), labels)
                grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
                params = {n: p - work.inner_lr * g for (n, p), g in zip(params.items(), grads, strict=True)}
            (work.loss(functional_call(model, params, (query,)), answers) / len(tasks)).backward()

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    def gradient() -> Params:
        restore(model, start)
        backward()
        return gradients(model)

    return Prepared(step, gradient)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
