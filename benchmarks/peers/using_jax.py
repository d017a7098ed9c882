"""JAX: the whole meta-iteration, Adam included, in one `jit`; tasks by `vmap`, or by `lax.map` where that is faster."""

import jax  # pyright: ignore[reportMissingImports]
import numpy as np
import optax  # pyright: ignore[reportMissingImports]
import torch
from jax import numpy as jnp  # pyright: ignore[reportMissingImports]

from benchmarks.peers import Prepared
from benchmarks.peers.jax_networks import NETWORKS, loss_of
from benchmarks.works import Work, initial
from headstart.types import Params

MAPPED = ("strided",)
"""Families whose tasks go one after the other (`lax.map`): measured faster there than `vmap`, slower elsewhere."""
SCANNED_FROM = 10
"""Inner steps from which they are a loop of the compiled program; unrolled, compiling takes minutes."""


def prepare(work: Work, first_order: bool = False) -> Prepared:
    """The work as a pure function of parameters, compiled whole."""
    network, loss = NETWORKS[work.family], loss_of(work)
    theta = {name: jnp.asarray(p.numpy()) for name, p in initial(work.model()).items()}
    tasks = work.sample()
    batch = tuple(jnp.asarray(_array(t)) for t in (*tasks.support, *tasks.query))
    adam = optax.adam(1e-3)

    def query_loss(params, support, labels, query, answers):
        def support_loss(params):
            return loss(network(params, support), labels)

        def inner_step(params, _):
            grads = jax.grad(support_loss)(params)
            grads = jax.lax.stop_gradient(grads) if first_order else grads
            return jax.tree.map(lambda p, g: p - work.inner_lr * g, params, grads), None

        params, _ = jax.lax.scan(inner_step, params, length=work.steps, unroll=work.steps < SCANNED_FROM)
        return loss(network(params, query), answers)

    def meta_loss(params, batch):
        if work.family in MAPPED:
            return jax.lax.map(lambda task: query_loss(params, *task), batch).mean()
        return jax.vmap(query_loss, (None, 0, 0, 0, 0))(params, *batch).mean()

    @jax.jit
    def iterate(params, state, batch):
        grads = jax.grad(meta_loss)(params, batch)
        updates, state = adam.update(grads, state)
        return optax.apply_updates(params, updates), state, grads

    now = {"params": theta, "state": adam.init(theta)}

    def step() -> None:
        now["params"], now["state"], _ = jax.block_until_ready(iterate(now["params"], now["state"], batch))

    def gradient() -> Params:
        _, _, grads = iterate(theta, adam.init(theta), batch)
        return {name: torch.from_numpy(np.array(g)) for name, g in grads.items()}

    return Prepared(step, gradient)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """As the networks want it: images with their channels last."""
    return (tensor.movedim(2, -1) if tensor.dim() == 5 else tensor).numpy()
