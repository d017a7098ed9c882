from functools import partial

import pytest
import torch

from headstart.inputs import InputError
from headstart.inputs.texts import TextInputs
from headstart.tasks.texts import hashed

INPUTS = TextInputs(partial(hashed, buckets=100, length=12))
SUPPORT = 'label,text\npay,settle my bill\nblock,"lost, my card"\n\npay, pay it now \npay,pay it now\n'


def written(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def test_a_support_set_is_read_by_label(tmp_path):
    support = INPUTS.support(written(tmp_path / "support.csv", SUPPORT))
    assert support.classes == ("block", "pay")
    assert support.batch.targets.tolist() == [0, 1, 1]  # a text that a class has twice counts once
    expected = hashed(["lost, my card", "settle my bill", "pay it now"], 100, 12)
    assert torch.equal(support.batch.inputs, expected)
    assert support.notes == ()


def test_a_text_with_two_labels_is_noted(tmp_path):
    support = INPUTS.support(written(tmp_path / "support.csv", "text,label\nhello,a\nhello,b\nbye,b\n"))
    assert support.notes == ("1 texts of the support set have more than one label, the first of them 'hello'.",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "number,Text\n1,pay it\n2,lost card\n"),
        ("rows.txt", "pay it\n\n  lost card \n"),
        ("rows.txt", "\ufeffpay it\nlost card\n"),
    ],
)
def test_rows_are_a_column_or_lines(tmp_path, name, content):
    rows = INPUTS.rows(written(tmp_path / name, content))
    assert rows.names == [{"text": "pay it"}, {"text": "lost card"}]
    assert torch.equal(rows.inputs, hashed(["pay it", "lost card"], 100, 12))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty: its first line must name the columns text and label"),
        ("text,intent\na,b\n", "has the columns text, intent: its first line must name the columns text and label"),
        ("text,label\n", "has no rows"),
        ("text,label\nhello,a\nbye,\n", "line 3: label is empty"),
        ("text,label\n ,a\n", "line 2: text is empty"),
        ("text,label\nhello\n", "line 2: label is empty"),
        ("text,label\nhello,a\nbye,a\n", "texts of one label only, 'a'"),
        ("text,label\n" + "x" * 200_000 + ",a\n", "Cannot read"),
    ],
)
def test_wrong_support_sets_get_a_sentence(tmp_path, content, told):
    with pytest.raises(InputError, match=told) as caught:
        INPUTS.support(written(tmp_path / "support.csv", content))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("name", ["absent.csv", "absent.txt", "folder", "latin.csv", "latin.txt"])
def test_files_that_cannot_be_read_get_a_sentence(tmp_path, name):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif name.startswith("latin"):
        (tmp_path / name).write_bytes("text\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match="Cannot read"):
        INPUTS.rows(tmp_path / name)


def test_a_file_of_blank_lines_holds_no_text(tmp_path):
    with pytest.raises(InputError, match="holds no text: give one on each line"):
        INPUTS.rows(written(tmp_path / "rows.txt", "\n \n"))
