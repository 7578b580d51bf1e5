"""Tables of the user: nothing that a file holds is lost, changed or guessed."""

import codecs
import datetime
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cisterna.errors import UserError
from cisterna.tasks import tables

ODD = ["010", "NA", "nan", "", "1,5", "2020-01-31", "1e5", "TRUE", " x ", "a;b", "0x1F"]


def write(path, *lines, encoding="utf-8", end="\n"):
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


def cells(path, name="x"):
    return list(tables.open_table(path)[name])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_read_as_it_is_written(tmp_path, end, encoding):
    rows = [f"{number}\t{text}" for number, text in enumerate(ODD)]
    path = write(tmp_path / "t.tsv", "id\tx", *rows, end=end, encoding=encoding)
    assert cells(path) == ODD
    assert list(tables.open_table(path).columns) == ["id", "x"]
    path = write(
        tmp_path / "t.csv",
        "id,x",
        *(f'{row[0]},"{row[2:]}"' if "," in row else row.replace("\t", ",") for row in rows),
        end=end,
        encoding=encoding,
    )
    assert cells(path) == ODD


def test_a_quotation_mark_in_a_tsv_file_is_a_letter(tmp_path):
    notes = ['"Candidatus" group', '"putative, see remark', "ordinary", '"putative, see remark', 'a "b"']
    path = write(tmp_path / "t.tsv", "id\tx", *(f"{row}\t{note}" for row, note in enumerate(notes)))
    assert cells(path) == notes


def test_a_csv_file_quotes_as_in_rfc_4180(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'id,x\n1,"a ""b"", c"\n2,"two\r\nlines"\n\n3,5" pipe\n')
    assert cells(path) == ['a "b", c', "two\r\nlines", '5" pipe']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", 'id,x\n1,a\n2,"putative" group\n3,b\n', "row 2, which ends in line 3"),
        ("t.csv", 'id,x\n1,a\n2,"putative\n3,"b\n', "row 2, which ends in line 4"),
        ("t.csv", 'id,x\n1,a\n2,"putative\n3,b\n', "row 2, which ends in line 4"),
        ("t.csv", "id,x\n1,a\n2,1,5\n", "row 2, line 3, has more fields than the header has names: 3, not 2"),
        ("t.tsv", "id\tx\n1\ta\n2\n", "row 2, line 3, has fewer fields than the header has names: 1, not 2"),
        ("t.csv", "id,x,x\n1,a,b\n", "two columns have the name 'x'"),
        ("t.jsonl", '{"id": 1, "x": 2, "x": 3}\n', "line 1: two columns have the name 'x'"),
        ("t.jsonl", '{"id": 1}\n{"id": NaN}\n', "line 2: NaN is not JSON"),
        ("t.jsonl", '{"id": "\\ud800"}\n', "line 1: .*surrogates"),
    ],
)
def test_what_is_ambiguous_is_refused_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}: cannot be read .*{message}"):
        tables.open_table(tmp_path / name)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes('{"x": 1}\n{"x": 2}\n{"x": "é"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"line 3: cannot be read, byte 0xe9 is not UTF-8 .*Save the file as UTF-8"):
        tables.open_table(path)
    path.write_bytes(codecs.BOM_UTF16_LE + "x\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"line 1: .*UTF-16"):
        tables.open_table(path)


def test_a_column_without_a_name_keeps_its_content(tmp_path):
    path = write(tmp_path / "t.csv", ",x", "r1,a", "r2,b")  # as pandas and R write row names
    assert cells(path, "Unnamed: 0") == ["r1", "r2"]
    assert cells(path) == ["a", "b"]


def test_a_field_may_be_longer_than_a_chromosome_arm(tmp_path):
    path = write(tmp_path / "t.csv", "id,x", "1," + "A" * 300_000)
    assert len(cells(path)[0]) == 300_000


def test_typed_values_become_text_in_one_way(tmp_path):
    day = datetime.date(2020, 1, 31)
    table = pa.table(
        {
            "whole": pa.array([10, None], pa.int64()),
            "fraction": pa.array([0.5, None], pa.float64()),
            "single": pa.array([0.1, None], pa.float32()),
            "flag": [True, None],
            "day": [day, None],
            "category": pa.array(["010", None]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    frame = tables.open_table(tmp_path / "t.parquet")
    found = {name: tables.texts(frame, name, "t", may_be_empty=True) for name in frame.columns}
    expected = {"whole": "10", "fraction": "0.5", "single": "0.1", "flag": "True", "day": "2020-01-31"}
    assert found == {name: [text, ""] for name, text in (expected | {"category": "010"}).items()}


def test_json_lines_keep_numbers_as_they_are_written(tmp_path):
    path = write(tmp_path / "t.jsonl", *(json.dumps({"x": value}) for value in (10, None, "010", True)), '{"x": 1.10}')
    assert tables.texts(tables.open_table(path), "x", path, may_be_empty=True) == ["10", "", "010", "True", "1.10"]


def test_whole_numbers_that_became_fractions_beside_missing_ones_are_refused(tmp_path):
    pd.DataFrame({"x": [1.0, np.nan, 3.0]}).to_parquet(tmp_path / "t.parquet")
    frame = tables.open_table(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"column .x. has 1\.0 and missing values"):
        tables.texts(frame, "x", "t", may_be_empty=True)
    with pytest.raises(UserError, match="row 2: column 'x' is empty"):
        tables.texts(frame, "x", "t")


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a"])
def test_a_cell_that_is_not_one_text_is_refused(tmp_path, value):
    pd.DataFrame({"x": ["a", "b"], "y": [value, value]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"row 1: column .y.: .* is not a text"):
        tables.texts(tables.open_table(tmp_path / "t.parquet"), "y", "t")


def test_a_named_index_of_pandas_is_a_column(tmp_path):
    pd.DataFrame({"x": ["a", "b"]}, index=pd.Index(["r1", "r2"], name="id")).to_parquet(tmp_path / "t.parquet")
    assert cells(tmp_path / "t.parquet", "id") == ["r1", "r2"]


def test_texts_that_may_stand_for_a_missing_value_are_noted():
    assert tables.notes_of_missing(["NA", "kinase", "nan", "NA"], "groups") == [
        "groups: the text 'NA' is read as it is (rows: 2)",
        "groups: the text 'nan' is read as it is (rows: 1)",
    ]


def test_dropped_rows_are_counted_and_the_first_are_named():
    assert tables.dropped("why", []) == []
    assert tables.dropped("why", list(range(1, 9))) == [
        {"reason": "why", "rows": 8, "examples": ["1", "2", "3", "4", "5"]}
    ]
