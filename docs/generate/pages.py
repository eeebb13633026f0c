"""All generated pages."""

from __future__ import annotations

from functools import cache

from generate import commands, documents, methods, recipes, support

__all__ = ["pages"]


@cache
def pages() -> dict[str, str]:
    """Every generated page: its path in the site, and its Markdown."""
    return methods.pages() | recipes.pages() | commands.pages() | documents.pages() | support.pages()
