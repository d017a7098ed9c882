import io
import os
import random
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.tasks import ClassStore, omniglot
from headstart.tasks.archives import DataNotFound
from headstart.tasks.omniglot import Content, Part

SHAPE = {"images_background": {"Greek": 2, "Latin": 1}, "images_evaluation": {"Angelic": 2}}
DRAWINGS = 3


def png(drawing: np.ndarray, mode: str = "1") -> bytes:
    file = io.BytesIO()
    Image.fromarray(drawing).convert(mode).save(file, "PNG")
    return file.getvalue()


def drawing_of(name: str, drawer: int) -> np.ndarray:
    """A 105x105 drawing of its own for each name and drawer: True is paper."""
    rng = np.random.default_rng([*name.encode(), drawer])
    drawing = np.ones((105, 105), dtype=bool)
    row, column = rng.integers(10, 80, 2)
    drawing[row : row + 4, 10:90] = False
    drawing[10:90, column : column + 3] = False
    return drawing


def small_omniglot(folder: Path, mode: str = "1", extra: Mapping[str, bytes] | None = None) -> Path:
    """A data folder laid out like the real one, with five characters of three drawings."""
    (folder / "omniglot").mkdir(parents=True, exist_ok=True)
    number = 0
    for top, alphabets in SHAPE.items():
        with zipfile.ZipFile(folder / "omniglot" / f"{top}.zip", "w") as archive:
            for alphabet, characters in alphabets.items():
                for index in range(1, characters + 1):
                    number += 1
                    name = f"{alphabet}/character{index:02d}"
                    for drawer in reversed(range(1, DRAWINGS + 1)):
                        path = f"{top}/{name}/{number:04d}_{drawer:02d}.png"
                        archive.writestr(path, png(drawing_of(name, drawer), mode))
            for path, content in (extra or {}).items() if top == "images_background" else ():
                archive.writestr(path, content)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


@pytest.fixture
def content(tmp_path: Path) -> Content:
    """What the small archives hold; the digest is learned from the error, as that of the real ones was."""
    content = Content((3, 2), DRAWINGS, "unknown")
    with pytest.raises(ValueError, match="digest") as caught:
        omniglot.load(small_omniglot(tmp_path / "first"), content)
    return replace(content, digest=str(caught.value).partition("(digest ")[2][:64])


def test_small_archives_are_read_in_order(tmp_path: Path, content: Content) -> None:
    store = omniglot.load(small_omniglot(tmp_path / "data"), content)
    names = [
        "Angelic/character01",
        "Angelic/character02",
        "Greek/character01",
        "Greek/character02",
        "Latin/character01",
    ]
    assert list(store.names) == names
    assert store.images.shape == (5, DRAWINGS, 1, 28, 28)
    for row, name in enumerate(names):
        for drawer in range(1, DRAWINGS + 1):
            paper = Image.fromarray(drawing_of(name, drawer)).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
            assert torch.equal(store.images[row, drawer - 1, 0], torch.from_numpy(255 - np.asarray(paper)))


def test_repacked_archives_are_the_same_data(tmp_path: Path, content: Content) -> None:
    """Eight-bit instead of one-bit files, and the litter that packing leaves behind."""
    plain = omniglot.load(small_omniglot(tmp_path / "data"), content)
    litter = {"__MACOSX/images_background/._x": b"", "images_background/.DS_Store": b"", "../evil.png": b""}
    repacked = omniglot.load(small_omniglot(tmp_path / "repacked", "L", litter), content)
    assert repacked.names == plain.names
    assert torch.equal(repacked.images, plain.images)


def test_other_content_is_refused(tmp_path: Path, content: Content) -> None:
    data = small_omniglot(tmp_path / "data")
    with pytest.raises(ValueError, match="Omniglot has 964 of 20"):
        omniglot.load(data)
    with pytest.raises(ValueError, match="are not Omniglot's"):
        omniglot.load(data, replace(content, digest="0" * 64))
    intruder = {"images_background/Greek/character01/0001_04.png": png(drawing_of("x", 0))}
    with pytest.raises(ValueError, match=r"drawings; Omniglot has 3 of 3"):
        omniglot.load(small_omniglot(tmp_path / "more", extra=intruder), content)
    bomb = {"images_background/Greek/character01/0001_03.png": png(np.ones((106, 105), dtype=bool))}
    with pytest.warns(UserWarning, match="Duplicate name"):
        replaced = small_omniglot(tmp_path / "bomb", extra=bomb)
    with pytest.raises(ValueError, match=r"character01/03.*105x106 pixels"):
        omniglot.load(replaced, content)


