"""`--from bank`: what the bank has for a task, how a search may use it, and what it is compared with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import small_search
from support.searching import Dies

import autopeft
from autopeft import bank
from autopeft.cli import main
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.recipe.yaml_text import read_yaml
from autopeft.search.api import plan, search
from autopeft.search.optimization.warm_start import runs_as_paths
from autopeft.search.planning.bank_start import BankStart, with_start
from autopeft.search.space.space import Space

LORA: dict[str, Any] = {"lora": {"rank": 2}}
ADAPTER: dict[str, Any] = {"serial_adapter": {"bottleneck": 4}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The arguments of a search in a folder whose bank holds two adapters and a LoRA of another file, and an
    adapter of the file itself."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        small = small_search(folder, trials=3, steps=8, baselines="fresh", fidelity="none", workers=0)
        head, *rows = Path(small["task"]).read_text().splitlines()
        Path("other.csv").write_text("\n".join([head, *rows[::-1]]) + "\n")
        kept = (
            ("far", "other.csv", ADAPTER),
            ("wide", "other.csv", {"serial_adapter": {"bottleneck": 16}}),
            ("own", small["task"], ADAPTER),
            ("low", "other.csv", LORA),
        )
        for name, data, item in kept:
            tree = {"name": name, "layers": [{"attach": [item]}], "training": {"learning_rate": 0.02}}
            autopeft.train(
                task=data, text="body", label="verdict", model=small["model"], recipe=Recipe.from_dict(tree),
                steps=20, batch_size=8, max_length=16, out=name,
            )  # fmt: skip
            bank.add(name, name)
        yield small


@pytest.fixture
def given(place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(Path(place["task"]).parent)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return {**place, "warm_start": ["bank"], "budget": "5%", "out": str(tmp_path / "run")}


def test_the_best_start_is_tried_first_and_compared_with_its_recipe_that_starts_fresh(
    given: dict[str, Any],
) -> None:
    said: list[str] = []
    result = search(**given, notify=said.append)
    first = Recipe.from_dict(dict(result.trials[0].recipe))
    assert first.inputs["far"].sha256 == bank.entry("far").sha256
    started = {str(start): ref.item.frozen for ref in first.entries() for start in ref.item.start}
    assert started == {"far.serial_adapter": True}
    assert "lora" in first.methods, "it stands beside a LoRA that starts fresh"
    assert any("far, trained on other.csv" in line for line in said)
    (fresh,) = result.baselines
    assert fresh.name == "far that starts fresh"
    assert fresh.counts["deployed"] == bank.entry("far").deployed
    assert any(fresh.name in comparison.sentence() for comparison in result.comparisons)
    told = json.loads(Path(given["out"], "manifest.json").read_text())
    assert (told["start"]["name"], told["inputs"]["far"]["bank"]) == ("far", "far")


def test_it_goes_on_with_the_start_that_it_had(given: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        search(**given, reporter=Dies(1))
    result = search(resume=given["out"])
    assert [baseline.name for baseline in result.baselines] == ["far that starts fresh"]
    assert Recipe.from_dict(dict(result.trials[0].recipe)).inputs.keys() == {"far"}


def test_what_saw_the_rows_is_too_large_or_no_adapter_is_no_start(given: dict[str, Any]) -> None:
    said: list[str] = []
    found = plan(**{**given, "budget": "400"}, notify=said.append)
    assert found.prepared.start is None
    assert found.prepared.space.inputs == {}
    (line,) = (line for line in said if "no start" in line)
    for what in ("own was trained on texts of", "wide has", "far has", "low has lora"):
        assert what in line


def test_one_that_does_not_fit_beside_what_the_space_always_has_is_said_not_to(given: dict[str, Any]) -> None:
    """LoRA of rank 1 and more at q and v takes 384 parameters, and this one 876."""
    said: list[str] = []
    found = plan(**{**given, "budget": "1000"}, notify=said.append)
    assert found.prepared.start is not None
    assert any("far, trained on" in line and "does not fit" in line for line in said)


def test_a_set_has_seen_the_rows_of_its_tasks(given: dict[str, Any]) -> None:
    tree = {"name": "of_both", "layers": [{"attach": [ADAPTER]}]}
    Path("both.yaml").write_text(
        f"- {{task: {given['task']}, text: body, label: verdict}}\n"
        "- {task: other.csv, text: body, label: verdict}\n"
    )
    autopeft.train(
        task="both.yaml", model=given["model"], recipe=Recipe.from_dict(tree), steps=2, batch_size=8,
        max_length=16, out=f"{given['out']}-both",
    )  # fmt: skip
    bank.add(f"{given['out']}-both", "of_both")
    try:
        said: list[str] = []
        plan(**{**given, "budget": "400"}, notify=said.append)
        assert any("of_both was trained on texts of" in line for line in said)
    finally:
        bank.remove("of_both")


def test_the_command_says_which_it_is(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--task", given["task"], "--text", "body", "--label", "verdict", "--model", given["model"]]
    words += ["--budget", "5%", "--max-length", "16", "--from", "bank", "--dry-run"]
    assert main(["search", *words]) == 0
    err = capsys.readouterr().err
    assert "far, trained on other.csv" in err
    assert "tried first" in err


def test_an_empty_bank_is_said(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="The bank is empty"):
        plan(**given)
    assert runs_as_paths(["bank"]) == ("bank",)


def started(*layers: Any) -> BankStart:
    tree = {
        "name": "kept",
        "inputs": {"kept": {"bank": "kept", "sha256": "0" * 64}},
        "layers": [{"at": "last 2", "attach": list(layers)}],
        "training": {"learning_rate": 0.01},
    }
    return BankStart("kept", None, -0.5, -0.6, Recipe.from_dict(tree))


def test_each_entry_may_be_left_out_or_stays_as_it_is() -> None:
    adapters = [
        {**ADAPTER, "as": "one", "from": "kept.serial_adapter", "frozen": True},
        {"parallel_adapter": {"bottleneck": 2}, "as": "two", "from": "kept.parallel_adapter", "frozen": True},
    ]
    start = started(*adapters)
    space = with_start(Space.named("default"), start)
    assert space.name == "default"
    tree = Space.named("default").text
    assert len(space.templates.blocks) == len(Space.from_yaml(tree).templates.blocks) + 1
    assert [item["choice"] for item in _tree(space)["layers"][-1]["attach"]] == [[None, a] for a in adapters]
    assert not start.fresh.inputs
    assert not any(ref.item.frozen for ref in start.fresh.entries())
    assert [ref.name for ref in start.fresh.entries()] == [ref.name for ref in start.recipe.entries()]
    assert BankStart.from_dict(json.loads(json.dumps(start.to_dict()))) == start


def _tree(space: Space) -> Any:
    return read_yaml(space.text, "space")
