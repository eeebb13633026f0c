"""The page: everything about a run put together, and written as one file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autopeft.errors import UsageError
from autopeft.foreign import table_of
from autopeft.report.html import optuna_figures, own_figures, words
from autopeft.report.html.by_task import task_sections, tasks_overview
from autopeft.report.html.figure import Missing
from autopeft.report.html.heat import Heat, heat_of
from autopeft.report.html.journal import read_history
from autopeft.report.html.load import read_run
from autopeft.report.html.trials import finals_table, trials_table
from autopeft.report.html.values import shown
from autopeft.report.html.winner import winner_of
from autopeft.report.text import mean_sd, number, percent, score
from autopeft.runs.files import is_there, write_atomic
from autopeft.runs.folder import RunFolder
from autopeft.search.strategies.registry import DEFAULT

__all__ = ["render_report", "write_report"]

_PACKAGE = "autopeft.report.html"
_LONGEST = 200_000
_GENERATOR = "AutoPEFT report"
_HEAD = 1024  # bytes of a file in which its generator stands


def write_report(
    folder: RunFolder,
    out: Path | None = None,
    *,
    model: str | None = None,
    notify: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of a run, `report.html` in its folder where `out` is not given; returns the file.

    Args:
        model: where the run's backbone is now, if not where the manifest says.
        notify: takes one line where a packaged backbone is fetched for its configuration.

    Raises:
        UsageError: it is no run, or `out` is a folder, in none that is there, or a file that is no report.
        AutoPEFTError: the file cannot be written.
    """
    own = folder.path / "report.html"
    target = out if out is not None else own
    if is_there(target) and target.is_dir():
        raise UsageError(f"{str(target)!r} is a folder; name a file with --out, such as report.html.")
    if not is_there(target.parent):
        raise UsageError(
            f"There is no folder {str(target.parent)!r} to write the report into; make it first."
        )
    if Path(os.path.abspath(target)) != own and is_there(target) and not _is_report(target):
        raise UsageError(
            f"{str(target)!r} is there already and is no report, which alone is written anew; choose another "
            "--out, or remove it."
        )
    # Text of strangers may hold halves of surrogate pairs, which no file can.
    write_atomic(target, render_report(folder, model=model, notify=notify).encode("utf-8", "replace"))
    return target


def _is_report(path: Path) -> bool:
    """Whether a file is a page that was written here."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return f'<meta name="generator" content="{_GENERATOR}">'.encode() in file.read(_HEAD)
    except OSError:
        return False


def render_report(
    folder: RunFolder, *, model: str | None = None, notify: Callable[[str], None] | None = None
) -> str:
    """The page as text (arguments and errors: see `write_report`)."""
    run = read_run(folder)
    result = run.result
    winner = winner_of(run, model, notify)
    heat: Heat | Missing | None = Missing(winner.reason)
    if winner.graph is not None:
        heat = heat_of(winner.graph) or Missing("This hybrid has no parameters beside the head.")

    # What Optuna's study gives: figures and the trials that have not ended, or why there are none.
    history, reason = None, ""
    if run.fixed:
        reason = "This run trained a fixed recipe: there was no search."
    elif run.strategy != DEFAULT and not folder.journal.exists():
        reason = f"The strategy {run.strategy!r} keeps no study of Optuna's to draw from."
    else:
        try:
            history = read_history(folder.journal, run.trials, run.trial_metric)
        except UsageError as error:
            reason = str(error)
    studied: dict[str, Any] = dict.fromkeys(optuna_figures.FIGURES, Missing(reason))
    if history is not None:
        for name, draw in optuna_figures.FIGURES.items():
            try:
                studied[name] = draw(history)
            except ValueError as error:
                studied[name] = Missing(f"Optuna could not draw this: {shown(error, 300)}")
    unfinished = () if history is None else history.unfinished

    templates = files(_PACKAGE) / "templates"
    style, script = ((templates / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    plotly = get_plotlyjs()
    # A content security policy: no network at all, and no script but these two, by their hashes. plotly sets
    # styles on its elements, so that styles are allowed inline; `blob:` images are how it makes a picture of
    # a plot for saving.
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in (plotly, script)]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else shown(value, _LONGEST),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, score=score, spread=mean_sd)
    samples, samples_note = words.samples(run)
    return environment.get_template("report.html.j2").render(
        run=run,
        generator=_GENERATOR,
        policy=policy,
        style=Markup(style),
        plotly=Markup(plotly),
        script=Markup(script),
        headline=words.headline(run),
        remarks=words.remarks(run),
        facts=words.facts(run, unfinished),
        answers=[shown(text, 600) for text in result.answers.texts] if result else [],
        comparisons=words.comparisons(run),
        resources=[shown(one.text) for one in result.resources if one.text] if result else [],
        samples=samples,
        samples_note=samples_note,
        reproduction=words.reproduction(run),
        winner=winner,
        heat=heat,
        front=own_figures.front_figure(run),
        gates=own_figures.gates_figure(run),
        hypervolume=own_figures.hypervolume_figure(run),
        baselines=own_figures.baseline_figure(run),
        differences=own_figures.difference_figure(run),
        on_select="select" if run.select_metric == run.metric else f"{run.select_metric} on select",
        scored=[s for s in (run.winner, *run.baselines, run.constant) if s is not None],
        studied=studied,
        objectives=1 if history is None else history.objectives,
        trials=trials_table(run.trials, unfinished),
        finals=finals_table(run.finals),
        tasks=tasks_overview(run),
        task_sections=task_sections(run),
        manifest=list(_flat(run.manifest)),
        manifest_text=json.dumps(run.manifest, indent=2, ensure_ascii=False, default=str),
    )


def _flat(table: Mapping[str, Any], prefix: str = "", depth: int = 3) -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of what a nested table holds."""
    for key, value in table.items():
        name = f"{prefix}{shown(key, 80)}"
        if isinstance(value, Mapping) and value and depth:
            yield from _flat(table_of(value), f"{name}.", depth - 1)
        elif isinstance(value, (list, Mapping)):
            yield name, shown(json.dumps(value, ensure_ascii=False, default=str), 500)
        elif value is not None:
            yield name, shown(value, 500)
