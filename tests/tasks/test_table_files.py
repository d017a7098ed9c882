"""Tables on disk, as text."""

import numpy as np
import pytest

from headstart.tasks.table_files import as_seconds, from_records, read_table

pl = pytest.importorskip("polars", reason="tables need the extra table")


def write(path, text):
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_is_read_as_text_whatever_separates_it(tmp_path, separator):
    lines = ["a,b ,c", "007,1e-3, x ", ",,", ",NA,5.0"]
    table = read_table(write(tmp_path / "t.csv", "\ufeff" + "\n".join(lines).replace(",", separator) + "\n"))
    assert table.frame.to_dict(as_series=False) == {"a": ["007", None], "b": ["1e-3", None], "c": ["x", "5"]}
    assert table.rows.tolist() == [1, 3]  # the blank row counts, and is left out


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_are_points(tmp_path, separator):
    lines = ["a;b;c;d", "1,5;-0,25;1,5 l;x", "2;1,0;a, b;1,5", "ERR;;c;y", "3,1e-3;NA;;z"]
    table = read_table(write(tmp_path / "t.csv", "\n".join(lines).replace(";", separator) + "\n"))
    assert table.frame.to_dict(as_series=False) == {
        "a": ["1.5", "2", "ERR", "3.1e-3"],
        "b": ["-0.25", "1", None, None],
        "c": ["1,5 l", "a, b", "c", None],
        "d": ["x", "1,5", "y", "z"],  # a column of text
    }


@pytest.mark.parametrize("odd", ["1.234", "1.234,5"])
def test_points_among_decimal_commas_are_refused(tmp_path, odd):
    with pytest.raises(ValueError, match=f"row 3: b is '{odd}', and commas are decimal points here, as in '2,5'"):
        read_table(write(tmp_path / "t.csv", f"a;b\nx;2,5\ny;3\nz;{odd}\n"))


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ('"a, b, c";d\n1;2\n', {"a, b, c": ["1"], "d": ["2"]}),
        ("a, in m;b, in s;c\n1;2;3\n", {"a, in m": ["1"], "b, in s": ["2"], "c": ["3"]}),
        ("a,b\r1,2\r3,4\r", {"a": ["1", "3"], "b": ["2", "4"]}),
        ('\r\n"a\r\nb",c\r\n1,2\r\n', {"a\r\nb": ["1"], "c": ["2"]}),
        ("a\n1\n2\n", {"a": ["1", "2"]}),
        ('a,b\n"x;y;z",1\n', {"a": ["x;y;z"], "b": ["1"]}),
    ],
    ids=["quoted comma", "commas", "old mac", "two lines", "one column", "quoted value"],
)
def test_odd_headers_and_line_ends_are_read(tmp_path, content, columns):
    assert read_table(write(tmp_path / "t.csv", content.encode())).frame.to_dict(as_series=False) == columns


def test_a_parquet_file_and_records_say_the_same_as_a_csv_file(tmp_path):
    frame = pl.DataFrame(
        {"a": ["x", "y"], "b": [0.1, float("nan")], "c": [3.0, 4.0], "d": [True, None], "l": [[1], [2]]}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    write(tmp_path / "t.csv", "a,b,c,d\nx,0.1,3.0,True\ny,NaN,4.0,\n")
    one, other = (read_table(tmp_path / name).frame.to_dict(as_series=False) for name in ("t.parquet", "t.csv"))
    assert one == other == {"a": ["x", "y"], "b": ["0.1", None], "c": ["3", "4"], "d": ["true", None]}
    assert from_records(frame.drop("l").to_dicts()).frame.to_dict(as_series=False) == one
    words = from_records([{"d": word} for word in ("TRUE", "False", "Trueman", True)])
    assert words.frame["d"].to_list() == ["true", "false", "Trueman", "true"]


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
