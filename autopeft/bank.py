"""The bank: trained hybrids kept for later recipes, each with a record of what it is.

`bank/NAME` in the folder that one works in holds a saved hybrid as `hybrid.save` writes it, and
`record.json`. Recipes name it `inputs: [bank:NAME]`; entries start from it, or act with it (`frozen: true`).
Listing reads the records alone.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from autopeft.errors import AutoPEFTError, DataError, UsageError, near
from autopeft.foreign import in_folder, read_table_in
from autopeft.hybrid.inputs import BANK, RECORD, open_input, tensors_of
from autopeft.hybrid.store import MANIFEST, RECIPE, WEIGHTS
from autopeft.recipe import InputItem
from autopeft.runs.documents import Known, read_manifest, read_result
from autopeft.runs.files import json_bytes, write_atomic
from autopeft.runs.folder import RunFolder, load_run

__all__ = ["BANK", "BankEntry", "Damaged", "Kept", "add", "entries", "entry", "remove"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FORMAT = 1


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Kept(_Document):
    """An entry of a kept hybrid.

    Attributes:
        name: in its recipe.
        method: of it.
        options: that differ from the method's defaults.
        shapes: of its tensors, by saved name: stack, layer, site, name, parameter.
    """

    name: str
    method: str
    options: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


class BankEntry(_Document):
    """The record of a hybrid in the bank. What its run did not tell is `None`.

    Attributes:
        name: in the bank.
        sha256: of its recipe and weights, as a recipe's `inputs:` has it.
        added: when, in UTC.
        recipe: the name of its recipe.
        entries: of the recipe.
        family, parameters: of the backbone.
        model, origin, backbone: the backbone as it was named, where it came from (`package`, `folder` or
            `hub`), and the hash of its files.
        task, kind, data: what it was trained on: its name, its kind, the hash of its rows.
        metric, select, test: its scores.
        seed, steps, rate: of its training.
        deployed: its parameters, without the head.
        run: where it was trained.
    """

    name: str
    sha256: str
    added: str
    recipe: str
    entries: tuple[Kept, ...]
    family: Known[str] = None
    parameters: Known[int] = None
    model: Known[str] = None
    origin: Known[str] = None
    backbone: Known[str] = None
    task: Known[str] = None
    kind: Known[str] = None
    data: Known[str] = None
    metric: Known[str] = None
    select: Known[float] = None
    test: Known[float] = None
    seed: Known[int] = None
    steps: Known[int] = None
    rate: Known[float] = None
    deployed: Known[int] = None
    run: Known[str] = None


@dataclass(frozen=True)
class Damaged:
    """What lies in the bank and cannot be read, and why."""

    name: str
    problem: str


def add(source: str | Path, name: str | None = None, *, runs: str | Path = "runs") -> BankEntry:
    """Keep the hybrid of a run, or of a folder that `autopeft export` or `hybrid.save` wrote.

    It appears in the bank whole or not at all.

    Args:
        source: as `autopeft runs` lists it, `latest`, or a folder.
        name: that recipes call it by, of letters, digits and `_`; default: made of task and recipe.
        runs: the folder of runs.

    Raises:
        UsageError: there is no such run, the name is none, or another hybrid has it.
        DataError: the hybrid is damaged.
    """
    folder, run = _found(source, runs)
    if not BANK.is_dir():
        BANK.mkdir(parents=True)
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r:.80} is no name for the bank; write letters, digits and '_', at most 64, no digit in "
            "front."
        )
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=BANK) as hidden:
        copied = Path(hidden) / "hybrid"
        copied.mkdir()
        for part in (RECIPE, WEIGHTS, MANIFEST):
            if (folder / part).is_file():
                shutil.copyfile(folder / part, copied / part)
        found = open_input(str(source), InputItem(folder=str(copied)))
        told = _of_run(run) | _of_hybrid(copied)
        name = name or _free(f"{told.get('task') or 'task'}_{found.recipe.name}")
        if (BANK / name).exists():
            raise UsageError(
                f"{name!r} is in the bank already; give this one another name (--name), or remove that one "
                f"first: autopeft bank remove {name}"
            )
        kept = BankEntry(
            name=name,
            sha256=found.sha256,
            added=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            recipe=found.recipe.name,
            rate=found.recipe.training.learning_rate,
            entries=tuple(
                Kept(
                    name=ref.name,
                    method=ref.method,
                    options=ref.item.config,
                    shapes={key: found.stored[key].shape for key, _ in tensors_of(ref.name, found.stored)},
                )
                for ref in found.recipe.entries()
            ),
            **told,
        )
        write_atomic(copied / RECORD, json_bytes({"format": _FORMAT, **kept.model_dump(mode="json")}))
        try:
            copied.rename(BANK / name)
        except OSError as error:
            raise AutoPEFTError(f"Cannot write {str(BANK / name)!r}: {error.strerror}.") from error
    return kept


def _found(source: str | Path, runs: str | Path) -> tuple[Path, RunFolder | None]:
    """The folder of the weights, and the run that they are from, where there is one."""
    folder = Path(source)
    if (folder / WEIGHTS).is_file() and not (folder / "manifest.json").is_file():
        return folder, None
    run = load_run(source, root=runs)
    winner = run.path if (run.path / WEIGHTS).is_file() else run.path / "winner"
    if not (winner / WEIGHTS).is_file():
        raise UsageError(
            f"The run {run.name!r} has no weights to keep: it did not end, or its winner was removed."
        )
    return winner, run


def _of_run(run: RunFolder | None) -> dict[str, Any]:
    """What a run's manifest and result tell of its winner."""
    if run is None:
        return {}
    raw = run.manifest()
    manifest, result = read_manifest(raw), None
    if (run.path / "result.json").exists():
        result = read_result(run.result())
    backbone, data = raw.get("backbone"), raw.get("data")
    told: dict[str, Any] = {"run": run.name, "task": manifest.task, "model": manifest.model}
    if isinstance(backbone, dict):
        told |= {"origin": backbone.get("origin"), "backbone": backbone.get("sha256")}
    if isinstance(data, dict):
        source = data.get("source")
        told |= {"kind": data.get("kind"), "data": source.get("sha256") if isinstance(source, dict) else None}
    if result is not None:
        told |= {"metric": result.metric, "select": result.select_mean, "test": result.test_mean}
        told["steps"] = raw.get("training", {}).get("steps")
    return told | {"seed": raw.get("seed")}


