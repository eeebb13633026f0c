"""What MkDocs calls: links of documents lead to pages, and lists for the navigation are no pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `generate`

from generate.documents import ROOT, relinked


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Generated pages have their links already."""
    path = page.file.src_uri
    return relinked(markdown, f"docs/{path}", path) if (ROOT / "docs" / path).is_file() else markdown


def on_nav(nav: Any, files: Any, **_: Any) -> Any:
    """The lists that the navigation was made of are not built."""
    for file in [f for f in files if f.src_uri.endswith("SUMMARY.md")]:
        files.remove(file)
    return nav
