"""Tables on disk, what their columns become, and the tasks drawn from them."""

import json
import logging
from dataclasses import asdict

import numpy as np
import pytest
import torch

from headstart.tasks import schema as schemas
from headstart.tasks.schema import LevelColumn, Schema
from headstart.tasks.table import TableTasks, TaskRows, read_tasks, task_rows
from headstart.tasks.table_files import as_seconds, from_records, read_table

pl = pytest.importorskip("polars", reason="tables need the extra table")

DEVICES = 12


def table_of(devices=DEVICES, rows=8, **columns):
    """`devices` times `rows` rows: x of each row is its place in its device, y ten times that plus the device."""
    records = [
        {
            "device": f"d{device}",
            "x": place,
            "y": 10 * place + device,
            **{k: f(device, place) for k, f in columns.items()},
        }
        for place in range(rows)
        for device in range(devices)
    ]
    return from_records(records)


def fit(table, **settings):
    return schemas.fit(table, **{"task_column": "device", "target": "y", **settings})


def write(path, text):
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_is_read_as_text_whatever_separates_it(tmp_path, separator):
    lines = ["a,b ,c", "007,1e-3, x ", ",,", ",NA,5.0"]
    table = read_table(write(tmp_path / "t.csv", "\ufeff" + "\n".join(lines).replace(",", separator) + "\n"))
    assert table.frame.to_dict(as_series=False) == {"a": ["007", None], "b": ["1e-3", None], "c": ["x", "5"]}
    assert table.rows.tolist() == [1, 3]  # the blank row counts, and is left out


def test_a_parquet_file_says_the_same_as_a_csv_file(tmp_path):
    frame = pl.DataFrame(
        {"a": ["x", "y"], "b": [0.1, float("nan")], "c": [3.0, 4.0], "d": [True, None], "l": [[1], [2]]}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    frame.drop("l").write_csv(tmp_path / "t.csv")
    one, other = (read_table(tmp_path / name).frame.to_dict(as_series=False) for name in ("t.parquet", "t.csv"))
    assert one == other == {"a": ["x", "y"], "b": ["0.1", None], "c": ["3", "4"], "d": ["true", None]}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.csv", "", "is empty"),
        ("blank.csv", "\n\n", "is empty"),
        ("header.csv", "a,b\n", "a header and no rows"),
        ("nothing.csv", "a,b\n,\n", "no row with a value"),
        ("twice.csv", "a,b,a\n1,2,3\n", "more than one column a"),
        ("ragged.csv", "a,b\n1,2,3\n", "Cannot read .* as CSV"),
        ("binary.csv", b"a,b\n\x00\x01\x02", "is no text"),
        ("latin.csv", b"a,b\n\xe9,2\n", "Cannot read .* as CSV"),
        ("torn.parquet", b"PAR1" + b"\x00" * 50, "Cannot read .* as Parquet"),
        ("text.parquet", "a,b\n1,2\n", "Cannot read .* as Parquet"),
    ],
)
def test_files_that_are_no_table_are_refused_in_a_sentence(tmp_path, name, content, told):
    with pytest.raises(ValueError, match=told):
        read_table(write(tmp_path / name, content))


def test_a_truncated_parquet_file_a_folder_and_no_file_are_refused(tmp_path):
    pl.DataFrame({"a": list(range(1000))}).write_parquet(tmp_path / "t.parquet")
    write(tmp_path / "t.parquet", (tmp_path / "t.parquet").read_bytes()[:-20])
    for path, told in ((tmp_path / "t.parquet", "as Parquet"), (tmp_path, "is a folder"), (tmp_path / "no", "no file")):
        with pytest.raises(ValueError, match=told):
            read_table(path)


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(ImportError, match=r"headstart\[table\]"):
        read_table(write(tmp_path / "t.csv", "a\n1\n"))


def test_records_are_a_table_and_nested_values_are_refused():
    table = from_records([{"a": 1, "b": True}, {"a": 0, "c": None}, {"b": "x"}])
    assert table.frame.to_dict(as_series=False) == {"a": ["1", "0", None], "b": ["true", None, "x"], "c": [None] * 3}
    for wrong, told in (([], "no rows"), ([{"a": [1]}], "a is a list"), ([{"a": None}], "no row with a value")):
        with pytest.raises(ValueError, match=told):
            from_records(wrong)


