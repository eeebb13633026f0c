"""The model card of an export."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from support.documents import ROOT

import autopeft
from autopeft.export.card import is_own_card, model_card, plain, write_card
from autopeft.export.manifest import Card
from autopeft.export.package import find_saved, write_package
from autopeft.recipe import Recipe

RUNS = ROOT / "tests/fixtures/runs"
EVIL = "<script>alert(1)</script> [click](http://example.org) `x` **b**\n# heading\n---\n| a | b |"


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """A finished search, exported."""
    return write_package(find_saved(RUNS / "finished"), tmp_path / "winner")


def parts(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Front matter, and the sections by their titles."""
    _, front, body = re.split(r"^---\n", text, maxsplit=2, flags=re.M)
    sections = dict(re.findall(r"^## ([^\n]+)\n\n(.*?)(?=^## |\Z)", body, re.M | re.S))
    return YAML(typ="safe").load(front), sections


def test_it_says_what_was_trained_on_what_and_how_well(searched: Path) -> None:
    front, sections = parts((searched / "README.md").read_text())
    assert front == {
        "library_name": "autopeft",
        "metrics": ["accuracy"],
        "pipeline_tag": "text-classification",
        "tags": ["autopeft", "peft", "parameter-efficient-fine-tuning", "lora", "mean_pooling"],
    }
    assert list(sections) == ["Use", "Recipe", "Size", "Scores", "Data", "Training", "Licences"]
    scores = sections["Scores"]
    assert "accuracy on 27 rows of the split test of reviews.csv: 0.9259 ± 0.0000" in scores
    assert "Seeds: 1000, 1001, 1002, 1003." in scores
    assert "Each run: 0.9259, 0.9259, 0.9259, 0.9259." in scores
    assert scores.count("95 % interval") == 2
    assert "| deployed | 512 |" in sections["Size"]
    assert "9.552%" in sections["Size"]
    assert "train 187, select 26, test 27" in sections["Data"]
    assert "under a budget of 20%" in sections["Training"]
    assert "- steps: 150" in sections["Training"]
    assert "the data reviews.csv: not known here" in sections["Licences"]


def test_the_recipe_in_it_is_the_recipe(searched: Path) -> None:
    _, sections = parts((searched / "README.md").read_text())
    written = re.search(r"```yaml\n(.*?)```", sections["Recipe"], re.S)
    assert written
    trained = Recipe.from_file(RUNS / "finished/winner/recipe.yaml")
    assert Recipe.from_yaml(written[1]).hash() == trained.hash()


def test_a_fixed_recipe_has_one_seed(tmp_path: Path) -> None:
    exported = write_package(find_saved(RUNS / "fixed"), tmp_path / "out")
    _, sections = parts((exported / "README.md").read_text())
    assert "0.5185." in sections["Scores"]
    assert "Seeds: 0." in sections["Scores"]
    assert "fixed before training" in sections["Training"]


def test_an_export_of_an_export_has_the_same_card(searched: Path, tmp_path: Path) -> None:
    again = write_package(find_saved(searched), tmp_path / "again")
    assert (again / "README.md").read_text() == (searched / "README.md").read_text()
    assert not (again / "MODEL_CARD.md").exists()


def test_a_readme_of_the_users_own_is_kept_and_said(searched: Path, tmp_path: Path) -> None:
    mine = (searched / "README.md").read_text().replace("## Use", "## Use it well")
    (searched / "README.md").write_text(mine)
    said: list[str] = []
    again = write_package(find_saved(searched), tmp_path / "again", notify=said.append)
    assert (again / "README.md").read_text() == mine
    assert is_own_card((again / "MODEL_CARD.md").read_text())
    assert len(said) == 1
    assert "is kept" in said[0]
    assert "MODEL_CARD.md" in said[0]


def test_a_card_that_nobody_changed_is_replaced(tmp_path: Path) -> None:
    card = Card.read(RUNS / "fixed")
    recipe = Recipe.from_file(RUNS / "fixed/recipe.yaml")
    text, longer = model_card(card, recipe), model_card(card, recipe, ["## More\n\nA section."])
    assert write_card(tmp_path, text) == "README.md"
    assert write_card(tmp_path, longer) == "README.md"
    assert "## More\n\nA section.\n\n## Recipe" in (tmp_path / "README.md").read_text()


def card_with(**changes: Any) -> Card:
    manifest = json.loads((RUNS / "finished/manifest.json").read_text())
    return Card(
        model=changes.pop("model", manifest["model"]),
        backbone={**manifest["backbone"], **changes.pop("backbone", {})},
        data={**manifest["data"], **changes.pop("data", {})},
        training=manifest["training"],
        **changes,
    )


