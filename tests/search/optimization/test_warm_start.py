"""Recipes of other searches as points of a space."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.permissions import modes_hold, sealed
from support.projecting import SIX, bound_to, recipe

from autopeft.errors import RecipeError, UsageError
from autopeft.recipe import Recipe
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord
from autopeft.search.optimization import warm_start
from autopeft.search.optimization.warm_start import points_from, runs_as_paths

HEAD: dict[str, Any] = {"groups": {"head": {"learning_rate": 1e-2}}}


Make = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """Makes a run folder from trials (recipe, score, deployed) and its winner."""

    def make(name: str, *trials: tuple[Recipe, float, int], winner: Recipe | None = None) -> RunFolder:
        run = RunFolder.create("t", "abcdef", out=tmp_path / "runs" / name)
        run.write_json("manifest.json", {"task": "t"})
        for number, (found, score, deployed) in enumerate(trials):
            counts = {"deployed": deployed, "share": 0.1}
            data = found.to_dict()
            record = TrialRecord("trial", "t", "complete", data, number, counts=counts, score=score)
            run.append_line("trials.jsonl", record)
        if winner is not None:
            run.write_text("recipe.yaml", winner.to_yaml())
        return run

    return make


def lora(rank: int) -> Recipe:
    """A member of the space `lora`."""
    return recipe({"lora": {"rank": rank, "sites": ["q", "v"]}}, **HEAD)


def ranks(found: list[dict[str, Any]]) -> list[int]:
    return [values["rank"] for values in found]


def test_a_run_gives_its_winner_then_the_best_and_the_front_by_turns(tmp_path: Path, make_run: Make) -> None:
    scores = {1: (0.5, 10), 2: (0.9, 20), 4: (0.7, 12), 8: (0.8, 40), 16: (0.89, 60), 32: (0.88, 70)}
    run = make_run("first", *((lora(rank), *found) for rank, found in scores.items()), winner=lora(8))
    bound, runs = bound_to("lora", SIX), tmp_path / "runs"
    found, notices = points_from([run.path], bound)
    # The best are 2, 16, 32, 8, 4, 1; the front from the top is 2, 4, 1.
    assert ranks(found) == [8, 2, 16, 4, 32]
    assert notices == []
    assert ranks(points_from(["first"], bound, runs=runs, top=2)[0]) == [8, 2]
    assert ranks(points_from(["latest"], bound, runs=runs, top=9)[0]) == [8, 2, 16, 4, 32, 1]


def test_of_equal_trials_the_smaller_comes_first(make_run: Make) -> None:
    run = make_run("equal", (lora(8), 0.5, 80), (lora(2), 0.5, 20), (lora(4), 0.5, 40))
    assert ranks(points_from([run.path], bound_to("lora", SIX))[0]) == [2, 4, 8]


def test_only_full_trainings_count(make_run: Make) -> None:
    run = make_run("states", (lora(4), 0.5, 10))
    better = {"label": "x", "score": 0.99, "recipe": lora(64).to_dict()}
    for state in ("stopped", "paused", "failed", "duplicate"):
        run.append_line("trials.jsonl", {"kind": "trial", "state": state, **better})
    run.append_line("trials.jsonl", {"kind": "confirm", "state": "complete", **better})
    found, notices = points_from([run.path], bound_to("lora", SIX))
    assert ranks(found) == [4]
    assert notices == []


def test_equal_recipes_of_several_sources_come_once(tmp_path: Path, make_run: Make) -> None:
    run = make_run("one", (lora(4), 0.5, 10), winner=lora(8))
    (tmp_path / "r.yaml").write_text(lora(4).to_yaml())
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "recipe.yaml").write_text(lora(16).to_yaml())
    sources = [tmp_path / "r.yaml", run.path, str(tmp_path / "saved"), run.path / "recipe.yaml"]
    assert ranks(points_from(sources, bound_to("lora", SIX))[0]) == [4, 8, 16]


def test_a_run_of_another_space_and_backbone(make_run: Make) -> None:
    other = bound_to("autopeft")
    values = {**other.middle(), "serial_adapter.bottleneck": "hidden/16", "prefix_tuning.length": 0}
    run = make_run("foreign", winner=other.materialize(values))
    found, notices = points_from([run.path], bound_to("default", SIX))
    assert [(p["bottleneck"], p["p_tuning_v2.length"]) for p in found] == [(48, 0)]
    assert len(notices) == 1
    assert notices[0].startswith("foreign: ")
    assert "serial_adapter activation relu became unset" in notices[0]


def test_notices_tell_in_one_line_for_each_source(make_run: Make) -> None:
    ia3 = recipe("ia3", **HEAD)
    run = make_run("mixed", (lora(4), 0.9, 9), (lora(6), 0.8, 12), (ia3, 0.7, 3))
    found, notices = points_from([run.path, "mam"], bound_to("lora", SIX))
    assert ranks(found) == [4, 8]
    mixed, mam = notices
    for said in ("mixed: 1 of 3 recipes", "lora rank 6 became 8", "1 of 3 recipes is left out", "'lora'"):
        assert said in mixed
    assert mam.startswith("mam: it is left out")


def complete(score: bytes, data: bytes = b"{}") -> bytes:
    start = b'{"kind": "trial", "label": "trial 0", "state": "complete", "score": '
    return start + score + b', "recipe": ' + data + b"}"


HOSTILE = [
    b"not json",
    b"[1, 2]",
    b"{}",
    b'{"state": ["complete"]}',
    *(complete(score) for score in (b"NaN", b"true", b"1e999", b'"0.9"', b"9" * 5000, b"null")),
    complete(b"0.9", b'"lora"'),
    complete(b"0.9", b"[" * 100_000),
    b"\xff\xfe",
]
INVALID: list[Any] = [
    {"layers": [{"attach": [{"teleport": {}}]}]},
    {"layers": [{"attach": [{"lora": {"rank": -1}}]}]},
    {"layers": [{"at": [0, 0], "attach": ["lora"]}]},
    {"autopeft": 99},
    {"layers": [{"attach": ["ia3"] * 20_000}]},
    {"name": "\x1b[31m", "layers": [{"attach": ["lora"]}]},
    {"name": "\ud800", "layers": [{"attach": ["lora"]}]},
]


def test_damaged_and_hostile_lines_are_skipped(make_run: Make) -> None:
    run = make_run("hostile", (lora(4), 0.5, 10))
    nested: Any = "lora"
    for _ in range(45):
        nested = {"sum": [nested]}
    trees = [*INVALID, {"layers": [{"attach": [nested]}]}]
    with (run.path / "trials.jsonl").open("ab") as file:
        file.writelines(line + b"\n" for line in HOSTILE)
        file.writelines(complete(b"0.9", json.dumps(tree).encode()) + b"\n" for tree in trees)
        file.write(b'{"state": "comp')
    found, notices = points_from([run.path], bound_to("lora", SIX))
    assert ranks(found) == [4]
    (said,) = notices
    assert said.startswith(f"hostile: {len(HOSTILE) + 1} lines of its trials.jsonl")
    assert f"{len(trees)} trials" in said


def test_a_damaged_winner_leaves_the_trials(make_run: Make) -> None:
    run = make_run("torn", (lora(4), 0.5, 10))
    run.write_text("recipe.yaml", "layers: [")
    found, notices = points_from([run.path], bound_to("lora", SIX))
    assert ranks(found) == [4]
    assert "its recipe.yaml cannot be read" in notices[0]


def test_a_file_of_any_size_is_read_in_bounds(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("large", (lora(4), 0.5, 10), (lora(8), 0.9, 10))
    monkeypatch.setattr(warm_start, "_MAX_FILE", 10)
    found, notices = points_from([run.path], bound_to("lora", SIX))
    assert ranks(found) == [4]
    assert "large: its trials.jsonl is too large" in notices[0]


def test_a_long_line_is_not_held(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("long", (lora(4), 0.5, 10))
    monkeypatch.setattr(warm_start, "_MAX_LINE", 2000)
    with (run.path / "trials.jsonl").open("ab") as file:
        file.write(complete(b"0.9", b'{"name": "' + b"x" * 5000 + b'"}') + b"\n")
    found, notices = points_from([run.path], bound_to("lora", SIX))
    assert ranks(found) == [4]
    assert notices[0].startswith("long: 3 lines of its trials.jsonl")


def test_a_run_without_a_finished_trial(make_run: Make) -> None:
    bound = bound_to("lora", SIX)
    with pytest.raises(UsageError, match="'empty' has no finished trial"):
        points_from([make_run("empty").path], bound)
    run = make_run("broken")
    (run.path / "trials.jsonl").write_bytes(b"{\n")
    with pytest.raises(UsageError, match=r"no finished trial.*1 line of its trials.jsonl"):
        points_from([run.path], bound)
    run = make_run("invalid")
    record = TrialRecord("trial", "trial 0", "complete", {"layers": 3}, score=1.0)
    run.append_line("trials.jsonl", record)
    with pytest.raises(UsageError, match="'invalid': 1 trial "):
        points_from([run.path], bound)


def test_a_source_of_which_nothing_fits_the_backbone(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text(recipe("lora", at=[40]).to_yaml())
    with pytest.raises(UsageError, match=r"none exist in this encoder of 6"):
        points_from([tmp_path / "deep.yaml"], bound_to("lora", SIX))


def test_unknown_sources_name_near_matches(tmp_path: Path, make_run: Make) -> None:
    make_run("2026-01-02-sst2-abc", (lora(4), 0.5, 10))
    make_run("2026-01-03-sst2-def", (lora(4), 0.5, 10))
    (tmp_path / "mine.yaml").write_text(lora(4).to_yaml())
    bound, runs = bound_to("lora", SIX), tmp_path / "runs"

    def message(source: str) -> str:
        with pytest.raises(UsageError) as caught:
            points_from([source], bound, runs=runs)
        return str(caught.value)

    assert "Did you mean 'mam'?" in message("mamm")
    assert "Did you mean '2026-01-02-sst2-abc'" in message("2026-01-02-sst3-abc")
    assert "Did you mean 'mine.yaml'?" in message(str(tmp_path / "mien.yaml"))
    assert "Newest run: 2026-01-0" in message("qqqq")
    assert "matches several runs" in message("sst2")
    assert "neither a run" in message(str(tmp_path))
    with pytest.raises(UsageError, match="no run under"):
        points_from(["latest"], bound, runs=tmp_path / "none")
    with pytest.raises(UsageError, match="top=0"):
        points_from(["mam"], bound, top=0)


def test_a_name_becomes_the_path_of_the_run_that_it_means_now(tmp_path: Path, make_run: Make) -> None:
    first = make_run("2026-01-02-data-abc", (lora(4), 0.5, 10))
    (tmp_path / "mine.yaml").write_text(lora(8).to_yaml())
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "recipe.yaml").write_text(lora(16).to_yaml())
    runs, names = tmp_path / "runs", ("data", "latest", first.name, Path("data-abc"))
    others = ("mam", str(tmp_path / "mine.yaml"), tmp_path / "saved", first.path)
    assert runs_as_paths((*names, *others), runs=runs) == (*[str(first.path)] * len(names), *others)
    found = runs_as_paths(["data"], runs=runs)
    make_run("2026-01-03-data-def", (lora(2), 0.5, 10))
    bound = bound_to("lora", SIX)
    assert ranks(points_from(found, bound, runs=runs)[0]) == [4], "a run made since matches the name too"
    for source, said in (("data", "matches several runs"), ("nosuch", "neither a run")):
        with pytest.raises(UsageError, match=said):
            runs_as_paths([source], runs=runs)
    with pytest.raises(UsageError, match="no run under"):
        runs_as_paths(["latest"], runs=tmp_path / "none")


def test_a_broken_recipe_file_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("layers:\n  - attach: [loraa]\n")
    with pytest.raises(RecipeError, match=r"bad.yaml:2"):
        points_from([tmp_path / "bad.yaml"], bound_to("lora", SIX))


def test_damage_elsewhere_costs_nothing_and_damage_here_is_said(tmp_path: Path, make_run: Make) -> None:
    bound, runs = bound_to("lora", SIX), tmp_path / "runs"
    sound = make_run("sound", (lora(4), 0.5, 10))
    torn = make_run("torn", (lora(8), 0.5, 10))
    (torn.path / "manifest.json").write_bytes(b"\xff{")
    for source in ("sound", "latest", sound.path):
        assert ranks(points_from([source], bound, runs=runs)[0]) == [4], "torn is newer, and no run to go by"
    assert ranks(points_from(["torn"], bound, runs=runs)[0]) == [8], "its trials are there all the same"
    with sealed(torn.path), modes_hold():
        assert ranks(points_from(["latest"], bound, runs=runs)[0]) == [4]
        for source in ("torn", torn.path):
            with pytest.raises(UsageError, match="Permission denied"):
                points_from([source], bound, runs=runs)
    with pytest.raises(UsageError, match="home folder of a user"):
        points_from(["~no-such-user/x"], bound, runs=runs)


def test_links_out_of_a_run_are_not_followed(tmp_path: Path, make_run: Make) -> None:
    bound, outside = bound_to("lora", SIX), tmp_path / "outside"
    for name in ("recipe.yaml", "trials.jsonl"):
        run = make_run(f"run-{name}", (lora(4), 0.5, 10), winner=lora(8))
        (run.path / name).rename(outside)
        (run.path / name).symlink_to(outside)
        with pytest.raises(UsageError, match="leads out of its folder"):
            points_from([run.path], bound)