def test_dates_are_seconds_and_what_is_no_date_is_missing():
    found = as_seconds(pl.Series(["1970-01-02", "1970-01-01T01:00:00+01:00", "1970-01-01 00:00:01", "1/2/1970", None]))
    np.testing.assert_array_equal(found, [86400, 0, 1, np.nan, np.nan])


def test_numbers_are_standardised_by_the_training_tasks_alone():
    table = table_of()
    schema = fit(table)
    training = [name for name in {f"d{i}" for i in range(DEVICES)} if schema.part_of(name) == "train"]
    keep = np.isin(np.array(table.frame["device"].to_list()), training)
    y = np.array(table.frame["y"].to_list(), float)
    assert schema.target_mean == pytest.approx(y[keep].mean(), rel=1e-12)
    assert schema.target_scale == pytest.approx(y[keep].std(), rel=1e-12)
    assert schema.target_mean != pytest.approx(y.mean(), rel=1e-6)
    x = np.array(table.frame["x"].to_list(), float)
    torch.testing.assert_close(
        schema.inputs(table, "t")[:, 0], torch.from_numpy((x - x[keep].mean()) / x[keep].std()).float()
    )


def test_values_of_any_scale_stay_exact():
    table = table_of(tiny=lambda d, i: 1e-3 + 1e-9 * i, huge=lambda d, i: 1.7e9 + i * 3)
    inputs = fit(table).inputs(table, "t")
    for column in inputs.T:
        assert torch.isfinite(column).all()
        assert len(column.unique()) == 8
        assert column.std().item() == pytest.approx(1, abs=0.02)


def test_a_value_far_from_all_training_values_is_refused():
    schema = fit(table_of())
    with pytest.raises(ValueError, match=r"row 2: x is '1e\+300', far from all training values, 3.5 plus or"):
        schema.inputs(from_records([{"x": 1}, {"x": 1e300}]), "t")
    with pytest.raises(ValueError, match="row 1: y is '-1e20', far from"):
        schema.targets(from_records([{"y": "-1e20"}]), "t")


def test_missing_numbers_are_the_median_and_say_so():
    table = table_of(heat=lambda d, i: None if (d + i) % 4 == 0 else float(i))
    schema = fit(table)
    column = next(c for c in schema.numbers if c.name == "heat")
    assert column.indicator
    assert schema.names[-1] == "heat is missing"
    missing = table.frame["heat"].is_null().to_numpy()
    inputs = schema.inputs(table, "t")
    np.testing.assert_array_equal(inputs[:, -1].numpy(), missing)
    filled = inputs[:, schema.names.index("heat")][torch.from_numpy(missing)]
    torch.testing.assert_close(filled, torch.full_like(filled, (column.median - column.mean) / column.scale))
    assert not next(c for c in schema.numbers if c.name == "x").indicator


def test_categories_are_one_hot_and_unknown_ones_have_their_own_code():
    table = table_of(kind=lambda d, i: None if i == 0 else "own" if (d, i) == (0, 1) else "AB"[i % 2])
    schema = fit(table)
    assert schema.categories == (LevelColumn("kind", ("A", "B")),)
    assert schema.names[1:] == ("kind is A", "kind is B", "kind is another", "kind is missing")
    rows = from_records([{"x": 1, "kind": kind} for kind in ("B", "own", "new", None)])
    assert schema.inputs(rows, "t")[:, 1:].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_a_column_of_codes_is_of_categories_where_asked_for():
    assert fit(table_of(code=lambda d, i: i % 3), categories=("code",)).categories == (
        LevelColumn("code", ("0", "1", "2")),
    )


def test_what_cannot_help_is_left_out_and_said(caplog):
    table = table_of(
        always=lambda d, i: "same",
        same=lambda d, i: ["1", "1e0"][i % 2],
        empty=lambda d, i: None if (d, i) else 1,
        serial=lambda d, i: f"SN{d}",
        count=lambda d, i: DEVICES * i + d,
        text=lambda d, i: f"sentence {i} of {d}",
        secret=lambda d, i: i,
    )
    with caplog.at_level(logging.INFO):
        schema = fit(table, columns=("*", "!secret"))
    assert schema.columns == ("x",)
    reasons = schema.left_out
    assert set(reasons) == {"always", "same", "empty", "serial", "count", "text", "secret"}
    assert reasons["always"] == "always the same"
    assert reasons["empty"] == "no value in any training task"
    assert "names the task" in reasons["serial"]
    assert reasons["secret"] == "not asked for"
    assert "Column serial is left out" in caplog.text


