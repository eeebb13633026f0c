"""What a recipe names under `inputs:`: saved hybrids that other trainings have left, read and handed to
entries.

Such a folder may come from a stranger. Only its recipe and its safetensors file are read, links do not lead
out of it, and what the file's header says is compared with its size and with the backbone before a tensor is
allocated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from autopeft.assets import StoredTensor, read_header
from autopeft.errors import DataError, MethodError, near
from autopeft.foreign import file_in, in_folder, open_plain
from autopeft.hybrid.store import RECIPE, SCAFFOLDING, WEIGHTS, saved_key
from autopeft.method import Stored, get_method
from autopeft.recipe import EntryRef, InputItem, Recipe, address_of
from autopeft.recipe.models import validate_config
from autopeft.spec import BackboneSpec

__all__ = ["RUNS", "Artefact", "open_inputs", "pinned", "start_entries", "with_inputs"]

RUNS = Path("runs")
_WINNER = "winner"
_MOST_BYTES = 64 << 30
_CHUNK = 1 << 20
_SHOWN = 3


@dataclass(frozen=True)
class Artefact:
    """A saved hybrid as an input.

    Attributes:
        name: the recipe's name for it.
        folder: where it lies.
        sha256: of its recipe and its weights.
        recipe: of the hybrid.
        stored: every tensor of its weights, as the file's header says it.
    """

    name: str
    folder: Path
    sha256: str
    recipe: Recipe
    stored: Mapping[str, StoredTensor]


def pinned(recipe: Recipe, runs: str | Path = RUNS) -> Recipe:
    """The recipe with the hashes of what its inputs hold now. One without inputs is given back as it is.

    Args:
        recipe: whose hashes, where it has some, are compared.
        runs: the folder of the runs that it names.

    Raises:
        DataError: an input is missing, damaged, or is not what the recipe's hash says.
    """
    return with_inputs(recipe, runs)[0]


def with_inputs(recipe: Recipe, runs: str | Path = RUNS) -> tuple[Recipe, dict[str, Artefact]]:
    """The recipe as `pinned`, and its inputs (errors: see there)."""
    inputs = open_inputs(recipe, runs)
    return recipe.pinned({name: found.sha256 for name, found in inputs.items()}), inputs


def open_inputs(recipe: Recipe, runs: str | Path = RUNS) -> dict[str, Artefact]:
    """The inputs of a recipe by name, checked; no tensor is read yet (errors: see `pinned`)."""
    return {name: _open(name, item, Path(runs)) for name, item in recipe.inputs.items()}


def _open(name: str, item: InputItem, runs: Path) -> Artefact:
    folder = _folder_of(name, item, runs)
    sha256 = _hash_of(folder)
    if item.sha256 not in (None, sha256):
        raise DataError(
            f"The input {name!r} was altered: {str(folder)!r} has the hash {sha256}, and the recipe allows "
            f"{item.sha256} alone. Bring back what was there, or write the new hash into the recipe "
            f"if you mean "
            "the new content."
        )
    return Artefact(name, folder, sha256, Recipe.from_file(folder / RECIPE), read_header(folder / WEIGHTS))


def _folder_of(name: str, item: InputItem, runs: Path) -> Path:
    """The folder of the saved hybrid: the one named, or the winner of the run there."""
    root, named = (Path(), item.folder) if item.run is None else (runs, item.run)
    if named is None or not in_folder(named, root):
        raise DataError(
            f"The input {name!r} leads out of {str(root.absolute())!r}: {named!r} does, or is a link "
            "that does. Copy what it means into a folder there."
        )
    folder = root / named
    for found in (folder, folder / _WINNER):
        if in_folder(_WINNER, folder) and all(file_in(found, n, DataError) for n in (RECIPE, WEIGHTS)):
            return found
    raise DataError(
        f"The input {name!r} is missing: {str(folder)!r} holds neither a saved hybrid ({RECIPE} and "
        f"{WEIGHTS}) "
        "nor a run with a winner. Train it first (`autopeft train --out FOLDER`), or name where it is."
    )


def _hash_of(folder: Path) -> str:
    """SHA-256 over name, size and bytes of the recipe and the weights."""
    digest = hashlib.sha256()
    for name in (RECIPE, WEIGHTS):
        path = folder / name
        with open_plain(path, _MOST_BYTES, DataError) as file:
            digest.update(f"{name} {path.stat().st_size}\n".encode())
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def start_entries(
    recipe: Recipe, modules: Mapping[str, nn.Module], inputs: Mapping[str, Artefact], spec: BackboneSpec
) -> None:
    """Give the entries that have a `from:` the values that they start from.

    Raises:
        DataError: an input has no such entry, or more numbers than the backbone. MethodError: what it has
            does not fit the method or its shapes.
    """
    for ref in recipe.entries():
        if ref.item.start:
            found = tuple(_stored(start, ref, inputs, spec) for start in ref.item.start)
            module: Any = modules[ref.name]
            if hasattr(module, "start_from"):
                module.start_from(found)
            else:
                _copy(ref, module, found)


def _stored(start: str, ref: EntryRef, inputs: Mapping[str, Artefact], spec: BackboneSpec) -> Stored:
    name, entry = address_of(start)
    artefact = inputs[name]
    source = _entry_of(artefact, entry, ref)
    keys = dict(_keys_of(source.name, artefact.stored))
    numbers, most = sum(artefact.stored[key].numbers for key in keys), max(spec.parameters, SCAFFOLDING)
    if numbers > most:
        raise DataError(
            f"The entry {source.name!r} of the input {name!r} holds {numbers:,} numbers, and at most "
            f"{most:,} are "
            f"read for {spec.family!r}; is it the right folder?"
        )
    try:
        with safe_open(artefact.folder / WEIGHTS, framework="pt") as handle:
            tensors = {own: handle.get_tensor(key) for key, own in keys.items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{artefact.folder / WEIGHTS} cannot be read: {error}.") from error
    own = source.method == ref.method
    return Stored(name, source.name, source.method, tensors, source.item.config, own)


def _entry_of(artefact: Artefact, entry: str | None, ref: EntryRef) -> EntryRef:
    """The entry that is named, or the only one of the same method, or the only one."""
    there = {found.name: found for found in artefact.recipe.entries()}
    if entry is not None and entry in there:
        return there[entry]
    alike = [found for found in there.values() if found.method == ref.method]
    for only in (alike, list(there.values())):
        if entry is None and len(only) == 1:
            return only[0]
    names = ", ".join(there) or "none"
    what = (
        f"has no entry {entry!r}.{near(str(entry), there)}" if entry else "has not one entry to start from."
    )
    raise DataError(
        f"The input {artefact.name!r} {what} There are: {names}; write 'from: {artefact.name}.ENTRY' at "
        f"{ref.name!r}."
    )


def _keys_of(entry: str, stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, str]]:
    """Saved names of an entry's tensors, each with its name in the module (see `saved_key`)."""
    for key in stored:
        parts = key.split(".")
        at = 1 if parts[0] == "model" else 3 if len(parts) > 2 and parts[1].isdigit() else 2
        if len(parts) > at + 1 and parts[at] == entry and parts[0] != "head":
            yield key, ".".join([*(parts[:at] if at > 1 else ()), *parts[at + 1 :]])


