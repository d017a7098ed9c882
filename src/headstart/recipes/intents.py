"""Few-shot intent classification: what somebody wants, told in a sentence, from a few sentences of each intent."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import nn

from headstart.inputs.texts import TextInputs
from headstart.losses import Criterion, accuracy
from headstart.models.pretrained_text import PretrainedText, Tokenized
from headstart.models.text import TextEncoder
from headstart.recipes.learners import LearnerName
from headstart.recipes.recipe import Experiment, Part
from headstart.recipes.supervised import SupervisedRecipe
from headstart.tasks import intents
from headstart.tasks.texts import Encode, TextEpisodes, TextStore, by_label, hashed, read_columns
from headstart.training.evaluate import Metric

_FROZEN: tuple[LearnerName, ...] = ("anil", "lora")
"""Learners whose meta-parameters are not in the encoder."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class IntentRecipe(SupervisedRecipe):
    """Classification of sentences from a few of each intent."""

    ways: int = 5
    """Intents per task."""
    dataset: intents.Dataset = "clinc150"
    """CLINC150, or Banking77; the recipe's name stands for it."""
    split: intents.Split = "domains"
    """What training and test have different ones of: whole domains (CLINC150 only), or intents."""
    length: int = 96
    """Features, or a pretrained encoder's tokens, kept of each text; what follows is cut off."""
    buckets: int = 1 << 14
    """Numbers that features are hashed to."""
    size: int = 256
    """Of embeddings and features."""
    dropout: float = 0.3
    """Share of a text's features that are left out in training."""
    encoder: str | None = None
    """Folder of a Hugging Face encoder and its tokenizer, taken in place of the compact one, frozen; with --learner
    lora or anil."""

    kind: ClassVar[str] = "intents"
    named: ClassVar[tuple[str, ...]] = ("dataset",)
    metric_name: ClassVar[Literal["accuracy", "mse", "return"]] = "accuracy"

    def __post_init__(self):
        super().__post_init__()
        self._at_least(1, "length", "size")
        self._at_least(2, "ways", "buckets")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share of the features, from 0 to below 1, got {self.dropout}.")
        if self.encoder is not None and self.learner not in _FROZEN:
            raise ValueError(
                f"A pretrained encoder is frozen, and the learner {self.learner} would have nothing to learn: add "
                f"--learner {' or '.join(_FROZEN)}."
            )

    @property
    def idle(self) -> dict[str, str]:
        """Settings of other learners and networks, and what there is no batch norm for."""
        told = super().idle | dict.fromkeys(("step_norms", "norm"), "the network has no batch norm")
        if self.encoder is not None:
            told |= dict.fromkeys(("buckets", "size", "dropout"), "the encoder is a pretrained one")
        return told

    def usual(self, learner: LearnerName) -> dict[str, Any]:
        """As prototypical networks, but for these; what does not adapt, the embeddings, is still meta-learned."""
        found: dict[str, Any] = {}
        if learner != "protonet":  # the others take steps, most of them from a head that knows nothing
            found = {"inner_lr": 2.0, "steps": 3, "eval_steps": 5, "select_step": 5}
        everything: dict[str, Any] = {"adapt_only": ("*",)}  # or what the learner itself leaves of it
        special: dict[LearnerName, dict[str, Any]] = {
            "anil": everything,
            "bias-only": everything,
            "cavia": everything,
            "film": everything | {"adapter_layers": ("norm",)},
            "lora": everything | {"adapter_layers": ("*head",) if self.encoder is None else ("*",), "inner_lr": 0.5},
            "proto-maml": {"inner_lr": 0.1, "steps": 1, "eval_steps": 3, "select_step": 3},
            "reptile": everything,  # what does not adapt would never be learned
        }
        return found | special.get(learner, {})

    def model(self) -> nn.Module:
        """The compact encoder, or the pretrained one."""
        if self.encoder is not None:
            return PretrainedText(self.ways, self.encoder)
        return TextEncoder(self.ways, self.buckets, self.size, self.dropout)

    def fitted(self, data: Path | None) -> "IntentRecipe":
        """With the pretrained encoder's whole path, so that the run is understood from any folder."""
        return self if self.encoder is None else replace(self, encoder=str(Path(self.encoder).resolve()))

    @property
    def classes(self) -> int:
        """Classes per task."""
        return self.ways

    @property
    def encode(self) -> Encode:
        """From texts to integers."""
        if self.encoder is not None:
            return _tokenized(self.encoder, self.length)
        return partial(hashed, buckets=self.buckets, length=self.length)

    def texts(self, part: Part, data: Path | None) -> Mapping[str, list[str]]:
        """The texts of one part, by intent."""
        return intents.load(self.dataset, part, self.split, data)

    def source(
        self,
        part: Part,
        data: Path | None = None,
        shots: int | None = None,
        queries: int | None = None,
        ways: int | None = None,
    ):
        """Tasks on the intents of one part."""
        shots, queries = self.examples(shots, queries)
        store = TextStore.of(self.texts(part, data), self.encode)
        return TextEpisodes(store, ways=self.ways if ways is None else ways, shots=shots, queries=queries)

    def inputs(self, seen: Mapping[str, Any]) -> TextInputs:
        """Texts, encoded as in training."""
        return TextInputs(self.encode)

    @property
    def criterion(self) -> Criterion:
        """Mean cross-entropy."""
        return F.cross_entropy

    @property
    def metric(self) -> Metric:
        """Accuracy per task."""
        return accuracy


