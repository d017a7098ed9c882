"""Heads without an order of classes: one row for all (UNICORN-MAML, Ye and Chao 2022), and none at all (zero).

    code           paper
    the mean row   w, which the head of each class starts as
    weight         w repeated, [ways, features]

With one start for all classes a permutation of the labels changes nothing, and there may be any number of them.

Under a softmax cross-entropy the two are one: a row that all classes share adds the same to all of their outputs, which
softmax takes out again, at every inner step. The row then has no gradient, and what is learned is the body. They
differ under other losses (a sigmoid for each class), with weight decay, and for a model whose shared row is read.
In the first inner step either moves the head alone: for the body to adapt there must be more.
"""

from torch import Tensor, nn

from headstart.algorithms.heads import TaskHead
from headstart.layers import Norm
from headstart.types import Batch, Params


class SharedHead(TaskHead):
    """MAML whose head starts, in every task, with the same meta-learned row for each class.

    The model's own head may have any number of outputs: the mean of its rows is the one that is shared. So a model
    trained by `MAML` can be given to it as it is.

    >>> import torch
    >>> learner = SharedHead(nn.Linear(2, 1), nn.functional.cross_entropy)
    >>> support = Batch(torch.eye(2).repeat(2, 1)[:3], torch.tensor([0, 1, 2]))
    >>> learner.adapt(support, steps=0)
    Linear(in_features=2, out_features=3, bias=True)

    Reference: Ye and Chao (2022), "How to Train Your MAML to Excel in Few-Shot Classification", section 5.
    """

    def make_head(self, theta: Params, support: Batch, model: nn.Module, norm: Norm) -> tuple[Tensor, Tensor]:
        """The mean row for every class, and no bias."""
        row = theta[self.weight].mean(0)
        return row.expand(self.present, -1), row.new_zeros(self.present)


class ZeroHead(TaskHead):
    """MAML whose head starts at zero in every task; the first inner step then moves the head alone.

    Reference: Kao, Chiu and Chen (2022), "MAML is a Noisy Contrastive Learner in Classification" (the zeroing trick).
    """

    def make_head(self, theta: Params, support: Batch, model: nn.Module, norm: Norm) -> tuple[Tensor, Tensor]:
        """Zeros."""
        weight = theta[self.weight]
        return weight.new_zeros(self.present, weight.shape[1]), weight.new_zeros(self.present)
