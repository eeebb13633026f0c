"""Files of format 1 keep the meaning that they were written with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import logits, tiny_config, tiny_inputs, tiny_model

from autopeft.backbones import spec_of
from autopeft.graph import build_graph
from autopeft.hybrid import load
from autopeft.method import get_method
from autopeft.recipe import Recipe
from autopeft.recipe.format_1 import CHANGED, Changed, canonical_config, upgraded
from autopeft.recipe.models import validate_config
from autopeft.recipe.problems import Problems
from autopeft.recipe.yaml_text import read_yaml
from autopeft.search.space.space import Space

# Written by an earlier version, see `record.py` there.
SAVED = Path(__file__).parents[1] / "fixtures" / "hybrids"
NAMES = sorted(path.parent.name for path in SAVED.glob("*/format_1.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_of_format_1_gives_the_graph_of_the_one_of_format_2_that_it_became(name: str) -> None:
    spec = spec_of(tiny_config(name.rpartition("-")[2]))
    first, second = (Recipe.from_file(SAVED / name / file) for file in ("format_1.yaml", "recipe.yaml"))
    told = json.loads((SAVED / name / "hybrid.json").read_text(encoding="utf-8"))["structure"]
    assert build_graph(first, spec).hash() == build_graph(second, spec).hash() == told


@pytest.mark.parametrize("name", NAMES)
def test_saved_hybrids_give_the_logits_that_they_gave(name: str) -> None:
    folder, backbone = SAVED / name, name.rpartition("-")[2]
    model = tiny_model(backbone)
    load(model, folder)
    with torch.no_grad():
        found = logits(model.eval(), tiny_inputs(backbone)).double()
    expected = torch.tensor(json.loads((folder / "logits.json").read_text(encoding="utf-8"))).double()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_there_is_a_saved_hybrid_of_every_method_whose_default_changed() -> None:
    text = "".join((SAVED / name / "format_1.yaml").read_text(encoding="utf-8") for name in NAMES)
    for name, options in CHANGED.items():
        fields = get_method(name).Config.model_fields
        if any(fields[option].get_default() != changed.value for option, changed in options.items()):
            assert name in text


def test_the_table_names_methods_and_options_that_exist() -> None:
    for name, options in CHANGED.items():
        fields = get_method(name).Config.model_fields
        assert options.keys() <= fields.keys()
        for option, changed in options.items():
            default = fields[option].get_default()
            assert changed.added or default != changed.value, f"{name}.{option} has not changed"


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA's rank was 3, it had no dropout, and on `q` alone dropout does nothing."""
    monkeypatch.setitem(
        CHANGED,
        "lora",
        {
            "rank": Changed(3),
            "dropout": Changed(0.5, added=True, idle=lambda options: options.get("sites") in (["q"], ("q",))),
        },
    )


@pytest.mark.usefixtures("changed")
@pytest.mark.parametrize(
    ("attach", "expected"),
    [
        ("lora", [("lora", 3, 0.5)]),
        ("{lora: }", [("lora", 3, 0.5)]),
        ("{lora: {rank: 4}, as: big}", [("big", 4, 0.5)]),
        ("{lora: {dropout: 0.25}}", [("lora", 3, 0.25)]),
        ("{lora: {sites: [q]}}", [("lora", 3, 0.0)]),
        ("{gate: [lora, {chain: [{lora: {alpha: 2.0}}, ia3]}]}", [("lora", 3, 0.5), ("lora_2", 3, 0.5)]),
        ("{route: {children: [lora], copies: 2}}", [("lora", 3, 0.5), ("lora_2", 3, 0.5)]),
    ],
)
def test_what_is_left_out_is_written_down(attach: str, expected: list[tuple[str, int, float]]) -> None:
    recipe = Recipe.from_yaml(f"autopeft: 1\nlayers:\n- attach:\n  - {attach}\n")
    again = Recipe.from_yaml(recipe.to_yaml())
    assert recipe.to_dict()["autopeft"] == 2
    for found in (recipe, again):
        configs: list[tuple[str, Any]] = [
            (entry.name, entry.item.method_config()) for entry in found.entries() if entry.method == "lora"
        ]
        assert [(name, config.rank, config.dropout) for name, config in configs] == expected
    assert again == recipe


@pytest.mark.usefixtures("changed")
@pytest.mark.parametrize("head", ["", "autopeft: 2\n"])
def test_a_file_without_a_number_is_of_the_newest_format(head: str) -> None:
    (entry,) = Recipe.from_yaml(f"{head}layers:\n- attach: [lora]\n").entries()
    assert entry.item.config == {}


@pytest.mark.usefixtures("changed")
def test_spaces_of_format_1() -> None:
    text = """\
vars:
  one: {choice: [lora, ia3, {lora: {rank: {choice: [5, 6]}}}]}
layers:
- attach: [$one]
model:
- optional: bitfit
"""
    old, new = (Space.from_yaml(head + text) for head in ("autopeft: 1\n", "autopeft: 2\n"))
    spec = spec_of(tiny_config("bert"))
    before, after = old.bind(spec), new.bind(spec)
    assert [p.name for p in before.parameters] == [p.name for p in after.parameters]
    ranks = set()
    for seed in range(40):
        values = before.sample(random.Random(seed))
        for entry in before.materialize(values).entries():
            if entry.method == "lora":
                config: Any = entry.item.method_config()
                assert config.dropout == 0.5
                ranks.add(config.rank)
    assert ranks == {3, 5, 6}


@pytest.mark.usefixtures("changed")
def test_problems_keep_their_lines() -> None:
    text = "autopeft: 1\nlayers:\n- attach:\n  - lora:\n      rnak: 2\n  - nothing\n"
    problems = Problems(upgraded(read_yaml(text, "recipe")), "recipe")
    for path in (("layers", 0, "attach", 0, "lora", "rnak"), ("layers", 0, "attach", 1)):
        problems.add(path, "wrong")
    assert [problem.line for problem in problems.found] == [5, 6]


@pytest.mark.parametrize("tree", ["lora", ["lora", 3], {"layers": "lora"}, {"layers": {"lora": "rank"}}, {}])
@pytest.mark.usefixtures("changed")
def test_what_is_malformed_stays_so(tree: Any) -> None:
    found = upgraded(tree if isinstance(tree, dict) else {"layers": tree})
    assert found["autopeft"] == 2


@pytest.mark.usefixtures("changed")
def test_hashes_do_not_see_what_came_later_and_says_the_same() -> None:
    def seen(**options: Any) -> dict[str, Any]:
        return canonical_config("lora", validate_config("lora", options))

    assert "dropout" not in seen(dropout=0.5)
    assert seen()["dropout"] == 0.0
    assert "dropout" not in seen(sites=["q"], dropout=0.0)
    assert seen(rank=3)["rank"] == 3
    assert seen()["rank"] != 3
