from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft.report.html.load import read_run
from autopeft.report.html.page import render_report
from autopeft.report.html.words import comparisons, facts, headline, remarks, reproduction
from autopeft.runs.folder import RunFolder
from autopeft.search.space.space import Space

Make = Callable[..., RunFolder]
Edit = Callable[[Path, Callable[[Any], Any]], None]


def test_the_headline_says_what_won_and_by_how_much(make_run: Make) -> None:
    first, second = headline(read_run(make_run(trials=6)))
    for said in ("accuracy 0.7100 ± 0.0100 on test", "3 seeds", "parameters"):
        assert said in first
    for said in ("LoRA rank 4", "1,536 parameters", "+0.0133", "-0.0040 to +0.0310", "within noise"):
        assert said in second


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        ([0.68, 0.70, 0.71], "within noise"),
        ([0.90, 0.91, 0.92], "better here by 0.2000"),
        ([0.20, 0.21, 0.22], "+0.1600"),
        ([0.69], "+0.0200, and one seed"),
    ],
)
def test_without_intervals_the_deviations_decide(make_run: Make, test: list[float], verdict: str) -> None:
    folder = make_run(trials=1)
    result = folder.result()
    result["baselines"][0]["test"] = test
    del result["comparisons"]
    folder.write_json("result.json", result)
    assert verdict in headline(read_run(folder))[1]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.1, 0.1, "within noise"), (0.01, 0.1, "the winner is better"), (-0.1, -0.01, "it is better")],
)
def test_an_interval_that_holds_zero_is_noise(make_run: Make, low: float, high: float, verdict: str) -> None:
    rows = [{"baseline": "LoRA rank 4", "difference": (low + high) / 2, "low": low, "high": high}]
    run = read_run(make_run(trials=1, result={"comparisons": rows}))
    ((name, text),) = comparisons(run)
    assert name == "LoRA rank 4"
    assert text.endswith(verdict)


def test_the_searchs_own_sentence_is_quoted(make_run: Make) -> None:
    text = "The winner is 1.3 points above LoRA rank 4 (…): the difference is within noise."
    rows = [{"baseline": "LoRA rank 4", "difference": 0.013, "low": -0.1, "high": 0.2, "text": text}]
    run = read_run(make_run(trials=1, result={"comparisons": rows}))
    assert headline(run)[2] == text
    assert comparisons(run) == [("", text)]


def test_an_unfinished_run_claims_nothing_of_test(make_run: Make) -> None:
    (text,) = headline(read_run(make_run(trials=5, finished=False)))
    assert "not finished" in text
    assert "test has not been touched" in text
    (nothing,) = headline(read_run(make_run(trials=0, finished=False)))
    assert "No trial" in nothing


def test_a_winner_that_was_not_retrained_says_so(make_run: Make) -> None:
    run = read_run(make_run(trials=1, result={"test": [], "select": [], "interrupted": True}))
    assert headline(run) == [headline(run)[0]]
    assert "No winner was confirmed with fresh seeds" in headline(run)[0]
    assert any("interrupted" in r for r in remarks(run))


def test_a_winner_that_was_retrained_and_not_tested_has_its_scores_on_select(make_run: Make) -> None:
    run = read_run(make_run(trials=1, result={"test": [], "select": [0.90, 0.92], "interrupted": True}))
    (text,) = headline(run)
    assert "accuracy 0.9100 ± 0.0141 on select" in text
    assert "no score on test" in text


def test_a_baseline_that_is_returned_is_not_held_against_itself(make_run: Make) -> None:
    result = {"origin": "LoRA rank 4", "finding": "Nothing found beats LoRA rank 4: it is returned."}
    found = headline(read_run(make_run(trials=1, result=result)))
    assert found[0] == result["finding"]
    assert not any("best baseline, LoRA" in text for text in found)


def test_what_a_reader_must_know(make_run: Make) -> None:
    run = read_run(make_run(trials=1, words="SST-2", result={"exhausted": True}))
    text = " ".join(remarks(run))
    assert "not comparable with those of SST-2" in text
    assert "Select minus test of the winner: +0.0100" in text
    assert "no further recipe" in text


def test_what_the_search_left_undone_is_said_once(make_run: Make) -> None:
    lost = "LoRA of rank 4, learning rate 0.009, lost a seed."
    run = read_run(make_run(trials=1, result={"remarks": [lost, lost]}))
    assert remarks(run).count(lost) == 1


def test_facts_count_the_states(make_run: Make) -> None:
    found = dict(facts(read_run(make_run(trials=8))))
    assert found["trials"] == "5 complete, 1 duplicate, 1 failed, 1 stopped (planned: 8)"
    assert found["run"] == "search, finished"
    assert found["budget"] == "2% (at most 902 parameters)"


def test_the_command_is_safe_to_paste(make_run: Make) -> None:
    words = "$(touch pwned); 'q' \"d\" `x`"
    folder = make_run(trials=1, words=words)
    blocks = dict(reproduction(read_run(folder)))
    parts = shlex.split(blocks["Search again"])
    assert parts[:2] == ["autopeft", "search"]
    assert parts[parts.index("--task") + 1] == f"toy {words}"
    assert "--seed" not in parts  # a default
    assert "Go on with it" not in blocks
    namespace: dict[str, Any] = {}
    call = blocks["The same in Python"].replace("import autopeft\n\nautopeft.search", "found = dict")
    exec(call, namespace)
    assert namespace["found"] == {"task": f"toy {words}", "budget": "2%", "trials": 1}


