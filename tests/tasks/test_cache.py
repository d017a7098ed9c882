import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from headstart.tasks import ClassStore, cache
from headstart.tasks.cache import Prepared, cached, cached_images, source_key

KEY = "0123456789abcdef" * 4
STORE = ClassStore(torch.arange(2 * 3 * 16, dtype=torch.uint8).reshape(2, 3, 1, 4, 4), ("x", "y"))
PREPARED = Prepared(STORE.images, {"names": ["x", "y"]})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


def never() -> ClassStore:
    pytest.fail("built although the cache is whole")


def same(store: ClassStore) -> bool:
    return store.names == STORE.names and torch.equal(store.images, STORE.images)


def test_second_call_reads_what_the_first_wrote(folder: Path) -> None:
    assert same(cached("set", KEY, lambda: STORE))
    assert same(cached("set", KEY, never))
    assert [path.name for path in folder.iterdir()] == ["set-0123456789abcdef.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "header", "pixel", "names", "empty", "other key"])
def test_damaged_file_is_rebuilt(folder: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cached("set", KEY, lambda: STORE)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-1],
            "header": content[:100],
            "pixel": content[:-1] + bytes([content[-1] ^ 1]),
            "names": content.replace(b'\\"x\\"', b'\\"z\\"'),
            "empty": b"",
            "other key": content.replace(KEY.encode(), KEY[::-1].encode()),
        }[damage]
    )
    assert path.read_bytes() != content
    assert same(cached("set", KEY, lambda: STORE))
    assert "rebuilding the damaged cache file" in caplog.text
    assert path.stat().st_size == len(content)
    assert same(cached("set", KEY, never))


def test_unwritable_folder_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "file"))
    assert same(cached("set", KEY, lambda: STORE))
    assert "HEADSTART_CACHE" in caplog.text


def test_full_disk_is_a_warning_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: object, path: str, __: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    assert same(cached("set", KEY, lambda: STORE))
    assert "No space left on device" in caplog.text
    assert list(folder.iterdir()) == []


def write_often(times: int) -> None:
    for _ in range(times):
        cache._write(cache.cache_folder() / "prepared" / "set.safetensors", KEY, PREPARED)


def test_two_processes_may_prepare_at_once(folder: Path) -> None:
    """One writes again and again while the other reads: never a half file, and nothing is left behind."""
    write_often(1)
    writer = multiprocessing.get_context("spawn").Process(target=write_often, args=(200,))
    writer.start()
    reads = 0
    while writer.is_alive() or reads == 0:
        images, about = cache._read(folder / "set.safetensors", KEY)
        assert same(ClassStore(images, tuple(about["names"])))
        reads += 1
    writer.join()
    assert writer.exitcode == 0
    assert os.listdir(folder) == ["set.safetensors"]


def test_key_depends_on_version_path_and_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"content")
    two.write_bytes(b"content")
    keys = [source_key("1", [one]), source_key("2", [one]), source_key("1", [two]), source_key("1", [one, two])]
    assert source_key("1", [one]) == keys[0]
    one.write_bytes(b"CONTENT")
    assert len({*keys, source_key("1", [one])}) == 5


def test_images_of_any_shape_keep_what_is_known_of_them() -> None:
    prepared = Prepared(
        torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2), {"names": ["z", "a"], "counts": [4, 2]}
    )
    cached_images("set", KEY, lambda: prepared)
    images, about = cached_images("set", KEY, lambda: pytest.fail("built although the cache is whole"))
    assert torch.equal(images, prepared.images)
    assert about == prepared.about
