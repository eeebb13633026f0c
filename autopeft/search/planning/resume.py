"""A search that was cut off, from its run folder: the same arguments, data and effort as before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from autopeft.effort import Effort
from autopeft.errors import UsageError
from autopeft.runs.documents import read_result
from autopeft.runs.folder import RunFolder
from autopeft.search.planning.prepare import Arguments, Prepared, prepare
from autopeft.search.space.space import Space

__all__ = ["CHANGEABLE", "SPACE", "prepare_again"]

SPACE = "space.yaml"
# What may differ from the process before: where the work is done, for how long, and where it is logged.
CHANGEABLE = ("workers", "cpus_per_trial", "gpus_per_trial", "address", "time", "log")


def prepare_again(
    folder: RunFolder, changes: Mapping[str, Any], notify: Callable[[str], None] | None = None
) -> Prepared:
    """Prepare the search of a run folder as it was begun.

    Args:
        changes: arguments that may differ (`CHANGEABLE`); those that are `None` do not.

    Raises:
        UsageError: the run is finished, an argument may not differ, or data or backbone are not those that
            the run was begun with.
    """
    given = {k: v for k, v in changes.items() if v is not None}
    refused = sorted(set(given) - set(CHANGEABLE))
    if refused:
        raise UsageError(
            f"A resumed search keeps its {', '.join(refused)}; only {', '.join(CHANGEABLE)} may change."
        )
    manifest = folder.manifest()
    if (folder.path / "result.json").exists() and not read_result(folder.result()).interrupted:
        raise UsageError(
            f"{folder.name} is finished; start another search from what it found with --from {folder.name}."
        )
    arguments, effort = _read(folder, manifest)
    ready = prepare(replace(arguments, **given), notify, effort)
    _check(folder, manifest, ready)
    return ready


def _read(folder: RunFolder, manifest: Mapping[str, Any]) -> tuple[Arguments, Effort]:
    file = folder.path / SPACE
    if not file.is_file():
        raise UsageError(f"{str(folder.path)!r} has no {SPACE}: it was not begun by a search that can go on.")
    try:
        said: dict[str, Any] = {
            k: tuple(v) if k == "warm_start" else v for k, v in manifest["arguments"].items()
        }
        unknown = sorted(set(said) - {f.name for f in fields(Arguments)})
        if unknown:
            raise UsageError(
                f"{str(folder.path)!r} was begun with arguments that this version does not know: "
                f"{', '.join(unknown)}."
            )
        said["space"] = Space.from_yaml(file.read_text(encoding="utf-8"), str(file))
        return Arguments(**said), Effort(**manifest["effort"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"The manifest of {str(folder.path)!r} is incomplete: {error}.") from error


def _check(folder: RunFolder, manifest: Mapping[str, Any], ready: Prepared) -> None:
    now = ready.manifest()
    for name, path in (
        ("data", ("data", "source", "sha256")),
        ("rows", ("data", "rows")),
        ("backbone", ("backbone", "sha256")),
        ("budget", ("limits",)),
    ):
        before, after = _at(manifest, path), _at(now, path)
        if before != after:
            raise UsageError(
                f"The {name} of {folder.name} changed since it was begun ({before} then, {after} now); its "
                "scores cannot be compared with new ones. Start a new search."
            )


def _at(table: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table