def test_cache_hit_equals_fresh_and_truncated_cache_is_rebuilt(
    tmp_path: Path, cache: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_omniglot(tmp_path / "data")
    fresh = omniglot.load(data, content)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(omniglot.load(data, content).images, fresh.images)
    assert path.stat().st_size == len(whole)
    monkeypatch.setattr(omniglot, "prepare", lambda *_: pytest.fail("prepared although the cache is whole"))
    hit = omniglot.load(data, content)
    assert hit.names == fresh.names
    assert torch.equal(hit.images, fresh.images)


def test_nothing_is_written_into_the_data_folder(tmp_path: Path, content: Content) -> None:
    data = small_omniglot(tmp_path / "data")
    before = sorted(data.rglob("*"))
    omniglot.load(data, content)
    assert sorted(data.rglob("*")) == before


def test_offline_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.delenv("HEADSTART_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(DataNotFound, match=r"(?s)<data>/omniglot/images_background\.zip.*images_evaluation.*glyphs"):
        omniglot.load()
    with pytest.raises(DataNotFound, match=r"one_shot_all_runs\.zip.*all_runs\.zip"):
        omniglot.one_shot_runs()


def test_released_split_is_the_sorted_listing_shuffled_with_seed_1() -> None:
    names = tuple(f"{index:04d}" for index in range(1623))
    store = ClassStore(torch.zeros(1623, 1, 1, 1, 1, dtype=torch.uint8), names)
    shuffled = list(names)
    random.Random(1).shuffle(shuffled)
    expected = {"train": shuffled[:1100], "val": shuffled[1100:1200], "test": shuffled[1200:]}
    for part in ("train", "val", "test"):
        assert list(omniglot.split(store, "released", part).names) == sorted(expected[part])
    # Pinned: Python does not promise that `shuffle` stays as it is.
    assert omniglot.split(store, "released", "test").names[:5] == ("0003", "0004", "0011", "0017", "0018")
    with pytest.raises(ValueError, match="split name 'lake'"):
        omniglot.split(store, "lake", "test")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="part 'dev'"):
        omniglot.split(store, "released", "dev")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="whole store"):
        omniglot.split(store.select(range(1600)), "released", "test")


@pytest.fixture(scope="module")
def real(omniglot_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    """All of Omniglot, prepared afresh once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        omniglot.load(omniglot_data)
        return omniglot.load(omniglot_data)  # from the cache


def test_real_store(real: ClassStore) -> None:
    assert real.images.shape == (1623, 20, 1, 28, 28)
    assert list(real.names) == sorted(real.names)
    assert len({name.partition("/")[0] for name in real.names}) == 50
    assert 0.08 < real.images.float().mean() / 255 < 0.09


@pytest.mark.parametrize(("name", "sizes"), [("released", (1100, 100, 423)), ("vinyals", (1028, 172, 423))])
def test_real_splits_are_disjoint_and_complete(real: ClassStore, name: str, sizes: tuple[int, ...]) -> None:
    parts: tuple[Part, ...] = ("train", "val", "test")
    stores = [omniglot.split(real, name, part) for part in parts]  # pyright: ignore[reportArgumentType]
    assert tuple(len(store.names) for store in stores) == sizes
    assert sorted(name for store in stores for name in store.names) == list(real.names)
    both = omniglot.split(real, name, "trainval")  # pyright: ignore[reportArgumentType]
    assert set(both.names) == {*stores[0].names, *stores[1].names}
    row = real.names.index(stores[2].names[7])
    assert torch.equal(stores[2].images[7], real.images[row])


def test_vinyals_split_is_the_published_list(real: ClassStore, omniglot_data: Path) -> None:
    for part in ("train", "val", "test", "trainval"):
        lines = (omniglot_data / "omniglot/splits/vinyals" / f"{part}.txt").read_text().split()
        store = omniglot.split(real, "vinyals", part)
        assert sorted(lines) == [f"{name}/rot{turn:03d}" for name in store.names for turn in (0, 90, 180, 270)]


def test_one_shot_runs_have_the_published_labels(omniglot_data: Path) -> None:
    runs = omniglot.one_shot_runs(omniglot_data)
    for batch in runs:
        assert batch.inputs.shape == (20, 20, 1, 28, 28)
        assert batch.inputs.dtype == torch.float32
        assert batch.inputs.min() == 0
        assert batch.inputs.max() == 1
        assert batch.targets.shape == (20, 20)
    assert runs.query.targets[0, :6].tolist() == [7, 8, 1, 18, 9, 17]  # run01/class_labels.txt, from zero
    assert torch.equal(runs.query.targets.sort().values, runs.support.targets)
    # A test image is more like its class's training image than like others', in pixels already.
    blurred = [torch.nn.functional.avg_pool2d(batch.inputs.flatten(0, 1), 5, 2, 2).flatten(1) for batch in runs]
    support, query = (pixels.unflatten(0, (20, 20)) for pixels in blurred)
    distances = torch.cdist(query, support)
    assert (distances.argmin(-1) == runs.query.targets).float().mean() > 0.3


def test_broken_one_shot_runs_are_named(tmp_path: Path) -> None:
    (tmp_path / "omniglot").mkdir()
    with zipfile.ZipFile(tmp_path / "omniglot" / "one_shot_all_runs.zip", "w") as archive:
        archive.writestr("run01/class_labels.txt", "run01/test/item01.png run01/training/class01.png\n")
    with pytest.raises(ValueError, match=r"one_shot_all_runs\.zip is not Omniglot's one-shot runs.*class01"):
        omniglot.one_shot_runs(tmp_path)


def test_named_data_folder_without_omniglot(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"lacks images_background\.zip, images_evaluation\.zip"):
        omniglot.load(tmp_path)
    assert os.listdir(tmp_path) == []
