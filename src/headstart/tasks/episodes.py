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

    @property
    def flat(self) -> Tensor:
        """The images class after class, [total, channels, height, width]."""
        return self.images.flatten(0, 1)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each class begins in `flat`."""
        return tuple(self.images.shape[1] * index for index in range(len(self.names)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Examples of each class."""
        return (self.images.shape[1],) * len(self.names)

    def select(self, classes: Sequence[int]) -> "ClassStore":
        """A store of only these classes, in this order."""
        return ClassStore(self.images[torch.tensor(classes)], tuple(self.names[index] for index in classes))

    def to(self, device: torch.device | str) -> "ClassStore":
        """The same store with its images on `device`; episodes are fastest where the store is."""
        return ClassStore(self.images.to(device), self.names)


@dataclass(frozen=True, eq=False)
class RaggedStore:
    """Images of classes with different numbers of examples, and the classes' names.

    Raises:
        ValueError: If the images are not uint8 with four axes, or starts, counts and distinct names do not fit them.

    >>> store = RaggedStore(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), (0, 2), (2, 3), ("cat", "dog"))
    >>> store.select([1]).counts
    (3,)
    """

    flat: Tensor
    """uint8 [total, channels, height, width]; may be memory-mapped, and hold images of other classes too."""

    starts: tuple[int, ...]
    """Where the examples of each class begin."""

    counts: tuple[int, ...]
    """Examples of each class."""

    names: tuple[str, ...]
    """One name per class."""

    def __post_init__(self) -> None:
        if self.flat.dtype != torch.uint8 or self.flat.ndim != 4:
            raise ValueError(
                f"images are {self.flat.dtype} {list(self.flat.shape)}: give uint8 [total, channels, height, width]"
            )
        if not len(self.names) == len(set(self.names)) == len(self.counts) == len(self.starts):
            raise ValueError(
                f"{len(self.names)} names ({len(set(self.names))} of them distinct), {len(self.starts)} starts and "
                f"{len(self.counts)} counts: give one of each to every class"
            )
        for name, start, count in zip(self.names, self.starts, self.counts, strict=True):
            if start < 0 or count < 0 or start + count > len(self.flat):
                raise ValueError(f"class {name}: {count} examples from {start} on are not among {len(self.flat)}")

    def select(self, classes: Sequence[int]) -> "RaggedStore":
        """A store of only these classes, in this order, on the same images."""
        return RaggedStore(
            self.flat,
            tuple(self.starts[index] for index in classes),
            tuple(self.counts[index] for index in classes),
            tuple(self.names[index] for index in classes),
        )

    def to(self, device: torch.device | str) -> "RaggedStore":
        """The same store with its images on `device`; episodes are fastest where the store is."""
        return RaggedStore(self.flat.to(device), self.starts, self.counts, self.names)


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

    store: ClassStore | RaggedStore
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
        classes, examples = len(self.store.counts), min(self.store.counts, default=0)
        height, width = self.store.flat.shape[-2:]
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
            least = "" if len(set(self.store.counts)) == 1 else " of some class"
            raise ValueError(
                f"shots={self.shots} and queries={self.queries} need {self.shots + self.queries} examples per class "
                f"but the store has {examples}{least}: lower one of them or add examples"
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
        examples = self._draw_examples(classes, generator)
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

    def _draw_examples(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """For each of `classes` different examples of it, in random order: [size, ways, shots + queries]."""
        counts = torch.tensor(self.store.counts, device=classes.device)
        most = max(self.store.counts)
        draws = torch.rand(*classes.shape, most, generator=generator, device=generator.device)
        absent = torch.arange(most, device=classes.device) >= counts[classes].unsqueeze(-1)
        return draws.masked_fill_(absent, -1).topk(self.shots + self.queries).indices

    def _batch(self, classes: Tensor, examples: Tensor, turns: Tensor | None) -> Batch:
        size, ways, count = examples.shape
        stored, starts = self.store.flat, torch.tensor(self.store.starts, device=classes.device)
        # index_select copies whole images; indexing by two tensors goes pixel by pixel, 17 times slower on a CPU.
        rows = (starts[classes].unsqueeze(-1) + examples).flatten().to(stored.device)
        images = stored.index_select(0, rows).to(classes.device).unflatten(0, examples.shape)
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