def test_arguments_that_only_python_takes_are_not_put_on_a_command_line(make_run: Make, edit: Edit) -> None:
    folder = make_run(trials=1)
    edit(
        folder.path / "manifest.json",
        lambda m: m | {"arguments": {"task": "trec", "confirm": 3, "stand_in": False, "evil": "x"}},
    )
    blocks = dict(reproduction(read_run(folder)))
    assert "Search again" not in blocks
    assert "confirm=3" in blocks["The same in Python"]
    assert "evil" not in blocks["The same in Python"]
    said = {"task": "trec", "stand_in": False}
    edit(folder.path / "manifest.json", lambda m: m | {"arguments": said})
    assert dict(reproduction(read_run(folder)))["Search again"] == "autopeft search --task trec --no-stand-in"


def test_a_run_that_was_cut_off_can_go_on(make_run: Make) -> None:
    folder = make_run(trials=3, finished=False)
    what, line = reproduction(read_run(folder))[0]
    assert (what, line) == ("Go on with it", f"autopeft search --resume runs/{folder.name}")


def test_options_that_repeat_and_flags(make_run: Make, edit: Edit) -> None:
    folder = make_run(trials=1)
    arguments = {"task": "t", "warm_start": ["a b", "c"], "drop_empty": True, "space": "custom"}
    folder.write_text("space.yaml", "name: custom")
    edit(folder.path / "manifest.json", lambda m: m | {"arguments": arguments})
    parts = shlex.split(dict(reproduction(read_run(folder)))["Search again"])
    assert parts[2:] == [
        *("--task", "t", "--from", "a b", "--from", "c", "--drop-empty"),
        *("--space", f"{folder.path}/space.yaml"),
    ]
    (folder.path / "space.yaml").unlink()
    edit(folder.path / "manifest.json", lambda m: m | {"arguments": {"task": "t", "warm_start": []}})
    assert dict(reproduction(read_run(folder)))["Search again"] == "autopeft search --task t"


@pytest.mark.parametrize(
    ("name", "text", "own"),
    [
        (None, Space.named("default").text, False),
        (None, Space.named("default").text + "# mine\n", True),
        ("lora", Space.named("lora").text, False),
        ("lora", Space.named("default").text, True),
        ("mine", Space.named("lora").text, True),
        ("mine.yaml", Space.named("lora").text, True),
    ],
)
def test_a_space_of_the_users_own_is_that_of_the_folder(
    name: str | None, text: str, own: bool, make_run: Make, edit: Edit
) -> None:
    """Also where it has kept the name of the one that it was made from."""
    folder = make_run(trials=1)
    folder.write_text("space.yaml", text)
    given = {"task": "t"} | ({} if name is None else {"space": name})
    edit(folder.path / "manifest.json", lambda m: m | {"arguments": given})
    blocks = dict(reproduction(read_run(folder)))
    parts = shlex.split(blocks["Search again"])
    named = [] if name is None else ["--space", name]
    assert parts[4:] == (["--space", f"{folder.path}/space.yaml"] if own else named)


def test_a_metric_of_the_users_own_comes_again(make_run: Make, edit: Edit) -> None:
    folder = make_run(trials=3, finished=False)
    given = {"task": "t", "metric": "mine:first\nimport os"}
    edit(folder.path / "manifest.json", lambda m: m | {"arguments": given})
    blocks = dict(reproduction(read_run(folder)))
    for what in ("Go on with it", "Search again"):
        assert shlex.split(blocks[what])[-2:] == ["--metric", "mine:first\nimport os"]
    assert [line for line in blocks["The same in Python"].splitlines() if "mine:first" in line] == [
        "    metric=...,  # mine:first import os"
    ]
    edit(folder.path / "manifest.json", lambda m: m | {"arguments": given | {"task": {"memory": "a"}}})
    assert "task=..., metric=...)" in dict(reproduction(read_run(folder)))["Go on with it"]


def test_a_fixed_recipe_is_trained_again(make_run: Make, edit: Edit) -> None:
    folder = make_run(trials=1)
    arguments = {"recipe": "mam", "task": "data.csv", "text": "body", "label": None, "seed": 3}
    edit(folder.path / "manifest.json", lambda m: m | {"kind": "train", "arguments": arguments})
    blocks = dict(reproduction(read_run(folder)))
    assert blocks["Train the recipe again"] == (
        "autopeft train --recipe mam --task data.csv --text body --seed 3"
    )
    assert not any("optuna" in text for text in blocks.values())


def test_the_data_are_among_the_facts_and_the_majority_among_the_scores(make_run: Make, edit: Edit) -> None:
    summary = {
        "facts": [{"name": "test", "text": "20 rows: ham 20"}, {"name": 3}, "no fact"],
        "remarks": ["test has rows of one class only.", 7],
    }
    constant = {"name": "always 'ham'", "select_mean": 0.9, "test_mean": 0.9756}
    folder = make_run(trials=1, result={"constant": constant})
    edit(folder.path / "manifest.json", lambda m: {**m, "data": {**m["data"], "summary": summary}})
    run = read_run(folder)
    assert ("test", "20 rows: ham 20") in facts(run)
    said = remarks(run)
    assert "test has rows of one class only." in said
    assert any("no better on test than always 'ham' (0.9756)" in line for line in said)
    page = render_report(folder)
    assert "always &#39;ham&#39;" in page
    over = {"baseline": "always 'ham'", "text": "The winner is 20.5 points above always 'ham'."}
    beaten = make_run(trials=1, result={"constant": {**constant, "test_mean": 0.1}, "over_constant": over})
    assert "The winner is 20.5 points above always &#39;ham&#39;." in render_report(beaten)
    assert not any("no better" in line for line in remarks(read_run(beaten)))
