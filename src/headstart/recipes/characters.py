"""The paper's character classification: Omniglot, N ways and K shots (section 5.2, Tables 1 and 3); and glyphs.

Step sizes are for the mean cross-entropy. The released code divides the summed loss by the number of shots,
not of examples, so that its loss is `ways` times as large: its 0.4 (5-way) and 0.1 (20-way) are both 2.0 here.

Differs: the context vector of Table 3 scales and shifts the third layer's channels, where the paper appends it to the
input, in a way it does not give: a constant channel would be taken out again by the batch norm that follows.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from headstart.inputs.images import ImageInputs
from headstart.models import MLP, Conv4
from headstart.models.adapters import add_context
from headstart.models.norm import Normalizer
from headstart.recipes.learners import IMAML_ON_IMAGES, LearnerName
from headstart.recipes.recipe import Experiment, Part, Published
from headstart.recipes.supervised import SupervisedRecipe
from headstart.tasks import ClassStore, Episodes, glyphs, omniglot
from headstart.tasks.likeness import Likeness
from headstart.types import Task

SIZE = 28
"""Height and width of the images, in pixels."""

MLP_NORMS = (1, 4, 7, 10)
"""Where the fully connected network's body has its norms."""


@dataclass(frozen=True, kw_only=True)
class CharacterRecipe(SupervisedRecipe):
    """Classification of characters from a few drawings of each."""

    ways: int = 5
    """Classes per task."""
    dataset: Literal["omniglot", "glyphs"] = "omniglot"
    """Real characters, or generated ones that need no data; the recipe's name stands for it."""
    split: Literal["released", "vinyals"] = "released"
    """Omniglot's characters as the released code splits them, or as Vinyals et al. (rotations are classes)."""
    network: Literal["conv4", "mlp"] = "conv4"
    """Four convolutions, or the fully connected 256-128-64-64."""
    filters: int = 64
    """Filters per convolution."""
    normalizer: Normalizer = "batch"
    """Normaliser after each layer; the setting norm says where batch norm and TaskNorm (task-...) take statistics from,
    and for TaskNorm as published that is the support set."""
    glyph_classes: int = 1100
    """Generated characters to train on."""

    kind: ClassVar[str] = "characters"
    named: ClassVar[tuple[str, ...]] = ("dataset",)
    metric_name: ClassVar[Literal["accuracy", "mse", "return"]] = "accuracy"

    def usual(self, learner: LearnerName) -> dict[str, Any]:
        """As MAML, but for these; evaluation takes no fewer steps than training."""
        steps = {"maml++": max(self.steps, 3), "reptile": 5}.get(learner)
        found: dict[str, Any] = {}
        if steps is not None:
            evaluated = max(steps, self.eval_steps)
            found = {"steps": steps, "eval_steps": evaluated, "select_step": evaluated}
        norms = tuple(f"body.{i}" for i in MLP_NORMS) if self.network == "mlp" else ("body.*.1",)
        special: dict[LearnerName, Mapping[str, Any]] = {
            "cavia": {"context_size": 100, "inner_lr": 1.0},  # Zintgraf et al. 2019, section 4.3
            "film": {"adapter_layers": (*norms, "head")},  # after the norms, which would undo it
            "maml++": {"schedule": "cosine"},
            "protonet": {"steps": 0, "eval_steps": 0, "select_step": 0},
            "reptile": {"adapt_only": ("*",)},  # what does not adapt would never be learned
            "imaml": IMAML_ON_IMAGES,
            # The first step moves the head alone, one that moves the body is not what one-step training prepares for.
            "shared-head": {"eval_steps": self.steps, "select_step": self.steps},
            "zero-head": {"eval_steps": self.steps, "select_step": self.steps},
        }
        return {**found, **special.get(learner, {})}

    def model(self) -> nn.Module:
        """The network by its name; for CAVIA with a context that scales and shifts the third layer's channels."""
        if self.network == "mlp":
            model = MLP(SIZE * SIZE, self.ways, (256, 128, 64, 64), normalizer=self.normalizer)
        else:
            model = Conv4(self.ways, filters=self.filters, normalizer=self.normalizer)
        if self.learner == "cavia":
            add_context(model, self.context_size, "body.7" if self.network == "mlp" else "body.2.1")
        return model

    @property
    def adapted_patterns(self) -> tuple[str, ...]:
        """Name patterns of what adapts: not how TaskNorm pools its statistics, which is meta-learned.

        But for Reptile, which learns only what adapts.
        """
        blend = ("!*.blend_*",) if self.normalizer.startswith("task-") and self.learner != "reptile" else ()
        return (*self.adapt_only, *blend)

    @property
    def normalized_alone(self) -> bool:
        """One image has several positions, of which the fully connected network knows nothing."""
        return self.network == "conv4"

    @property
    def classes(self) -> int:
        """Classes per task."""
        return self.ways

    def source(
        self,
        part: Part,
        data: Path | None = None,
        shots: int | None = None,
        queries: int | None = None,
        ways: int | None = None,
    ):
        """Episodes on the characters of one part."""
        shots, queries = self.examples(shots, queries)
        ways = self.ways if ways is None else ways
        rotations = "classes" if self.dataset == "omniglot" and self.split == "vinyals" else "draw"
        return Episodes(self.store(part, data), ways=ways, shots=shots, queries=queries, rotations=rotations)

    def store(self, part: Part, data: Path | None = None) -> ClassStore:
        """The images of one part, by class."""
        if self.dataset == "omniglot":
            return omniglot.split(_omniglot(data), self.split, part)
        return _glyphs({"train": self.glyph_classes, "val": 100, "test": 423}[part], part)

    def one_shot_runs(self, data: Path | None) -> Task:
        """Omniglot's 20 runs of 20-way one-shot classification."""
        if self.dataset != "omniglot" or self.ways != 20:
            return super().one_shot_runs(data)
        return omniglot.one_shot_runs(data)

    def inputs(self, seen: Mapping[str, Any]) -> ImageInputs:
        """Grey drawings, whose ink counts."""
        return ImageInputs(SIZE, ink=True, likeness=Likeness.from_json(seen["images"]) if "images" in seen else None)

    def seen(self, data: Path | None) -> dict[str, Any]:
        """What the training characters look like."""
        return {"images": asdict(Likeness.of(self.store("train", data)))}


