"""TorchOpt, in both forms that its examples show: its `MetaSGD` in a loop over tasks, and `torchopt.sgd` in `vmap`.

Differs from the example of the loop: each task's loss is differentiated at once, which spares TorchOpt the
memory of all tasks' graphs together. The example of `vmap` uses PyTorch's native layers inside it.
"""

from collections.abc import Callable

import torch
import torchopt  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.peers import Prepared
from benchmarks.works import Work, gradients, initial, native, restore, unbind
from headstart.types import Params


def prepare(work: Work, vectorized: bool = False) -> Prepared:
    """The work as TorchOpt's Omniglot examples write it."""
    model = native(work.model())
    start = initial(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    backward = _vectorized(work, model) if vectorized else _loop(work, model)

    def step() -> None:
        optimizer.zero_grad()
        backward()
        optimizer.step()

    def gradient() -> Params:
        restore(model, start)
        step()
        return gradients(model)

    return Prepared(step, gradient)


def _loop(work: Work, model: nn.Module) -> Callable[[], None]:
    tasks = unbind(work.sample())
    inner = torchopt.MetaSGD(model, lr=work.inner_lr)

    def backward() -> None:
        theta = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
        state = torchopt.extract_state_dict(inner, by="reference")
        for support, labels, query, answers in tasks:
            for _ in range(work.steps):
                inner.step(work.loss(model(support), labels))
            (work.loss(model(query), answers) / len(tasks)).backward()
            torchopt.recover_state_dict(model, theta)
            torchopt.recover_state_dict(inner, state)

    return backward


def _vectorized(work: Work, model: nn.Module) -> Callable[[], None]:
    tasks = work.sample()
    chunk = work.vmap_tasks or work.tasks
    chunks = list(zip(*(tensor.split(chunk) for tensor in (*tasks.support, *tasks.query)), strict=True))
    inner = torchopt.sgd(lr=work.inner_lr)

    def query_loss(support: Tensor, labels: Tensor, query: Tensor, answers: Tensor) -> Tensor:
        def support_loss(params: Params) -> Tensor:
            return work.loss(functional_call(model, params, (support,)), labels)

        params: Params = dict(model.named_parameters())
        state = inner.init(params)
        for _ in range(work.steps):
            updates, state = inner.update(grad(support_loss)(params), state, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return work.loss(functional_call(model, params, (query,)), answers)

    def backward() -> None:
        for tensors in chunks:
            (vmap(query_loss)(*tensors).sum() / work.tasks).backward()

    return backward
