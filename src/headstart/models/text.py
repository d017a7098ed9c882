"""A compact text encoder: embedded features, averaged with learned weights, and a linear head."""

import torch
from torch import Tensor, nn

GATE_SPEED = 10.0
"""Adam moves every number by about its step size: a gate has to go further than an embedding to make a difference."""


class TextEncoder(nn.Module):
    """Embeddings of a text's features, their gated mean, layer norm, and a linear head.

        g_i      = exp(gate of feature i), 0 where the text has ended
        features = norm(sum_i g_i e_i / sum_i g_i)

    A gate is a number per feature, as an inverse document frequency is: words that tell nothing are learned to be
    passed over, and a word never met in training keeps a gate of 1 and the random direction it was drawn with, in
    which two texts that share it still agree. The order of the features does not matter.

    Args:
        outputs: Number of classes.
        buckets: Numbers that features are hashed to; 0 is padding.
        size: Of embeddings and features.
        dropout: Share of a text's features that are left out in training.
    """

    def __init__(self, outputs: int, buckets: int = 1 << 14, size: int = 256, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(buckets, size)  # no padding index: where the gate is 0, nothing is learned
        self.gate = nn.Embedding(buckets, 1)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, outputs)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.norm.weight, 2 * size**-0.5)  # features of length 2: squared distances of a few units

    def forward(self, tokens: Tensor) -> Tensor:
        """Integers `[examples, length]`, 0 for padding, to `[examples, outputs]`."""
        there = (tokens != 0).unsqueeze(1)  # [examples, 1, length]
        gates = torch.where(there, (GATE_SPEED * self.gate(tokens)).exp().transpose(1, 2), 0.0)
        gates = self.dropout(gates)
        total = gates.sum(-1).clamp(min=1e-6)  # a text without features has the mean 0
        return self.head(self.norm((gates @ self.embedding(tokens)).squeeze(1) / total))
