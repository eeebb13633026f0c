"""The plots that are ours: size against score, baselines with their deviations, differences, hypervolume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from autopeft.report.html.figure import BLUE, GREEN, GREY, ORANGE, Figure, Missing, figure, log_ticks
from autopeft.report.html.load import Run, Scored
from autopeft.report.html.trials import methods_of
from autopeft.report.html.values import mapping, plotly_text, real, shown, whole
from autopeft.report.text import number, percent
from autopeft.search.selection.contender import mean_sd

__all__ = ["baseline_figure", "difference_figure", "front_figure", "hypervolume_figure"]

_SYMBOLS = ("square", "triangle-up", "hexagon", "cross", "pentagon")


def _hover(r: Mapping[str, Any]) -> str:
    counts = mapping(r.get("counts"))
    size = f"{number(real(counts.get('deployed')))} parameters ({percent(real(counts.get('share')))})"
    return f"trial {plotly_text(r.get('number'), 12)}<br>{plotly_text(methods_of(r.get('recipe')))}<br>{size}"


def front_figure(run: Run) -> Figure | Missing:
    """Deployed parameters (logarithmic) against the score on *select*."""
    sized = [r for r in run.complete if (real(mapping(r.get("counts")).get("deployed")) or 0) > 0]
    if not sized:
        return Missing("No trial has been trained to the end yet, so that there is no front to draw.")
    drawn = go.Figure()
    drawn.add_scatter(
        x=[real(mapping(r["counts"])["deployed"]) for r in sized],
        y=[real(r["score"]) for r in sized],
        mode="markers",
        name="trials",
        marker={"symbol": "circle-open", "color": BLUE, "size": 9, "line": {"width": 2}},
        text=[_hover(r) for r in sized],
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
    )
    points = [p for p in run.front if (real(p["deployed"]) or 0) > 0]
    drawn.add_scatter(
        x=[real(p["deployed"]) for p in points],
        y=[real(p["score"]) for p in points],
        mode="lines+markers",
        name="front",
        line={"shape": "hv", "color": BLUE, "width": 2},
        marker={"symbol": "diamond", "color": BLUE, "size": 10},
        hovertemplate="on the front: %{x:,} parameters<br>%{y:.4f}<extra></extra>",
    )
    if run.winner and run.winner.select:
        _scored_point(drawn, run.winner, "winner, fresh seeds", "star", ORANGE, size=15)
    for i, baseline in enumerate(run.baselines):
        _scored_point(
            drawn, baseline, plotly_text(baseline.name), _SYMBOLS[i % len(_SYMBOLS)], GREEN, size=11
        )
    sizes = [x for trace in drawn.data for x in trace.x]
    drawn.update_xaxes(type="log", title="deployed parameters", **log_ticks(sizes))
    drawn.update_yaxes(title=f"{plotly_text(run.metric, 24)} on select")
    return figure(
        "front-plot",
        "Size against score",
        "Each trial that was trained to the end, with the search's seed; the front joins those that no other "
        "beats in both size and score. Winner and baselines: mean and standard deviation over fresh seeds. "
        "Duplicates and stopped trials are left out. A hybrid without parameters is a dashed line, for a "
        "logarithmic axis has no zero.",
        drawn,
        height=440,
    )


def _scored_point(
    drawn: go.Figure, baseline: Scored, name: str, symbol: str, color: str, *, size: int
) -> None:
    mean, sd = mean_sd(baseline.select)
    if mean is None or baseline.deployed is None:
        return
    if baseline.deployed > 0:
        drawn.add_scatter(
            x=[baseline.deployed],
            y=[mean],
            mode="markers",
            name=name,
            error_y={"type": "data", "array": [sd or 0.0], "color": color},
            marker={"symbol": symbol, "color": color, "size": size},
            hovertemplate=f"{name}: %{{x:,}} parameters<br>%{{y:.4f}}<extra></extra>",
        )
        return
    known = [x for trace in drawn.data for x in trace.x]
    drawn.add_scatter(
        x=[min(known), max(known)],
        y=[mean, mean],
        mode="lines",
        name=f"{name} (0 parameters)",
        line={"dash": "dash", "color": GREY, "width": 2},
        hovertemplate=f"{name}: 0 parameters<br>%{{y:.4f}}<extra></extra>",
    )


def _wrapped(name: str, width: int = 24) -> str:
    """A name on several lines, so that it takes little of a narrow plot's width."""
    lines: list[str] = [""]
    for word in plotly_text(name, 80).split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)


