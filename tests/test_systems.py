"""Every system of the catalogue is a method, a composition, a recipe, a space, a strategy or an item, and
trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.cases import BY_TASK, CASES, recipe_of
from support.entries import choose_by_lot
from support.steps import NO_STEP
from support.tiny import LogitsObjective, randomise, tiny_inputs, tiny_model

from autopeft.backbones import spec_of
from autopeft.composition import composition_names
from autopeft.hybrid import attach
from autopeft.method import method_names
from autopeft.recipe import Recipe, recipe_names
from autopeft.recipe.tasks import for_tasks, lacks_tasks
from autopeft.recipe.yaml_text import read_yaml
from autopeft.search.space.elastic import super_hybrid
from autopeft.search.space.space import Space, space_names
from autopeft.search.strategies.registry import STRATEGIES

FILE = Path(__file__).parent / "systems.yaml"
SYSTEMS: dict[str, dict[str, Any]] = read_yaml(FILE.read_text(encoding="utf-8"), FILE.name)
TERMS = ("ipt", "moa", "pha")  # without which a part of them does not train


def test_all_of_the_catalogue_are_listed_as_what_there_is() -> None:
    assert len(SYSTEMS) == 77
    known = {
        "method": method_names(),
        "policy": method_names(),
        "composition": composition_names(),
        "recipe": recipe_names(),
        "space": space_names(),
        "strategy": STRATEGIES.names(),
    }
    for told in SYSTEMS.values():
        kind = next(iter(told))
        assert kind == "item" or told[kind] in known[kind]


def recipe_for(told: dict[str, Any]) -> Recipe:
    """A small recipe in which a system trains."""
    kind = next(iter(told))
    if kind == "recipe":
        return Recipe.named(told["recipe"])
    if kind == "policy":
        host = told.get("beside", {"lora": {"rank": 2}})
        return Recipe.from_dict({"layers": [{"attach": [host]}], "training": {"policies": [told["policy"]]}})
    if kind == "space":
        bound = Space.named(told["space"]).bind(spec_of(tiny_model("bert").config))
        return bound.materialize(bound.middle())
    if kind == "strategy":
        bound = Space.named(STRATEGIES.get(told["strategy"]).space).bind(spec_of(tiny_model("bert").config))
        return bound.materialize(super_hybrid(bound, None).values)
    if kind == "item":
        level = "model" if "prompt" in next(iter(told["item"])) else "layers"
        body = [told["item"]] if level == "model" else [{"attach": [told["item"]]}]
        return Recipe.from_dict({level: body, "inputs": {name: name for name in told["item"]["from"]}})
    name = told[kind]
    return recipe_of(next(case for case, (_, item) in {**BY_TASK, **CASES}.items() if _is(item, name)))


def _is(item: Any, name: str) -> bool:
    return item == name or (isinstance(item, dict) and next(iter(item)) == name)


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, family = SYSTEMS[name], SYSTEMS[name].get("on", "bert")
    sizes = {"num_hidden_layers": told["layers"]} if "layers" in told else {}
    recipe = recipe_for(told)
    if "starts" in told:
        monkeypatch.chdir(tmp_path)
        start: Any = {"model": [told["starts"]]} if "prompt_tuning" in told["starts"] else None
        start = start or {"layers": [{"attach": [told["starts"]]}]}
        for seed, folder in enumerate(told["item"]["from"]):
            with attach(tiny_model(family), Recipe.from_dict(start), seed=seed) as before:
                randomise(before.root, seed=seed)
                before.save(folder)
    if lacks_tasks(recipe):
        recipe = for_tasks(recipe, ("a", "b"))
    model: Any = tiny_model(family, **sizes)
    hybrid = attach(model, recipe, seed=0)
    inputs = tiny_inputs(family, batch=4)
    if hybrid.needs_prepare:
        rows = [{**tiny_inputs(family, batch=1, seed=i), "labels": torch.tensor([i % 2])} for i in range(4)]
        hybrid.prepare(rows, LogitsObjective(model))
    choose_by_lot(hybrid)
    if hybrid.tasks:
        inputs["task_id"] = torch.arange(4) % len(hybrid.tasks)
    assert told.get("searched", False) == (not any(p.requires_grad for p in hybrid.root.parameters()))
    if told.get("searched"):
        return  # by no gradient: see its own tests
    optimizer = hybrid.optimizer()
    before_ = [p.detach().clone() for p in hybrid.root.parameters()]
    for _ in range(2):
        loss = model.train()(**inputs).logits.square().mean()
        if name in TERMS:
            (module,) = (m for m in hybrid.modules.values() if hasattr(m, "loss_terms"))
            loss = loss + cast(Any, module).loss_terms(NO_STEP)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    moved = [not torch.equal(a, b) for a, b in zip(before_, hybrid.root.parameters(), strict=True)]
    assert any(moved)
