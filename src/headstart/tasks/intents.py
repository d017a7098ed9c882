"""Intents: what somebody wants, told in a sentence. CLINC150 and Banking77, and their split by intent.

CLINC150 (Larson et al. 2019, CC BY 3.0): 150 intents of 10 domains, 150 sentences each; those out of scope are not
used. Banking77 (Casanueva et al. 2020, CC BY 4.0): 77 intents of one domain, 75 to 227 sentences each. The files'
own parts share their intents, so they are put together and split anew, such that no intent is in two parts.
"""

import csv
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from headstart.tasks.archives import DataNotFound
from headstart.tasks.texts import by_label

Dataset = Literal["clinc150", "banking77"]
Split = Literal["domains", "intents"]
"""How intents are split: whole domains, so that a test task is about something new; or each intent by itself."""
Part = Literal["train", "val", "test"]

_HOMES = {
    "clinc150": "https://github.com/clinc/oos-eval/tree/master/data",
    "banking77": "https://github.com/PolyAI-LDN/task-specific-datasets/tree/master/banking_data",
}
_FILES = {
    "clinc150": ("data_full.json", "domains.json"),
    "banking77": ("train.csv", "test.csv", "categories.json"),
}
_SIZES = {"clinc150": (50, 50, 50), "banking77": (25, 25, 27)}
"""Intents in the parts of the split by intent: as many as in Dopierre et al. (2021), but not the same ones."""

_DOMAINS = {
    "train": ("banking", "credit_cards", "kitchen_and_dining", "home", "auto_and_commute"),
    "val": ("travel", "utility"),
    "test": ("work", "small_talk", "meta"),
}
"""The split by domain: the ten of `domains.json` in its own order, 75, 30 and 45 intents."""


def load(dataset: Dataset, part: Part, split: Split = "domains", data: Path | None = None) -> dict[str, list[str]]:
    """The sentences of one part, by intent; both are sorted or in the files' order, the same everywhere.

    Args:
        dataset: Which.
        part: The three share no intent.
        split: Banking77 is of one domain and knows `"intents"` only.
        data: A folder that contains a folder `clinc150` or `banking77` with the published files; by default the
            environment variable HEADSTART_DATA.

    Raises:
        DataNotFound: If the files are not there; the message says where they are from and where they go.
        ValueError: If a file is damaged or holds something else, or there is no such data set, split or part.
    """
    for given, known in ((dataset, Dataset), (split, Split), (part, Part)):
        if given not in get_args(known):
            raise ValueError(f"{given!r} is none of {', '.join(get_args(known))}.")
    if dataset == "banking77" and split == "domains":
        raise ValueError("Banking77 is of one domain: its split is 'intents'.")
    folder = _folder(dataset, data)
    texts, domains = _clinc150(folder) if dataset == "clinc150" else _banking77(folder)
    if split == "domains":
        chosen = sorted(intent for domain in _DOMAINS[part] for intent in domains[domain])
    else:
        chosen = by_hash(list(texts), _SIZES[dataset])[get_args(Part).index(part)]
    return {intent: texts[intent] for intent in chosen}


def by_hash(names: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    """`names` in parts of these sizes, each sorted; which name goes where depends on the names alone.

    >>> by_hash(["balance", "bill", "card", "rate"], (2, 1, 1))
    [['bill', 'card'], ['balance'], ['rate']]
    """
    shuffled = sorted(names, key=lambda name: (zlib.crc32(name.encode()), name))
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [sorted(shuffled[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _folder(dataset: str, data: Path | None) -> Path:
    """Where the files are, all of them."""
    named = data or (Path(os.environ["HEADSTART_DATA"]) if os.environ.get("HEADSTART_DATA") else None)
    folder = None if named is None else named.expanduser() / dataset
    missing = [name for name in _FILES[dataset] if folder is None or not (folder / name).is_file()]
    if folder is None or missing:
        raise DataNotFound(
            f"There is no {dataset} here: put {', '.join(missing)} from {_HOMES[dataset]} into "
            f"{folder or f'a folder <data>/{dataset}'}, and name the folder above by --data or HEADSTART_DATA."
        )
    return folder


def _clinc150(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Sentences by intent, and intents by domain."""
    content, domains = (_json(folder / name) for name in _FILES["clinc150"])
    try:
        rows = [(text.strip(), intent) for part in ("train", "val", "test") for text, intent in content[part]]
        texts = by_label(rows)
        listed = sorted(intent for intents in domains.values() for intent in intents)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} does not hold CLINC150 as published: fetch its files again.") from error
    if listed != list(texts) or set(domains) != {domain for part in _DOMAINS.values() for domain in part}:
        raise ValueError(
            f"{folder} holds {len(texts)} intents and lists {len(listed)} in {len(domains)} domains, and CLINC150 has "
            "150 in 10: fetch its files again."
        )
    return texts, domains


def _banking77(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Sentences by intent, and no domains."""
    train, test, names = (folder / name for name in _FILES["banking77"])
    rows: list[tuple[str, str]] = []
    for file in (train, test):
        try:
            with file.open(newline="", encoding="utf-8") as handle:
                rows += [(row["text"].strip(), row["category"]) for row in csv.DictReader(handle)]
        except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"{file} is not Banking77's: it needs columns text and category. Fetch it again."
            ) from error
    texts, listed = by_label(rows), _json(names)
    if not isinstance(listed, list) or sorted(listed) != list(texts) or len(texts) != sum(_SIZES["banking77"]):
        raise ValueError(
            f"{folder} holds {len(texts)} intents, and Banking77 has {sum(_SIZES['banking77'])}, those that "
            "categories.json lists: fetch its files again."
        )
    return texts, {}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read {file}: {error}. Fetch it again.") from error
