"""Values of a Parquet file by the headers of its pages: those that pyarrow tells of a sound file."""

from __future__ import annotations

import io
from contextlib import suppress
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from autopeft.tasks.parquet_pages import values_in_pages

TABLE = pa.table(
    {
        "ids": [[i] * (i % 90) for i in range(2_000)],
        "label": [0, 1] * 1_000,
        "messages": [[{"role": "user", "content": f"text {i}"}] if i % 3 else None for i in range(2_000)],
        "long": ["x" * 3_000, *[None] * 1_999],
    }
)


def written(**options: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(TABLE, sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 150, "write_page_index": True},
        {"data_page_version": "2.0", "compression": "zstd"},
        {"data_page_size": 300, "use_dictionary": False, "compression": "none"},
        {"write_statistics": False, "compression": "gzip", "version": "1.0"},
    ],
)
def test_values_are_those_that_pyarrow_counts(options: dict[str, Any]) -> None:
    content = written(**options)
    found = parquet.ParquetFile(io.BytesIO(content))
    groups = [found.metadata.row_group(g) for g in range(found.metadata.num_row_groups)]
    for i in range(len(found.schema)):
        values = sum(group.column(i).num_values for group in groups)
        assert values_in_pages(io.BytesIO(content), {i: 1}, 1 << 60) == values
        assert values_in_pages(io.BytesIO(content), {i: 5}, 1 << 60) == 5 * values
    assert values_in_pages(io.BytesIO(content), {0: 1}, 10) > 10


def test_damaged_headers_are_an_error_and_never_a_loop() -> None:
    content, random = written(row_group_size=500, data_page_size=300), Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(random.randint(1, 30)):
            damaged[random.randrange(len(content) - 8)] = random.choice([0, 1, 127, 128, 255])
        with suppress(ValueError):
            assert values_in_pages(io.BytesIO(damaged), {0: 8, 2: 8}, 1 << 60) >= 0
