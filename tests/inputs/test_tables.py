"""A person's rows become what the network was trained on, and its outputs answers in the target's unit."""

import pytest
import torch

from headstart.inputs import InputError
from headstart.inputs.tables import TableInputs
from headstart.tasks import schema as schemas
from headstart.tasks.table_files import from_records

pytest.importorskip("polars", reason="tables need the extra table")

RECORDS = [
    {"device": f"d{d}", "x": i * 1e-3, "kind": "ab"[i % 2], "y": 2e4 + 1e3 * i + d, "state": ["hot", "ok"][i % 2]}
    for d in range(9)
    for i in range(8)
]


def inputs(target="y", records=RECORDS):
    left = {"y": "!state", "state": "!y"}[target]
    return TableInputs(schemas.fit(from_records(records), task_column="device", target=target, columns=("*", left)))


def csv(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_support_and_rows_are_encoded_alike(tmp_path):
    table = inputs()
    support = table.support(csv(tmp_path / "s.csv", "y,kind,x", "20000,a,0.001", "21000,b,0.002"))
    rows = table.rows(csv(tmp_path / "r.csv", "device,x,kind", "new,0.001,a", "", "new,0.002,b"))
    torch.testing.assert_close(support.batch.inputs, rows.inputs, rtol=0, atol=0)
    assert support.notes == support.classes == ()
    assert rows.names == [{"row": 1, "task": "new"}, {"row": 3, "task": "new"}]
    assert table.rows(csv(tmp_path / "t.csv", "x,kind", "0.001,a")).names == [{"row": 1}]


def test_a_number_is_answered_in_its_unit():
    table = inputs()
    support = table.support_of([{"x": 0.003, "kind": "a", "y": 23456.5}, {"x": 0, "kind": "a", "y": "19000"}])
    answers = table.answers(support.batch.targets, ())
    assert [answer["y"] for answer in answers] == pytest.approx([23456.5, 19000], rel=1e-6)
    assert table.unit is not None
    raw = torch.tensor([[23456.5], [19000]], dtype=torch.float64)
    torch.testing.assert_close(table.unit.standardised(raw).float(), support.batch.targets)
    assert inputs("state").unit is None


def test_classes_are_answered_by_name_whatever_the_support_set_has():
    table = inputs("state")
    support = table.support_of([{"x": 0.003, "kind": "a", "state": "ok"}] * 3)
    assert support.classes == ("hot", "ok")
    assert support.batch.targets.tolist() == [1, 1, 1]
    assert any("Every support row has the state ok" in note for note in support.notes)
    (answer,) = table.answers(torch.tensor([[3.0, 0.0]]), support.classes)
    assert answer["class"] == "hot"
    assert answer["probabilities"]["hot"] == pytest.approx(0.9526, abs=1e-4)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("x,kind", "1,a"), "no column y: its columns are x, kind"),
        (("kind,y", "a,1"), "no column x"),
        (("x,kind,y", "0.1,a,", "0.2,b,NA"), "y is missing in every row"),
        (("x,kind,y", "0.1,a,1", "0.2,b,high"), "row 2: y is 'high'; its values must be finite numbers"),
        (("x,kind,y", "0.1,a,inf"), "row 1: y is 'inf'"),
        (("x,kind,y", "warm,a,1"), "row 1: x is 'warm'"),
        (("x,kind,y",), "a header and no rows"),
        (("x,x,kind,y", "1,1,a,1"), "more than one column x"),
    ],
)
def test_a_wrong_support_set_is_refused_in_a_sentence(tmp_path, lines, told):
    with pytest.raises(InputError, match=told):
        inputs().support(csv(tmp_path / "s.csv", *lines))


def test_wrong_rows_are_refused_in_a_sentence(tmp_path):
    table = inputs()
    for path, told in (
        (tmp_path, "is a folder"),
        (tmp_path / "no.csv", "There is no file"),
        (csv(tmp_path / "r.csv", "kind", "a"), "has no column x: its columns are kind"),
    ):
        with pytest.raises(InputError, match=told):
            table.rows(path)
    with pytest.raises(InputError, match="The input has no column x"):
        table.rows_of([{"kind": "a"}])
    with pytest.raises(InputError, match="There are no rows"):
        table.support_of([])


def test_an_unseen_class_is_refused_and_the_known_ones_named():
    with pytest.raises(InputError, match=r"row 2: state is 'cold', which is no class .* these are hot, ok"):
        inputs("state").support_of([{"x": 0, "kind": "a", "state": state} for state in ("ok", "cold")])


def test_what_looks_wrong_is_noted():
    rows = [{"x": 0.003, "kind": "a", "y": y, "device": f"n{i}"} for i, y in enumerate((20500, None, 20.5))]
    support = inputs().support_of(rows)
    assert len(support.batch.targets) == 2
    assert any("1 of 3 support rows are left out: no y" in note for note in support.notes)
    assert any("of 2 values of device" in note for note in support.notes)
    assert any("y is more than 8 deviations from the training mean in 1 of 2" in note for note in support.notes)


def test_unknown_categories_are_noted():
    rows = [{"x": 0.003, "kind": kind, "y": 20500} for kind in ("a", "A", "c", None)]
    (note,) = inputs().support_of(rows).notes
    assert note == "kind is no category known from training in 2 of 4 support rows."


def test_a_column_without_a_value_is_noted():
    records = [{**record, "heat": None if i % 5 == 0 else i % 7} for i, record in enumerate(RECORDS)]
    table = inputs(records=records)
    rows = [{"x": 0.003, "kind": "a", "y": 20500, "heat": heat} for heat in (None, None)]
    assert "heat is missing in every support row." in table.support_of(rows).notes
    assert table.support_of([*rows, {**rows[0], "heat": 3}]).notes == ()
