from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from autopeft.counting import Counts
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.report.html.figure import Figure
from autopeft.report.html.journal import copy_journal, read_history
from autopeft.report.html.optuna_figures import importance_figure, importances, slice_figures, timeline_figure
from autopeft.runs.folder import RunFolder
from autopeft.search.core.jobs import JobResult
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.candidate import Candidate
from autopeft.search.space.parameters import Parameter

Make = Callable[..., RunFolder]


def test_the_study_of_a_run(make_run: Make) -> None:
    folder = make_run(trials=12)
    history = read_history(folder.journal, folder.trials().records)
    trials = history.study.get_trials(deepcopy=False)
    assert [t.number for t in trials] == list(range(12))
    assert trials[3].state == TrialState.FAIL
    assert trials[6].state == TrialState.PRUNED
    assert trials[6].intermediate_values == {20: pytest.approx(folder.lines()[6]["rungs"]["20"])}
    assert trials[4].value == folder.lines()[4]["score"]
    assert all(not t.user_attrs for t in trials)
    assert history.labels == {"rank": {i: str(r) for i, r in enumerate((1, 2, 4, 8, 16))}}
    assert sorted(history.parameters) == ["kind", "learning_rate", "rank"]


def test_two_objectives_become_the_score_alone_and_rungs_come_from_the_records(make_run: Make) -> None:
    folder = make_run(trials=12, objectives=2)
    history = read_history(folder.journal, folder.trials().records)
    assert history.objectives == 2
    assert len(history.study.directions) == 1
    assert history.complete[0].values == [folder.lines()[0]["score"]]
    assert 20 in history.study.get_trials(deepcopy=False)[6].intermediate_values


def test_reading_leaves_the_folder_as_it_was(make_run: Make) -> None:
    folder = make_run(trials=5, finished=False)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.path.iterdir()}
    folder.path.chmod(0o555)
    try:
        history = read_history(folder.journal, folder.trials().records)
    finally:
        folder.path.chmod(0o755)
    assert [r.number for r in history.unfinished] == [4]
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.path.iterdir()} == before


@pytest.mark.parametrize("size", [0, 10, 1 << 20, (1 << 20) + 1])
def test_only_whole_lines_are_copied(tmp_path: Path, size: int) -> None:
    journal, copy = tmp_path / "journal.log", tmp_path / "copy.log"
    line = b"x" * size + b"\n"
    journal.write_bytes(line * 3 + b'{"op_code": 4, "wor')
    copy_journal(journal, copy)
    assert copy.read_bytes() == line * 3


def test_a_journal_without_a_whole_line_is_empty(tmp_path: Path) -> None:
    journal, copy = tmp_path / "journal.log", tmp_path / "copy.log"
    journal.write_bytes(b"torn")
    copy_journal(journal, copy)
    assert copy.read_bytes() == b""
    with pytest.raises(UsageError, match="holds no study"):
        read_history(journal)


def test_a_journal_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    journal.write_bytes(b"x\n" * 5000)
    with pytest.raises(UsageError, match="at most 9,999 bytes"):
        copy_journal(journal, tmp_path / "copy.log", limit=9999)
    copy_journal(journal, tmp_path / "copy.log", limit=10_000)


def test_a_journal_that_lies_elsewhere_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("theirs\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.log").symlink_to("../secret")
    with pytest.raises(UsageError, match="leads out of its folder"):
        read_history(tmp_path / "run" / "journal.log")


@pytest.mark.parametrize(
    "lines",
    [
        [{"op_code": 5, "worker_id": "w", "trial_id": 7, "param_name": "x"}],
        [{"op_code": 99}],
        [{}],
        [[1, 2]],
        [
            {"op_code": 0, "worker_id": "w", "study_name": "autopeft", "directions": [2]},
            {
                "op_code": 4,
                "worker_id": "w",
                "study_id": 0,
                "state": 3,
                "params": {},
                "distributions": {"rank": '{"name": "IntDistribution", "attributes": {"low": 1, "high": 4}}'},
                "datetime_start": None,
            },
        ],
    ],
)
def test_a_damaged_journal_is_one_sentence(tmp_path: Path, lines: list[object]) -> None:
    journal = tmp_path / "journal.log"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UsageError, match=r"journal\.log"):
        read_history(journal)


