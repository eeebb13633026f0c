"""A search that was cut off, from its run folder: the same arguments, data and effort as before."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autopeft.arguments import command_line
from autopeft.effort import Effort, read_effort
from autopeft.errors import UsageError, near
from autopeft.foreign import file_in
from autopeft.recipe.pooling import POOLINGS
from autopeft.runs.documents import read_result
from autopeft.runs.folder import RunFolder, as_typed, go_on, why_not_here
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.option_checks import AUTO, RANKS, samplers
from autopeft.search.planning.precision import kept_precision
from autopeft.search.planning.prepare import Prepared, prepare
from autopeft.search.space.space import Space
from autopeft.training.options import is_live, is_rows, metric_text

__all__ = ["SPACE", "changeable", "is_own_metric", "prepare_again", "prepare_here", "resume_command"]

SPACE = "space.yaml"
_log = logging.getLogger("autopeft")
_SHOWN = 80


def changeable(arguments: type[SearchArguments] = SearchArguments) -> tuple[str, ...]:
    """What may differ from the process before: where the work is done, for how long, where it is logged."""
    return tuple(name for name, option in arguments.declared().items() if option.changeable)


def resume_command(run: Path, arguments: Mapping[str, Any]) -> str:
    """The command that goes on with a search, with those of its arguments that its folder does not decide."""
    given = {name: arguments.get(name) for name in _unremembered()}
    if callable(arguments.get("metric")):  # a folder's name of a function imports nothing
        given["metric"] = arguments["metric"]
    said = {name: value for name, value in given.items() if value is not None}
    return go_on(run, command_line(SearchArguments, said))


def _unremembered() -> tuple[str, ...]:
    return tuple(name for name, option in SearchArguments.declared().items() if not option.remembered)


def prepare_again(
    folder: RunFolder, changes: Mapping[str, Any], notify: Callable[[str], None] | None = None
) -> Prepared:
    """Prepare the search of a run folder as it was begun.

    Args:
        changes: arguments that may differ (`changeable`), and objects in memory (rows, a loaded model) that
            have to be the same as before; those that are `None` are left out.
        notify: takes a line for each argument that the run was begun with and that its folder does not decide
            (`Option.remembered`); without it, the line is a warning of the logger `autopeft`.

    Raises:
        UsageError: the run is finished, an argument may not differ, data or backbone are not those that the
            run was begun with, finalists or baselines were compared on copies as on rows of their own, or it
            was begun on a cluster and nobody says where it shall go on.
    """
    given = {k: v for k, v in changes.items() if v is not None}
    _refuse(given)
    manifest = folder.manifest()
    if (folder.path / "result.json").exists() and not read_result(folder.result()).interrupted:
        raise UsageError(
            f"{folder.name} is finished. Another search starts from what it found: {_anew(folder, manifest)}"
        )
    arguments, effort = _read(folder, manifest, given)
    _check_here(folder, manifest, arguments)
    _tell_forgotten(folder, manifest["arguments"], given, notify or _log.warning)
    ready = prepare(arguments, notify, effort, kept_precision(folder.path))
    _check(folder, manifest, ready)
    # Versions that told no `texts` counted each row as one, and grouped rows otherwise.
    before = _at(manifest, ("data", "texts")) or _at(manifest, ("data", "rows"))
    grouped = any(run.pseudo_values or run.select_values for run in folder.finals().records)
    if grouped and before != ready.task.describe()["texts"]:
        raise UsageError(
            f"{folder.name} was begun before copies of a text counted as one, and its data have some: its "
            "finalists and baselines cannot be compared with new ones. Start from what it found: "
            f"{_anew(folder, manifest)}"
        )
    return ready


def _anew(folder: RunFolder, manifest: Mapping[str, Any]) -> str:
    """The command, or the call in Python, that begins a search with what a run found."""
    said = manifest.get("arguments")
    table = dict(said) if isinstance(said, Mapping) else {}
    names = ("task", "budget", "text", "text_pair", "label", "model", "max_length")
    given = {name: table[name] for name in names if table.get(name)}
    if any(isinstance(value, Mapping) for value in given.values()):  # what lay in memory is in no file
        budget, found = table.get("budget"), as_typed(folder.path)
        return f"autopeft.search(task=rows, budget={budget!r}, warm_start=[{found!r}])"
    given = SearchArguments.unlike_defaults(given)
    return shlex.join(
        ["autopeft", "search", *command_line(SearchArguments, given), "--from", as_typed(folder.path)]
    )


def _tell_forgotten(
    folder: RunFolder, begun: Mapping[str, Any], given: Mapping[str, Any], notify: Callable[[str], None]
) -> None:
    """Say what the run was begun with and does not go on with, as it was not given again.

    Raises:
        UsageError: it was begun on a cluster, and it is not said where it shall go on.
    """
    options = SearchArguments.declared()
    for name in _unremembered():
        before = begun.get(name)
        alone = given.get("workers") == 0 and name in ("address", "listen")
        if before is None or before == "none" or name in given or alone:
            continue
        flag = options[name].spellings(name)[0]
        told = f"{folder.name} was begun with {flag} {str(before)[:_SHOWN]!r}. A run folder does not decide"
        if name == "address" and "workers" not in given:
            raise UsageError(
                f"{told} where work is sent: give {flag} again, or --workers to go on on this machine."
            )
        notify(f"{told} that: give it again to go on with it.")


def _refuse(given: Mapping[str, Any]) -> None:
    allowed = changeable()
    refused = sorted(k for k, v in given.items() if k not in allowed and not _handed_over(k, v))
    known = [name for name in refused if name in SearchArguments.model_fields]
    if known:
        raise UsageError(
            f"A resumed search keeps its {', '.join(known)}; only {', '.join(allowed)} may change."
        )
    if refused:
        raise UsageError(f"search has no argument {refused[0]!r}.{near(refused[0], allowed)}")


def _handed_over(name: str, value: Any) -> bool:
    return (
        (name == "task" and is_rows(value))
        or (name == "model" and is_live(value))
        or (name == "metric" and callable(value))
    )


def prepare_here(
    folder: RunFolder,
    notify: Callable[[str], None] | None = None,
    *,
    metric: Callable[..., Any] | None = None,
) -> Prepared:
    """Prepare the search of a run folder, finished or not, for single jobs in this process.

    Nothing is written.

    Args:
        metric: the function that the run was begun with, where its metric is one of the user's own.

    Raises:
        UsageError: data or backbone are not those that the run was begun with.
    """
    manifest = folder.manifest()
    given = {"workers": 0, "log": None, **({} if metric is None else {"metric": metric})}
    arguments, effort = _read(folder, manifest, given)
    _check_here(folder, manifest, arguments)
    ready = prepare(arguments, notify, effort, kept_precision(folder.path))
    _check(folder, manifest, ready)
    return ready


def _here(said: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without what a run folder does not decide, on the same kind of device as before.

    In this process alone there is no share of a GPU, as far as this machine has one.
    """
    gpus = said.get("gpus_per_trial")
    several = isinstance(gpus, (int, float)) and gpus >= 2
    if gpus is None and said.get("address") is not None and "address" not in given:
        gpus = 0.0  # by default a cluster's workers train on CPUs
    if gpus and not several and given.get("workers") == 0:
        gpus = None
    return {**said, **dict.fromkeys(_unremembered()), "gpus_per_trial": gpus}


