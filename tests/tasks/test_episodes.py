"""The store's pixels encode (class, example, turn), so that every drawn image says what it is."""

import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from headstart.tasks import ClassStore, Episodes
from headstart.tasks.episodes import Rotations, _rotate
from headstart.types import Batch, Task, generator


def coded_store(classes: int, examples: int) -> ClassStore:
    """Images [classes, examples, 1, 3, 3]: class and example along the top edge, a mark at its left corner."""
    images = torch.zeros(classes, examples, 1, 3, 3, dtype=torch.uint8)
    images[..., 0, 0, 0] = 255
    images[..., 0, 1, 1] = torch.arange(classes, dtype=torch.uint8)[:, None]
    images[..., 0, 0, 1] = torch.arange(examples, dtype=torch.uint8) + 1
    return ClassStore(images, tuple(f"class{index}" for index in range(classes)))


def decode(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class, example and counter-clockwise quarter turns of coded images [..., 1, 3, 3]."""
    pixels = (255 * inputs).round().long()[..., 0, :, :]
    corners = torch.stack([pixels[..., 0, 0], pixels[..., 2, 0], pixels[..., 2, 2], pixels[..., 0, 2]], dim=-1)
    edges = torch.stack([pixels[..., 0, 1], pixels[..., 1, 0], pixels[..., 2, 1], pixels[..., 1, 2]], dim=-1)
    assert torch.equal((corners == 255).sum(-1), torch.ones(inputs.shape[:-3], dtype=torch.long))
    assert torch.equal(corners.argmax(-1), edges.argmax(-1))  # turned, not mirrored
    return pixels[..., 1, 1], edges.amax(-1) - 1, corners.argmax(-1)


def loop_sampler(store: ClassStore, ways: int, shots: int, queries: int, rotations: Rotations, seed: int) -> Task:
    """One task as one would write it down, slowly, with its axes in the shipped order."""
    rng = random.Random(seed)
    turned = [(c, r) for c in range(len(store.names)) for r in (range(4) if rotations == "classes" else (0,))]
    support, query = ([], []), ([], [])
    for label, (chosen, turn) in enumerate(rng.sample(turned, ways)):
        turn = rng.randrange(4) if rotations == "draw" else turn
        drawn = rng.sample(range(store.images.shape[1]), shots + queries)
        for position, example in enumerate(drawn):
            inputs, targets = support if position < shots else query
            inputs.append(torch.rot90(store.images[chosen, example].float() / 255, turn, (-2, -1)))
            targets.append(label)
    return Task(
        *(Batch(torch.stack(inputs)[None], torch.tensor(targets)[None]) for inputs, targets in (support, query))
    )


def check_invariants(tasks: Task, ways: int, shots: int, queries: int, rotations: Rotations) -> None:
    seen = []
    for batch, count in ((tasks.support, shots), (tasks.query, queries)):
        size = len(batch.inputs)
        assert batch.inputs.shape == (size, ways * count, 1, 3, 3)
        assert batch.inputs.dtype == torch.float32
        assert batch.targets.dtype == torch.int64
        assert torch.equal(batch.targets, torch.arange(ways).repeat_interleave(count).expand(size, -1))
        chosen, example, turn = (code.unflatten(1, (ways, count)) for code in decode(batch.inputs))
        seen.append((chosen, example, turn))
        for code in (chosen, turn):  # one class, turned one way, per label
            assert torch.equal(code, code[:, :, :1].expand_as(code))
    (chosen, example, turn), (query_class, query_example, query_turn) = seen
    assert torch.equal(chosen[:, :, 0], query_class[:, :, 0])
    assert torch.equal(turn[:, :, 0], query_turn[:, :, 0])
    kinds = chosen[:, :, 0] * 4 + turn[:, :, 0] if rotations == "classes" else chosen[:, :, 0]
    for task in range(len(kinds)):
        assert len(set(kinds[task].tolist())) == ways
        for way in range(ways):
            drawn = example[task, way].tolist() + query_example[task, way].tolist()
            assert len(set(drawn)) == shots + queries
    if rotations == "none":
        assert turn.sum() == 0


@pytest.mark.parametrize("rotations", ["none", "draw", "classes"])
@pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 1, 1), (6, 2, 3), (1, 1, 4)])
def test_tasks_keep_what_a_slow_sampler_keeps(rotations: Rotations, ways: int, shots: int, queries: int) -> None:
    store = coded_store(6, 5)
    check_invariants(loop_sampler(store, ways, shots, queries, rotations, seed=0), ways, shots, queries, rotations)
    tasks = Episodes(store, ways, shots, queries, rotations).sample(200, generator(0, "test"))
    check_invariants(tasks, ways, shots, queries, rotations)


def test_a_turn_is_counter_clockwise() -> None:
    images = torch.randint(256, (4, 2, 5, 5), generator=generator(0, "test"))
    turned = _rotate(images, torch.arange(4)[:, None, None, None])
    assert torch.equal(turned, torch.stack([image.rot90(turn, (-2, -1)) for turn, image in enumerate(images)]))


def test_values_are_the_stored_ones_over_255() -> None:
    store = ClassStore(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 1, 16, 16).repeat(1, 2, 1, 1, 1), ("all",))
    inputs = Episodes(store, ways=1, shots=1, queries=1).sample(1, generator(0, "test")).query.inputs
    assert torch.equal(inputs.flatten(), torch.arange(256) / 255)


@pytest.mark.parametrize("rotations", ["none", "draw", "classes"])
def test_classes_examples_turns_and_labels_are_uniform(rotations: Rotations) -> None:
    tasks = Episodes(coded_store(8, 4), ways=2, shots=1, queries=1, rotations=rotations).sample(
        8000, generator(0, "test")
    )
    for label in (0, 1):
        codes = decode(tasks.support.inputs[:, label])
        for code, kinds in zip(codes, (8, 4, 1 if rotations == "none" else 4), strict=True):
            frequencies = torch.bincount(code, minlength=kinds) / 8000
            # 5 standard deviations of a uniform draw
            assert (frequencies - 1 / kinds).abs().max() <= 5 * (1 / kinds * (1 - 1 / kinds) / 8000) ** 0.5


def test_rotation_classes_may_hold_one_character_twice_but_draw_never_does() -> None:
    store = coded_store(6, 2)
    twice = {
        rotations: any(
            len(set(task.tolist())) < 5
            for task in decode(Episodes(store, 5, 1, 1, rotations).sample(50, generator(0, "t")).support.inputs)[0]
        )
        for rotations in ("draw", "classes")
    }
    assert twice == {"draw": False, "classes": True}


def test_same_seed_same_tasks() -> None:
    first, again, other = (Episodes(coded_store(9, 9), 3, 2, 2, "draw").batches(4, seed=seed) for seed in (5, 5, 6))
    one, two = next(first), next(first)
    assert torch.equal(one.query.inputs, next(again).query.inputs)
    assert not torch.equal(one.query.inputs, two.query.inputs)
    assert not torch.equal(one.query.inputs, next(other).query.inputs)


def test_memory_mapped_store_gives_the_same_tasks(tmp_path: Path) -> None:
    store = coded_store(9, 5)
    save_file({"images": store.images}, tmp_path / "images.safetensors")
    with safe_open(tmp_path / "images.safetensors", framework="pt") as file:
        mapped = ClassStore(file.get_tensor("images"), store.names)
    ours, theirs = (Episodes(s, 5, 2, 2, "draw").sample(3, generator(0, "test")) for s in (store, mapped))
    assert torch.equal(ours.support.inputs, theirs.support.inputs)


def test_select_keeps_order_and_names() -> None:
    store = coded_store(5, 2).select([3, 1])
    assert store.names == ("class3", "class1")
    assert store.images[:, 0, 0, 1, 1].tolist() == [3, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((7, 1, 1, "none"), "ways=7 but the store has 6"),
        ((25, 1, 1, "classes"), "ways=25 but the store has 24"),
        ((5, 3, 3, "none"), "shots=3 and queries=3 need 6 examples per class but the store has 5"),
        ((0, 1, 1, "none"), "ways=0"),
        ((5, 1, 0, "none"), "queries=0"),
        ((5, 1, 1, "spin"), "rotations='spin'"),
    ],
)
def test_impossible_tasks_are_named(settings: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Episodes(coded_store(6, 5), *settings)


def test_bad_stores_are_named() -> None:
    images = torch.zeros(2, 3, 1, 4, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="4x5 cannot be rotated"):
        Episodes(ClassStore(images, ("x", "y")), 2, 1, 1, "draw")
    with pytest.raises(ValueError, match=r"torch\.float32"):
        ClassStore(images.float(), ("x", "y"))
    with pytest.raises(ValueError, match=r"2 names \(1 of them distinct\) for 2 classes"):
        ClassStore(images, ("x", "x"))
    with pytest.raises(ValueError, match="contiguous"):
        ClassStore(images.transpose(-1, -2), ("x", "y"))
    with pytest.raises(ValueError, match="size=0"):
        Episodes(ClassStore(images, ("x", "y")), 2, 1, 1).sample(0, generator(0, "test"))
