"""An eager computation on a GPU, captured once and replayed.

A small network's meta-gradient is thousands of short kernels, and launching them from Python takes longer than
running them. A CUDA graph launches all of them at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARM_UP = 3
"""Runs before the capture, in which libraries choose their kernels and allocate their workspaces."""

Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""From a computation to what replays it, and its outputs, which each replay overwrites."""


def cuda_graph(compute: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """`compute` captured as a CUDA graph, on the current device.

    Raises:
        RuntimeError: It does something that cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = compute()
    return graph.replay, outputs


class Replayed:
    """A function of a meta-batch that leaves gradients in parameters, captured for each shape it meets.

    Args:
        accumulate: The function; it adds to the parameters' `.grad`.
        learner: The module whose parameters these are; it is captured with the memory they are in.
        static: Whatever else the function depends on, a tuple of objects; another object is another capture.
        capture: How to capture a computation.
    """

    def __init__(
        self,
        accumulate: Callable[[Any], Any],
        learner: Any,
        static: Callable[[], Any] = tuple,
        capture: Capture = cuda_graph,
    ):
        self.accumulate, self.learner, self.static, self.capture = accumulate, learner, static, capture
        self.captured: dict[Any, tuple[list[Tensor], Callable[[], None], Any, list[Tensor | None], Any]] = {}

    def __call__(self, tasks: Any) -> Any:
        """What `accumulate` returns."""
        leaves, structure = pytree.tree_flatten(tasks)
        static, parameters = tuple(self.static()), list(self.learner.parameters())
        memory = [(t.data_ptr(), t.requires_grad) for t in (*parameters, *self.learner.buffers())]
        shapes = [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
        key = (*map(id, static), structure, *memory, *shapes)
        if key not in self.captured:
            with torch.cuda.device_of(parameters[0]):
                recorded = self._record(leaves, structure)
            self.captured[key] = (*recorded, static)  # kept, so that no `id` is used again
        inputs, replay, outputs, grads, _ = self.captured[key]
        for p, grad in zip(parameters, grads, strict=True):
            if grad is not None and p.grad is grad:  # of the last call, which the replay overwrites
                p.grad = grad.clone()
        for kept, leaf in zip(inputs, leaves, strict=True):
            kept.copy_(leaf)
        replay()
        for p, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                p.grad = grad if p.grad is None else p.grad + grad
        return pytree.tree_map(torch.clone, outputs)  # the next replay overwrites them

    def _record(self, leaves: list[Tensor], structure: pytree.TreeSpec) -> tuple[Any, ...]:
        parameters = list(self.learner.parameters())
        before = [p.grad for p in parameters]
        inputs = [leaf.clone() for leaf in leaves]

        def compute() -> Any:
            for p in parameters:
                p.grad = None  # so that the gradients are made inside the graph, in its own memory
            return self.accumulate(pytree.tree_unflatten(inputs, structure))

        try:
            replay, outputs = self.capture(compute)
            grads = [p.grad for p in parameters]
        finally:
            for p, grad in zip(parameters, before, strict=True):
                p.grad = grad
        return inputs, replay, outputs, grads
