"""MAML in a Lightning training loop: a learner is an `nn.Module`, so nothing special is needed.

pip install pytorch-lightning
python examples/lightning_loop.py
"""

from collections.abc import Iterator

import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import headstart


class MetaBatches(IterableDataset):
    """A task source as a Lightning (or plain PyTorch) data set, whose items are whole meta-batches."""

    def __init__(self, source: headstart.TaskSource, size: int, count: int, seed: int):
        super().__init__()
        self.source, self.size, self.count, self.seed = source, size, count, seed

    def __iter__(self) -> Iterator[headstart.Task]:
        """`count` meta-batches of `size` tasks, the same ones each time."""
        batches = self.source.batches(self.size, seed=self.seed)
        return (tasks for _, tasks in zip(range(self.count), batches, strict=False))


class MetaLearning(lightning.LightningModule):
    """Any learner of Headstart, trained by Adam and validated on tasks never seen."""

    def __init__(self, learner: headstart.MAML, meta_lr: float = 1e-3):
        super().__init__()
        self.learner, self.meta_lr = learner, meta_lr

    def training_step(self, tasks: headstart.Task) -> torch.Tensor:
        """The meta-loss, whose gradient Lightning takes."""
        loss = self.learner(tasks)
        self.log("meta_loss", loss)
        return loss

    def validation_step(self, tasks: headstart.Task) -> None:
        """The query error after adaptation; `predict` takes inner gradients although Lightning turns them off."""
        outputs = self.learner.predict(tasks)[:, -1]
        self.log("error", nn.functional.mse_loss(outputs, tasks.query.targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the meta-parameters."""
        return torch.optim.Adam(self.learner.parameters(), lr=self.meta_lr)


def main(iterations: int = 1000, folder: str = "lightning") -> MetaLearning:
    lightning.seed_everything(0, verbose=False)
    model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    module = MetaLearning(headstart.MAML(model, nn.functional.mse_loss, inner=headstart.SGD(lr=0.01), steps=1))
    waves = headstart.tasks.Sinusoids(shots=10)
    train, val = (MetaBatches(waves, 25, count, seed) for count, seed in ((iterations, 0), (4, 1)))
    trainer = lightning.Trainer(max_epochs=1, logger=False, default_root_dir=folder, accelerator="cpu")
    # Meta-batches come ready: `batch_size=None` keeps the loader from stacking them.
    trainer.fit(module, DataLoader(train, batch_size=None), DataLoader(val, batch_size=None))
    print(f"Error on new waves after one step: {float(trainer.callback_metrics['error']):.3f}")
    return module


if __name__ == "__main__":
    main()
