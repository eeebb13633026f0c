"""The plots that are ours: size against score, baselines with their deviations, differences, hypervolume."""

from __future__ import annotations

from textwrap import wrap

import plotly.graph_objects as go

from autopeft.errors import UsageError
from autopeft.report.html.figure import BLUE, GREEN, GREY, ORANGE, Figure, Missing, figure, log_ticks
from autopeft.report.html.load import Run, Scored
from autopeft.report.html.trials import methods_of
from autopeft.report.html.values import plotly_text, shown
from autopeft.report.text import number, percent
from autopeft.runs.documents import read_gated
from autopeft.runs.folder import GATES
from autopeft.search.selection.contender import mean_sd

__all__ = ["baseline_figure", "difference_figure", "front_figure", "gates_figure", "hypervolume_figure"]

_FRAMES = 40
_SYMBOLS = ("square", "triangle-up", "hexagon", "cross", "pentagon")
# Color, symbol and place of the scores on each split.
_SPLITS = (("test", BLUE, "circle", 0.14), ("select", GREY, "diamond", -0.14))


def front_figure(run: Run) -> Figure | Missing:
    """Deployed parameters (logarithmic) against the score on *select*."""
    sized = [r for r in run.complete if (r.deployed or 0) > 0]
    if not sized:
        return Missing("No trial has been trained to the end yet, so that there is no front to draw.")
    drawn = go.Figure()
    texts = [
        f"trial {plotly_text(r.number, 12)}<br>{plotly_text(methods_of(r.recipe))}<br>"
        f"{number(r.deployed)} parameters ({percent(r.share)})"
        for r in sized
    ]
    drawn.add_scatter(
        x=[float(r.deployed or 0) for r in sized],
        y=[r.score for r in sized],
        mode="markers",
        name="trials",
        marker={"symbol": "circle-open", "color": BLUE, "size": 9, "line": {"width": 2}},
        text=texts,
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
    )
    points = [p for p in run.front if p.deployed > 0]
    drawn.add_scatter(
        x=[float(p.deployed) for p in points],
        y=[p.score for p in points],
        mode="lines+markers",
        name="front",
        line={"shape": "hv", "color": BLUE, "width": 2},
        marker={"symbol": "diamond", "color": BLUE, "size": 10},
        hovertemplate="on the front: %{x:,} parameters<br>%{y:.4f}<extra></extra>",
    )

    # Winner and baselines, where what scores them is what scores the trials.
    marked: list[tuple[Scored, str, str, str, int]] = []
    if run.trial_metric == run.select_metric:
        if run.winner and run.winner.select:
            marked.append((run.winner, "winner, fresh seeds", "star", ORANGE, 15))
        for i, baseline in enumerate(run.baselines):
            name, symbol = plotly_text(baseline.name), _SYMBOLS[i % len(_SYMBOLS)]
            marked.append((baseline, name, symbol, GREEN, 11))
    for scored, name, symbol, color, size in marked:
        mean, sd = mean_sd(scored.select)
        if mean is None or scored.deployed is None:
            continue
        if scored.deployed > 0:
            drawn.add_scatter(
                x=[scored.deployed],
                y=[mean],
                mode="markers",
                name=name,
                error_y={"type": "data", "array": [sd or 0.0], "color": color},
                marker={"symbol": symbol, "color": color, "size": size},
                hovertemplate=f"{name}: %{{x:,}} parameters<br>%{{y:.4f}}<extra></extra>",
            )
            continue
        known = [x for trace in drawn.data for x in trace.x]
        drawn.add_scatter(
            x=[min(known), max(known)],
            y=[mean, mean],
            mode="lines",
            name=f"{name} (0 parameters)",
            line={"dash": "dash", "color": GREY, "width": 2},
            hovertemplate=f"{name}: 0 parameters<br>%{{y:.4f}}<extra></extra>",
        )
    sizes = [x for trace in drawn.data for x in trace.x]
    drawn.update_xaxes(type="log", title="deployed parameters", **log_ticks(sizes))
    drawn.update_yaxes(title=f"{plotly_text(run.trial_metric, 24)} on select")
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


