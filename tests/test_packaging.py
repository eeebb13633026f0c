"""Every package folder and every file of data is in the lists that wheels are built from."""

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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with 3.11")
def test_every_yaml_file_is_packed() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = [
        p.relative_to(ROOT)
        for top in ("autopeft", "methods", "search_spaces")
        for p in ROOT.glob(f"{top}/**/*.yaml")
    ]
    assert Path("methods/defaults.yaml") in found
    assert len(found) > 6
    for path in found:
        parts = path.parent.parts if path.parts[0] == "autopeft" else ("autopeft", *path.parent.parts)
        assert any(path.match(pattern) for pattern in declared.get(".".join(parts), ())), path
