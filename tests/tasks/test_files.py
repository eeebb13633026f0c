"""A user's own files: round trips through every format, and what is said about damaged ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from autopeft.errors import DataError
from autopeft.tasks.conll import CONLL_SUFFIXES
from autopeft.tasks.files import SUFFIXES, read_file

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    records = [{"text": text, "label": label} for text, label in rows]
    if path.suffix in {".csv", ".tsv"}:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerows([("text", "label"), *rows])
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in CONLL_SUFFIXES])
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, suffix: str) -> None:
    folder = tmp_path_factory.mktemp("files")

    @settings(max_examples=25, deadline=None)
    @given(ROWS)
    def check(rows: list[tuple[str, str]]) -> None:
        table = read_file(write(folder / f"data{suffix}", rows))
        assert list(zip(table.columns["text"], table.columns["label"], strict=True)) == rows

    check()


def test_values_that_look_missing_stay_text(tmp_path: Path) -> None:
    table = read_file(write(tmp_path / "a.csv", [("None", "NA"), ("null", "nan")]))
    assert table.columns == {"text": ["None", "null"], "label": ["NA", "nan"]}


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_separators_byte_order_marks_and_line_ends(tmp_path: Path, mark: str) -> None:
    rows = ("text;label", '"one, two";1', "", '"three\r\nfour";0', "")
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).replace(";", mark).encode())
    assert read_file(tmp_path / "a.csv").columns == {"text": ["one, two", "three\nfour"], "label": ["1", "0"]}


def test_a_lone_quotation_mark_in_a_tsv_swallows_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"lone\t1\nplain\t0\nend"\t1\n')
    assert read_file(tmp_path / "a.tsv").columns == {
        "text": ['"lone', "plain", 'end"'],
        "label": ["1", "0", "1"],
    }


def test_an_object_of_lists_is_json_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"text": ["a", "b"], "label": [0, 1]}))
    assert read_file(tmp_path / "a.json").columns == {"text": ["a", "b"], "label": [0, 1]}
    (tmp_path / "b.json").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    assert read_file(tmp_path / "b.json").columns == {"text": ["a", "b"], "label": [0, 1]}


def test_a_text_may_be_as_long_as_a_book(tmp_path: Path) -> None:
    book, before = "a line\n" * 50_000, csv.field_size_limit()
    assert read_file(write(tmp_path / "a.csv", [(book, "long")])).columns["text"] == [book]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n\n", "is empty"),
        ("a.xlsx", b"x", r"suffix '\.xlsx'"),
        ("a.csv", b"text,label\na,1\nb\n", r"1 rows do not have the header's 2 fields; the first is row 2"),
        (
            "a.csv",
            b'text,label\n"a\nb",1\n"c,1\nd,0\n',
            "quotation mark that opens in the row at line 4 is never closed",
        ),
        ("a.csv", b'text,label\n"a"b,1\n', "line 2"),
        ("a.csv", b"text,text\na,1\n", "names a column twice"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", r"not UTF-8 \(byte 11\)"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": \n',
            "line 2 is not JSON: Expecting value, at its char",
        ),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "row 2 is not an object"),
        ("a.jsonl", b"\n", "no rows"),
        ("a.json", b"[1, 2", "not JSON"),
        ("a.json", b'{\n "text": ["a"],\n "label": [1],\n}\n', r"a\.json is not JSON: .*line 4"),
        ("a.json", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.json", b'{"a": [1], "b": [1, 2]}', "different numbers of rows"),
        ("a.parquet", b"PAR1 damaged PAR1", "not a readable Parquet file"),
    ],
)
def test_damaged_files_get_one_clear_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_file(tmp_path / name)
    assert "\n" not in str(caught.value)