def baseline_figure(run: Run) -> Figure | Missing:
    """Winner and baselines: mean ± sd on *test* and *select*, and every seed."""
    baselines = [b for b in run.baselines if b.test or b.select]
    rows = [r for r in ([run.winner] if run.winner else []) if r.test or r.select] + baselines
    if not baselines:
        return Missing("No baseline has been measured in this run.")
    drawn = go.Figure()
    for split, color, symbol, shift in (("test", BLUE, "circle", 0.14), ("select", GREY, "diamond", -0.14)):
        scored = [(i, scores) for i, r in enumerate(reversed(rows)) if (scores := getattr(r, split))]
        summary = [mean_sd(scores) for _, scores in scored]
        if not scored:
            continue
        drawn.add_scatter(
            x=[mean for mean, _ in summary],
            y=[i + shift for i, _ in scored],
            mode="markers",
            name=f"{split}: mean ± sd",
            error_x={"type": "data", "array": [sd or 0.0 for _, sd in summary], "color": color, "width": 6},
            marker={"symbol": symbol, "color": color, "size": 12},
            hovertemplate=f"{split}: %{{x:.4f}}<extra></extra>",
        )
        drawn.add_scatter(
            x=[score for _, scores in scored for score in scores],
            y=[i + shift for i, scores in scored for _ in scores],
            mode="markers",
            name=f"{split}: each seed",
            marker={"symbol": f"{symbol}-open", "color": color, "size": 6},
            hovertemplate=f"{split}, one seed: %{{x:.4f}}<extra></extra>",
        )
    names = [_wrapped(r.name) for r in reversed(rows)]
    drawn.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=names, range=[-0.6, len(rows) - 0.4], zeroline=False
    )
    drawn.update_xaxes(title=plotly_text(run.metric, 24))
    return figure(
        "baselines-plot",
        "Winner and baselines",
        "Means over fresh seeds with one standard deviation, and every seed. All were trained alike; test "
        "was touched once.",
        drawn,
        height=170 + 62 * len(rows),
    )


def difference_figure(run: Run) -> Figure | None:
    """Paired differences on *test* with their intervals; `None` where none was measured."""
    found = run.result.get("comparisons")
    rows = [
        (shown(c.get("baseline"), 120), real(c.get("difference")), real(c.get("low")), real(c.get("high")))
        for c in (found if isinstance(found, list) else [])
        if isinstance(c, Mapping)
    ]
    known = [(n, d, a, b) for n, d, a, b in rows if d is not None and a is not None and b is not None]
    if not known:
        return None
    known.reverse()
    drawn = go.Figure(
        go.Scatter(
            x=[d for _, d, _, _ in known],
            y=list(range(len(known))),
            mode="markers",
            name="difference",
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [b - d for _, d, _, b in known],
                "arrayminus": [d - a for _, d, a, _ in known],
                "color": BLUE,
                "width": 6,
            },
            marker={"symbol": "circle", "color": BLUE, "size": 11},
            hovertemplate="%{x:+.4f}<extra></extra>",
            showlegend=False,
        )
    )
    drawn.add_vline(x=0, line={"dash": "dash", "color": GREY, "width": 2})
    drawn.update_yaxes(
        tickvals=list(range(len(known))),
        ticktext=[_wrapped(n) for n, _, _, _ in known],
        range=[-0.6, len(known) - 0.4],
        zeroline=False,
    )
    drawn.update_xaxes(title=f"winner minus baseline, {plotly_text(run.metric, 24)} on test")
    return figure(
        "differences",
        "Differences from the baselines",
        "Winner minus baseline on test, with a 95 % interval. An interval that crosses the dashed line shows "
        "no difference.",
        drawn,
        height=130 + 62 * len(known),
    )


def hypervolume_figure(run: Run) -> Figure | None:
    """Hypervolume over the training steps spent; `None` where it was not recorded."""
    found = run.result.get("hypervolume")
    rows: Sequence[Any] = found if isinstance(found, list) else []
    points = [
        (steps, volume, whole(r.get("trial")), real(r.get("seconds")))
        for r in rows
        if isinstance(r, Mapping)
        and (steps := real(r.get("steps"))) is not None
        and (volume := real(r.get("hypervolume"))) is not None
    ]
    if not points:
        return None
    text = [f"trial {t}" + ("" if s is None else f", {s:.0f} s") for _, _, t, s in points]
    drawn = go.Figure(
        go.Scatter(
            x=[p[0] for p in points],
            y=[p[1] for p in points],
            mode="lines+markers",
            name="hypervolume",
            line={"shape": "hv", "color": BLUE, "width": 2},
            marker={"color": BLUE, "size": 5},
            text=text,
            hovertemplate="%{text}<br>%{x:,} steps<br>%{y:.4f}<extra></extra>",
        )
    )
    drawn.update_xaxes(title="training steps so far")
    drawn.update_yaxes(title="hypervolume")
    return figure(
        "hypervolume",
        "Hypervolume",
        "How much of the plane of size and score the front dominates, against all training steps spent. It "
        "shows how this run went, and compares no two runs.",
        drawn,
    )
