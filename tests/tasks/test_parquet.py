"""Parquet files that are damaged or that unpack to far more than their size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from autopeft.errors import DataError
from autopeft.tasks import parquet as files_of_parquet
from autopeft.tasks.parquet import read_parquet

MOST = 1 << 30


def write(path: Path, columns: Any, **options: Any) -> Path:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    parquet.write_table(table, path, **options)
    return path


def test_values_are_those_of_python(tmp_path: Path) -> None:
    columns = {"text": ["a", None, "ä"], "label": [1, 0, None], "more": [[1], [], None]}
    found, classes = read_parquet(write(tmp_path / "a.parquet", columns), MOST)
    assert (found, classes) == (columns, {})


def test_bad_utf8_is_one_sentence(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"\xff\xfe broken"], pa.binary()).cast(pa.string(), safe=False)
    path = write(tmp_path / "a.parquet", {"text": texts})
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file: .*text.*utf-8"):
        read_parquet(path, MOST)


def test_times_beyond_the_calendar_are_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"time": pa.array([2**60], pa.timestamp("us"))})
    with pytest.raises(DataError, match="column 'time'"):
        read_parquet(path, MOST)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    with pytest.raises(DataError, match="names a column twice: 'a'"):
        read_parquet(write(tmp_path / "a.parquet", table), MOST)


def test_a_short_file_of_many_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": pa.nulls(3_000_000, pa.string())})
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match=r"3,000,000 rows in [\d,]+ bytes; this is no file of data"):
        read_parquet(path, MOST)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_a_short_file_of_long_texts_is_refused(kind: Any, tmp_path: Path) -> None:
    """One text of a megabyte, a thousand times: a gigabyte in the size of one text."""
    texts = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1000, pa.int32()), pa.array(["x" * (1 << 20)], kind)
    )
    path = write(tmp_path / "a.parquet", {"text": texts}, store_schema=False)
    assert path.stat().st_size < 4 << 20
    with pytest.raises(DataError, match=r"more than [\d,]+ bytes of text"):
        read_parquet(path, MOST)


@pytest.mark.parametrize("wide", [False, True])
def test_a_short_file_of_long_messages_is_refused(wide: bool, tmp_path: Path) -> None:
    """The same in lists of records, as conversations have them."""
    long, count = "x" * (1 << 20), 1000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([long]))
    records = pa.StructArray.from_arrays([texts], ["content"])
    lists = pa.ListArray.from_arrays(pa.array([0, count] if wide else range(count + 1), pa.int32()), records)
    path = write(tmp_path / "a.parquet", {"messages": lists})
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match=r"more than [\d,]+ bytes of text in [\d,]+ bytes"):
        read_parquet(path, MOST)


def fixed(count: int, width: int) -> Any:
    """One value of that many bytes, again and again."""
    values = pa.array([b"z" * width], pa.binary(width))
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), values).cast(pa.binary(width))


def in_one_list(values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


REPEATED: dict[str, Callable[[], Any]] = {
    "numbers in lists": lambda: in_one_list(pa.array(np.zeros(9_000_000, np.int64))),
    "truth values in lists": lambda: in_one_list(pa.array(np.zeros(9_000_000, np.bool_))),
    "bytes of one length": lambda: fixed(3000, 1 << 16),
    "such bytes as categories": lambda: fixed(3000, 1 << 16).dictionary_encode(),
    "such bytes in lists": lambda: in_one_list(fixed(3000, 1 << 16)),
    "such bytes in records": lambda: pa.StructArray.from_arrays([fixed(3000, 1 << 16)], ["a"]),
    "lists of one length that are none": lambda: pa.nulls(100_000, pa.list_(pa.float32(), 10_000)),
}


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_written_by_what_they_share_are_read_and_bounded(encoding: str, tmp_path: Path) -> None:
    options: Any = {"use_dictionary": False, "column_encoding": {"text": encoding}, "compression": "zstd"}
    texts = [f"text {i}" for i in range(3_000)]
    path = write(tmp_path / "a.parquet", {"text": texts, "label": [0, 1] * 1_500}, **options)
    assert read_parquet(path, MOST)[0]["text"] == texts
    path = write(tmp_path / "b.parquet", {"text": ["x" * (1 << 20)] * 100}, **options)
    with pytest.raises(DataError, match="this is no file of data"):
        read_parquet(path, MOST)


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as for texts, so that files of the tests stay small."""
    monkeypatch.setattr(files_of_parquet, "_ROOM", 64 << 20)


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("what", REPEATED)
def test_a_short_file_of_many_numbers_is_refused(what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": REPEATED[what]()}, compression="zstd")
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"more than 67,108,864 bytes of numbers and lists in [\d,]+ bytes"):
        read_parquet(path, MOST)