@torch.no_grad()
def _copy(ref: EntryRef, module: nn.Module, found: tuple[Stored, ...]) -> None:
    """Start a module from one entry of the same method, tensor by tensor."""
    stored = found[0]
    if len(found) > 1 or stored.method != ref.method:
        got = " and ".join(s.label for s in found)
        raise MethodError(
            f"{ref.name!r} starts from one entry of its own method, {ref.method}, but got {got}; name one "
            "such entry, or use a method that chooses among prompts (spot)."
        )
    own = {_own_key(key): value for key, value in module.state_dict().items()}
    _check_frozen(ref, stored)
    whole = [key for key, value in (own | dict(stored.tensors)).items() if not value.is_floating_point()]
    if whole:
        raise MethodError(
            f"{ref.name!r} cannot start from {stored.label}: beside values {ref.method} keeps {whole[0]!r}, "
            "which tells what they belong to, and `from:` brings values alone. Load the saved hybrid and "
            "train it on, or use a method that is values alone (lora, …)."
        )
    lacking = sorted(own.keys() ^ stored.tensors.keys())
    if lacking:
        raise MethodError(
            f"{stored.label} does not hold what {ref.name!r} trains: only one of them has "
            f"{', '.join(lacking[:_SHOWN])}. Give both the same sites and layers, and leave out what only "
            "training needs, such as a prefix's `reparameterization`."
        )
    way_out = f"give {ref.name!r} the size and the sites of what it starts from"
    read = {key: stored.tensor(key, tuple(value.shape), way_out) for key, value in own.items()}
    for key, value in own.items():
        value.copy_(read[key])


def _check_frozen(ref: EntryRef, stored: Stored) -> None:
    """Refuse values of which a module with other frozen draws would make another function."""
    fields = getattr(get_method(ref.method), "frozen_by", ())
    own = ref.item.method_config()
    theirs = validate_config(ref.method, dict(stored.options)) if fields else own
    for field in fields:
        had, has = getattr(theirs, field), getattr(own, field)
        if had != has:
            raise MethodError(
                f"{ref.name!r} has {field}: {has}, and {stored.label} was trained with {field}: {had}, which "
                f"settles what {ref.method} neither trains nor saves; give {ref.name!r} {field}: {had}."
            )


def _own_key(key: str) -> str:
    """A module's own key as `Stored.tensors` has it."""
    saved = saved_key(f"own.{key}").split(".")
    saved.remove("own")
    return ".".join(saved[1:] if saved[0] == "model" else saved)
