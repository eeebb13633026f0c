"""Documents that lie outside `docs/` as pages, and links from any document to any other.

Documents link to each other by their paths in the repository, so that they can be read there. In the site the
same links lead to the pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

__all__ = ["ROOT", "page_of", "pages", "relinked"]

ROOT = Path(__file__).parents[2]
PROJECT = {
    "ARCHITECTURE.md": "project/architecture.md",
    "SECURITY.md": "project/security.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "README.md": "index.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]+)?\)")


def experiments() -> tuple[str, ...]:
    """Names of the experiments that have a README."""
    return tuple(
        sorted(p.parent.name for p in (ROOT / "experiments").glob("*/README.md") if p.parent.name != "lib")
    )


def page_of(document: str) -> str | None:
    """The page that shows a document of the repository; `None` where none does."""
    if document in PROJECT:
        return PROJECT[document]
    if document == "experiments/README.md":
        return "results/experiments/index.md"
    found = re.fullmatch(r"experiments/(\w+)(/README\.md|/)?", document)
    if found and found[1] in experiments():
        return f"results/experiments/{found[1]}.md"
    return document.removeprefix("docs/") if document.startswith("docs/") else None


def relinked(text: str, document: str, page: str) -> str:
    """A document's text as it stands on a page: its links lead to pages. A file without a page is named."""

    def moved(link: re.Match[str]) -> str:
        words, target, anchor = link[1], link[2], link[3] or ""
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(document), target))
        found = page_of(meant)
        if found is None:
            return words if words.startswith("`") else f"{words} (`{meant}`)"
        return f"[{words}]({posixpath.relpath(found, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(moved, text)


def pages() -> dict[str, str]:
    """The documents outside `docs/`, by the path of their page."""
    documents = [d for d in PROJECT if d != "README.md"]
    documents += ["experiments/README.md", *(f"experiments/{name}/README.md" for name in experiments())]
    found: dict[str, str] = {}
    for document in documents:
        page = page_of(document)
        assert page is not None, document
        found[page] = relinked((ROOT / document).read_text(encoding="utf-8"), document, page)
    navigation = [
        "* [All experiments](index.md)",
        *(f"* [{n.replace('_', ' ')}]({n}.md)" for n in experiments()),
    ]
    found["results/experiments/SUMMARY.md"] = "\n".join(navigation) + "\n"
    return found
