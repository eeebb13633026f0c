"""What recipes start from, on its way to workers: the files of saved hybrids, by the hash of their content.

A worker may be on another machine, and in another folder. The driver reads the files once, and they travel
with what all jobs share. A job lays those that its recipe names into a temporary folder, where they are
checked by their hash like any other input.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from autopeft.errors import DataError
from autopeft.foreign import read_plain
from autopeft.hybrid import Artefact
from autopeft.hybrid.inputs import open_input
from autopeft.hybrid.store import MANIFEST, RECIPE, WEIGHTS
from autopeft.recipe import InputItem, Recipe

__all__ = ["InputFiles", "opened", "pack_inputs"]

_MOST = 512 << 20

InputFiles = Mapping[str, Mapping[str, bytes]]
"""The hash of an input's content to its files by name."""


def pack_inputs(inputs: Iterable[Artefact]) -> InputFiles:
    """The files of inputs, each content once.

    Raises:
        DataError: they are larger than 512 MiB together, or cannot be read.
    """
    found: dict[str, dict[str, bytes]] = {}
    left = _MOST
    for artefact in inputs:
        if artefact.sha256 in found:
            continue
        names = [name for name in (RECIPE, WEIGHTS, MANIFEST) if (artefact.folder / name).is_file()]
        left -= sum((artefact.folder / name).stat().st_size for name in names)
        if left < 0:
            raise DataError(
                f"The inputs of a search take at most {_MOST >> 20} MiB together, as they travel to every "
                f"worker, and with {artefact.name!r} ({str(artefact.folder)!r}) they take more. Name fewer "
                "inputs, or train such a recipe by `autopeft train`."
            )
        found[artefact.sha256] = {n: read_plain(artefact.folder / n, _MOST, DataError) for n in names}
    return found


@contextmanager
def opened(recipe: Recipe, files: InputFiles) -> Iterator[dict[str, Artefact]]:
    """What a recipe starts from, by the hash of its content, while the block runs.

    Raises:
        DataError: a content did not arrive, or is not what its hash says.
    """
    with tempfile.TemporaryDirectory(prefix="autopeft-") as folder:
        found: dict[str, Artefact] = {}
        for name, item in recipe.inputs.items():
            if item.sha256 is None or item.sha256 not in files:
                raise DataError(f"The input {name!r} ({item}) did not travel to this worker.")
            place = Path(folder) / item.sha256
            place.mkdir(exist_ok=True)
            for file, content in files[item.sha256].items():
                (place / file).write_bytes(content)
            laid = InputItem(run=item.sha256, sha256=item.sha256)
            found[item.sha256] = open_input(name, laid, Path(folder))
        yield found