OF_ONE = " The recipe was trained again with fresh seeds."


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ({}, ""),
        ({"confirmed": False, "finalists": 0}, ""),
        ({"confirmed": False, "finalists": 2}, ""),
        ({"confirmed": True}, OF_ONE),
        ({"confirmed": True, "finalists": 0}, OF_ONE),
        ({"confirmed": True, "finalists": "many"}, OF_ONE),
        (
            {"confirmed": True, "finalists": 1},
            " One of the smallest recipes was trained again with fresh seeds and scored on the split select.",
        ),
        (
            {"confirmed": True, "finalists": 3},
            " 3 of the smallest recipes were trained again with fresh seeds and ranked on the split select.",
        ),
    ],
)
def test_it_says_that_recipes_were_trained_again_where_they_were(said: dict[str, Any], ends: str) -> None:
    made = {"budget": "1%", "space": "lora", "sampler": "random", "effort": {"trials": 8}, "goal": "smallest"}
    card = card_with(result={"number": 3, **said}, made=made)
    found = parts(model_card(card, Recipe.named("mam")))[1]["Training"].split("\n\n")[0]
    assert found.endswith(f"It planned 8 trials, proposed by random.{ends}")


def test_commands_in_it_can_be_typed_on_another_machine() -> None:
    recipe = Recipe.named("mam")
    here = model_card(card_with(model="/home/me/my bert", data={"name": "trec"}), recipe)
    assert "train --recipe recipe.yaml --task movie-sentences --model path/to/my-bert\n" in here
    assert 'autopeft predict . --text "…" --model path/to/my-bert\n' in here
    assert """autopeft.predict(".", "…", model='path/to/my-bert')""" in here
    named = card_with(model="bert-base-uncased", backbone={"origin": "hub"}, data={"pairs": True})
    there = model_card(named, recipe)
    assert "train --recipe recipe.yaml --task trec --model bert-base-uncased\n" in there
    assert 'autopeft predict . --text "…" --text-pair "…"\n' in there


def test_the_hub_is_told_names_that_it_has() -> None:
    recipe = Recipe.named("mam")
    source = {"name": "nyu-mll/glue", "origin": "hub"}
    known = card_with(
        model="bert-base-uncased",
        backbone={"origin": "hub"},
        data={"source": source, "metric": "pearson_spearman", "kind": "regression", "labels": []},
    )
    front, _ = parts(model_card(known, recipe))
    assert front["base_model"] == "bert-base-uncased"
    assert front["datasets"] == ["nyu-mll/glue"]
    assert front["metrics"] == ["pearsonr", "spearmanr"]
    packaged, sections = parts(model_card(card_with(model="minilm", backbone={"alias": "minilm"}), recipe))
    assert packaged["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "the backbone minilm: Apache-2.0" in sections["Licences"]
    local, _ = parts(model_card(card_with(model="/home/me/bert", backbone={"origin": "folder"}), recipe))
    assert "base_model" not in local


def test_text_of_strangers_stays_text() -> None:
    source = {"name": EVIL, "origin": "hub", "notice": EVIL, "licence": EVIL, "sha256": EVIL}
    card = card_with(
        model=EVIL,
        backbone={"origin": "hub"},
        data={"name": EVIL, "labels": [EVIL, "yes"], "source": source, "rows": {EVIL: EVIL}},
        result={"test_mean": 0.5, "seeds": [EVIL], "comparisons": [{"text": EVIL}]},
        made={"budget": EVIL, "space": EVIL, "sampler": EVIL, "versions": {"torch": EVIL}, "created": EVIL},
    )
    recipe = Recipe.from_dict({"autopeft": 2, "name": "x", "layers": [{"attach": ["lora"]}]})
    text = model_card(card, recipe)
    front, sections = parts(text)
    assert set(front) == {"library_name", "metrics", "pipeline_tag", "tags"}
    assert len(sections) == 6  # the size is not known
    assert text.count("<") == 1  # the signature's
    assert "](http" not in text.replace("\\]\\(http", "")
    assert not re.search(r"^(# heading|---$|\| a)", text.partition("---\n\n")[2], re.M)
    unknown = model_card(card_with(data={"metric": EVIL}), recipe)
    assert "metrics" not in parts(unknown)[0], "viewers without front matter read it as Markdown"
    assert unknown.count("<") == 1
    assert is_own_card(text)


@pytest.mark.parametrize("value", [[], "x", 3, None, {"a": []}])
def test_a_manifest_of_another_form_gives_a_card(value: Any) -> None:
    made = dict.fromkeys(("budget", "space", "effort", "versions", "seed", "created", "kind"), value)
    result = {"counts": {"deployed": float("nan"), "share": value}, "seeds": value, "test_mean": value}
    card = card_with(data={"source": value, "rows": value}, result=result, made=made)
    front, sections = parts(model_card(card, Recipe.named("mam")))
    assert front["library_name"] == "autopeft"
    assert "Size" not in sections


def test_plain_text_is_one_line() -> None:
    assert plain("a\u2028b\x07c\n\n# d") == "a b c \\# d"


def test_the_command_line_and_the_function_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(RUNS, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    exported = autopeft.export("finished", tmp_path / "out", format="autopeft")
    assert "README.md" in exported.files
    assert YAML(typ="safe").load(io.StringIO((tmp_path / "out/README.md").read_text().split("---\n")[1]))
