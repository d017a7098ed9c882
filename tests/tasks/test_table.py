"""What the columns of a table become, and the tasks drawn from it."""

import json
import logging
from dataclasses import asdict

import numpy as np
import pytest
import torch

from headstart.tasks import schema as schemas
from headstart.tasks.schema import LevelColumn, Schema
from headstart.tasks.table import TableTasks, TaskRows, read_tasks, task_rows
from headstart.tasks.table_files import from_records

pytest.importorskip("polars", reason="tables need the extra table")

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
    test = next(i for i in range(DEVICES) if schema.part_of(f"d{i}") == "test")
    with pytest.raises(ValueError, match=rf"row {test + 1} \(d{test}\): x is '1000000000.*far from all training"):
        fit(table_of(far=lambda d, i: i, x=lambda d, i: 10**9 if (d, i) == (test, 0) else i))


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


def test_a_few_texts_among_numbers_or_dates_are_mistakes_unless_called_categories():
    table = table_of(heat=lambda d, i: "ERR" if i == 5 else None if i == 1 else i)
    told = r"row \d+: heat is 'ERR'; its values must be finite numbers: correct it, leave it empty, or name .* --categ"
    with pytest.raises(ValueError, match=told):
        fit(table)
    assert fit(table, categories=("heat",)).categories[0].levels == (*"023467", "ERR")
    with pytest.raises(ValueError, match=r"day is 'later'; its values must be dates as in .*--categories"):
        fit(table_of(day=lambda d, i: f"2024-01-{i + 1:02d}" if i else "later"))
    assert fit(table_of(code=lambda d, i: f"A{i}" if i % 2 else i)).categories[0].name == "code"


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


def test_what_each_column_is_and_how_many_tasks_there_are_is_said(caplog):
    table = table_of(kind=lambda d, i: "AB"[i % 2], day=lambda d, i: f"2024-01-{i + 1:02d}")
    with caplog.at_level(logging.INFO):
        schema = fit(table)
        task_rows(table, schema, "test")
    assert "12 tasks: 8 to train on, 2 to validate, 2 to test. The target y is a number." in caplog.text
    assert "Columns: numbers x; dates day; categories kind (2)." in caplog.text
    assert "2 different tasks to test on" in caplog.text


def test_rows_without_a_task_or_target_are_left_out_with_a_warning(caplog):
    table = table_of(state=lambda d, i: ["None", "mild", "severe"][i % 3])
    with caplog.at_level(logging.WARNING):
        assert fit(table, target="state").classes == ("mild", "severe")
    assert "36 of 96 rows left out: no device or no state" in caplog.text
    assert "None, ?: rename" in caplog.text


def test_patterns_name_columns():
    table = table_of(note=lambda d, i: i % 3, heat=lambda d, i: i * i)
    table = table._replace(frame=table.frame.rename({"heat": "heat [K]"}))
    assert fit(table, columns=("x", "heat [K]")).columns == ("x", "heat [K]")
    assert fit(table, columns=("!note",)).columns == fit(table, columns=("*", "!note")).columns == ("x", "heat [K]")
    assert [c.name for c in fit(table, categories=("!x", "!heat*")).categories] == ["note"]
    for settings in ({"categories": ("note", "zip")}, {"columns": ("*", "!zip")}):
        with pytest.raises(
            ValueError, match=r"no column that matches !?zip: its columns are device, x, y, note, heat \[K\]"
        ):
            fit(table, **settings)


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
        (
            lambda: table_of(t=lambda d, i: f"2024/01/{i + 1:02d}"),
            {"time_column": "t"},
            "row 1: t is '2024/01/01'; its values must be finite numbers, or dates as in 2024-01-31",
        ),
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
    names = tuple(f"t{i}" for i in range(len(sizes)))
    return TaskRows(inputs, inputs[:, 1:].clone(), torch.tensor(sizes), names, inputs[:, 1].long() + 1)


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


def test_queries_are_later_than_rows_of_the_same_time_as_the_support():
    table = table_of(devices=9, rows=20, day=lambda d, i: i // 3, place=lambda d, i: i)
    schema = fit(table, time_column="day")
    rows = task_rows(table, schema, "train")
    assert rows.until[:20].tolist() == [3] * 3 + [6] * 3 + [9] * 3 + [12] * 3 + [15] * 3 + [18] * 3 + [20] * 2
    day = schema.names.index("day")
    source = TableTasks(rows, shots=4, queries=3, ordered=True, fewest=1)
    rng, first, last = torch.Generator().manual_seed(0), set(), set()
    for _ in range(20):
        tasks = source.sample(30, rng)
        support, query = tasks.support.inputs[..., day], tasks.query.inputs[..., day]
        assert (query.amin(1) > support.amax(1)).all()
        first |= set(support[:, 0].tolist())
        last |= set(query.flatten().tolist())
    days = rows.inputs[:20, day].unique().tolist()
    assert {days[0], days[3]} <= first  # from anywhere
    assert set(days[1:]) == last


def test_tasks_of_one_time_have_no_later_queries():
    table = table_of(day=lambda d, i: 3 if d else i)
    schema = fit(table, time_column="day", columns=("x",))
    part = schema.part_of("d0")
    source = TableTasks(task_rows(table, schema, part), shots=2, queries=2, ordered=True)
    assert source.long_enough.tolist() == [source.rows.names.index("d0")]
    other = "val" if part == "train" else "train"
    with pytest.raises(ValueError, match=r"need 4 rows of a task \(the queries' later than the others\), and the"):
        TableTasks(task_rows(table, schema, other), shots=2, queries=2, ordered=True)


@pytest.mark.parametrize("size", [2, 3, 50])
def test_a_meta_batch_has_each_task_equally_often(size):
    source = TableTasks(plain_rows(5, 9, 3, 40), shots=2, queries=2)
    rng, total = torch.Generator().manual_seed(0), torch.zeros(4)
    for _ in range(100):
        times = source.sample(size, rng).support.inputs[:, 0, 0].long().bincount(minlength=4)
        assert times[2] == 0
        assert times[[0, 1, 3]].max() - times[[0, 1, 3]].min() <= 1
        total += times
    assert (total[[0, 1, 3]] / total.sum()).numpy() == pytest.approx([1 / 3] * 3, abs=0.05)


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
