"""Hands the generated pages to MkDocs; mkdocs-gen-files runs this."""

from __future__ import annotations

import sys
from pathlib import Path

import mkdocs_gen_files

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `generate`

from generate.pages import pages

for path, text in pages().items():
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)
