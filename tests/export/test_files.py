import errno
import json
import os

import pytest
import torch
from torch import nn

from headstart.export.files import check, write
from headstart.export.program import ArgumentError, predictor
from headstart.training.files import FileError


@pytest.fixture(scope="module")
def exported():
    return predictor(nn.Linear(1, 1), torch.zeros(2, 1))


def test_a_description_takes_the_programs_whole_name(exported, tmp_path):
    """What else lies there under a similar name is left alone."""
    (tmp_path / "package.json").write_text("mine")
    paths = write(tmp_path / "package.pt2", exported, {"steps": 2})
    assert paths == (tmp_path / "package.pt2", tmp_path / "package.pt2.json")
    assert json.loads(paths[1].read_text()) == {"steps": 2}
    assert (tmp_path / "package.json").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("full_at", [1, 2])
def test_a_full_disk_leaves_no_half_of_an_export(exported, tmp_path, monkeypatch, full_at, earlier):
    out, sync, calls = tmp_path / "model.pt2", os.fsync, []
    if earlier:
        write(out, exported, {"steps": 1})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle):
        calls.append(handle)
        if len(calls) == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        write(out, exported, {"steps": 2})
    assert len(calls) == full_at
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_place_that_is_none_is_told(exported, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match="Cannot write"):
        write(tmp_path / "file" / "model.pt2", exported, {})


@pytest.mark.parametrize("folder", ["model.pt2", "model.pt2.json"])
def test_a_folder_in_the_way_is_refused(tmp_path, folder):
    (tmp_path / folder).mkdir()
    with pytest.raises(ArgumentError, match=f"{folder} is a folder"):
        check(tmp_path / "model.pt2")