@lru_cache(maxsize=1)
def _omniglot(data: Path | None) -> ClassStore:
    """Read once per process: training and validation both need it."""
    return omniglot.load(data)


@lru_cache(maxsize=3)
def _glyphs(classes: int, part: Part) -> ClassStore:
    """Drawn once per process, likewise."""
    return glyphs.store(classes, size=SIZE, part=part)


def experiments() -> list[Experiment]:
    """Table 1's Omniglot rows, each also first order, and the same on glyphs."""
    table1 = "Finn et al. 2017, Table 1"
    first = "Nichol et al. 2018, first-order MAML with transduction, by their own protocol"
    published = {
        "omniglot-5way-1shot": (0.987, 0.983),
        "omniglot-5way-5shot": (0.999, 0.992),
        "omniglot-20way-1shot": (0.958, 0.894),
        "omniglot-20way-5shot": (0.989, 0.979),
        "omniglot-5way-1shot-mlp": (0.897, None),
        "omniglot-5way-5shot-mlp": (0.975, None),
    }
    settings = {
        "omniglot-5way-1shot": _five_way(1),
        "omniglot-5way-5shot": _five_way(5),
        "omniglot-20way-1shot": _twenty_way(1),
        "omniglot-20way-5shot": _twenty_way(5),
        "omniglot-5way-1shot-mlp": _without_convolutions(_five_way(1)),
        "omniglot-5way-5shot-mlp": _without_convolutions(_five_way(5)),
    }
    found = []
    for name, recipe in settings.items():
        exact, approximate = published[name]
        summary = f"Omniglot characters, {recipe.ways} ways, {recipe.shots} shot{'s' if recipe.shots > 1 else ''}"
        summary += ", fully connected" if recipe.network == "mlp" else ""
        at = recipe.eval_steps
        found.append(Experiment(name, summary, recipe, (Published(at, exact, table1),)))
        found.append(
            Experiment(
                f"{name}-first-order",
                f"{summary}, first order",
                replace(recipe, first_order=True),
                (Published(at, approximate, first),) if approximate else (),
            )
        )
    table3 = "Finn et al. 2017, Table 3"
    for shots, value in ((1, 0.949), (5, 0.977)):
        summary = f"Omniglot characters, 5 ways, {shots} shot{'s' if shots > 1 else ''}, only a context vector adapts"
        recipe = _five_way(shots).with_learner("cavia")
        found.append(Experiment(f"omniglot-5way-{shots}shot-context", summary, recipe, (Published(3, value, table3),)))
    generated = replace(_five_way(1), dataset="glyphs")
    found.append(Experiment("glyphs-5way-1shot", "Generated characters, 5 ways, 1 shot: no data needed", generated))
    return found


def _five_way(shots: int) -> CharacterRecipe:
    return CharacterRecipe(
        iterations=60_000,
        meta_batch=32,
        ways=5,
        shots=shots,
        queries=shots,
        steps=1,
        inner_lr=2.0,
        adapt_only=("*", "!body.*.1.bias"),  # batch norm's shift is meta-learned but not adapted
        eval_steps=3,
        eval_queries=shots,
        select_step=3,
        log_every=50,
        checkpoint_every=500,
    )


def _twenty_way(shots: int) -> CharacterRecipe:
    return replace(_five_way(shots), meta_batch=16, ways=20, steps=5, eval_steps=5, select_step=5)


def _without_convolutions(recipe: CharacterRecipe) -> CharacterRecipe:
    shifts = tuple(f"!body.{i}.bias" for i in MLP_NORMS)
    return replace(recipe, network="mlp", adapt_only=("*", *shifts))