def test_a_row_number_is_left_out_and_a_number_within_the_task_is_not():
    records = [{"device": f"d{i // 9}", "x": i % 9, "y": i % 9 * 2 + i // 9, "line": 100 + i} for i in range(45)]
    schema = fit(from_records(records))
    assert schema.columns == ("x",)
    assert schema.left_out == {"line": "numbers the rows"}


def test_a_text_or_two_valued_target_is_of_classes():
    assert fit(table_of(state=lambda d, i: ["ok", "hot", "cold"][i % 3]), target="state").classes == (
        "cold",
        "hot",
        "ok",
    )
    assert fit(table_of(failed=lambda d, i: i % 2), target="failed").classes == ("0", "1")
    assert fit(table_of(failed=lambda d, i: i % 2), target="failed", target_kind="number").classes == ()
    assert fit(table_of(), target="y").classes == ()


@pytest.mark.parametrize(
    ("table", "settings", "told"),
    [
        (lambda: table_of(), {"task_column": "devise"}, "no column devise: its columns are device, x, y"),
        (lambda: table_of(), {"target": "z"}, "no column z"),
        (lambda: table_of(), {"time_column": "day"}, "no column day"),
        (lambda: table_of(), {"target": "device"}, "must differ"),
        (lambda: table_of(z=lambda d, i: None), {"target": "z"}, "z is missing in every row"),
        (lambda: table_of(z=lambda d, i: "inf" if (d, i) == (3, 2) else i), {"target": "z"}, "z is 'inf'"),
        (lambda: table_of(z=lambda d, i: "bad" if (d, i) == (3, 2) else i), {"target": "z"}, "row 28: z is 'bad'"),
        (lambda: table_of(z=lambda d, i: 5), {"target": "z"}, "z is 5 in every row"),
        (lambda: table_of(z=lambda d, i: "one"), {"target": "z"}, "1 different values; classes must be 2 to 100"),
        (lambda: table_of(z=lambda d, i: f"{d}.{i}.a", rows=12), {"target": "z"}, "144 different values"),
        (lambda: table_of(devices=1), {}, "1 different value, and each is a task"),
        (lambda: table_of(devices=2), {}, "2 different values"),
        (lambda: table_of(), {"rows_needed": 9}, "0 of 12 tasks have 9 rows or more.*largest has 8"),
        (lambda: table_of(), {"columns": ("*", "!x")}, "no column to predict y from .x: not asked for"),
        (lambda: table_of(t=lambda d, i: None if i == 3 else i), {"time_column": "t"}, "row 37: t is missing"),
        (lambda: table_of(t=lambda d, i: "soon" if i == 3 else i), {"time_column": "t"}, "t is 'soon'"),
        (lambda: table_of(z=lambda d, i: "inf" if i == 3 else i), {}, "z is 'inf'; its values must be finite numbers"),
    ],
)
def test_tables_that_nothing_can_be_learned_from_are_refused_in_a_sentence(table, settings, told):
    with pytest.raises(ValueError, match=told):
        fit(table(), **settings)


def test_a_schema_comes_back_from_json():
    table = table_of(
        kind=lambda d, i: "AB"[i % 2], day=lambda d, i: f"2024-01-{i + 1:02d}", c=lambda d, i: None if d else 1
    )
    schema = fit(table, time_column="day")
    assert Schema.from_json(json.loads(json.dumps(asdict(schema)))) == schema
    assert next(c for c in schema.numbers if c.name == "day").dates


def test_parts_are_by_task_disjoint_and_do_not_change_with_the_file():
    schema = fit(table_of(devices=40))
    parts = {part: task_rows(table_of(devices=40), schema, part).names for part in ("train", "val", "test")}
    assert {part: len(names) for part, names in parts.items()} == {"train": 28, "val": 6, "test": 6}
    assert len({name for names in parts.values() for name in names}) == 40
    more = task_rows(table_of(devices=60), schema, "test").names
    assert set(parts["test"]) <= set(more)
    assert not set(more) & {*parts["train"], *parts["val"]}


def test_the_smallest_table_has_a_task_in_each_part():
    schema = fit(table_of(devices=3))
    assert all(len(task_rows(table_of(devices=3), schema, part).names) == 1 for part in ("train", "val", "test"))


def test_rows_of_one_task_are_its_own_in_order_of_time():
    table = table_of(t=lambda d, i: (5 * i) % 8, z=lambda d, i: 100 * d + (5 * i) % 8)
    schema = fit(table, time_column="t", target="z", target_kind="number")
    rows = task_rows(table, schema, "train")
    for name in rows.names:
        values = rows.of(name).targets[:, 0].double() * schema.target_scale + schema.target_mean
        np.testing.assert_allclose(values.numpy(), 100 * int(name[1:]) + np.arange(8), atol=1e-3)


def plain_rows(*sizes):
    """Tasks whose rows' inputs are their task and place, and whose targets are the places."""
    inputs = torch.cat([torch.tensor([[float(t), float(i)] for i in range(size)]) for t, size in enumerate(sizes)])
    return TaskRows(inputs, inputs[:, 1:].clone(), torch.tensor(sizes), tuple(f"t{i}" for i in range(len(sizes))))


@pytest.mark.parametrize("ordered", [False, True])
def test_a_task_draws_different_rows_of_one_task(ordered):
    source = TableTasks(plain_rows(5, 9, 3, 40), shots=2, queries=3, ordered=ordered)
    tasks = source.sample(200, torch.Generator().manual_seed(0))
    both = torch.cat([tasks.support.inputs, tasks.query.inputs], 1)
    assert both.shape == (200, 5, 2)
    assert (both[..., 0] == both[:, :1, 0]).all()  # one task's rows
    assert set(both[:, 0, 0].tolist()) == {0.0, 1.0, 3.0}  # the third is too short
    assert all(len(set(row)) == 5 for row in both[..., 1].tolist())
    assert torch.equal(tasks.support.targets[..., 0], tasks.support.inputs[..., 1])
    sizes = torch.tensor([5, 9, 3, 40])[both[:, 0, 0].long()]
    assert (both[..., 1].amax(1) < sizes).all()
    longest = both[both[:, 0, 0] == 3][..., 1]
    assert {0.0, 39.0} <= set(longest.flatten().tolist())


def test_ordered_queries_come_after_a_run_of_support_rows():
    tasks = TableTasks(plain_rows(9, 30), shots=3, queries=4, ordered=True).sample(
        100, torch.Generator().manual_seed(0)
    )
    support, query = tasks.support.targets[..., 0], tasks.query.targets[..., 0]
    assert (support.diff(dim=1) == 1).all()
    assert (query.amin(1) > support.amax(1)).all()
    assert len(support[:, 0].unique()) > 5


def test_the_number_of_support_rows_is_drawn_by_halves():
    source = TableTasks(plain_rows(30, 30), shots=10, queries=2, fewest=1)
    assert source.counts == [10, 5, 2, 1]
    rng = torch.Generator().manual_seed(0)
    assert {source.sample(2, rng).support.inputs.shape[1] for _ in range(60)} == {10, 5, 2, 1}


def test_the_same_seed_gives_the_same_tasks():
    source = TableTasks(plain_rows(30, 12), shots=3, queries=2, fewest=1)
    one, again, other = (source.sample(4, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert one.support.inputs.shape != other.support.inputs.shape or not torch.equal(one[1][0], other[1][0])


def test_no_task_long_enough_is_refused():
    with pytest.raises(ValueError, match="need 12 rows of a task, and the longest of these 2 has 9"):
        TableTasks(plain_rows(5, 9), shots=10, queries=2)
    with pytest.raises(ValueError, match="shots must be at least 1"):
        TableTasks(plain_rows(5, 9), shots=0, queries=2)


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path / "t.csv"
    table_of().frame.write_csv(file)
    schema = fit(table_of())
    before = read_tasks(file, schema, "train")
    table_of(rows=20).frame.write_csv(file)
    assert int(before.sizes[0]) == 8
    assert int(read_tasks(file, schema, "train").sizes[0]) == 20
