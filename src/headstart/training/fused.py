"""A whole meta-update - losses, meta-gradient, clipping, Adam - as one compiled graph.

For a small network the compiled meta-gradient takes less time than Adam's own dozens of short operations; in
one graph they are fused. State and step sizes stay where `torch.optim.Adam` keeps them, so that a run can go on
in another mode.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.training.engine import Engine
from headstart.training.tracing import Flat, Traced
from headstart.types import Params, Task


class Clipping(NamedTuple):
    """Bounds on the meta-gradient: on each element, then on the norm of the whole; None for none."""

    value: float | None
    norm: float | None


class State(NamedTuple):
    """What Adam remembers, by parameter name; `updates` is the number of updates, once for each parameter."""

    mean: Params
    square: Params
    updates: Params


class FusedAdam:
    """Meta-updates of a learner, compiled.

    Args:
        engine: Of the learner.
        optimizer: Holds the state, which is updated in place.
        names: Of the optimiser's parameters, in its order.
        clipping: Bounds on the meta-gradient.
    """

    def __init__(self, engine: Engine, optimizer: torch.optim.Adam, names: list[str], clipping: Clipping):
        self.engine, self.optimizer, self.names, self.clipping = engine, optimizer, names, clipping
        self.update = Traced(self._update, engine.static)
        self._flat: Flat | None = None
        self._place: Any = None
        self._fixed: list[tuple[int, int]] | None = None
        self._others: Flat | None = None
        self._lr = torch.zeros((), dtype=torch.float64)

    def __call__(self, tasks: Task) -> tuple[Tensor, Any, Tensor]:
        """Each task's loss, statistics, and the norm of the meta-gradient before clipping.

        Where that norm or the mean loss is not finite, no parameter has been updated.

        Raises:
            CannotCompileError: The update cannot be compiled.
        """
        (group,) = self.optimizer.param_groups
        self._lr.fill_(group["lr"])
        return self.update(self._kept(), self._not_learned(), tasks)

    def _kept(self) -> Flat:
        """Meta-parameters, Adam's state and step size, which stay in place unless a state dict has been loaded."""
        (group,) = self.optimizer.param_groups
        first = group["params"][0]
        state = id(self.optimizer.state[first].get("exp_avg"))
        place = state, first.dtype, first.device, [p.data_ptr() for p in group["params"]]
        if self._flat is None or place != self._place:
            meta = dict(zip(self.names, group["params"], strict=True))
            self._flat = Flat((meta, self._state(), self._lr))
            self._place = id(self.optimizer.state[first]["exp_avg"]), *place[1:]
        return self._flat

    def _not_learned(self) -> Flat:
        """Buffers and frozen parameters. To find and name them anew each time would take as long as a small graph."""
        layers = list(self.engine.learner.modules())
        fixed = [p for layer in layers for p in layer._parameters.values() if p is not None and not p.requires_grad]
        fixed += [b for layer in layers for b in layer._buffers.values() if b is not None]
        places = [(id(t), t.data_ptr()) for t in fixed]
        if self._others is None or places != self._fixed:
            self._others = Flat(self.engine.values()[1], dense=True)
            # What is not dense has been copied, and has to be copied anew each time.
            self._fixed = places if all(t.is_contiguous() for t in fixed) else None
        return self._others

    def _state(self) -> State:
        """Adam's state as `torch.optim.Adam` keeps it, made where there is none yet."""
        (group,) = self.optimizer.param_groups
        for p in group["params"]:
            entry = self.optimizer.state[p]
            if not entry:
                entry["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                entry["exp_avg"], entry["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        entries = dict(zip(self.names, (self.optimizer.state[p] for p in group["params"]), strict=True))
        return State(
            *({name: entry[kind] for name, entry in entries.items()} for kind in ("exp_avg", "exp_avg_sq", "step"))
        )

    def _update(self, kept: tuple[Params, State, Tensor], others: Params, tasks: Task) -> tuple[Tensor, Any, Tensor]:
        meta, state, lr = kept
        losses, seen, total = self.engine.chunk_gradient(meta, others, tasks)
        grads = {name: g / losses.shape[0] for name, g in total.items()}
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        finite = torch.isfinite(losses.mean()) & torch.isfinite(norm)
        (group,) = self.optimizer.param_groups
        (b1, b2), eps = group["betas"], group["eps"]
        for name, g in self._clipped(grads).items():
            updates = state.updates[name] + 1
            c1, c2 = _bias_correction(b1, updates.double()), _bias_correction(b2, updates.double())
            mean = torch.lerp(state.mean[name], g, 1 - b1)
            square = b2 * state.square[name] + (1 - b2) * g * g
            stepped = meta[name] - lr * (mean / c1) / ((square / c2).sqrt() + eps)
            changed = ((state.mean, mean), (state.square, square), (state.updates, updates), (meta, stepped))
            for old, new in changed:
                old[name].copy_(torch.where(finite, new, old[name]))
        return losses, seen, norm

    def _clipped(self, grads: Params) -> Params:
        value, norm = self.clipping
        if value is not None:
            grads = {name: g.clamp(-value, value) for name, g in grads.items()}
        if norm is not None:
            total = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
            grads = {name: g * (norm / (total + 1e-6)).clamp(max=1.0) for name, g in grads.items()}  # as PyTorch's
        return grads


def _bias_correction(beta: float, updates: Tensor) -> Tensor:
    return -torch.expm1(updates * math.log(beta))
