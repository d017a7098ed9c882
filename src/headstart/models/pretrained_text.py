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
        encoder = _encoder(folder)
        self.encoder = encoder.requires_grad_(False)
        self.head = nn.Linear(encoder.config.hidden_size, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Integers `[examples, length]` from `tokenized`, 0 for padding, to `[examples, outputs]`."""
        states = _states(self.encoder, tokens, self.head.weight.dtype)
        weights = (tokens != 0).to(states).unsqueeze(-1)
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
        settings = {"truncation": True, "max_length": self.length}
        found = self._tokenizer(list(texts), **settings)["input_ids"] if texts else []  # which it cannot take
        rows = torch.zeros(len(found), self.length, dtype=torch.int64)
        for row, ids in zip(rows, found, strict=True):
            row[: len(ids)] = torch.tensor(ids) + 1
        return rows


def check_encoder(folder: str, tokens: Tensor) -> None:
    """See that an encoder computes for `PretrainedText` what it computes for its own library.

    Not all take the mask that they are given here: some fail, and one that reads from left to right alone would see
    the whole text.

    Args:
        folder: As there.
        tokens: `[examples, length]`, texts of different lengths, at least one of them with padding.

    Raises:
        ValueError: The folder holds no encoder, or it fails, or it computes something else.
    """
    encoder, length = _encoder(folder), tokens.shape[1]
    kind = f"The encoder in {folder} ({type(encoder).__name__})"
    advice = f"take one built like BERT, and no greater --length than it has positions (it is {length} now)."
    there = tokens != 0
    try:
        with torch.no_grad():
            found = _states(encoder, tokens, torch.float32)[there]
            expected = encoder(input_ids=_ids(tokens), attention_mask=there.long()).last_hidden_state[there]
        alike = found.shape[-1] == encoder.config.hidden_size and torch.allclose(found, expected, 1e-3, 1e-4)
    except Exception as error:  # it may raise anything
        raise ValueError(f"{kind} cannot be used ({_told(error)}): {advice}") from error
    if not alike:
        raise ValueError(f"{kind} cannot be used (it does not read a text as a whole): {advice}")


def _encoder(folder: str) -> Any:
    # Attention composed of plain operations: the fused kernel has no second derivative. Files may be in half precision.
    return _from(folder, "AutoModel", attn_implementation="eager", dtype=torch.float32)


def _states(encoder: Any, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """The last hidden states, `[examples, length, features]`."""
    away = (tokens == 0).to(dtype) * torch.finfo(dtype).min
    # With all four axes the mask is taken as it is: to make one, the library would ask for its values.
    mask = away[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
    return encoder(input_ids=_ids(tokens), attention_mask=mask).last_hidden_state


def _ids(tokens: Tensor) -> Tensor:
    return (tokens - 1).clamp(min=0)


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
    except Exception as error:  # damaged files raise anything
        raise ValueError(f"{folder} holds no Hugging Face encoder with its tokenizer ({_told(error)}).") from error


def _told(error: Exception) -> str:
    """The first line of what the library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
