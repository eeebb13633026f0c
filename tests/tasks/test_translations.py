"""The hub's column of translations becomes a column for each language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from autopeft.errors import DataError
from autopeft.tasks import load_task
from autopeft.tasks.table import Table
from autopeft.tasks.translations import language_columns, with_languages

ROWS = [{"id": str(i), "translation": {"en": f"Go {i}.", "es": f"Ve {i}."}} for i in range(20)]


def table(*values: Any) -> Table:
    return Table("data.jsonl", {"id": list(range(len(values))), "translation": list(values)}, {})


def test_each_language_is_a_column() -> None:
    found = with_languages(table({"en": "Go.", "es": "Ve."}, None, {"es": "Corre.", "en": "Run."}))
    assert found.columns["translation.en"] == ["Go.", None, "Run."]
    assert found.columns["translation.es"] == ["Ve.", None, "Corre."]
    assert list(found.columns) == ["translation.en", "translation.es", "id"]
    assert language_columns(found) == ["translation.en", "translation.es"]


def test_other_tables_stay() -> None:
    for plain in (table("Ve.", "Corre."), Table("x", {"text": ["a"]}, {}), table()):
        assert with_languages(plain) is plain


def test_what_is_no_translation_is_refused() -> None:
    with pytest.raises(DataError, match=r"column 'translation' has no texts by language in row 2"):
        with_languages(table({"en": "Go."}, "Ve."))


def written(folder: Path, form: str) -> Any:
    if form == "jsonl":
        path = folder / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return str(path)
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "data.parquet")
        return str(folder / "data.parquet")
    if form == "folder":
        parts = folder / "parts"
        parts.mkdir()
        for name, rows in (("train", ROWS[:12]), ("validation", ROWS[12:16]), ("test", ROWS[16:])):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parts / f"{name}-0.parquet")
        return str(parts)
    return pandas.DataFrame(ROWS)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder", "frame"])
def test_translations_are_loaded_in_either_direction(form: str, tmp_path: Path) -> None:
    data = written(tmp_path, form)
    task = load_task(data)
    assert task.kind == "seq2seq"
    assert task.reading.columns == {"text": "translation.en", "label": "translation.es"}
    pairs = {pair for s in task.splits.values() for pair in zip(s.texts, s.labels, strict=True)}
    assert pairs == {(row["translation"]["en"], row["translation"]["es"]) for row in ROWS}  # type: ignore[index]
    turned = load_task(data, text="translation.es", label="translation.en")
    assert turned.splits["train"].texts[0].startswith("Ve ")
    half = load_task(data, label="translation.en", kind="seq2seq")
    assert half.splits["train"].texts[0].startswith("Ve ")
    assert load_task(data, text="translation.es", kind="seq2seq").splits["train"].labels[0].startswith("Go ")


def test_a_row_that_lacks_a_language_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"translation": {"en": "Stop."}}]))
    with pytest.raises(DataError, match=r"column 'translation.es' has an empty answer in row 21"):
        load_task(str(path))
    assert load_task(str(path), drop_empty=True).reading.dropped == {str(path): 1}
