import subprocess
import sys

import pytest
import torch

from headstart.tasks.texts import TextEpisodes, TextStore, hashed, with_enough


def features(text: str, buckets: int = 1 << 20, length: int = 64) -> list[int]:
    return [number for number in hashed([text], buckets, length)[0].tolist() if number]


def test_hashes_are_the_same_in_every_process():
    expected = hashed(["Where is my card?", "naïve café"], 1 << 14, 24).tolist()
    code = (
        "from headstart.tasks.texts import hashed; "
        "print(hashed(['Where is my card?', 'na\\u00efve caf\\u00e9'], 1 << 14, 24).tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert found.stdout.strip() == str(expected)


def test_features_are_the_words_and_their_runs_of_three():
    assert features("Cards") == features("CARDS ")
    assert len(features("cards")) == 1 + 5  # <ca car ard rds ds>
    assert features("my cards") == features("my") + features("cards")
    assert len(set(features("card")) & set(features("cards"))) == 3  # <ca car ard, and not the words themselves
    assert features("?") != features("!")


def test_rows_are_padded_and_cut_and_never_hold_padding_inside():
    rows = hashed(["", "a", "several words are more than fit"], 3, 8)
    assert rows.shape == (3, 8)
    assert rows.dtype == torch.int64
    assert rows[0].count_nonzero() == 0
    assert rows[1].ne(0).tolist() == [True] * 2 + [False] * 6
    assert rows[2].ne(0).all()
    assert set(rows.flatten().tolist()) <= {0, 1, 2}


def numbered(counts: tuple[int, ...]) -> TextStore:
    """Each text holds its class and its number in it."""
    rows = [(label + 1, index + 1) for label, count in enumerate(counts) for index in range(count)]
    return TextStore(torch.tensor(rows), counts, tuple(f"class {label}" for label in range(len(counts))))


def test_tasks_draw_classes_and_texts_without_repetition():
    source = TextEpisodes(numbered((5, 3, 9, 4)), ways=3, shots=1, queries=2)
    tasks = source.sample(200, torch.Generator().manual_seed(0))
    seen = set()
    for support, query in zip(tasks.support.inputs, tasks.query.inputs, strict=True):
        classes = support[:, 0].tolist()
        assert len(set(classes)) == 3
        assert query[:, 0].tolist() == [label for label in classes for _ in range(2)]
        both = [tuple(row) for row in torch.cat([support, query]).tolist()]
        assert len(set(both)) == len(both)
        seen |= set(both)
    assert seen == {tuple(row) for row in source.store.tokens.tolist()}  # every text, and none that is not there
    assert tasks.support.targets.tolist() == [[0, 1, 2]] * 200
    assert tasks.query.targets.tolist() == [[0, 0, 1, 1, 2, 2]] * 200


def test_the_same_generator_gives_the_same_tasks():
    source = TextEpisodes(numbered((5, 6)), ways=2, shots=2, queries=2)
    first, again, other = (source.sample(4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.query.inputs, again.query.inputs)
    assert not torch.equal(first.query.inputs, other.query.inputs)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ways": 4}, "ways=4 but there are 3 classes"),
        ({"queries": 3}, "need 4 different texts per class but 'class 1' has 3"),
        ({"shots": 0}, "shots=0: give at least 1"),
    ],
)
def test_tasks_that_cannot_be_drawn_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        TextEpisodes(numbered((5, 3, 4)), **({"ways": 2, "shots": 1, "queries": 1} | settings))


def test_stores_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="one row for each of 5 texts"):
        TextStore(torch.zeros(4, 2, dtype=torch.int64), (2, 3), ("a", "b"))
    with pytest.raises(ValueError, match="give each class one of its own"):
        TextStore(torch.zeros(5, 2, dtype=torch.int64), (2, 3), ("a", "a"))


def test_labels_with_too_few_texts_are_left_out_by_name(caplog):
    texts = {"pay": ["a", "b"], "lost": ["c"], "block": ["d", "e", "f"]}
    with caplog.at_level("WARNING"):
        assert with_enough(texts, 1) == texts
        assert not caplog.records
        assert with_enough(texts, 2) == {"pay": ["a", "b"], "block": ["d", "e", "f"]}
    assert caplog.messages == [
        "1 of 3 labels are left out, for they have fewer than the 2 texts that a task takes of each: lost (1)."
    ]
