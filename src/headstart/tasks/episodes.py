"""N-way K-shot tasks drawn from labelled examples, a whole meta-batch at once by index arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headstart.types import Batch, Task, TaskSource

Rotations = Literal["none", "draw", "classes"]


@dataclass(frozen=True, eq=False)
class ClassStore:
    """Images by class and example, and the classes' names.

    Raises:
        ValueError: If the images are not uint8 with five contiguous axes, or there is not one distinct name per class.
    """

    images: Tensor
    """uint8 [classes, examples, channels, height, width], contiguous; may be memory-mapped."""

    names: tuple[str, ...]
    """One name per class."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 5:
            raise ValueError(
                f"images are {self.images.dtype} {list(self.images.shape)}: "
                "give uint8 [classes, examples, channels, height, width]"
            )
        if not self.images.is_contiguous():
            raise ValueError(f"images have strides {self.images.stride()}: give images.contiguous()")
        if len(self.names) != len(self.images) or len(set(self.names)) != len(self.names):
            raise ValueError(
                f"{len(self.names)} names ({len(set(self.names))} of them distinct) for {len(self.images)} classes: "
                "give one name of its own to each class"
            )

    def select(self, classes: Sequence[int]) -> "ClassStore":
        """A store of only these classes, in this order."""
        return ClassStore(self.images[torch.tensor(classes)], tuple(self.names[index] for index in classes))

    def to(self, device: torch.device | str) -> "ClassStore":
        """The same store with its images on `device`; episodes are fastest where the store is."""
        return ClassStore(self.images.to(device), self.names)


@dataclass(frozen=True)
class Episodes(TaskSource):
    """Tasks of `ways` classes with `shots` support and `queries` query examples of each.

    In a task no class occurs twice, no example is in both sets, and which class gets which label is random.

    Raises:
        ValueError: If the store has too few classes or examples, or is to be rotated and not square.

    >>> store = ClassStore(torch.zeros(6, 4, 1, 28, 28, dtype=torch.uint8), tuple("abcdef"))
    >>> tasks = Episodes(store, ways=5, shots=1, queries=3).sample(2, torch.Generator().manual_seed(0))
    >>> tasks.support.inputs.shape, tasks.query.targets.shape
    (torch.Size([2, 5, 1, 28, 28]), torch.Size([2, 15]))
    """

    store: ClassStore
    """Where classes and examples are drawn from."""

    ways: int
    """Classes per task."""

    shots: int
    """Support examples per class."""

    queries: int
    """Query examples per class."""

    rotations: Rotations = "none"
    """`draw` turns each class of a task by a random multiple of 90 degrees, its support and query alike, as the
    paper's released code does; `classes` makes a class of its own of each turn of each class (Vinyals et al. 2016)."""

    def __post_init__(self) -> None:
        classes, examples, _, height, width = self.store.images.shape
        for name, count in (("ways", self.ways), ("shots", self.shots), ("queries", self.queries)):
            if count < 1:
                raise ValueError(f"{name}={count}: give at least 1")
        if self.rotations not in ("none", "draw", "classes"):
            raise ValueError(f"rotations={self.rotations!r}: choose 'none', 'draw' or 'classes'")
        if self.rotations != "none" and height != width:
            raise ValueError(f"images of {height}x{width} cannot be rotated: make them square or use rotations='none'")
        available = 4 * classes if self.rotations == "classes" else classes
        if self.ways > available:
            raise ValueError(f"ways={self.ways} but the store has {available} classes: lower ways or add classes")
        if self.shots + self.queries > examples:
            raise ValueError(
                f"shots={self.shots} and queries={self.queries} need {self.shots + self.queries} examples per class "
                f"but the store has {examples}: lower one of them or add examples"
            )

    def sample(self, size: int, generator: torch.Generator) -> Task:
        """A meta-batch of `size` tasks; within a task, examples are ordered by label.

        Returns:
            Inputs float32 [size, ways * shots, channels, height, width] in [0, 1] and targets int64
            [size, ways * shots] for the support, `queries` in place of `shots` for the query; on the
            generator's device.
        """
        if size < 1:
            raise ValueError(f"size={size}: a meta-batch holds at least 1 task")
        classes, turns = self._draw_classes(size, generator)
        examples = _choose(self.shots + self.queries, self.store.images.shape[1], (size, self.ways), generator)
        return Task(
            self._batch(classes, examples[..., : self.shots], turns),
            self._batch(classes, examples[..., self.shots :], turns),
        )

    def _draw_classes(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Indices into the store and quarter turns (None: no rotation), both [size, ways]."""
        classes = len(self.store.names)
        if self.rotations == "classes":
            drawn = _choose(self.ways, 4 * classes, (size,), generator)
            return drawn // 4, drawn % 4
        drawn = _choose(self.ways, classes, (size,), generator)
        if self.rotations == "none":
            return drawn, None
        return drawn, torch.randint(4, (size, self.ways), generator=generator, device=generator.device)

    def _batch(self, classes: Tensor, examples: Tensor, turns: Tensor | None) -> Batch:
        size, ways, count = examples.shape
        stored = self.store.images
        # index_select copies whole images; indexing by two tensors goes pixel by pixel, 17 times slower on a CPU.
        rows = (classes[..., None] * stored.shape[1] + examples).flatten().to(stored.device)
        images = stored.flatten(0, 1).index_select(0, rows).to(classes.device).unflatten(0, examples.shape)
        if turns is not None:
            images = _rotate(images, turns[:, :, None, None, None, None])
        targets = torch.arange(ways, device=classes.device).repeat_interleave(count).expand(size, -1)
        return Batch(images.flatten(1, 2).float().div_(255), targets.contiguous())


def _choose(count: int, among: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """`count` different indices below `among`, in random order: int64 [*shape, count]."""
    return torch.rand(*shape, among, generator=generator, device=generator.device).topk(count).indices


def _rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Images [..., height, width] turned counter-clockwise by `turns` (0 to 3, broadcast) quarter turns.

    A turn is the sum of its bits, half a turn and a quarter: two selections instead of four or a gather.
    """
    images = torch.where(turns >= 2, images.flip(-1, -2), images)
    return torch.where(turns % 2 == 1, images.rot90(1, (-2, -1)), images)
