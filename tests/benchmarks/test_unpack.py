import io
import tarfile

import pytest

from benchmarks.unpack import WANTED, unpack


def archive_of(path, names):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"learn2learn-0.2.0/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return path


def test_only_the_wanted_files_are_taken(tmp_path):
    archive = archive_of(tmp_path / "a.tar.gz", [*WANTED, "learn2learn/__init__.py", "../escaped.py"])
    unpack(archive, tmp_path / "packages")
    found = {str(p.relative_to(tmp_path / "packages")) for p in (tmp_path / "packages").rglob("*") if p.is_file()}
    assert found == set(WANTED.values())
    assert (tmp_path / "packages/learn2learn/algorithms/maml.py").read_text() == "learn2learn/algorithms/maml.py"


def test_another_archive_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"has no learn2learn/algorithms/maml\.py"):
        unpack(archive_of(tmp_path / "a.tar.gz", ["PKG-INFO"]), tmp_path / "packages")
