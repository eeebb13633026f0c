"""A recipe's `inputs:`: saved hybrids of earlier trainings, from which entries start.

Such a folder may come from a stranger. Only its recipe and its safetensors file are read, links do not lead
out of it, and what the file's header says is compared with its size and with the backbone before a tensor is
allocated.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from autopeft.assets import ModelSource, StoredTensor, read_header
from autopeft.errors import DataError, MethodError, near
from autopeft.foreign import file_in, in_folder, open_plain, read_table_in, table_of
from autopeft.hybrid.combining import Factor, Units, combine, combine_pairs, matching
from autopeft.hybrid.store import MANIFEST, RECIPE, SCAFFOLDING, WEIGHTS, saved_key
from autopeft.method import Stored, decay_targets, get_method
from autopeft.nn import LowRankPair
from autopeft.recipe import EntryRef, InputItem, Recipe, address_of
from autopeft.recipe.models import Merge, validate_config
from autopeft.spec import BackboneSpec

__all__ = [
    "BANK",
    "RECORD",
    "RUNS",
    "Artefact",
    "open_input",
    "pinned",
    "start_entries",
    "tensors_of",
    "with_inputs",
]

RUNS, BANK = Path("runs"), Path("bank")
RECORD, RUN_MANIFEST = "record.json", "manifest.json"
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
        backbone: that backbone as its run or the bank recorded it (`name`, `origin` and `sha256`, as
            `ModelSource` has them), where something is recorded.
    """

    name: str
    folder: Path
    sha256: str
    recipe: Recipe
    stored: Mapping[str, StoredTensor]
    family: str | None = None
    backbone: Mapping[str, Any] | None = None


def pinned(recipe: Recipe, runs: str | Path = RUNS) -> Recipe:
    """The recipe with the hashes of what its inputs hold now. One without inputs is given back as it is.

    Args:
        recipe: whose hashes, where it has some, are compared.
        runs: the folder of the runs that it names.

    Raises:
        DataError: an input is missing, damaged, or is not what the recipe's hash says.
    """
    return with_inputs(recipe, runs)[0]


def with_inputs(
    recipe: Recipe, runs: str | Path = RUNS, opened: Mapping[str, Artefact] | None = None
) -> tuple[Recipe, dict[str, Artefact]]:
    """The recipe as `pinned` gives it, and its inputs by name, checked; no tensor is read yet (errors: see
    there).

    Args:
        opened: inputs that were opened elsewhere, by the hash of their content: they are not looked for.
    """
    known = opened or {}
    inputs = {
        name: known.get(item.sha256 or "") or open_input(name, item, Path(runs))
        for name, item in recipe.inputs.items()
    }
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
    return Artefact(
        name,
        folder,
        sha256,
        recipe,
        stored,
        family if isinstance(family, str) else None,
        _backbone_of(root / named, banked=item.bank is not None),
    )


def _backbone_of(folder: Path, *, banked: bool) -> Mapping[str, Any] | None:
    """The backbone that the bank's record, or a run's manifest, says."""
    name = RECORD if banked else RUN_MANIFEST
    if file_in(folder, name, DataError) is None:
        return None
    told = read_table_in(folder, name)
    if banked:
        return {"name": told.get("model"), "origin": told.get("origin"), "sha256": told.get("backbone")}
    return {"name": told.get("model"), **table_of(told.get("backbone"))}


def start_entries(
    recipe: Recipe,
    modules: Mapping[str, nn.Module],
    inputs: Mapping[str, Artefact],
    spec: BackboneSpec,
    source: ModelSource | None = None,
) -> list[str]:
    """Give the entries that have a `from:` the values that they start from. Returns what is to be said of
    it, in sentences.

    Args:
        source: of the backbone, where it is known: what was trained on another one is refused.

    Raises:
        DataError: an input has no such entry, more numbers than the backbone, or was trained on another
            backbone. MethodError: what it has does not fit the method or its shapes.
    """
    said: list[str] = []
    for ref in recipe.entries():
        if ref.item.start:
            found = tuple(_stored(start, ref, inputs, spec) for start in ref.item.start)
            module: Any = modules[ref.name]
            if hasattr(module, "start_from"):
                if ref.item.merge is not None:
                    raise MethodError(
                        f"{ref.method} makes its values of several inputs by itself, and takes no 'merge'; "
                        f"leave it out at {ref.name!r}."
                    )
                module.start_from(found)
                continue
            families = {stored.label: inputs[stored.input].family for stored in found}
            label, family = next(
                ((k, v) for k, v in families.items() if v not in (None, spec.family)), ("", None)
            )
            if family is not None:
                raise DataError(
                    f"{ref.name!r} cannot start from {label}, which was trained on a model of the "
                    f"family {family!r:.40}: this one is of {spec.family!r}. Name a hybrid of this backbone."
                )
            for stored in found:
                _check_backbone(ref, stored.label, inputs[stored.input].backbone, source)
            said += _fill(ref, module, found)
    return said


