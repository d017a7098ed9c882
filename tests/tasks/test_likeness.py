import torch

from headstart.tasks import glyphs
from headstart.tasks.episodes import ClassStore
from headstart.tasks.likeness import Likeness

DRAWN = glyphs.store(40, examples=10, size=28)


def images(store: ClassStore) -> torch.Tensor:
    return store.images.flatten(0, 1).float() / 255


def test_what_is_of_the_same_sort_passes():
    likeness = Likeness.of(DRAWN)
    others = images(glyphs.store(40, examples=10, size=28, part="test"))
    assert len(likeness.unlike(others)) < len(others) // 100


def test_what_is_not_is_told_with_a_reason():
    likeness = Likeness.of(DRAWN)
    inverted, noise = 1 - images(DRAWN)[:5], torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for strange in (inverted, noise, torch.zeros(1, 1, 28, 28), torch.ones(1, 1, 28, 28)):
        found = likeness.unlike(strange)
        assert [index for index, _ in found] == list(range(len(strange)))
        assert all("in training" in reason for _, reason in found)
    (note,) = likeness.notes(torch.cat([images(DRAWN)[:3], inverted]), "support")
    assert note.startswith("5 of 8 support images look unlike the training images, image 4 for one (brightness")


def test_two_odd_images_do_not_make_everything_usual():
    odd = DRAWN.images.clone()
    odd[0, 0], odd[1, 0] = 255, 0
    likeness = Likeness.of(ClassStore(odd, DRAWN.names))
    assert len(likeness.unlike(1 - images(DRAWN)[:5])) == 5


def test_it_is_kept_as_json():
    likeness = Likeness.of(DRAWN)
    assert Likeness.from_json({"low": list(likeness.low), "high": list(likeness.high)}) == likeness
