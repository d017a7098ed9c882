"""Folders as people have them: made of generated characters, in several formats, with what does not belong there."""

import logging
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from headstart.tasks import Episodes, folder, glyphs
from headstart.tasks.episodes import RaggedStore
from headstart.tasks.folder import load, split, with_enough
from headstart.tasks.likeness import Likeness
from headstart.types import generator

FORMATS = ("png", "jpeg", "webp", "bmp", "gif", "tiff")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four classes of 3 to 6 images, each class in all formats that its number allows."""
    drawn = glyphs.store(4, examples=6, size=24)
    for number, images in enumerate(drawn.images):
        (tmp_path / "photos" / f"class {number}").mkdir(parents=True)
        for index in range(3 + number):
            image = Image.fromarray(255 - images[index, 0].numpy()).convert("RGB")
            image.save(tmp_path / "photos" / f"class {number}" / f"{index}.{FORMATS[index]}")
    return tmp_path / "photos"


def test_images_are_read_by_class_whatever_their_format(photos: Path) -> None:
    store = load(photos, size=24, channels=1)
    assert store.names == ("class 0", "class 1", "class 2", "class 3")
    assert store.counts == (3, 4, 5, 6)
    assert store.flat.shape == (18, 1, 24, 24)
    drawn = glyphs.store(4, examples=6, size=24)
    for number, start in enumerate(store.starts):
        assert torch.equal(store.flat[start], 255 - drawn.images[number, 0])  # PNG keeps every value
        assert (store.flat[start + 1].int() - (255 - drawn.images[number, 1]).int()).abs().float().mean() < 12  # JPEG


def test_size_and_channels_are_those_asked_for(photos: Path) -> None:
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (45, 0, 90, 30))
    wide.save(photos / "class 0" / "0.png")
    store = load(photos, size=16, channels=3)
    assert store.flat.shape == (18, 3, 16, 16)
    assert store.flat[0, :, 8, 3].tolist() == [255, 0, 0]
    assert store.flat[0, :, 8, 12].tolist() == [0, 0, 255]  # stretched, and all of it there


def test_a_photograph_taken_sideways_stands_upright(photos: Path) -> None:
    image = Image.new("L", (20, 20), 255)
    image.paste(0, (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(photos / "class 0" / "0.png", exif=exif)
    upright = load(photos, size=20, channels=1).flat[0, 0]
    assert upright[:9].min() == 255
    assert upright[11:].max() == 0


def test_files_that_are_no_images_are_named_counted_and_left_out(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "class 1" / "notes.txt").write_text("not an image")
    whole = (photos / "class 1" / "0.png").read_bytes()
    (photos / "class 1" / "0.png").write_bytes(whole[: len(whole) // 2])
    (photos / "class 2" / "empty.jpg").touch()
    (photos / "readme.txt").write_text("beside the class folders")
    for _ in range(2):  # prepared, then from the cache
        caplog.clear()
        store = load(photos, size=24)
        assert store.counts == (3, 3, 5, 6)
        (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "3 files" in said.message
        assert all(name in said.message for name in ("class 1/0.png", "class 1/notes.txt", "class 2/empty.jpg"))


def test_of_many_bad_files_the_first_are_named(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(40):
        (photos / "class 0" / f"{index:02d}.txt").touch()
    load(photos, size=24)
    assert "40 files" in caplog.text
    assert "class 0/04.txt and 35 more" in caplog.text
    assert "05.txt" not in caplog.text


def test_hidden_files_and_deeper_folders_are_ignored(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load(photos, size=24)
    (photos / ".git").mkdir()
    (photos / ".git" / "blob.png").write_bytes(b"not an image")
    (photos / "class 0" / ".DS_Store").write_bytes(b"not an image")
    (photos / "class 0" / "more").mkdir()
    (photos / "class 0" / "more" / "deep.png").write_bytes(b"not an image")
    after = load(photos, size=24)
    assert after.names == before.names
    assert torch.equal(after.flat, before.flat)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_links_are_followed_to_images_and_lead_nowhere_else(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text("not an image")
    os.symlink(tmp_path / "secret", photos / "class 0" / "a.png")
    os.symlink(tmp_path / "nothing", photos / "class 0" / "b.png")
    os.symlink("/dev/zero", photos / "class 0" / "c.png")  # would never end
    os.mkfifo(photos / "class 0" / "d.png")  # would wait for ever
    os.symlink(photos, photos / "class 0" / "loop")
    os.symlink(photos / "class 1" / "0.png", photos / "class 0" / "e.png")
    store = load(photos, size=24)
    assert store.counts == (4, 4, 5, 6)
    assert torch.equal(store.flat[3], store.flat[4])
    assert "4 files" in caplog.text
    assert "not an image" not in caplog.text


def test_the_second_time_nothing_is_decoded(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(photos, size=24)
    monkeypatch.setattr(folder, "read_image", lambda *_, **__: pytest.fail("decoded again"))
    again = load(photos, size=24)
    assert torch.equal(first.flat, again.flat)
    assert (first.names, first.counts, first.starts) == (again.names, again.counts, again.starts)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("change", ["content", "new file", "gone", "renamed", "size", "channels"])
def test_any_change_is_noticed(photos: Path, cache: Path, change: str) -> None:
    load(photos, size=24)
    file, size, channels = photos / "class 3" / "0.png", 24, 3
    if change == "content":
        content = file.read_bytes()
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))
    elif change == "new file":
        (photos / "class 3" / "z.png").write_bytes(file.read_bytes())
    elif change == "gone":
        file.unlink()
    elif change == "renamed":
        (photos / "class 3").rename(photos / "class three")
    elif change == "size":
        size = 25
    else:
        channels = 1
    load(photos, size, channels)
    assert len(list(cache.iterdir())) == 2


def test_classes_with_too_few_images_are_left_out_and_said(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = load(photos, size=24)
    kept = with_enough(store, 5)
    assert kept.names == ("class 2", "class 3")
    assert kept.counts == (5, 6)
    assert "2 of 4 classes are left out" in caplog.text
    assert "class 0 (3), class 1 (4)" in caplog.text
    assert with_enough(store, 7).names == ()
    assert with_enough(store, 3) is store


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("a file"), "is a file"),
        (lambda path: path.mkdir(), "has no sub-folders"),
        (lambda path: (path / ".hidden").mkdir(parents=True), "has no sub-folders"),
        (lambda path: (path / "class").mkdir(parents=True), "has no images in its 1 sub-folders"),
        (lambda path: (path / "train" / "class").mkdir(parents=True), "the images directly in it"),
    ],
)
def test_folders_that_cannot_be_used_are_told_from_each_other(tmp_path: Path, make, told: str) -> None:
    make(tmp_path / "given")
    with pytest.raises(ValueError, match=told):
        load(tmp_path / "given", size=24)


@pytest.mark.parametrize(
    ("classes", "ways", "sizes"),
    [(100, 5, (64, 16, 20)), (30, 5, (19, 5, 6)), (15, 5, (5, 5, 5)), (16, 5, (6, 5, 5)), (6, 2, (2, 2, 2))],
)
def test_every_class_is_in_one_part(classes: int, ways: int, sizes: tuple[int, ...]) -> None:
    names = [f"class {index}" for index in range(classes)]
    parts = split(names, ways)
    assert tuple(len(parts[part]) for part in ("train", "val", "test")) == sizes
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert split(names[::-1], ways) == parts  # the names alone decide


def test_given_parts_are_kept() -> None:
    names = [f"class {index}" for index in range(12)]
    parts = split(names, 2, {"test": names[:2], "train": names[2:6]})
    assert parts["test"] == tuple(names[:2])
    assert parts["train"] == tuple(names[2:6])
    assert len(parts["val"]) == 2
    assert not set(parts["val"]) & {*parts["test"], *parts["train"]}


@pytest.mark.parametrize(
    ("count", "given", "told"),
    [
        (14, {}, r"14 usable classes are too few .* 15 in all, or give fewer --ways; 4 "),
        (1, {}, "1 usable classes are too few"),
        (0, {}, "0 usable classes are too few"),
        (30, {"test": ["class 1", "moose"]}, "no usable classes moose"),
        (30, {"test": ["class 1"], "val": ["class 1"]}, "class 1 are given twice"),
        (30, {"test": ["class 1"]}, "are too few"),
    ],
)
def test_splits_that_cannot_be_are_refused(count: int, given: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        split([f"class {index}" for index in range(count)], 5, given)


def coded(counts: tuple[int, ...]) -> RaggedStore:
    """Images of one pixel per class and example: their values say which they are."""
    starts = (0, *(sum(counts[: index + 1]) for index in range(len(counts) - 1)))
    pixels = [[number, example + 1] for number, count in enumerate(counts) for example in range(count)]
    images = torch.tensor(pixels, dtype=torch.uint8).reshape(-1, 1, 1, 2)
    return RaggedStore(images, starts, counts, tuple(f"class {number}" for number in range(len(counts))))


def test_tasks_of_unequal_classes_hold_the_right_images() -> None:
    counts = (4, 9, 5, 6)
    tasks = Episodes(coded(counts), ways=3, shots=1, queries=3).sample(500, generator(0, "test"))
    inputs = torch.cat([tasks.support.inputs.unflatten(1, (3, 1)), tasks.query.inputs.unflatten(1, (3, 3))], 2)
    which, example = (255 * inputs).round().long()[:, :, :, 0, 0].unbind(-1)  # [tasks, ways, examples]
    assert torch.equal(which, which[:, :, :1].expand_as(which))
    assert all(len(set(classes.tolist())) == 3 for classes in which[:, :, 0])
    flat = example.flatten(0, 1)
    assert all(len(set(row.tolist())) == 4 for row in flat)
    for number, count in enumerate(counts):
        drawn = example[which == number]
        assert set(drawn.tolist()) == set(range(1, count + 1))
        frequencies = torch.bincount(drawn, minlength=count + 1)[1:] / len(drawn)
        assert (frequencies - 1 / count).abs().max() < 0.05


def test_equal_counts_are_drawn_as_from_a_dense_store() -> None:
    dense = glyphs.store(7, examples=5)
    ragged = RaggedStore(dense.flat, dense.starts, dense.counts, dense.names)
    ours, theirs = (Episodes(s, 5, 1, 3, "draw").sample(4, generator(0, "test")) for s in (ragged, dense))
    assert torch.equal(ours.query.inputs, theirs.query.inputs)


def test_selected_classes_share_the_images() -> None:
    store = coded((4, 9, 5, 6))
    some = store.select([2, 1])
    assert (some.names, some.counts, some.starts) == (("class 2", "class 1"), (5, 9), (13, 4))
    assert some.flat.data_ptr() == store.flat.data_ptr()
    inputs = Episodes(some, ways=2, shots=1, queries=4).sample(9, generator(0, "test")).support.inputs
    assert set((255 * inputs[..., 0, 0]).round().int().flatten().tolist()) == {1, 2}


def test_likeness_looks_at_the_classes_selected_alone() -> None:
    images = torch.stack([torch.full((1, 4, 4), value, dtype=torch.uint8) for value in (0, 0, 255, 255)])
    store = RaggedStore(images, (0, 2), (2, 2), ("black", "white"))
    assert Likeness.of(store).low[0] == 0
    assert Likeness.of(store.select([1])).low[0] == 1


@pytest.mark.parametrize(
    ("starts", "counts", "names", "told"),
    [
        ((0, 2), (2, 3), ("a", "b"), "are not among 4"),
        ((0,), (2, 2), ("a", "b"), "1 starts and 2 counts"),
        ((0, 2), (2, 2), ("a", "a"), "1 of them distinct"),
    ],
)
def test_stores_that_do_not_add_up_are_refused(starts, counts, names, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RaggedStore(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), starts, counts, names)


def test_too_many_examples_asked_of_the_smallest_class() -> None:
    with pytest.raises(ValueError, match="need 5 examples per class but the store has 4 of some class"):
        Episodes(coded((4, 9)), ways=2, shots=2, queries=3)


def test_the_order_of_a_split_is_that_of_the_names() -> None:
    parts = split([f"class {index:02d}" for index in range(30)], 5)
    assert all(one < two for classes in parts.values() for one, two in pairwise(classes))