@dataclass(frozen=True, kw_only=True)
class OwnTextRecipe(IntentRecipe):
    """Classification of a person's own texts: a CSV file with columns text and label."""

    kind: ClassVar[str] = "my-text"
    named: ClassVar[tuple[str, ...]] = ()
    own_data: ClassVar[bool] = True

    @property
    def idle(self) -> dict[str, str]:
        """What is about the published data sets."""
        return super().idle | dict.fromkeys(("dataset", "split"), "the texts are your own")

    def fitted(self, data: Path | None) -> "IntentRecipe":
        """As it is, once the file is seen to have texts enough."""
        assert data is not None
        rows = by_label(read_columns(data, ("text", "label")))
        usable = self._usable(data)
        if len(usable) < len(rows):
            _log.warning("%d of %d labels have fewer than %d texts: left out.", *self._counted(rows, usable))
        for part in ("train", "val", "test"):
            found = len(self.texts(part, data))
            if found < self.ways:
                raise ValueError(
                    f"{data} has {len(usable)} labels of {self._needed} texts or more, which leaves {found} for the "
                    f"part {part}, and a task needs {self.ways}: give more texts, or lower --ways, --shots, --queries "
                    "or --eval-queries."
                )
        return super().fitted(data)

    def texts(self, part: Part, data: Path | None) -> Mapping[str, list[str]]:
        """The texts of one part: six of ten labels are for training, two for validation, two for the test."""
        assert data is not None
        usable = self._usable(data)
        fifth = len(usable) // 5
        parts = intents.by_hash(list(usable), (len(usable) - 2 * fifth, fifth, fifth))
        return {label: usable[label] for label in parts[("train", "val", "test").index(part)]}

    @property
    def _needed(self) -> int:
        return self.shots + max(self.queries, self.eval_queries)

    def _usable(self, data: Path) -> dict[str, list[str]]:
        found = by_label(read_columns(data, ("text", "label")))
        return {label: group for label, group in found.items() if len(group) >= self._needed}

    def _counted(self, rows: Mapping[str, Any], usable: Mapping[str, Any]) -> tuple[int, int, int]:
        return len(rows) - len(usable), len(rows), self._needed


@lru_cache(maxsize=1)
def _tokenized(folder: str, length: int) -> Tokenized:
    """Read once: every part needs it."""
    return Tokenized(folder, length)


def experiments() -> list[Experiment]:
    """CLINC150 and Banking77 with one and five sentences of each intent, and a person's own texts."""
    found = []
    names: dict[intents.Dataset, str] = {"clinc150": "CLINC150", "banking77": "Banking77"}
    for dataset, told in names.items():
        for shots in (1, 5):
            split: intents.Split = "domains" if dataset == "clinc150" else "intents"
            recipe = IntentRecipe(**_settings(shots), dataset=dataset, split=split)
            summary = f"{told} intents, 5 ways, {shots} shot{'s' if shots > 1 else ''}"
            found.append(Experiment(f"{dataset}-5way-{shots}shot", summary, recipe))
    own = OwnTextRecipe(**{**_settings(1), "queries": 5, "eval_queries": 5})
    found.append(Experiment("my-text", "Your own texts: a CSV file with columns text and label", own))
    return found


def _settings(shots: int) -> dict[str, Any]:
    return {
        "iterations": 500,
        "meta_batch": 8,
        "shots": shots,
        "queries": 5,
        "learner": "protonet",  # as good as those with inner steps and the cheapest, see docs/your-text.md
        "steps": 0,
        "inner_lr": 0.1,
        "eval_steps": 0,
        "select_step": 0,
        "eval_queries": 15,
        "val_tasks": 100,
        "adapt_only": ("*", "!embedding.*", "!gate.*"),
        "validate_every": 100,
        "checkpoint_every": 100,
        "log_every": 20,
    }
