import pytest
import torch

from headstart.tasks import glyphs


def test_a_drawing_depends_only_on_seed_part_class_and_its_number() -> None:
    store = glyphs.store(40, examples=4, seed=3)
    again = glyphs.store(3, examples=4, seed=3)
    assert store.names[:3] == again.names
    assert torch.equal(store.images[:3], again.images)
    assert torch.equal(store.images[33:36, :2], glyphs.store(36, examples=2, seed=3).images[33:])
    assert not torch.equal(store.images[:3], glyphs.store(3, examples=4, seed=4).images)


def test_parts_share_no_class() -> None:
    parts = [glyphs.store(30, examples=2, part=part) for part in ("train", "val", "test")]
    assert len({name for part in parts for name in part.names}) == 90
    assert len({image.numpy().tobytes() for part in parts for image in part.images}) == 90


def test_examples_of_a_class_vary_but_are_closer_than_other_classes() -> None:
    images = glyphs.store(60, examples=6).images.float().flatten(0, 1) / 255
    blurred = torch.nn.functional.avg_pool2d(images, 5, 2, 2).flatten(1)
    distances = torch.cdist(blurred, blurred).unflatten(0, (60, 6)).unflatten(2, (60, 6))
    within = torch.stack([distances[c, :, c] for c in range(60)])
    different = ~torch.eye(6, dtype=torch.bool)
    assert within[:, different].min() > 0.1
    others = distances.sum((0, 1, 2, 3)) - within.sum()
    assert within[:, different].mean() < 0.75 * others / (60 * 59 * 36)


def test_drawings_have_ink_as_omniglot_has_and_none_at_the_edge() -> None:
    images = glyphs.store(100, examples=5).images
    assert images.shape == (100, 5, 1, 28, 28)
    assert images.dtype == torch.uint8
    amount = (images.float() / 255).mean((-1, -2))
    assert 0.05 < amount.mean() < 0.11  # Omniglot: 0.084
    assert amount.min() > 0.015
    assert images.amax((-1, -2)).min() > 200
    border = torch.ones(28, 28, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert images[..., border].max() == 0


def test_the_same_character_at_another_size() -> None:
    small = glyphs.store(20, examples=2, size=28).images.float().flatten(0, 1)
    large = glyphs.store(20, examples=2, size=56).images.float().flatten(0, 1)
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    assert (shrunk - small).abs().mean() < 4  # of 255


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="part='other'"):
        glyphs.store(1, part="other")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="classes=0"):
        glyphs.store(0)
    with pytest.raises(ValueError, match="size=4"):
        glyphs.store(1, size=4)
