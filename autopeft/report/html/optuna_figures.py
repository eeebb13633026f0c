"""The plots that `optuna.visualization` has: history, timeline, rungs, importances, slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import unescape

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from autopeft.report.html.figure import BLUE, GREEN, GREY, ORANGE, RED, Figure, Missing, figure, log_ticks
from autopeft.report.html.journal import History, quiet_optuna
from autopeft.report.html.values import plotly_text

__all__ = [
    "ENOUGH",
    "FIGURES",
    "history_figure",
    "importance_figure",
    "importances",
    "rungs_figure",
    "slice_figures",
    "timeline_figure",
]

ENOUGH = 10
_FEW = 40
_SLICES = 6
_LINES = 300
# Of the trials with a score, the share that counts as good. The library's tenth is one or two trials of a
# short search; a quarter ranked the truly important parameters higher at 20, 40 and 100 trials.
_GOOD = 0.25
_STATES: Mapping[str, tuple[str, str, str]] = {
    "COMPLETE": ("trained to the end", BLUE, ""),
    "PRUNED": ("stopped at a rung", ORANGE, "/"),
    "FAIL": ("failed", RED, "x"),
    "RUNNING": ("not ended", GREEN, "."),
    # Searches have no trials that wait to begin: in plots the state stands for those that were cut off.
    "WAITING": ("interrupted", GREY, "-"),
}

# How the line of a trial that was not trained to the end finishes: words, colour, mark.
_ENDS: Mapping[TrialState, tuple[str, str, str]] = {
    TrialState.PRUNED: (", stopped", ORANGE, "x"),
    TrialState.RUNNING: (", not ended", GREEN, "circle-open"),
}


@quiet_optuna()
def history_figure(history: History) -> Figure | Missing:
    """Score of every trial, and the best so far."""
    if not history.complete:
        return Missing("No trial has been trained to the end yet, so that there is no history to draw.")
    metric = plotly_text(history.metric, 24)
    drawn = optuna.visualization.plot_optimization_history(history.study, target_name=metric)
    # Kinds of trials of which there are none (infeasible ones) leave an empty trace.
    drawn.data = [trace for trace in drawn.data if len(trace.x or ())]
    for trace, name, color in zip(drawn.data, ("a trial", "best so far"), (BLUE, ORANGE), strict=False):
        trace.update(name=name, marker={"color": color, "size": 8}, line={"color": color, "shape": "hv"})
    drawn.update_xaxes(title="trial")
    drawn.update_yaxes(title=f"{metric} on select")
    return figure(
        "history",
        "History",
        "Every trial that was trained to the end, and the best score so far. A recipe that was proposed "
        "again appears with its known score. Stopped trials are left out: they were trained for less.",
        drawn,
    )


@quiet_optuna()
def timeline_figure(history: History) -> Figure | Missing:
    """When each trial ran."""
    if not any(t.datetime_start for t in history.study.get_trials(deepcopy=False)):
        return Missing("No trial has been started yet, so that there is no timeline to draw.")
    drawn = optuna.visualization.plot_timeline(history.study)
    for trace in drawn.data:
        name, color, pattern = _STATES.get(str(trace.name), (str(trace.name).lower(), GREY, ""))
        trace.update(
            name=name,
            marker={
                "color": color,
                "pattern": {"shape": pattern, "fillmode": "overlay", "fgcolor": "#ffffff", "solidity": 0.4},
            },
            hovertemplate=f"%{{text}}<extra>{name}</extra>",
        )
    drawn.update_xaxes(title="time")
    drawn.update_yaxes(title="trial", autorange="reversed")
    return figure(
        "timeline",
        "Timeline",
        "From the start of each trial to its end, the time that it waited on a rung included.",
        drawn,
    )


@quiet_optuna()
def rungs_figure(history: History) -> Figure | Missing:
    """Scores at the rungs; the line of a trial that was stopped, or waits, is dotted and ends in a mark."""
    trials = history.study.get_trials(deepcopy=False)
    with_rungs = [t for t in trials if t.intermediate_values]
    if len({step for t in with_rungs for step in t.intermediate_values}) < 2:
        return Missing("No trial was scored before its end: this search had no rungs, or none was reached.")
    drawn = optuna.visualization.plot_intermediate_values(history.study)
    drawn.data = drawn.data[-_LINES:]
    state = {f"Trial{t.number}": t.state for t in with_rungs}
    for trace in drawn.data:
        number = str(trace.name).removeprefix("Trial")
        word, color, mark = _ENDS.get(state[trace.name], ("", BLUE, "circle"))
        trace.update(
            name=f"trial {number}{word}",
            line={"dash": "dot" if word else "solid", "color": color},
            marker={"symbol": ["circle"] * (len(trace.x) - 1) + [mark], "color": color, "size": 8},
        )
    stopped, waiting = (
        sum(s == wanted for s in state.values()) for wanted in (TrialState.PRUNED, TrialState.RUNNING)
    )
    last = f" The last {_LINES} are drawn." if len(with_rungs) > _LINES else ""
    wait = f"{waiting} have not ended (dotted, open circle); " if waiting else ""
    drawn.update_xaxes(title="step")
    drawn.update_yaxes(title=f"{plotly_text(history.metric, 24)} on select")
    return figure(
        "rungs-plot",
        "Scores at the rungs",
        f"{stopped} of {len(with_rungs)} trials were stopped at a rung (dotted, ending in a cross); {wait}"
        f"the others went on (solid).{last}",
        drawn,
    )


def _too_few(history: History) -> str | None:
    done, varied = len(history.complete), len(history.parameters)
    if done < ENOUGH:
        return f"{done} trials were trained to the end; with fewer than {ENOUGH} nothing can be said of this."
    return None if varied else "No parameter took more than one value."


@quiet_optuna()
def importances(history: History) -> dict[str, float]:
    """How much each parameter decides whether a trial is among the best quarter; they add up to 1."""
    return get_param_importances(
        history.study,
        evaluator=PedAnovaImportanceEvaluator(target_quantile=_GOOD),
        params=history.parameters,
    )


@quiet_optuna()
def importance_figure(history: History) -> Figure | Missing:
    """Which parameters of the space decide whether a trial is among the best quarter (PED-ANOVA)."""
    reason = _too_few(history)
    if reason:
        return Missing(reason)
    drawn = optuna.visualization.plot_param_importances(
        history.study,
        evaluator=PedAnovaImportanceEvaluator(target_quantile=_GOOD),
        params=history.parameters,
    )
    drawn.update_traces(marker_color=BLUE)
    # Room for the figures at the ends of the bars.
    most = max((max(trace.x) for trace in drawn.data), default=1.0)
    drawn.update_xaxes(title="share of the importance", range=[0, 1.25 * most])
    drawn.update_yaxes(title=None)
    done = len(history.complete)
    caution = f" {done} trials are few: read it as a hint." if done < _FEW else ""
    return figure(
        "importances",
        "Importance of the parameters",
        "How much each parameter of the space decides whether a trial is among the best quarter (PED-ANOVA, "
        f"Watanabe et al. 2023), over {done} trials. A trial whose recipe did not have a "
        f"parameter does not count for it.{caution}",
        drawn,
        height=max(240, 90 + 22 * len(history.parameters)),
    )


@quiet_optuna()
def slice_figures(history: History) -> list[Figure] | Missing:
    """Score against each of the most important parameters."""
    reason = _too_few(history)
    if reason:
        return Missing(reason)
    found, metric = [], plotly_text(history.metric, 24)
    for i, name in enumerate(list(importances(history))[:_SLICES]):
        drawn = optuna.visualization.plot_slice(history.study, params=[name], target_name=metric)
        drawn.update_traces(marker={"color": BLUE, "showscale": False, "colorbar": None, "opacity": 0.7})
        labels = history.labels.get(name, {})
        if labels:
            drawn.update_xaxes(tickvals=sorted(labels), ticktext=[labels[k] for k in sorted(labels)])
        elif drawn.layout.xaxis.type == "log":
            drawn.update_xaxes(**log_ticks([x for trace in drawn.data for x in trace.x]))
        # The heading says it; outside plotly the name is escaped by the page.
        drawn.update_xaxes(title=None)
        drawn.update_yaxes(title=metric)
        found.append(figure(f"slice-{i}", unescape(name), "", drawn, height=260))
    return found


FIGURES: Mapping[str, Callable[[History], Figure | list[Figure] | Missing]] = {
    "history": history_figure,
    "timeline": timeline_figure,
    "rungs": rungs_figure,
    "importances": importance_figure,
    "slices": slice_figures,
}
"""By name what draws a figure of the study, or says why there is none.

Raises:
    ValueError: the study is from elsewhere, and holds what Optuna cannot draw.
"""
