"""Searches of an experiment: run to their end, or gone on with from where they stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from autopeft.search.api import search

__all__ = ["ended", "finished_search"]


def ended(folder: Path) -> bool:
    """Whether a search has come to its end in this folder."""
    found = folder / "result.json"
    return found.exists() and not json.loads(found.read_text(encoding="utf-8"))["interrupted"]


def finished_search(folder: Path, **setting: Any) -> dict[str, Any]:
    """What a search came to (`result.json`): it is run, or gone on with, where it has not ended.

    Args:
        setting: what `autopeft.search` is told, without the folder. One that is gone on with is told
            `workers` alone: its folder knows the rest.

    Raises:
        SystemExit: it was interrupted. What a part of a search has found is no result of an experiment.
    """
    if not ended(folder):
        if (folder / "manifest.json").exists():
            search(resume=folder, **{k: v for k, v in setting.items() if k == "workers"})
        else:
            search(**setting, out=folder)
    if not ended(folder):
        sys.exit(f"{folder} was interrupted; run this again to go on with it.")
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))
