"""Resume: a search is prepared again from its run folder, with the same arguments, data and effort."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autopeft.arguments import command_line
from autopeft.effort import Effort, read_effort
from autopeft.errors import DataError, UsageError, near
from autopeft.foreign import file_in
from autopeft.hybrid.inputs import open_input
from autopeft.recipe.pooling import POOLINGS
from autopeft.runs.documents import read_result
from autopeft.runs.folder import RunFolder, as_typed, go_on, why_not_here
from autopeft.search.optimization.samplers import SAMPLERS
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.bank_start import BankStart
from autopeft.search.planning.option_checks import AUTO, RANKS
from autopeft.search.planning.prepare import Prepared, prepare
from autopeft.search.planning.probes import kept_precision
from autopeft.search.space.space import Space
from autopeft.training.options import is_live, is_rows, metric_text

__all__ = ["SPACE", "changeable", "is_own_metric", "prepare_again", "prepare_here", "resume_command"]

SPACE = "space.yaml"
_log = logging.getLogger("autopeft")
_SHOWN = 80


def changeable(arguments: type[SearchArguments] = SearchArguments) -> tuple[str, ...]:
    """Arguments that a resumed search may change: where it works, for how long, where it logs."""
    return tuple(name for name, option in arguments.declared().items() if option.changeable)


def resume_command(run: Path, arguments: Mapping[str, Any]) -> str:
    """The command that resumes a search, with those of its arguments that its folder does not decide."""
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
    allowed = changeable()
    in_memory = {
        "task": is_rows(given.get("task")),
        "model": is_live(given.get("model")),
        "metric": callable(given.get("metric")),
    }
    refused = sorted(name for name in given if name not in allowed and not in_memory.get(name))
    known = [name for name in refused if name in SearchArguments.model_fields]
    if known:
        raise UsageError(
            f"A resumed search keeps its {', '.join(known)}; only {', '.join(allowed)} may change."
        )
    if refused:
        raise UsageError(f"search has no argument {refused[0]!r}.{near(refused[0], allowed)}")
    manifest = folder.manifest()
    if (folder.path / "result.json").exists() and not read_result(folder.result()).interrupted:
        raise UsageError(
            f"{folder.name} is finished. Another search starts from what it found: {_anew(folder, manifest)}"
        )
    ready = _prepared(folder, manifest, given, notify, forgotten=notify or _log.warning)
    # Versions whose manifests lack `texts` counted each row as one text, and grouped rows otherwise.
    before = _at(manifest, ("data", "texts")) or _at(manifest, ("data", "rows"))
    grouped = any(run.pseudo_values or run.select_values for run in folder.finals().records)
    if grouped and before != ready.task.describe()["texts"]:
        raise UsageError(
            f"{folder.name} was begun before copies of a text counted as one, and its data have some: its "
            "finalists and baselines cannot be compared with new ones. Start from what it found: "
            f"{_anew(folder, manifest)}"
        )
    return ready


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
    given = {"workers": 0, "log": None, **({} if metric is None else {"metric": metric})}
    return _prepared(folder, folder.manifest(), given, notify)


def _prepared(
    folder: RunFolder,
    manifest: Mapping[str, Any],
    given: Mapping[str, Any],
    notify: Callable[[str], None] | None,
    forgotten: Callable[[str], None] | None = None,
) -> Prepared:
    """The search of a run folder, with the arguments that are given again.

    Args:
        forgotten: takes a line for each argument that the run was begun with, that its folder does not decide
            and that was not given again.

    Raises:
        UsageError: files are not found, data or backbone are not those that the run was begun with, or it
            was begun on a cluster and it is not said where it shall go on.
    """
    arguments, effort = _read(folder, manifest, given)
    # Files that the run was begun with may not be found after it was moved.
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

    options, begun = SearchArguments.declared(), manifest["arguments"]
    for name in _unremembered() if forgotten is not None else ():
        value = begun.get(name)
        alone = given.get("workers") == 0 and name in ("address", "listen")
        if value is None or value == "none" or name in given or alone:
            continue
        flag = options[name].spellings(name)[0]
        told = f"{folder.name} was begun with {flag} {str(value)[:_SHOWN]!r}. A run folder does not decide"
        if name == "address" and "workers" not in given:
            raise UsageError(
                f"{told} where work is sent: give {flag} again, or --workers to go on on this machine."
            )
        if forgotten is not None:
            forgotten(f"{told} that: give it again to go on with it.")

    assert isinstance(arguments.space, Space)  # as `_read` has read it
    for name, item in arguments.space.inputs.items():
        before = _at(manifest, ("inputs", name, "sha256"))
        try:
            now = open_input(name, item, Path(arguments.runs)).sha256
        except DataError as error:
            raise DataError(
                f"{folder.name} cannot go on: {error} Go on from the folder that it was begun in: inputs are "
                "looked for from there."
            ) from error
        if before != now:
            raise _changed(folder, f"input {name!r}", before, now)
    start = BankStart.from_dict(told) if (told := _at(manifest, ("start",))) else None
    ready = prepare(arguments, notify, effort, kept_precision(folder.path), start)
    identity = ready.identity()
    for name, path in (
        ("data", ("data", "source", "sha256")),
        ("rows", ("data", "rows")),
        ("backbone", ("backbone", "sha256")),
        ("budget", ("limits",)),
    ):
        before, after = _at(manifest, path), _at(identity, path)
        if before != after:
            raise _changed(folder, name, before, after)
    return ready


def _changed(folder: RunFolder, what: str, before: Any, after: Any) -> UsageError:
    return UsageError(
        f"The {what} of {folder.name} changed since it was begun ({before} then, {after} now); its scores "
        "cannot be compared with new ones. Start a new search."
    )


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


def on_same_device(begun: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a resumed run, on the same kind of device as before, and without those that a run
    folder does not decide.

    Args:
        begun: the arguments that the run was begun with.
        given: the arguments that are given again.
    """
    gpus = begun.get("gpus_per_trial")
    several = isinstance(gpus, (int, float)) and gpus >= 2
    if gpus is None and begun.get("address") is not None and "address" not in given:
        gpus = 0.0  # by default a cluster's workers train on CPUs
    if gpus and not several and given.get("workers") == 0:
        gpus = None  # in this process alone there is no share of a GPU
    return {**begun, **dict.fromkeys(_unremembered()), "gpus_per_trial": gpus}


