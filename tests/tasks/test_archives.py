import logging
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from headstart.tasks.archives import DataNotFound, download, entries, locate

FILES = {"one.zip": "https://example.org/one.zip", "two.zip": "https://example.org/two.zip"}


@pytest.fixture(autouse=True)
def no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither data nor cache of this machine, and no network."""

    def offline(url: str, timeout: float) -> None:
        raise urllib.error.URLError(f"no network ({timeout > 0})")

    monkeypatch.delenv("HEADSTART_DATA", raising=False)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", offline)


def archive(path: Path, **files: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def test_argument_comes_before_environment_before_earlier_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("argument", "environment", "cache/downloads"):
        for name in FILES:
            archive(tmp_path / folder / "set" / name)
    assert locate("set", FILES)[1] == tmp_path / "cache/downloads/set/two.zip"
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path / "environment"))
    assert locate("set", FILES)[1] == tmp_path / "environment/set/two.zip"
    assert locate("set", FILES, tmp_path / "argument")[1] == tmp_path / "argument/set/two.zip"


def test_offline_error_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound) as caught:
        locate("set", FILES)
    message = str(caught.value)
    for part in ("no network", *FILES.values(), "<data>/set/one.zip", "<data>/set/two.zip", "HEADSTART_DATA", "glyphs"):
        assert part in message
    assert not list(tmp_path.rglob("*.zip"))


def test_named_folder_that_lacks_a_file_is_an_error_and_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(tmp_path / "set" / "one.zip")
    for name in FILES:
        archive(tmp_path / "cache/downloads/set" / name)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("went to the network"))
    with pytest.raises(DataNotFound, match=r"lacks two\.zip\."):
        locate("set", FILES, tmp_path)
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path))
    with pytest.raises(DataNotFound, match=r"lacks two\.zip\."):
        locate("set", FILES)


def test_download_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = archive(tmp_path / "source.zip", file=b"content")
    monkeypatch.setattr(urllib.request, "urlopen", lambda _, timeout: source.open("rb"))
    (found, _) = locate("set", FILES)
    assert found.read_bytes() == source.read_bytes()
    target = tmp_path / "elsewhere" / "file.zip"
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        download("https://example.org", target, limit_bytes=10)
    with pytest.raises(TimeoutError):
        download("https://example.org", target, limit_s=-1)
    source.write_text("<html>please log in</html>")
    with pytest.raises(ValueError, match="not a zip file"):
        download("https://example.org", target)
    assert list(target.parent.iterdir()) == []


def test_entries_ignore_odd_names_and_bound_sizes(tmp_path: Path) -> None:
    files = {"top/good1": b"1", "../../good2": b"2", "/good3": b"3", "top/other": b"4", "top/good5/": b""}
    path = archive(tmp_path / "odd.zip", **files)
    assert [(match[1], content) for match, content in entries(path, r"top/good(\d)", 10)] == [("1", b"1")]
    bomb = archive(tmp_path / "bomb.zip", **{"top/good1": bytes(1 << 20)})
    with pytest.raises(ValueError, match=r"bomb\.zip.*larger than 10 bytes"):
        list(entries(bomb, r"top/good(\d)", 10))


def test_damaged_archive_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = archive(tmp_path / "damaged.zip", good=bytes(range(256)) * 40)
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.zip"):
        list(entries(path, "good", 1 << 20))
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"damaged\.zip"):
        list(entries(path, "good", 1 << 20))