def test_no_journal(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no journal"):
        read_history(tmp_path / "journal.log")


def test_names_are_safe_for_plots_and_stay_apart(make_run: Make) -> None:
    words = "<b>" + "long " * 20
    folder = make_run(trials=4, words=words)
    history = read_history(folder.journal, folder.trials().records)
    trial = history.study.get_trials(deepcopy=False)[0]
    assert all("<" not in name and len(name) < 60 for name in trial.params)
    assert len(trial.params) == 3
    (kind,) = [v for k, v in trial.params.items() if k.startswith("kind")]
    assert "<" not in str(kind)
    assert set(history.labels) <= set(trial.params)


SWITCHED = (
    Parameter("on", "categorical", (True, False)),
    Parameter("lora.alpha", "categorical", (1, 4), sizes=(1, 4)),
    Parameter("lora.rank", "categorical", (1, 2, 4, 8), sizes=(1, 2, 4, 8)),
)


def switched(values: dict[str, Any]) -> Candidate:
    """LoRA or (IA)³, at a rate of its own for each point, so that no two are one recipe."""
    item: Any = {"lora": {"rank": values["lora.rank"], "alpha": values["lora.alpha"]}}
    rate = 1e-3 * (1 + SWITCHED[2].choices.index(values["lora.rank"]) + 4 * (values["lora.alpha"] == 4))
    recipe = {"layers": [{"attach": [item if values["on"] else "ia3"]}], "training": {"learning_rate": rate}}
    found = Recipe.from_dict(recipe)
    return Candidate(found, Counts(10, 10, 0, 1000), found.hash(), values)


def study_of_switches(journal: Path, **more: Any) -> None:
    """Without LoRA the score follows the alpha that the recipe does not have; with it, the rank alone."""
    names = [p.name for p in SWITCHED]
    points = [dict(zip(names, row, strict=True)) for row in product(*(p.choices for p in SWITCHED))]
    options: dict[str, Any] = {"sampler": "random", "seed": 0, "trials": 16, "rungs": Rungs.of(10, "none")}
    study = SearchStudy(journal, SWITCHED, switched, first=points, **options, **more)
    for point in points:
        proposal = study.propose()
        assert proposal is not None
        score = point["lora.rank"] / 20 if point["on"] else 0.3 + 0.3 * (point["lora.alpha"] == 4)
        study.record(proposal.number, JobResult("x", scores={"select": score}))


def test_a_parameter_counts_only_where_the_recipe_had_it(tmp_path: Path) -> None:
    def in_use(point: Mapping[str, Any], recipe: Recipe) -> set[str]:
        return {name for name in point if point["on"] or name == "on"}

    study_of_switches(tmp_path / "all.log")
    study_of_switches(tmp_path / "used.log", in_use=in_use)
    counted, used = (read_history(tmp_path / name) for name in ("all.log", "used.log"))
    assert used.labels == {
        "lora.alpha": {0: "1", 1: "4"},
        "lora.rank": {0: "1", 1: "2", 2: "4", 3: "8"},
    }
    assert sorted(used.parameters) == ["lora.alpha", "lora.rank", "on"]
    misled, told = importances(counted), importances(used)
    assert misled["lora.alpha"] > 0.2, "what was absent seemed to matter"
    assert told["lora.alpha"] < 0.02
    assert told["on"] > 0.2
    slices = slice_figures(used)
    assert isinstance(slices, list)
    assert {f.title for f in slices} == {"on", "lora.alpha", "lora.rank"}
    drawn = importance_figure(used)
    assert isinstance(drawn, Figure)
    assert "did not have a parameter" in drawn.caption


def test_what_was_cut_off_is_not_among_the_failed(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    options: dict[str, Any] = {"sampler": "random", "seed": 0, "trials": 4, "rungs": Rungs.of(10, "none")}
    study = SearchStudy(journal, SWITCHED, switched, **options)
    for failure in ("stopped", "failed"):
        proposal = study.propose()
        assert proposal is not None
        study.record(proposal.number, JobResult("x", error="e", failure=failure))
    drawn = timeline_figure(read_history(journal))
    assert isinstance(drawn, Figure)
    names = [trace["name"] for trace in json.loads(drawn.data)["data"]]
    assert sorted(names) == ["failed", "interrupted"]