def _read(
    folder: RunFolder, manifest: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[SearchArguments, Effort]:
    """The arguments that a run was begun with and those that are given again, and its effort.

    Raises:
        UsageError: the folder is damaged, or rows or a metric that lay in memory are not given again.
    """
    file = file_in(folder.path, SPACE)
    if file is None:
        raise UsageError(f"{str(folder.path)!r} has no {SPACE}: it was not begun by a search that can go on.")
    space = Space.from_file(file)
    begun = manifest.get("arguments")
    if not isinstance(begun, dict):
        raise _damaged(folder, f"it has no table 'arguments' but {begun!r:.80}")
    begun = dict(begun)
    # As the trials that there are were proposed and ranked: defaults may be others by now.
    for name, known in (
        ("sampler", SAMPLERS.names()),
        ("rank_by", RANKS),
        ("pooling", POOLINGS),
    ):
        if begun.get(name) in (None, AUTO) and manifest.get(name) in known:
            begun[name] = manifest[name]
    unknown = sorted(set(begun) - set(SearchArguments.model_fields))
    if unknown:
        raise UsageError(
            f"{str(folder.path)!r} was begun with arguments that this version does not know: "
            f"{', '.join(unknown)}."
        )

    # What lay in memory is in no file, and a function is not imported because a folder names it.
    task, metric = begun.get("task"), begun.get("metric")
    if isinstance(task, Mapping) and "task" not in given:
        raise UsageError(
            f"{folder.name} was begun with rows in memory, {task.get('memory')} (sha256 "
            f"{str(_at(manifest, ('data', 'source', 'sha256')))[:12]}…), which are not kept: hand them over "
            f"again, autopeft.search(resume={str(folder.path)!r}, task=rows)."
        )
    if "task" in given and not isinstance(task, Mapping):
        raise UsageError(f"A resumed search keeps its task; {folder.name} was begun with {task!r}.")
    if is_own_metric(metric) and "metric" not in given:
        raise UsageError(
            f"{folder.name} was begun with a function of the user's own as its metric, "
            f"{str(metric)[:_SHOWN]!r}. A run folder does not decide what is imported: give it again, with "
            "--metric module:function (metric=function)."
        )
    if "metric" in given and metric_text(given["metric"]) != metric:
        raise UsageError(f"A resumed search keeps its metric; {folder.name} was begun with {metric!r:.80}.")

    try:
        begun = on_same_device(begun, given)
        effort = read_effort(manifest.get("effort"))
        arguments = SearchArguments(**{**begun, "space": space, **given})
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


def is_own_metric(recorded: Any) -> bool:
    """Whether the metric that a run has recorded is a function of the user's own."""
    return isinstance(recorded, str) and ":" in recorded


def _at(table: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table
