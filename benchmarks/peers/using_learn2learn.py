"""learn2learn: a clone of the model for each task, adapted in place, one backward pass a task."""

import torch
from learn2learn.algorithms.maml import MAML  # pyright: ignore[reportMissingImports]

from benchmarks.peers import Prepared
from benchmarks.works import Work, gradients, initial, native, restore, unbind
from headstart.types import Params


def prepare(work: Work, first_order: bool = False) -> Prepared:
    """The work as learn2learn's MAML examples write it."""
    model = native(work.model())
    start, tasks = initial(model), unbind(work.sample())
    learner = MAML(model, lr=work.inner_lr, first_order=first_order)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        for support, labels, query, answers in tasks:
            clone = learner.clone()
            for _ in range(work.steps):
                clone.adapt(work.loss(clone(support), labels))
            work.loss(clone(query), answers).backward()
        for p in learner.parameters():
            p.grad.mul_(1 / len(tasks))
        optimizer.step()

    def gradient() -> Params:
        restore(model, start)
        step()
        return gradients(model)

    return Prepared(step, gradient)
