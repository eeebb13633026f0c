"""The quick-start notebook runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

QUICKSTART = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(QUICKSTART, as_version=4)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    last = notebook.cells[-1].outputs[0]["data"]["text/plain"]
    assert "LoRA rank" in last
    assert "head only" in last


def test_the_stored_notebook_holds_no_outputs() -> None:
    """Outputs would be out of date, and may hold paths of the machine that made them."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
