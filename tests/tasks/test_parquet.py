"""Parquet files: their values, their notes of classes, and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from autopeft.errors import DataError
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


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_written_by_what_they_share_are_read(encoding: str, tmp_path: Path) -> None:
    options: Any = {"use_dictionary": False, "column_encoding": {"text": encoding}, "compression": "zstd"}
    texts = [f"text {i}" for i in range(3_000)]
    path = write(tmp_path / "a.parquet", {"text": texts, "label": [0, 1] * 1_500}, **options)
    assert read_parquet(path, MOST)[0]["text"] == texts


def test_padded_tokens_that_pack_well_are_data(tmp_path: Path) -> None:
    padded = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(10_000_000, np.int32)), 1_000)
    path = write(tmp_path / "a.parquet", {"input_ids": padded.cast(pa.list_(pa.int32()))}, compression="zstd")
    assert path.stat().st_size < 20_000
    assert len(read_parquet(path, MOST)[0]["input_ids"]) == 10_000


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
