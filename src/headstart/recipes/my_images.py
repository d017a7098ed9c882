"""Classification of a person's own images: a folder with one sub-folder of them per class.

Classes are split into those to train on, to validate on and to test on once, when training begins; the recipe then
holds their names, so that an evaluation never meets a class that was trained on, whatever has become of the folder.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import tyro
from torch import nn

from headstart.inputs.images import ImageInputs
from headstart.models import Conv4
from headstart.models.adapters import add_context
from headstart.models.norm import Normalizer
from headstart.models.resnet12 import ResNet12
from headstart.recipes.learners import IMAML_ON_IMAGES, LearnerName
from headstart.recipes.own_model import imported, load_weights, look_here
from headstart.recipes.recipe import Experiment, Part, Recipe
from headstart.recipes.supervised import SupervisedRecipe
from headstart.tasks.augmented import Augmented
from headstart.tasks.episodes import Episodes, RaggedStore
from headstart.tasks.folder import load, split, state, tell_parts, told, with_enough
from headstart.tasks.likeness import Likeness

BACKBONES = ("conv4", "resnet12")

_CONTEXT = {"conv4": "body.2.1", "resnet12": "body.2.convolutions.7"}
"""The norm whose channels CAVIA's context scales and shifts."""

_NORMS = {"conv4": ("body.*.1",), "resnet12": ("body.*.convolutions.[147]", "body.*.shortcut.1")}
"""The layers that FiLM's scales and shifts follow."""


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(SupervisedRecipe):
    """Classification of your own images from a few of each class."""

    ways: int = 5
    """Classes per task."""
    size: int = 64
    """Height and width that images are resized to, in pixels."""
    channels: Literal[1, 3] = 3
    """3 for colour, 1 for grey."""
    backbone: Annotated[str, tyro.conf.arg(aliases=("--model",))] = "conv4"
    """Network: conv4, resnet12, or your own as package.module:factory, a function that `factory(outputs=5)` calls for a
    module from images [n, channels, size, size] in [0, 1] to logits [n, 5]."""
    filters: int = 32
    """Filters of each convolution of conv4, and of the first block of resnet12."""
    normalizer: Normalizer = "batch"
    """Normaliser after each convolution of conv4 and resnet12."""
    augment: bool = False
    """Turn each class of a training task by a multiple of 90 degrees, and mirror and shift each image."""
    weights: str | None = None
    """Safetensors file with the weights to start from; the last layer may be of another size, and then starts anew."""
    train_classes: tuple[str, ...] = ()
    """Class folders to train on; all that are in no other part unless given."""
    val_classes: tuple[str, ...] = ()
    """Class folders to choose the best checkpoint by; chosen by their names unless given."""
    test_classes: tuple[str, ...] = ()
    """Class folders to evaluate on; chosen by their names unless given."""

    kind: ClassVar[str] = "images"
    metric_name: ClassVar[Literal["accuracy", "mse", "return"]] = "accuracy"
    own_data: ClassVar[bool] = True
    from_data: ClassVar[tuple[str, ...]] = ("train_classes", "val_classes", "test_classes", "weights")

    def __post_init__(self):
        super().__post_init__()
        self._at_least(2, "ways")
        self._at_least(16, "size")
        self._at_least(1, "filters")
        if self.backbone not in BACKBONES and not re.fullmatch(r"[\w.]+:\w+", self.backbone):
            raise ValueError(
                f"backbone must be {' or '.join(BACKBONES)}, or a network of your own as package.module:factory; got "
                f"{self.backbone!r}."
            )
        if self.learner == "cavia" and self.own_network:
            raise ValueError("The learner cavia needs a place for its context: choose another, or one of our networks.")

    @property
    def own_network(self) -> bool:
        """Whether the network is not one of ours."""
        return self.backbone not in BACKBONES

    @property
    def idle(self) -> dict[str, str]:
        """Settings of other learners, and of networks that are not used."""
        unused = ("filters", "normalizer") if self.own_network else ()
        return super().idle | dict.fromkeys(unused, f"the network is {self.backbone}")

    def usual(self, learner: LearnerName) -> dict[str, Any]:
        """As Proto-MAML, but for these."""
        found: dict[str, Any] = {"inner_lr": 0.1}
        special: dict[LearnerName, Mapping[str, Any]] = {
            "protonet": {"steps": 0, "eval_steps": 0, "select_step": 0},
            "maml++": {"schedule": "cosine"},
            "imaml": IMAML_ON_IMAGES,
            "film": {} if self.own_network else {"adapter_layers": (*_NORMS[self.backbone], "head")},
        }
        return {**found, **special.get(learner, {})}

    def fitted(self, data: Path | None) -> Self:
        """This recipe with the names of the classes of each part.

        Raises:
            ValueError: The folder cannot be used, or has too few classes with enough images.
        """
        look_here()
        store = with_enough(self._images(data), self.shots + max(self.queries, self.eval_queries))
        parts = split(store.names, self.ways, {part: self._classes(part) for part in ("train", "val", "test")})
        tell_parts("classes", parts)
        weights = None if self.weights is None else str(Path(self.weights).absolute())
        named: dict[str, Any] = {f"{part}_classes": names for part, names in parts.items()}
        return replace(self, weights=weights, **named)

    def refitted(self, before: Recipe[Any]) -> Recipe[Any]:
        """With the parts as they were."""
        look_here()
        return super().refitted(before)

    def model(self) -> nn.Module:
        """The network by its name; for CAVIA with a context that scales and shifts the third stage's channels."""
        if self.own_network:
            return imported(self.backbone, self.ways, torch.zeros(2, self.channels, self.size, self.size))
        network = Conv4 if self.backbone == "conv4" else ResNet12
        model = network(self.ways, self.channels, self.filters, self.normalizer)
        if self.learner == "cavia":
            add_context(model, self.context_size, _CONTEXT[self.backbone])
        return model

    def start(self) -> nn.Module:
        """The network, with the weights given."""
        model = self.model()
        if self.weights is not None:
            load_weights(model, Path(self.weights))
        return model

    @property
    def adapted_patterns(self) -> tuple[str, ...]:
        """Name patterns of what adapts: not how TaskNorm pools its statistics, which is meta-learned."""
        blend = ("!*.blend_*",) if self.normalizer.startswith("task-") and self.learner != "reptile" else ()
        return (*self.adapt_only, *blend)

    @property
    def normalized_alone(self) -> bool:
        """One image has several positions."""
        return not self.own_network

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
        """Episodes on the classes of one part.

        Raises:
            ValueError: Some of them are gone, or too few have images enough for so many shots and queries.
        """
        shots, queries = self.examples(shots, queries)
        store = with_enough(self.store(part, data), shots + queries)
        changed = part == "train" and self.augment
        rotations = "draw" if changed else "none"
        ways = self.ways if ways is None else ways
        episodes = Episodes(store, ways=ways, shots=shots, queries=queries, rotations=rotations)
        return Augmented(episodes) if changed else episodes

    def store(self, part: Part, data: Path | None = None) -> RaggedStore:
        """The images of one part, by class."""
        images, names = self._images(data), self._classes(part)
        if not names:
            raise ValueError("The classes are not split into parts yet: use the recipe that `fitted(data)` gives.")
        gone = sorted(set(names) - set(images.names))
        if gone:
            raise ValueError(f"{data} lacks the class folders {told(gone)} that this run knows: give the same folder.")
        return images.select([images.names.index(name) for name in names])

    def inputs(self, seen: Mapping[str, Any]) -> ImageInputs:
        """Images of the size and with the channels of the training images, read as these were."""
        likeness = Likeness.from_json(seen["images"]) if "images" in seen else None
        return ImageInputs(self.size, self.channels, ink=False, likeness=likeness)

    def seen(self, data: Path | None) -> dict[str, Any]:
        """What the training images look like."""
        return {"images": asdict(Likeness.of(self.store("train", data)))}

    def _classes(self, part: Part) -> tuple[str, ...]:
        return {"train": self.train_classes, "val": self.val_classes, "test": self.test_classes}[part]

    def _images(self, data: Path | None) -> RaggedStore:
        if data is None:
            raise ValueError("Your images are in no folder yet: say which by --data.")
        return _loaded(data, self.size, self.channels, state(data))


@lru_cache(maxsize=1)
def _loaded(data: Path, size: int, channels: Literal[1, 3], state: str) -> RaggedStore:
    """Read once for each state of the folder: training and validation both need it, and it warns but once."""
    return load(data, size, channels)


def experiments() -> list[Experiment]:
    """One: the rest is settings."""
    recipe = ImageRecipe(
        iterations=600,
        meta_batch=4,
        shots=1,
        queries=5,
        steps=1,
        inner_lr=0.1,
        norm="support",
        learner="proto-maml",
        eval_steps=1,
        eval_queries=5,
        validate_every=100,
        checkpoint_every=100,
        log_every=20,
    )
    return [Experiment("my-images", "Your own images, a folder of them for each class: --data FOLDER", recipe)]
