"""higher: a functional copy of the model and a differentiable optimiser for each task."""

import higher  # pyright: ignore[reportMissingImports]
import torch

from benchmarks.peers import Prepared
from benchmarks.works import Work, gradients, initial, native, restore, unbind
from headstart.types import Params


def prepare(work: Work, first_order: bool = False) -> Prepared:
    """The work as higher's Omniglot example writes it."""
    model = native(work.model())
    start, tasks = initial(model), unbind(work.sample())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    inner = torch.optim.SGD(model.parameters(), lr=work.inner_lr)

    def step() -> None:
        optimizer.zero_grad()
        for support, labels, query, answers in tasks:
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False, track_higher_grads=not first_order) as (
                functional,
                descent,
            ):
                for _ in range(work.steps):
                    descent.step(work.loss(functional(support), labels))
                (work.loss(functional(query), answers) / len(tasks)).backward()
        optimizer.step()

    def gradient() -> Params:
        restore(model, start)
        step()
        return gradients(model)

    return Prepared(step, gradient)
