"""Warm starts: recipes that other searches found, as points of this space.

A recipe of another run may come from another space, budget, backbone or version, so recipes travel, not
parameters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from autopeft.errors import RecipeError, UsageError, near
from autopeft.foreign import file_in, local_path, parse_json
from autopeft.graph import build_graph
from autopeft.hybrid import pinned
from autopeft.recipe import Recipe, recipe_names
from autopeft.runs.folder import RunFolder, list_runs, load_run
from autopeft.runs.records import TrialRecord, read_record
from autopeft.search.optimization.pareto import best_first, pareto_front
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.projection import Match, values_of

__all__ = ["BANK", "points_from", "runs_as_paths"]

BANK = "bank"
"""What `--from` calls the bank."""

_MAX_LINE = 1 << 20
_MAX_FILE = 64 << 20
_MAX_RECIPE = 64 << 10
_MAX_INVALID = 20
_SHOWN = 5


def points_from(
    sources: Sequence[str | Path], bound: BoundSpace, *, runs: str | Path = "runs", top: int = 5
) -> tuple[list[dict[str, Any]], list[str]]:
    """Points of a space for the recipes that other searches found, best first, each recipe once.

    Args:
        sources: runs (a path, a name under `runs`, `latest`), recipe files, folders with a `recipe.yaml`, and
            names of built-in recipes. A run gives its winner, then by turns its best finished trials and the
            members of its front, the best first: at most `top` different recipes.

    Returns:
        The points, and one line for each source that was not taken over exactly. A recipe that has nothing in
        common with the space gives a line and no point.

    Raises:
        UsageError: a source is unknown or cannot be read, a run has no finished trial, nothing of a source
            fits the backbone, or what a recipe starts from is missing or not what the recipe's hash says.
    """
    if top < 1:
        raise UsageError(f"At least one recipe is taken of each run, but got top={top}.")
    points: dict[str, dict[str, Any]] = {}
    notices: list[str] = []
    for source in sources:
        if source == BANK:  # its best start is in the space (`autopeft.search.planning.bank_start`)
            continue
        found = _open(source, runs)
        recipes, notes = ([pinned(found, runs)], []) if isinstance(found, Recipe) else _best_of(found, top)
        label = str(source) if isinstance(found, Recipe) else found.name
        matches: list[Match] = []
        for recipe in recipes:
            try:
                matches.append(values_of(recipe, bound))
            except RecipeError as error:
                notes.append(str(error))
        notes = list(dict.fromkeys(notes))
        if not matches:
            raise UsageError(f"Nothing can be taken from {label!r}: {'; '.join(notes)}")
        for match in matches:
            if match.overlap > 0:
                recipe = bound.materialize(match.values)
                points.setdefault(build_graph(recipe, bound.spec).trial_hash(), match.values)
        notes = [*_notes(matches, bound.name), *notes]
        if notes:
            notices.append(f"{label}: {'; '.join(notes)}")
    return list(points.values()), notices


def _notes(matches: Sequence[Match], space: str) -> list[str]:
    """The recipes that the space does not hold exactly, in words."""
    inexact = [m for m in matches if not m.exact and m.overlap > 0]
    foreign = sum(m.overlap <= 0 for m in matches)
    notes = []

    def some(n: int, one: str, several: str) -> str:
        return (
            f"it {one}"
            if len(matches) == 1
            else f"{n} of {len(matches)} recipes {one if n == 1 else several}"
        )

    if inexact:
        changes = list(dict.fromkeys(chain.from_iterable(m.missing for m in inexact)))
        more = [f"and {len(changes) - _SHOWN} more"] if len(changes) > _SHOWN else []
        listed = "; ".join(changes[:_SHOWN] + more)
        verb = some(len(inexact), "is", "are")
        notes.append(f"{verb} not in space {space!r} as it stands, the nearest member is taken: {listed}")
    if foreign:
        verb = some(foreign, "is", "are")
        notes.append(f"{verb} left out, with nothing in common with space {space!r}")
    return notes


def runs_as_paths(sources: Sequence[str | Path], *, runs: str | Path = "runs") -> tuple[str | Path, ...]:
    """The sources of `points_from`, each name of a run replaced by the path of that run. A name may match
    runs that are made later as well, and a path does not.

    Raises:
        UsageError: a source is unknown, or several runs match it.
    """
    return tuple(
        str(_named(source, runs).path) if source != BANK and _is_name(source) else source
        for source in sources
    )


def _open(source: str | Path, runs: str | Path) -> RunFolder | Recipe:
    """The run or the recipe that a source means."""
    text, path = str(source), local_path(source)
    if _is_name(source):
        return _named(source, runs)
    if text in recipe_names():
        return Recipe.named(text)
    if os.path.isfile(path):
        return Recipe.from_file(path)
    if file_in(path, "manifest.json") is not None:
        return load_run(path)
    return Recipe.from_file(path / "recipe.yaml")


def _is_name(source: str | Path) -> bool:
    """Whether a source is neither a recipe nor a path, and so can be a run's name alone."""
    path = local_path(source)
    return not (
        str(source) in recipe_names()
        or os.path.isfile(path)
        or any(file_in(path, name) is not None for name in ("manifest.json", "recipe.yaml"))
    )


