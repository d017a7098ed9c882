"""parallel-metalearn: `vmap` over the tasks of a meta-batch, with batch norm layers of its own.

Its translator of networks does not take batch norm in version 0.5.6 (it passes arguments that the layer does
not have), so the layers are put in place here.
"""

from typing import Any

import torch
from metalearn.algorithms import MAML  # pyright: ignore[reportMissingImports]
from metalearn.inner_optimizers import InnerSGD  # pyright: ignore[reportMissingImports]
from metalearn.loss.base import BaseLoss  # pyright: ignore[reportMissingImports]
from metalearn.model_wrappers import MAML_Model  # pyright: ignore[reportMissingImports]
from metalearn.nn_models.basic_layers.BatchNormalization import BatchNorm  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from benchmarks.peers import Prepared
from benchmarks.works import Work, gradients, initial, native, restore
from headstart.types import Params


class _Ignoring(nn.Module):
    """A network that is passed the framework's keywords (`training`, `num_step`) and has no use for them."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, **_: Any) -> Tensor:
        return self.network(inputs)


class _Loss(BaseLoss):
    def __init__(self, work: Work):
        super().__init__()
        self.work = work

    def forward(self, out_dict: dict[str, Tensor], targets: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        loss = self.work.loss(out_dict["logits"], targets)
        return loss, loss.detach()


def prepare(work: Work, first_order: bool = False) -> Prepared:
    """The work as the package's documentation writes it."""
    network = _with_its_batch_norm(native(work.model()))
    model = MAML_Model(backbone=_Ignoring(network), head=_Ignoring(nn.Identity()))
    start, tasks = initial(model), work.sample()
    batch = (*tasks.support, *tasks.query)
    fast = model.get_fast_weights()
    algorithm = MAML(
        model=model,
        optimizer=torch.optim.Adam(fast.values(), lr=1e-3, fused=True),
        inner_optimizer=InnerSGD(fast, first_order=first_order, inner_lr=work.inner_lr, learn_lr=False),
        support_loss_fn=_Loss(work),
        inner_steps=work.steps,
        chunk_size=work.vmap_tasks or work.tasks,
        backend="vmap",
        device=torch.device("cpu"),
    )

    def step() -> None:
        algorithm.step(iter([batch]))

    def gradient() -> Params:
        restore(model, start)
        step()
        names = {name for name, p in network.named_parameters() if p.requires_grad}
        return {name: g for name, g in gradients(network).items() if name in names}

    return Prepared(step, gradient)


def _with_its_batch_norm(network: nn.Module) -> nn.Module:
    """`network` with the package's own layer in place of `nn.BatchNorm2d`; the scale of one does not adapt."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                own = BatchNorm(layer.num_features, eps=layer.eps, track_running_stats=False)
                own.weight.requires_grad_(False)
                own.bias = layer.bias
                setattr(parent, name, own)
    return network