def test_padded_tokens_that_pack_well_are_data(tmp_path: Path) -> None:
    padded = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(10_000_000, np.int32)), 1_000)
    path = write(tmp_path / "a.parquet", {"input_ids": padded.cast(pa.list_(pa.int32()))}, compression="zstd")
    assert path.stat().st_size < 20_000
    assert len(read_parquet(path, MOST)[0]["input_ids"]) == 10_000


@pytest.mark.usefixtures("little_room")
def test_a_short_file_of_many_columns_is_refused(tmp_path: Path) -> None:
    column = pa.array(np.zeros(900_000, np.int8))
    path = write(tmp_path / "a.parquet", {f"column {i}": column for i in range(10)})
    with pytest.raises(DataError, match="bytes of numbers and lists"):
        read_parquet(path, MOST)


@pytest.mark.parametrize("options", [{}, {"row_group_size": 50, "data_page_version": "2.0"}])
def test_tokens_embeddings_and_images_are_data(options: Any, tmp_path: Path) -> None:
    rows, random = 300, np.random.default_rng(0)
    columns = {
        "input_ids": [random.integers(0, 30_000, 200 + i).tolist() for i in range(rows)],
        "attention_mask": [[1] * (200 + i) for i in range(rows)],
        "embedding": pa.array(random.random((rows, 384), np.float32).tolist(), pa.list_(pa.float32(), 384)),
        "image": [{"bytes": random.bytes(2_000), "path": None} for _ in range(rows)],
        "messages": [[{"role": "user", "content": f"text {i}"}] * 3 for i in range(rows)],
    }
    table = pa.table(columns)
    assert read_parquet(write(tmp_path / "a.parquet", table, **options), MOST)[0] == table.to_pydict()


def test_labels_that_repeat_are_data(tmp_path: Path) -> None:
    rows = 200_000
    columns = {"text": [f"text {i}" for i in range(rows)], "label": ["yes", "no"] * (rows // 2)}
    found, _ = read_parquet(write(tmp_path / "a.parquet", columns), MOST)
    assert len(found["label"]) == rows


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", {"text": ["a"] * 50, "label": [0, 1] * 25}).read_bytes()
    for content in (whole[:-1], whole[:40], b"PAR1", b"", whole[:4] + b"\xff" * 40 + whole[44:]):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"^[^\n]* is not a readable Parquet file: [^\n]+$"):
            read_parquet(tmp_path / "b.parquet", MOST)


def test_notes_that_are_no_classes_are_left_out(tmp_path: Path) -> None:
    table = pa.table({"label": [0, 1]})
    for note in (
        b"{",
        b"null",
        b"[]",
        b'{"info": 1}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}',
    ):
        path = write(tmp_path / "a.parquet", table.replace_schema_metadata({"huggingface": note}))
        assert read_parquet(path, MOST)[1] == {}
    note = b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}}}'
    path = write(tmp_path / "a.parquet", table.replace_schema_metadata({"huggingface": note}))
    assert read_parquet(path, MOST)[1] == {"label": ("no", "yes")}