def _check_backbone(
    ref: EntryRef, label: str, trained_on: Mapping[str, Any] | None, source: ModelSource | None
) -> None:
    """Refuse values of another backbone, where both hashes are known and are of one kind (`ModelSource`)."""
    if trained_on is None or source is None or trained_on.get("origin") != source.origin:
        return
    had, has = trained_on.get("sha256"), source.sha256
    if None in (had, has) or had == has:
        return
    raise DataError(
        f"{ref.name!r} cannot start from {label}, which was trained on another backbone: on "
        f"{trained_on.get('name')!r:.80} with the hash {had!s:.12}…, and this is "
        f"{source.alias or source.path!r} with {has!s:.12}…. Take that backbone, or train the input again on "
        "this one."
    )


def _stored(start: str, ref: EntryRef, inputs: Mapping[str, Artefact], spec: BackboneSpec) -> Stored:
    name, entry = address_of(start)
    artefact = inputs[name]
    # The entry that is named, or the only one of the same method, or the only one that has values.
    entries = [found for found in artefact.recipe.entries() if not get_method(found.method).traits.pools]
    there = {found.name: found for found in entries}
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
    return Stored(name, source.name, source.method, tensors, source.item.config, own, artefact.family)


def tensors_of(entry: str, stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, str]]:
    """Saved names of an entry's tensors, each with its name in the module (see `saved_key`)."""
    for key in stored:
        parts = key.split(".")
        at = 1 if parts[0] == "model" else 3 if len(parts) > 2 and parts[1].isdigit() else 2
        if len(parts) > at + 1 and parts[at] == entry and parts[0] != "head":
            yield key, ".".join([*(parts[:at] if at > 1 else ()), *parts[at + 1 :]])


@torch.no_grad()
def _fill(ref: EntryRef, module: nn.Module, found: tuple[Stored, ...]) -> list[str]:
    """Start a module from one entry of the same method, tensor by tensor, or from what several become.
    Returns what is to be said of it."""
    other = next((stored for stored in found if stored.method != ref.method), None)
    if other is not None or (len(found) > 1 and ref.item.merge is None):
        got = " and ".join(s.label for s in found)
        raise MethodError(
            f"{ref.name!r} starts from one entry of its own method, {ref.method}, but got {got}; name one "
            "such entry, say how several become one (merge: mean), or use a method that chooses among "
            "prompts (spot)."
        )
    own: dict[str, Tensor] = {}  # by the names that `Stored.tensors` has
    for key, value in module.state_dict().items():
        saved = saved_key(f"own.{key}").split(".")
        saved.remove("own")
        own[".".join(saved[1:] if saved[0] == "model" else saved)] = value
    for stored in found:
        _check_alike(ref, own, stored)
    said: list[str] = []
    if ref.item.merge is not None:
        values = _merged(ref, ref.item.merge, module, own, found, said)
    else:
        values = _read(ref, found[0], own)
    for key, value in own.items():
        value.copy_(values[key])
    return said


def _check_alike(ref: EntryRef, own: Mapping[str, Tensor], stored: Stored) -> None:
    """Check that values of `stored` mean in the entry what they meant there."""
    # Values mean another function where a module draws its frozen parts otherwise.
    method = get_method(ref.method)
    fields: Sequence[str] = getattr(method, "frozen_by", ())
    merge = ref.item.merge
    if merge is not None and merge.how != "svd":
        fields = [name for name in method.Config.model_fields if name not in ("sites", "dropout")]
    config = ref.item.method_config()
    theirs = validate_config(ref.method, dict(stored.options)) if fields else config
    for field in fields:
        had, has = getattr(theirs, field), getattr(config, field)
        if had != has:
            raise MethodError(
                f"{ref.name!r} has {field}: {has}, and {stored.label} was trained with {field}: {had}, so "
                f"that its values mean something else there; give {ref.name!r} {field}: {had}, or name "
                "another input."
            )
    whole = [
        key for key, value in (dict(own) | dict(stored.tensors)).items() if not value.is_floating_point()
    ]
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


