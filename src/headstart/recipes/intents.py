"""Few-shot intent classification: what somebody wants, told in a sentence, from a few sentences of each intent."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from headstart.inputs.texts import TextInputs
from headstart.models.pretrained_text import PretrainedText, Tokenized, check_encoder
from headstart.models.text import TextEncoder
from headstart.recipes.learners import LearnerName
from headstart.recipes.recipe import Experiment, Part
from headstart.recipes.supervised import SupervisedRecipe
from headstart.tasks import intents
from headstart.tasks.folder import split, tell_parts, told
from headstart.tasks.texts import Encode, TextEpisodes, TextStore, by_label, hashed, read_columns, with_enough

_FROZEN: tuple[LearnerName, ...] = ("anil", "lora")
"""Learners whose meta-parameters are not in the encoder."""


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
    from_data: ClassVar[tuple[str, ...]] = ("encoder",)

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

    def check(self, device: torch.device) -> None:
        """See that the pretrained encoder can be used, and what every recipe sees to."""
        if self.encoder is not None:
            check_encoder(self.encoder, self.encode(["word", "several words, and a few more of them"]))
        super().check(device)

    def fitted(self, data: Path | None) -> Self:
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
        return self._episodes(self.texts(part, data), shots, queries, ways)

    def inputs(self, seen: Mapping[str, Any]) -> TextInputs:
        """Texts, encoded as in training."""
        return TextInputs(self.encode)

    def _episodes(self, texts: Mapping[str, list[str]], shots: int, queries: int, ways: int | None) -> TextEpisodes:
        store = TextStore.of(texts, self.encode)
        return TextEpisodes(store, ways=self.ways if ways is None else ways, shots=shots, queries=queries)


@dataclass(frozen=True, kw_only=True)
class OwnTextRecipe(IntentRecipe):
    """Classification of a person's own texts: a CSV file with columns text and label."""

    train_labels: tuple[str, ...] = ()
    """Labels to train on; all that are in no other part unless given."""
    val_labels: tuple[str, ...] = ()
    """Labels to choose the best checkpoint by; chosen by their names unless given."""
    test_labels: tuple[str, ...] = ()
    """Labels to evaluate on; chosen by their names unless given."""

    kind: ClassVar[str] = "my-text"
    named: ClassVar[tuple[str, ...]] = ()
    own_data: ClassVar[bool] = True
    from_data: ClassVar[tuple[str, ...]] = ("train_labels", "val_labels", "test_labels", "encoder")

    @property
    def idle(self) -> dict[str, str]:
        """What is about the published data sets."""
        return super().idle | dict.fromkeys(("dataset", "split"), "the texts are your own")

    def fitted(self, data: Path | None) -> Self:
        """This recipe with the labels of each part.

        Raises:
            ValueError: The file cannot be used, or has too few labels with enough texts.
        """
        texts = with_enough(_own(data), self.shots + max(self.queries, self.eval_queries))
        parts = split(tuple(texts), self.ways, {part: self._labels(part) for part in ("train", "val", "test")})
        tell_parts("labels", parts)
        named: dict[str, Any] = {f"{part}_labels": names for part, names in parts.items()}
        return replace(super().fitted(data), **named)

    def source(
        self,
        part: Part,
        data: Path | None = None,
        shots: int | None = None,
        queries: int | None = None,
        ways: int | None = None,
    ):
        """Tasks on those labels of one part that have texts enough for so many shots and queries.

        Raises:
            ValueError: Some labels are gone, or too few are left.
        """
        shots, queries = self.examples(shots, queries)
        return self._episodes(with_enough(self.texts(part, data), shots + queries), shots, queries, ways)

    def texts(self, part: Part, data: Path | None) -> Mapping[str, list[str]]:
        """The texts of one part, by label."""
        found, labels = _own(data), self._labels(part)
        if not labels:
            raise ValueError("The labels are not split into parts yet: use the recipe that `fitted(data)` gives.")
        if gone := sorted(set(labels) - set(found)):
            raise ValueError(f"{data} lacks the labels {told(gone)} that this run knows: give the file with them.")
        return {label: found[label] for label in labels}

    def _labels(self, part: Part) -> tuple[str, ...]:
        return {"train": self.train_labels, "val": self.val_labels, "test": self.test_labels}[part]


def _own(data: Path | None) -> dict[str, list[str]]:
    """All texts of a person's file, by label."""
    if data is None:
        raise ValueError("Your texts are in no file yet: say which by --data.")
    return by_label(read_columns(data, ("text", "label")))


@lru_cache(maxsize=1)
def _tokenized(folder: str, length: int) -> Tokenized:
    """Read once: every part needs it."""
    return Tokenized(folder, length)


def experiments() -> list[Experiment]:
    """CLINC150 and Banking77 with one and five sentences of each intent, and a person's own texts."""
    found = []
    names: dict[intents.Dataset, str] = {"clinc150": "CLINC150", "banking77": "Banking77"}
    for dataset, title in names.items():
        for shots in (1, 5):
            by: intents.Split = "domains" if dataset == "clinc150" else "intents"
            recipe = IntentRecipe(**_settings(shots), dataset=dataset, split=by)
            summary = f"{title} intents, 5 ways, {shots} shot{'s' if shots > 1 else ''}"
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