def _named(source: str | Path, runs: str | Path) -> RunFolder:
    """The run under `runs` that a name means."""
    text, path = str(source), local_path(source)
    names = [run.name for run in list_runs(runs)]
    if text == "latest" or any(text in name for name in names):
        return load_run(text, root=runs)
    beside = [p.name for p in path.parent.iterdir()] if len(path.parts) > 1 and path.parent.is_dir() else []
    hint = near(text, (*names, *recipe_names(), "latest")) or near(path.name, beside)
    newest = f" Newest run: {names[0]}." if names else ""
    raise UsageError(
        f"{text!r} is neither a run (a folder, or a name under {str(runs)!r}) nor a recipe (a file, or "
        f"{', '.join(recipe_names())}).{hint or newest}"
    )


def _best_of(run: RunFolder, top: int) -> tuple[list[Recipe], list[str]]:
    """The winner of a run, then by turns its best trials and its front from the top: at most `top` different
    recipes; and what could not be read.

    Raises:
        UsageError: the run has neither a winner nor a finished trial.
    """
    records, lines, notes = _finished(run)
    winner = file_in(run.path, "recipe.yaml")
    if not records and winner is None:
        raise UsageError(
            f"Run {run.name!r} has no finished trial to start from; let it finish one, or name another run."
            + "".join(f" ({note})" for note in notes)
        )
    front = reversed(pareto_front(records))
    turns = zip_longest((r.hash for r in best_first(records)), (point.hash for point in front))
    order = dict.fromkeys(key for turn in turns for key in turn if key is not None)
    found: dict[str, Recipe] = {}
    if winner is not None:
        try:
            recipe = Recipe.from_file(winner)
            found[recipe.hash()] = recipe
        except UsageError as error:
            notes.append(f"its recipe.yaml cannot be read ({str(error).splitlines()[0]:.200})")
    invalid = 0
    for key in order:
        if len(found) >= top or invalid >= _MAX_INVALID:
            break
        try:
            text = json.dumps(parse_json(lines[key])["recipe"])
            if len(text) > _MAX_RECIPE:
                invalid += 1
                continue
            recipe = Recipe.from_yaml(text, "a trial's recipe")  # its reader bounds nesting
            found.setdefault(recipe.hash(), recipe)
        except (UsageError, ValueError):
            invalid += 1
    return list(found.values()), notes + _counted(invalid, "trial has", "trials have", "no valid recipe")


def _finished(run: RunFolder) -> tuple[list[TrialRecord], dict[str, bytes], list[str]]:
    """The trials of a run that were trained in full, without their recipes, each under a key of its own as
    its hash; their lines, by that key; and what could not be read. However large the file is, what is held is
    bounded.

    Raises:
        UsageError: the file cannot be read.
    """
    records: list[TrialRecord] = []
    lines: dict[str, bytes] = {}
    damaged = size = 0
    path = file_in(run.path, "trials.jsonl")
    if path is None:  # a run that has only just begun
        return records, lines, []
    try:
        with path.open("rb") as file:
            while size <= _MAX_FILE and (line := file.readline(_MAX_LINE)):
                size += len(line)
                try:
                    record = read_record(parse_json(line))
                except ValueError:
                    damaged += 1
                    continue
                if record.state == "complete" and record.kind == "trial":
                    if record.score is None:
                        damaged += 1
                        continue
                    key = str(len(records))
                    records.append(replace(record, recipe={}, values=None, hash=key))
                    lines[key] = line
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    notes = _counted(damaged, "line", "lines", "of its trials.jsonl could not be read")
    return (
        records,
        lines,
        notes + ["its trials.jsonl is too large to be read to the end"] * (size > _MAX_FILE),
    )


def _counted(n: int, one: str, several: str, rest: str) -> list[str]:
    return [f"{n} {one if n == 1 else several} {rest}"] if n else []