def _read(ref: EntryRef, stored: Stored, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    way_out = f"give {ref.name!r} the size and the sites of what it starts from"
    return {key: stored.tensor(key, tuple(value.shape), way_out) for key, value in own.items()}


def _merged(
    ref: EntryRef,
    merge: Merge,
    module: nn.Module,
    own: Mapping[str, Tensor],
    found: tuple[Stored, ...],
    said: list[str],
) -> dict[str, Tensor]:
    """The values that those of the inputs become. What is to be said of it goes to `said`."""
    method: Any = get_method(ref.method)
    units: Units = getattr(method, "narrow", {}).get(getattr(method, "size_field", ""), {})
    paired = units == LowRankPair.by_rank
    shared = paired and any(key.endswith(".B") and f"{key[:-1]}A" not in own for key in own)
    if shared and (merge.how == "svd" or merge.align != "none"):
        raise MethodError(
            f"{ref.name!r} cannot be aligned or merged by svd: several B of its {ref.method} read one A. "
            "Take another rule, such as 'merge: mean'."
        )
    if merge.how == "svd":
        return _merged_pairs(ref, merge, own, found, paired=paired)
    states = [_read(ref, stored, own) for stored in found]
    if merge.align != "none":
        if {d for dimensions in units.values() for d in dimensions} != {0, 1} or not states[0]:
            raise MethodError(
                f"{ref.name!r} cannot align: {ref.method} has no hidden units between two maps. Leave "
                "'align' out, or merge adapters or LoRAs."
            )
        moved: list[Tensor] = []
        states = [states[0], *(_aligned(merge, states[0], state, units, moved) for state in states[1:])]
        if moved:
            units_moved = torch.cat(moved)
            n, of = int(units_moved.sum()), len(units_moved)
            said.append(f"{ref.name}: aligning gave {n:,} of {of:,} hidden units another place.")
    targets = decay_targets([module])
    saved = dict(zip(module.state_dict(), own, strict=True))
    neutral = {saved[name]: targets.get(id(p)) for name, p in module.named_parameters() if name in saved}
    factors: dict[str, Factor] = {".A": "A", ".B": "B"} if paired else {}
    return {
        key: combine(
            merge,
            key,
            [state[key] for state in states],
            0.0 if (at := neutral.get(key)) is None else at,
            factor=factors.get(key[-2:]),
        )
        for key in own
    }


def _merged_pairs(
    ref: EntryRef, merge: Merge, own: Mapping[str, Tensor], found: tuple[Stored, ...], *, paired: bool
) -> dict[str, Tensor]:
    """The pairs of low rank whose products are nearest to the sums of those of the inputs."""
    if not paired:
        raise MethodError(
            f"{ref.name!r} cannot merge by svd: {ref.method} is no product of two factors. Take another "
            "rule, such as 'merge: mean', or LoRAs."
        )
    way_out = f"give {ref.name!r} the sites of what it starts from"
    scale = ref.item.method_config().scale  # type: ignore[attr-defined]
    merged: dict[str, Tensor] = {}
    for key, value in own.items():
        if not key.endswith(".A"):
            continue
        at, pairs = key[:-1], list[tuple[Tensor, Tensor, float]]()
        for stored in found:
            theirs: Any = validate_config(ref.method, dict(stored.options))
            a = stored.tensor(key, (theirs.rank, value.shape[1]), way_out)
            b = stored.tensor(f"{at}B", (own[f"{at}B"].shape[0], theirs.rank), way_out)
            pairs.append((a, b, theirs.scale))
        merged[key], merged[f"{at}B"] = combine_pairs(merge, pairs, len(value), scale)
    return merged


def _aligned(
    merge: Merge,
    anchor: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    units: Units,
    moved: list[Tensor],
) -> dict[str, Tensor]:
    """A source's tensors with its hidden units in the order of the anchor's. Whether each had another place
    goes to `moved`."""
    aligned = dict(state)
    first = next(iter(units))
    for at in [key.removesuffix(first) for key in state if key.endswith(f".{first}")]:
        there = [name for name in units if f"{at}{name}" in state]
        order = matching(
            {name: anchor[f"{at}{name}"] for name in there},
            {name: state[f"{at}{name}"] for name in there},
            units,
            both=merge.align == "both",
        )
        moved.append(order != torch.arange(len(order)))
        for name in there:
            for dimension in units[name]:
                aligned[f"{at}{name}"] = aligned[f"{at}{name}"].index_select(dimension, order)
    return aligned
