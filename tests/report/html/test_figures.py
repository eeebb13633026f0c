"""What the plots hold. That they are drawn is seen in `test_browser.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autopeft.report.html import optuna_figures, own_figures
from autopeft.report.html.figure import Figure, Missing
from autopeft.report.html.journal import History, read_history
from autopeft.report.html.load import Run, read_run
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord

Make = Callable[..., RunFolder]


def traces(figure: Figure | Missing | None) -> dict[str, dict[str, Any]]:
    assert isinstance(figure, Figure), figure
    return {str(t.get("name")): t for t in json.loads(figure.data)["data"]}


@pytest.fixture(scope="module")
def run(make_run: Make) -> Run:
    return read_run(make_run(trials=24))


@pytest.fixture(scope="module")
def history(run: Run) -> History:
    return read_history(run.folder.journal, run.trials)


def test_the_front_leaves_out_duplicates_and_stopped_trials(run: Run) -> None:
    found = traces(own_figures.front_figure(run))
    complete = [r for r in run.trials if r.state == "complete"]
    assert found["trials"]["y"] == [r.score for r in complete]
    assert len(complete) == 17 < len(run.trials)
    assert found["front"]["x"] == [p.deployed for p in run.front]
    assert found["winner, fresh seeds"]["y"] == [pytest.approx(0.72)]
    assert found["winner, fresh seeds"]["error_y"]["array"] == [pytest.approx(0.01)]
    # Zero parameters have no place on a logarithmic axis: a line across.
    assert found["head only (0 parameters)"]["mode"] == "lines"


def test_baselines_have_deviations_and_every_seed(run: Run) -> None:
    found = traces(own_figures.baseline_figure(run))
    assert found["test: mean ± sd"]["x"] == pytest.approx([0.55, 0.69667, 0.71], abs=1e-4)
    assert found["test: mean ± sd"]["error_x"]["array"] == pytest.approx([0.01, 0.01528, 0.01], abs=1e-4)
    assert len(found["select: each seed"]["x"]) == 9


def test_scores_of_two_metrics_do_not_share_an_axis(make_run: Make) -> None:
    run = read_run(make_run(result={"trial_metric": "likelihood", "select_metric": "likelihood"}))
    assert not [name for name in traces(own_figures.baseline_figure(run)) if name.startswith("select")]
    older = read_run(make_run(result={"trial_metric": "likelihood"}))
    assert len(traces(own_figures.baseline_figure(older))["select: each seed"]["x"]) == 9


def test_differences_have_their_intervals(run: Run) -> None:
    found = traces(own_figures.difference_figure(run))["difference"]
    assert found["x"] == [0.16, 0.0133]
    assert found["error_x"]["array"] == pytest.approx([0.02, 0.0177])
    assert found["error_x"]["arrayminus"] == pytest.approx([0.02, 0.0173])


def test_the_hypervolume_is_drawn_over_steps(run: Run) -> None:
    found = traces(own_figures.hypervolume_figure(run))["hypervolume"]
    assert found["x"][:2] == [60, 120]
    assert len(found["x"]) == 24


@pytest.mark.parametrize("value", [None, [], "x", [1], [{}], [{"difference": "a", "steps": None}]])
def test_what_was_not_measured_is_not_drawn(make_run: Make, value: Any) -> None:
    keys = ("comparisons", "hypervolume", "baselines")
    run = read_run(make_run(trials=1, result=dict.fromkeys(keys, value)))
    assert own_figures.difference_figure(run) is None
    assert own_figures.hypervolume_figure(run) is None
    assert isinstance(own_figures.baseline_figure(run), Missing)


def test_the_history_holds_full_trials_alone(history: History, run: Run) -> None:
    found = traces(optuna_figures.history_figure(history))
    full = [r for r in run.trials if r.state in ("complete", "duplicate")]
    assert found["a trial"]["x"] == [r.number for r in full]
    assert found["best so far"]["y"][-1] == max(r.score or 0.0 for r in full)


def test_states_in_the_timeline_differ_in_more_than_colour(history: History) -> None:
    found = traces(optuna_figures.timeline_figure(history))
    assert set(found) == {"trained to the end", "stopped at a rung", "failed"}
    assert len({t["marker"]["pattern"]["shape"] for t in found.values()}) == 3


def test_stopped_trials_are_marked_at_their_rungs(history: History, run: Run) -> None:
    figure = optuna_figures.rungs_figure(history)
    found = traces(figure)
    assert found["trial 6, stopped"]["marker"]["symbol"] == ["x"]
    assert found["trial 7"]["line"]["dash"] == "solid"
    assert found["trial 7"]["y"] == pytest.approx(list(run.trials[7].rungs.values()))
    assert found["trial 7"]["x"] == [20, 40, 60]
    assert isinstance(figure, Figure)
    assert figure.caption.startswith("5 of 22 trials were stopped")


def test_trials_that_wait_on_a_rung_are_told_from_stopped_ones(make_run: Make) -> None:
    folder = make_run(trials=8, finished=False)
    waiting = TrialRecord("trial", "trial 7", "paused", {}, 7, rungs={"20": 0.6})
    history = read_history(folder.journal, [*folder.trials().records, waiting])
    figure = optuna_figures.rungs_figure(history)
    found = traces(figure)
    assert found["trial 7, not ended"]["marker"]["symbol"] == ["circle-open"]
    assert isinstance(figure, Figure)
    assert "1 of 6 trials were stopped" in figure.caption
    assert "1 have not ended" in figure.caption


def test_a_long_search_draws_a_bounded_number_of_lines(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna_figures, "_LINES", 5)
    figure = optuna_figures.rungs_figure(history)
    assert [name.split(",")[0] for name in traces(figure)] == [f"trial {n}" for n in range(19, 24)]
    assert isinstance(figure, Figure)
    assert figure.caption.endswith("The last 5 are drawn.")


def test_without_rungs_there_is_no_plot_of_them(make_run: Make) -> None:
    """A score at the last step alone is no rung."""
    folder = make_run(trials=8, rungs=False)
    records = [
        replace(r, rungs={"60": r.score} if r.score is not None else {}) for r in folder.trials().records
    ]
    assert isinstance(optuna_figures.rungs_figure(read_history(folder.journal, records)), Missing)


def test_importances_and_slices(history: History) -> None:
    found = traces(optuna_figures.importance_figure(history))
    (bars,) = found.values()
    assert bars["y"][-1] == "learning_rate"  # the score grows with it, and with nothing else
    assert sum(bars["x"]) == pytest.approx(1.0)
    slices = optuna_figures.slice_figures(history)
    assert isinstance(slices, list)
    assert slices[0].title == "learning_rate"
    rank = next(f for f in slices if f.title == "rank")
    axis = json.loads(rank.data)["layout"]["xaxis"]
    assert axis["ticktext"] == ["1", "2", "4", "8", "16"]  # what the indices mean


def test_with_few_trials_nothing_is_said_of_importance(make_run: Make) -> None:
    folder = make_run(trials=8)
    history = read_history(folder.journal, folder.trials().records)
    for found in (
        optuna_figures.importance_figure(history),
        optuna_figures.slice_figures(history),
    ):
        assert isinstance(found, Missing)
        assert found.reason.startswith("6 trials were trained to the end; with fewer than 10")


def test_an_empty_search_draws_nothing(make_run: Make) -> None:
    folder = make_run(trials=0, finished=False)
    run, history = read_run(folder), read_history(folder.journal)
    drawn = (
        own_figures.front_figure(run),
        own_figures.baseline_figure(run),
        optuna_figures.history_figure(history),
        optuna_figures.timeline_figure(history),
        optuna_figures.rungs_figure(history),
        optuna_figures.importance_figure(history),
    )
    assert all(isinstance(f, Missing) and f.reason.endswith(".") for f in drawn)


def test_no_text_of_strangers_is_a_tag_for_plotly(make_run: Make) -> None:
    """plotly draws links and other tags inside texts."""
    words = '<a href="https://example.org">x</a> %{y}'
    run = read_run(make_run(trials=24, words=words))
    history = read_history(run.folder.journal, run.trials, run.metric)
    slices = optuna_figures.slice_figures(history)
    assert isinstance(slices, list)
    figures = [
        own_figures.front_figure(run),
        own_figures.baseline_figure(run),
        own_figures.difference_figure(run),
        own_figures.hypervolume_figure(run),
        optuna_figures.history_figure(history),
        optuna_figures.timeline_figure(history),
        optuna_figures.rungs_figure(history),
        optuna_figures.importance_figure(history),
        *slices,
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        text = json.dumps(json.loads(figure.data), ensure_ascii=False)
        assert "<a" not in text, figure.id
        assert "example.org" not in text or "&lt;a" in text


def test_probabilities_of_gates_have_a_picture_for_each_step(make_run: Make) -> None:
    folder = make_run(trials=4)
    assert own_figures.gates_figure(read_run(folder)) is None
    blocks = {"blocks": ["lora", "ia3", "lora"], "layers": ["0–1", "0–1", "2"]}
    history = [[0.2, 0.2, 0.2], [0.5, 0.1, 0.15]]
    lines: list[dict[str, Any]] = [
        {"trial": 0, **blocks, "probabilities": [[0.9, 0.9, 0.9]]},
        {"trial": 0, **blocks, "probabilities": history},  # of the same training, resumed
        {"trial": 1, **blocks, "probabilities": [[0.1, 0.1]]},  # of three groups
        {"trial": 2, "blocks": 5, "layers": None},
    ]
    (folder.path / "gates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = own_figures.gates_figure(read_run(folder))
    assert drawn is not None
    found = json.loads(drawn.data)
    (heat,) = found["data"]
    assert (heat["x"], heat["y"]) == (["0–1", "2"], ["lora", "ia3"])
    assert heat["z"] == [[0.5, 0.15], [0.1, None]]
    (slider,) = found["layout"]["sliders"]
    assert [step["args"][0]["z"][0][0] for step in slider["steps"]] == [[0.2, 0.2], [0.5, 0.15]]
    (folder.path / "gates.jsonl").write_text("no table\n" * 2)
    assert own_figures.gates_figure(read_run(folder)) is None
