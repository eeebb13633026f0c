"""A user's own files: round trips through every format, and what is said about damaged ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from autopeft.errors import DataError
from autopeft.tasks.files import read_file
from autopeft.tasks.table import Table

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


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"])
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, suffix: str) -> None:
    folder = tmp_path_factory.mktemp("files")

    @settings(max_examples=25, deadline=None)
    @given(ROWS)
    def check(rows: list[tuple[str, str]]) -> None:
        table = read_file(write(folder / f"data{suffix}", rows))
        assert list(zip(table.columns["text"], table.columns["label"], strict=True)) == rows

    check()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_values_that_look_like_something_else_stay_text(tmp_path: Path, suffix: str) -> None:
    """Missing values, numbers, dates."""
    rows = [("None", "NA"), ("null", "nan"), ("", "007"), ("2020-01-01", "1_000"), ("1e3", "2020-01-01")]
    assert list(zip(*read_file(write(tmp_path / f"a{suffix}", rows)).columns.values(), strict=True)) == rows


def test_numbers_of_json_keep_type_and_digits(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 12345678901234567890}\n\n{"id": 1, "x": 1.5}\n{"id": 2.5}\n')
    assert read_file(tmp_path / "a.jsonl").columns == {
        "id": [12345678901234567890, 1, 2.5],
        "x": [None, 1.5, None],
    }


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
        ("a.csv", b"text,label\na,1,2\nb,1,2\n", r"2 rows do not have the header's 2 fields"),
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
        ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        ("a.parquet", b"PAR1 damaged PAR1", "not a readable Parquet file"),
        ("a.parquet", b"", "not a readable Parquet file"),
        ("a.conll", b"a O\nb\n", "line 2: 1 fields, but those before have 2"),
        ("a.conll", b"a\tO\nb\t\n", "line 2"),
        ("a.conll", b"\n-DOCSTART- O\n \n", "has no words"),
    ],
)
def test_damaged_files_get_one_clear_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_file(tmp_path / name)
    assert "\n" not in str(caught.value)


# Parquet
# ----------------------------------------------------------------------------------------------------------


def parquet_of(path: Path, columns: Any, note: bytes | None = None) -> Table:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    parquet.write_table(table if note is None else table.replace_schema_metadata({"huggingface": note}), path)
    return read_file(path)


def test_values_of_parquet_are_those_of_python(tmp_path: Path) -> None:
    columns = {
        "text": ["a", None, "ä"],
        "label": [1, 0, None],
        "input_ids": [[1], [], None],
        "image": [{"bytes": b"x", "path": None}] * 3,
        "messages": [[{"role": "user", "content": "text"}] * 2, [], None],
    }
    found = parquet_of(tmp_path / "a.parquet", columns)
    assert (found.columns, found.label_names) == (columns, {})
    kinds = pa.array(["a", "b", "a"]).dictionary_encode()
    assert parquet_of(tmp_path / "a.parquet", {"kind": kinds}).columns == {"kind": ["a", "b", "a"]}


def test_names_of_classes_are_those_that_datasets_noted(tmp_path: Path) -> None:
    note = b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}}}'
    table = pa.table({"label": [0, 1]})
    assert parquet_of(tmp_path / "a.parquet", table, note).label_names == {"label": ("no", "yes")}
    lists = pa.table({"tags": [[0, 1], []]})
    kind: Any = datasets.Features({"tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"]))})
    note = json.dumps({"info": {"features": kind.to_dict()}}).encode()
    assert parquet_of(tmp_path / "a.parquet", lists, note).label_names == {"tags": ("O", "B-X")}
    assert parquet_of(tmp_path / "a.parquet", table, b"{}").label_names == {}
    with pytest.raises(DataError, match="what datasets noted in it"):
        parquet_of(tmp_path / "a.parquet", table, b"{")


def test_the_column_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff\xfe broken"], pa.binary()).cast(pa.string(), safe=False)
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file: column 'text': .*utf-8"):
        parquet_of(tmp_path / "a.parquet", {"text": texts})
    with pytest.raises(DataError, match="column 'time'"):
        parquet_of(tmp_path / "a.parquet", {"time": pa.array([2**60], pa.timestamp("us"))})
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    with pytest.raises(DataError, match="names a column twice: 'a'"):
        parquet_of(tmp_path / "a.parquet", twice)


# CoNLL and SQuAD
# ----------------------------------------------------------------------------------------------------------


def sentences(path: Path, text: str) -> Any:
    path.write_text(text)
    return read_file(path).columns


@pytest.mark.parametrize("suffix", [".conll", ".bio", ".iob2"])
def test_a_row_for_each_sentence(tmp_path: Path, suffix: str) -> None:
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n\n"
    assert sentences(tmp_path / f"a{suffix}", text) == {
        "tokens": [["EU", "rejects"], ["Peter"]],
        "column_2": [["NNP", "VBZ"], ["NNP"]],
        "column_3": [["B-NP", "B-VP"], ["B-NP"]],
        "tags": [["B-ORG", "O"], ["B-PER"]],
    }


def test_tabs_part_fields_and_words_alone_are_enough(tmp_path: Path) -> None:
    assert sentences(tmp_path / "a.conll", "New York\tB-LOC\r\n#1\tO\r\n\r\n\r\na\tO") == {
        "tokens": [["New York", "#1"], ["a"]],
        "tags": [["B-LOC", "O"], ["O"]],
    }
    assert sentences(tmp_path / "a.conll", "a\nb\n \nc") == {"tokens": [["a", "b"], ["c"]]}


ANSWER = {"text": "Oslo", "answer_start": 13}
PARAGRAPH: dict[str, Any] = {
    "context": "Ann lives in Oslo.",
    "qas": [
        {"id": "1", "question": "Where?", "answers": [ANSWER], "is_impossible": False},
        {"id": "2", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": [ANSWER]},
    ],
}


def squad(path: Path, *paragraphs: Any) -> Any:
    path.write_text(
        json.dumps({"version": "v2.0", "data": [{"title": "Ann", "paragraphs": list(paragraphs)}]})
    )
    return read_file(path).columns


def test_a_row_for_each_question(tmp_path: Path) -> None:
    path = tmp_path / "train-v2.0.json"
    assert squad(path, PARAGRAPH, {"context": "No questions.", "qas": []}) == {
        "id": ["1", "2"],
        "title": ["Ann", "Ann"],
        "question": ["Where?", "When?"],
        "context": ["Ann lives in Oslo."] * 2,
        "answers": [[ANSWER], []],
    }
    bare = {"context": "Ann lives in Oslo.", "qas": [{"question": "Where?"}]}
    assert "answers" not in squad(path, bare)
    path.write_text('{"data": ["a", "b"], "label": [1, 2]}')
    assert read_file(path).columns == {"data": ["a", "b"], "label": [1, 2]}


@pytest.mark.parametrize("wrong", [7, {"context": "a"}, {"context": "a", "qas": [3]}, {"qas": "abc"}])
def test_what_is_not_in_squads_layout_is_named(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(DataError, match=r"a\.json: article 1 is not in SQuAD's layout"):
        squad(tmp_path / "a.json", PARAGRAPH, wrong)
