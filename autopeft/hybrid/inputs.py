"""A recipe's `inputs:`: saved hybrids of earlier trainings, from which entries start.

Such a folder may come from a stranger. Only its recipe and its safetensors file are read, links do not lead
out of it, and what the file's header says is compared with its size and with the backbone before a tensor is
allocated.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from autopeft.assets import StoredTensor, read_header
from autopeft.errors import DataError, MethodError, near
from autopeft.foreign import file_in, in_folder, open_plain, read_table_in
from autopeft.hybrid.store import MANIFEST, RECIPE, SCAFFOLDING, WEIGHTS, saved_key
from autopeft.method import Stored, get_method
from autopeft.recipe import EntryRef, InputItem, Recipe, address_of
from autopeft.recipe.models import validate_config
from autopeft.spec import BackboneSpec

__all__ = ["BANK", "RUNS", "Artefact", "open_input", "pinned", "start_entries", "tensors_of", "with_inputs"]

RUNS, BANK = Path("runs"), Path("bank")
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
        family: of the backbone that it was trained on, where it tells.
    """

    name: str
    folder: Path
    sha256: str
    recipe: Recipe
    stored: Mapping[str, StoredTensor]
    family: str | None = None


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
    """The recipe as `pinned` gives it, and its inputs by name, checked; no tensor is read yet (errors: see
    there)."""
    inputs = {name: open_input(name, item, Path(runs)) for name, item in recipe.inputs.items()}
    return recipe.pinned({name: found.sha256 for name, found in inputs.items()}), inputs


def open_input(name: str, item: InputItem, runs: Path = RUNS) -> Artefact:
    """An input, checked; no tensor is read yet (errors: see `pinned`).

    Args:
        name: what messages call it.
        runs: the folder of runs.
    """
    places = ((item.folder, Path()), (item.run, runs), (item.bank, BANK))
    named, root = next((place for place in places if place[0] is not None), (None, Path()))
    if named is None or not in_folder(named, root):
        raise DataError(
            f"The input {name!r} leads out of {str(root.absolute())!r}: {named!r} does, or is a link "
            "that does. Copy what it means into a folder there."
        )
    saved = (RECIPE, WEIGHTS)
    there = (root / named, root / named / _WINNER) if in_folder(_WINNER, root / named) else ()
    folder = next((path for path in there if all(file_in(path, n, DataError) for n in saved)), None)
    if folder is None:
        raise DataError(
            f"The input {name!r} is missing: {str(root / named)!r} holds neither a saved hybrid ({RECIPE} "
            f"and {WEIGHTS}) nor a run with a winner. Train it first (`autopeft train --out FOLDER`), or "
            "name where it is (`autopeft runs`, `autopeft bank list`)."
        )
    digest = hashlib.sha256()  # over name, size and bytes of the recipe and the weights
    for part in saved:
        with open_plain(folder / part, _MOST_BYTES, DataError) as file:
            digest.update(f"{part} {(folder / part).stat().st_size}\n".encode())
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    sha256 = digest.hexdigest()
    if item.sha256 not in (None, sha256):
        raise DataError(
            f"The input {name!r} was altered: {str(folder)!r} has the hash {sha256}, and the recipe allows "
            f"{item.sha256} alone. Bring back what was there, or write the new hash into the recipe if you "
            "mean the new content."
        )
    recipe, stored = Recipe.from_file(folder / RECIPE), read_header(folder / WEIGHTS)
    told = read_table_in(folder, MANIFEST) if file_in(folder, MANIFEST, DataError) else {}
    family = told.get("family")
    return Artefact(name, folder, sha256, recipe, stored, family if isinstance(family, str) else None)


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
                continue
            family = inputs[found[0].input].family
            if family not in (None, spec.family):
                raise DataError(
                    f"{ref.name!r} cannot start from {found[0].label}, which was trained on a model of the "
                    f"family {family!r:.40}: this one is of {spec.family!r}. Name a hybrid of this backbone."
                )
            _copy(ref, module, found)


def _stored(start: str, ref: EntryRef, inputs: Mapping[str, Artefact], spec: BackboneSpec) -> Stored:
    name, entry = address_of(start)
    artefact = inputs[name]
    # The entry that is named, or the only one of the same method, or the only one.
    there = {found.name: found for found in artefact.recipe.entries()}
    alike = [found for found in there.values() if found.method == ref.method]
    if entry is not None:
        source = there.get(entry)
    else:
        source = next((only[0] for only in (alike, list(there.values())) if len(only) == 1), None)
    if source is None:
        what = (
            f"has no entry {entry!r}.{near(str(entry), there)}"
            if entry
            else "has not one entry to start from."
        )
        raise DataError(
            f"The input {name!r} {what} There are: {', '.join(there) or 'none'}; write 'from: {name}.ENTRY' "
            f"at {ref.name!r}."
        )
    keys = dict(tensors_of(source.name, artefact.stored))
    numbers = sum(math.prod(artefact.stored[key].shape) for key in keys)
    most = max(spec.parameters, SCAFFOLDING)
    if numbers > most:
        raise DataError(
            f"The entry {source.name!r} of the input {name!r} holds {numbers:,} numbers, and at most "
            f"{most:,} are read for {spec.family!r}; is it the right folder?"
        )
    try:
        with safe_open(artefact.folder / WEIGHTS, framework="pt") as handle:
            tensors = {own: handle.get_tensor(key) for key, own in keys.items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{artefact.folder / WEIGHTS} cannot be read: {error}.") from error
    own = source.method == ref.method
    return Stored(name, source.name, source.method, tensors, source.item.config, own)


def tensors_of(entry: str, stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, str]]:
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
    own: dict[str, Tensor] = {}  # by the names that `Stored.tensors` has
    for key, value in module.state_dict().items():
        saved = saved_key(f"own.{key}").split(".")
        saved.remove("own")
        own[".".join(saved[1:] if saved[0] == "model" else saved)] = value
    # Values mean another function where a module draws its frozen parts otherwise.
    fields = getattr(get_method(ref.method), "frozen_by", ())
    config = ref.item.method_config()
    theirs = validate_config(ref.method, dict(stored.options)) if fields else config
    for field in fields:
        had, has = getattr(theirs, field), getattr(config, field)
        if had != has:
            raise MethodError(
                f"{ref.name!r} has {field}: {has}, and {stored.label} was trained with {field}: {had}, which "
                f"settles what {ref.method} neither trains nor saves; give {ref.name!r} {field}: {had}."
            )
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
