"""Every package folder is in the list that wheels are built from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with 3.11")
def test_every_package_is_listed() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        p.parent.relative_to(ROOT)
        for top in ("autopeft", "methods", "search_spaces")
        for p in ROOT.glob(f"{top}/**/__init__.py")
    }
    names = {
        ".".join(f.parts) if f.parts[0] == "autopeft" else ".".join(("autopeft", *f.parts)) for f in folders
    }
    assert set(listed) == names