def _read(
    folder: RunFolder, manifest: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[SearchArguments, Effort]:
    file = file_in(folder.path, SPACE)
    if file is None:
        raise UsageError(f"{str(folder.path)!r} has no {SPACE}: it was not begun by a search that can go on.")
    space = Space.from_file(file)
    said = manifest.get("arguments")
    if not isinstance(said, dict):
        raise _damaged(folder, f"it has no table 'arguments' but {said!r:.80}")
    said = dict(said)
    # As the trials that there are were proposed and ranked: defaults may be others by now.
    for name, known in (
        ("sampler", tuple(samplers())),
        ("rank_by", RANKS),
        ("pooling", POOLINGS),
    ):
        if said.get(name) in (None, AUTO) and manifest.get(name) in known:
            said[name] = manifest[name]
    unknown = sorted(set(said) - set(SearchArguments.model_fields))
    if unknown:
        raise UsageError(
            f"{str(folder.path)!r} was begun with arguments that this version does not know: "
            f"{', '.join(unknown)}."
        )
    _need_rows(folder, manifest, said, given)
    _need_metric(folder, said, given)
    try:
        said = _here(said, given)
        effort = read_effort(manifest.get("effort"))
        arguments = SearchArguments(**{**said, "space": space, **given})
    except UsageError as error:
        raise _damaged(folder, str(error)) from error
    return arguments, effort


def _damaged(folder: RunFolder, why: str) -> UsageError:
    where = folder.path
    return UsageError(
        f"A search cannot go on from {str(where / 'manifest.json')!r}: {why.rstrip('.')}. `autopeft report "
        f"{where}` shows what can be read, and --from {where} starts a new search from the trials that had "
        "ended."
    )


def _need_rows(
    folder: RunFolder, manifest: Mapping[str, Any], said: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Rows that lay in memory are in no file: they have to come again."""
    begun = said.get("task")
    if isinstance(begun, Mapping) and "task" not in given:
        raise UsageError(
            f"{folder.name} was begun with rows in memory, {begun.get('memory')} (sha256 "
            f"{str(_at(manifest, ('data', 'source', 'sha256')))[:12]}…), which are not kept: hand them over "
            f"again, autopeft.search(resume={str(folder.path)!r}, task=rows)."
        )
    if "task" in given and not isinstance(begun, Mapping):
        raise UsageError(f"A resumed search keeps its task; {folder.name} was begun with {begun!r}.")


def is_own_metric(recorded: Any) -> bool:
    """Whether the metric that a run has recorded is a function of the user's own."""
    return isinstance(recorded, str) and ":" in recorded


def _need_metric(folder: RunFolder, said: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """A function of the user's is not imported because a folder names it: it has to come again."""
    begun = said.get("metric")
    if is_own_metric(begun) and "metric" not in given:
        raise UsageError(
            f"{folder.name} was begun with a function of the user's own as its metric, "
            f"{str(begun)[:_SHOWN]!r}. A run folder does not decide what is imported: give it again, with "
            "--metric module:function (metric=function)."
        )
    if "metric" in given and metric_text(given["metric"]) != begun:
        raise UsageError(f"A resumed search keeps its metric; {folder.name} was begun with {begun!r:.80}.")


def _check_here(folder: RunFolder, manifest: Mapping[str, Any], arguments: SearchArguments) -> None:
    """Refuse to go on where files that the run was begun with are not found, as after it was moved."""
    for what, name, origin, found in (
        ("data", arguments.task, "file", ("data", "source", "origin")),
        ("backbone", arguments.model, "folder", ("backbone", "origin")),
    ):
        if not isinstance(name, str) or _at(manifest, found) != origin:
            continue
        why = why_not_here(folder.path, what, name)
        if why is not None:
            back = Path(name).is_absolute()
            way = "Put it back" if back else f"Go on from that folder, or put {name!r} into this one"
            raise UsageError(f"{why}. {way} (a link does).")


def _check(folder: RunFolder, manifest: Mapping[str, Any], ready: Prepared) -> None:
    now = ready.identity()
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
