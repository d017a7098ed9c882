import csv
import json
import os
from pathlib import Path

import pytest

from headstart.tasks import intents
from headstart.tasks.archives import DataNotFound
from headstart.tasks.intents import load

PARTS: tuple[intents.Part, ...] = ("train", "val", "test")
DOMAINS = [domain for part in PARTS for domain in intents._DOMAINS[part]]


def small_clinc150(folder: Path) -> Path:
    """A data folder laid out like the real one: 150 intents of three sentences, one of them twice."""
    (folder / "clinc150").mkdir(parents=True)
    domains = {domain: [f"{domain} {i:02d}" for i in range(15)] for domain in DOMAINS}
    named = [intent for listed in domains.values() for intent in listed]
    content = {part: [[f"{part} {intent}", intent] for intent in named] for part in PARTS}
    content["test"] += content["train"]
    content |= {f"oos_{part}": [["nothing known", "oos"]] for part in PARTS}
    (folder / "clinc150" / "data_full.json").write_text(json.dumps(content))
    (folder / "clinc150" / "domains.json").write_text(json.dumps(domains))
    return folder


def small_banking77(folder: Path, wordings: tuple[str, ...] = ("please, {}", "now\n{}")) -> Path:
    """Likewise: 77 intents, a sentence for each of `wordings` in train.csv and one in test.csv."""
    (folder / "banking77").mkdir(parents=True)
    named = [f"intent {i:02d}" for i in range(77)]
    for name, worded in (("train", wordings), ("test", ("do {}",))):
        with (folder / "banking77" / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            writer.writerows([wording.format(intent), intent] for wording in worded for intent in named)
    (folder / "banking77" / "categories.json").write_text(json.dumps(named))
    return folder


@pytest.mark.parametrize(
    ("dataset", "split", "sizes"),
    [
        ("clinc150", "domains", (75, 30, 45)),
        ("clinc150", "intents", (50, 50, 50)),
        ("banking77", "intents", (25, 25, 27)),
    ],
)
def test_parts_share_no_intent_and_hold_all_sentences(tmp_path, dataset, split, sizes):
    make = small_clinc150 if dataset == "clinc150" else small_banking77
    parts = [load(dataset, part, split, make(tmp_path / part)) for part in PARTS]
    assert tuple(map(len, parts)) == sizes
    assert len({intent for part in parts for intent in part}) == sum(sizes)
    assert all(len(texts) == len(set(texts)) == 3 for part in parts for texts in part.values())
    assert all(list(part) == sorted(part) for part in parts)


def test_the_split_by_domain_keeps_domains_whole(tmp_path):
    folder = small_clinc150(tmp_path)
    for part in PARTS:
        assert {intent[:-3] for intent in load("clinc150", part, "domains", folder)} == set(intents._DOMAINS[part])


def test_sentences_out_of_scope_are_left_out(tmp_path):
    folder = small_clinc150(tmp_path)
    assert "oos" not in {intent for part in PARTS for intent in load("clinc150", part, "domains", folder)}


@pytest.mark.parametrize("dataset", ["clinc150", "banking77"])
def test_missing_files_are_named_with_their_source(tmp_path, dataset, monkeypatch):
    monkeypatch.delenv("HEADSTART_DATA", raising=False)
    with pytest.raises(
        DataNotFound, match=f"There is no {dataset} here: put .* from https://github.com/.*--data or HEAD"
    ):
        load(dataset, "train", "intents")
    (tmp_path / dataset).mkdir()
    with pytest.raises(DataNotFound, match=rf"{tmp_path}/{dataset}, and name the folder above"):
        load(dataset, "train", "intents", tmp_path)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_DATA", str(small_banking77(tmp_path)))
    assert len(load("banking77", "test", "intents")) == 27


@pytest.mark.parametrize(
    ("dataset", "file", "content", "told"),
    [
        ("clinc150", "data_full.json", "{", "Cannot read"),
        ("clinc150", "data_full.json", "{}", "does not hold CLINC150 as published"),
        ("clinc150", "data_full.json", '{"train": [["a"]], "val": [], "test": []}', "does not hold CLINC150"),
        (
            "clinc150",
            "data_full.json",
            '{"train": [["a", "b"]], "val": [], "test": []}',
            "holds 1 intents and lists 150",
        ),
        ("clinc150", "domains.json", "[]", "does not hold CLINC150 as published"),
        ("banking77", "train.csv", "sentence,category\na,b\n", "it needs columns text and category"),
        ("banking77", "train.csv", "text,category\na,b\n", "holds 78 intents, and Banking77 has 77"),
        ("banking77", "categories.json", "{}", "holds 77 intents"),
    ],
)
def test_damaged_files_are_refused(tmp_path, dataset, file, content, told):
    folder = (small_clinc150 if dataset == "clinc150" else small_banking77)(tmp_path)
    (folder / dataset / file).write_text(content)
    with pytest.raises(ValueError, match=told):
        load(dataset, "train", "intents", folder)


def test_what_is_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'hwu64' is none of clinc150, banking77"):
        load("hwu64", "train", "intents", tmp_path)
    with pytest.raises(ValueError, match="Banking77 is of one domain: its split is 'intents'"):
        load("banking77", "train", "domains", tmp_path)


@pytest.mark.parametrize(
    ("dataset", "split", "sentences"), [("clinc150", "domains", 22_495), ("banking77", "intents", 13_072)]
)
def test_the_published_files(dataset, split, sentences):
    folder = os.environ.get("HEADSTART_DATA")
    if folder is None or not (Path(folder) / dataset).is_dir():
        pytest.skip(f"real {dataset} is not here: set HEADSTART_DATA to a folder with {dataset}/ in it")
    parts = [load(dataset, part, split, Path(folder)) for part in PARTS]
    assert sum(len(texts) for part in parts for texts in part.values()) == pytest.approx(sentences, abs=5)
    assert min(len(texts) for part in parts for texts in part.values()) >= 75