def _wrapped(name: str) -> str:
    """A name on several lines, so that it takes little of a narrow plot's width."""
    lines = wrap(plotly_text(name, 80), 24, break_long_words=False, break_on_hyphens=False)
    return "<br>".join(lines)


def baseline_figure(run: Run) -> Figure | Missing:
    """Winner and baselines: mean ± sd on *test*, on *select* where the same metric scores it, and every
    seed."""
    splits = _SPLITS if run.select_metric == run.metric else _SPLITS[:1]
    baselines = [b for b in run.baselines if any(getattr(b, split) for split, *_ in splits)]
    rows = [r for r in ([run.winner] if run.winner else []) if r.test or r.select] + baselines
    if not baselines:
        return Missing("No baseline has been measured in this run.")
    drawn = go.Figure()
    for split, color, symbol, shift in splits:
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
    found = run.result.comparisons if run.result else ()
    rows = [(shown(c.baseline, 120), c.difference, c.low, c.high) for c in found]
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


def gates_figure(run: Run) -> Figure | None:
    """Probabilities of blocks by layer, with a slider over the steps of the training; `None` where no blocks
    were gated. Of several gated trainings it is the winner's, else the first."""
    try:
        trainings = read_gated(run.folder.lines(GATES))
    except UsageError:
        return None
    if not trainings:
        return None
    number = run.result.number if run.result else None
    gated = next((one for one in trainings if one.trial == number), trainings[0])
    rows, columns = (list(dict.fromkeys(names)) for names in (gated.blocks, gated.layers))
    places = [(rows.index(b), columns.index(c)) for b, c in zip(gated.blocks, gated.layers, strict=True)]

    def table(probabilities: list[float]) -> list[list[float | None]]:
        found: list[list[float | None]] = [[None] * len(columns) for _ in rows]
        for (row, column), p in zip(places, probabilities, strict=True):
            found[row][column] = round(p, 3)
        return found

    every = max(1, len(gated.probabilities) // _FRAMES)
    shown_at = sorted({*range(0, len(gated.probabilities), every), len(gated.probabilities) - 1})
    tables = [table(gated.probabilities[step]) for step in shown_at]
    drawn = go.Figure(
        go.Heatmap(
            x=[plotly_text(name) for name in columns],
            y=[plotly_text(name) for name in rows],
            z=tables[-1],
            zmin=0,
            zmax=1,
            colorscale=[[0, "rgba(57,135,214,0.05)"], [1, BLUE]],
            texttemplate="%{z:.2f}",
            hovertemplate="%{y} in layers %{x}: %{z:.3f}<extra></extra>",
        )
    )
    drawn.update_xaxes(title="layers", type="category")
    drawn.update_yaxes(autorange="reversed")
    steps = [
        {"method": "restyle", "label": str(step + 1), "args": [{"z": [values]}]}
        for step, values in zip(shown_at, tables, strict=True)
    ]
    drawn.update_layout(
        sliders=[
            {"active": len(steps) - 1, "currentvalue": {"prefix": "step "}, "steps": steps, "pad": {"t": 50}}
        ]
    )
    return figure(
        "gates",
        "Probabilities of blocks",
        "How probable it is that a block is kept, while all of them train. The probabilities times the "
        "blocks' parameters sum to the budget. Move the slider to see how they came about.",
        drawn,
        height=160 + 44 * len(rows),
    )


def hypervolume_figure(run: Run) -> Figure | None:
    """Hypervolume over the training steps spent; `None` where it was not recorded."""
    points = run.result.hypervolume if run.result else ()
    if not points:
        return None
    text = [f"trial {p.trial}" + ("" if p.seconds is None else f", {p.seconds:.0f} s") for p in points]
    drawn = go.Figure(
        go.Scatter(
            x=[p.steps for p in points],
            y=[p.hypervolume for p in points],
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