def _of_hybrid(folder: Path) -> dict[str, Any]:
    """What a saved hybrid's own manifest tells of its backbone and its size."""
    if not (folder / MANIFEST).is_file():
        return {}
    told = read_table_in(folder, MANIFEST)
    counts = told.get("counts")
    deployed = counts.get("deployed") if isinstance(counts, dict) else None
    return {"family": told.get("family"), "parameters": told.get("backbone_parameters"), "deployed": deployed}


def _free(wanted: str) -> str:
    """A name for the bank that no other hybrid has, made of a text."""
    stem = re.sub(r"[^A-Za-z0-9]+", "_", wanted).strip("_")[:56]
    stem = stem if _NAME.fullmatch(stem) else f"_{stem}"
    number, name = 2, stem
    while (BANK / name).exists():
        name, number = f"{stem}_{number}", number + 1
    return name


def entries() -> Iterator[BankEntry | Damaged]:
    """What is in the bank, by name; of what cannot be read, why."""
    names = sorted(p.name for p in BANK.iterdir() if not p.name.startswith(".")) if BANK.is_dir() else []
    for name in names:
        try:
            yield entry(name)
        except UsageError as error:
            yield Damaged(name, str(error))


def entry(name: str) -> BankEntry:
    """The record of a hybrid in the bank.

    Raises:
        UsageError: there is none of this name.
        DataError: its record is damaged.
    """
    folder = _folder(name)
    if not in_folder(name, BANK):
        raise DataError(f"{name!r} in the bank is a link that leads out of it, and is not followed.")
    told = read_table_in(folder, RECORD)
    try:
        kept = BankEntry.model_validate_json(json.dumps(told))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(
            f"The record of {name!r} in the bank is damaged at {where!r} ({folder / RECORD}); remove it "
            f"(`autopeft bank remove {name}`) and add the hybrid again."
        ) from error
    return kept.model_copy(update={"name": name})


def _folder(name: str) -> Path:
    """Where a hybrid of this name lies; raises UsageError where there is none."""
    if not _NAME.fullmatch(name) or not (BANK / name).is_dir():
        there = sorted(p.name for p in BANK.iterdir() if p.is_dir()) if BANK.is_dir() else []
        known = near(name, there) or " `autopeft bank list` has the names."
        raise UsageError(f"There is no {name!r:.80} in the bank ({str(BANK.absolute())!r}).{known}")
    return BANK / name


def remove(name: str) -> None:
    """Take a hybrid out of the bank. Recipes that name it will not find it any more.

    Raises:
        UsageError: there is none of this name.
    """
    folder = _folder(name)
    folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
