"""A Hugging Face encoder from a local folder, as a frozen network with a head. Needs the extra `hf`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class PretrainedText(nn.Module):
    """The mean of a pretrained encoder's last hidden states, and a linear head.

    The encoder is frozen: what adapts is the head, or low-rank parts that are added to it.

    Args:
        outputs: Number of classes.
        folder: With the files that `save_pretrained` of a model and of its tokenizer write.

    Raises:
        ValueError: The folder holds no encoder, or transformers is not installed.
    """

    def __init__(self, outputs: int, folder: str):
        super().__init__()
        # Attention composed of plain operations: the fused kernel has no second derivative.
        encoder = _from(folder, "AutoModel", attn_implementation="eager")
        self.encoder = encoder.requires_grad_(False)
        self.head = nn.Linear(encoder.config.hidden_size, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Integers `[examples, length]` from `tokenized`, 0 for padding, to `[examples, outputs]`."""
        there = tokens != 0
        weight = self.head.weight
        away = (~there).to(weight) * torch.finfo(weight.dtype).min
        # With all four axes the mask is taken as it is: to make one, the library would ask for its values.
        mask = away[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
        states = self.encoder(input_ids=(tokens - 1).clamp(min=0), attention_mask=mask).last_hidden_state
        weights = there.to(states).unsqueeze(-1)
        return self.head((states * weights).sum(1) / weights.sum(1).clamp(min=1.0))


class Tokenized:
    """A callable that encodes texts as `PretrainedText` takes them: token ids plus 1, padded with 0.

    Args:
        folder: As there.
        length: Tokens kept of each text.
    """

    def __init__(self, folder: str, length: int):
        self.length = length
        self._tokenizer = _from(folder, "AutoTokenizer")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Int64 `[texts, length]`."""
        found = self._tokenizer(list(texts), truncation=True, max_length=self.length)["input_ids"]
        rows = torch.zeros(len(found), self.length, dtype=torch.int64)
        for row, ids in zip(rows, found, strict=True):
            row[: len(ids)] = torch.tensor(ids) + 1
        return rows


def _from(folder: str, kind: str, **settings: Any) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError("A pretrained encoder needs transformers: pip install 'headstart[hf]'.") from error
    if not Path(folder).is_dir():
        raise ValueError(f"There is no folder {folder}: give one with a Hugging Face model and its tokenizer.")
    transformers.logging.disable_progress_bar()
    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **settings)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder} holds no Hugging Face encoder with its tokenizer ({reason}).") from error
