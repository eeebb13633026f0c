"""Templates on encoders, decoders and both: inside the budget, and as large as it allows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.evidence import minilm_spec
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.graph import build_graph
from autopeft.search.portfolio.templates import Rates, fitted, templates
from autopeft.spec import LogitsSpec

NAMES = [t.name for t in templates()]


def test_names_are_distinct_and_sizes_ascend() -> None:
    assert len(set(NAMES)) == len(NAMES) > 15
    for template in templates():
        assert list(template.sizes) == sorted(set(template.sizes))
        assert list(template.rates.at) == sorted(set(template.rates.at))


@pytest.mark.parametrize("template", templates(), ids=NAMES)
@pytest.mark.parametrize("budget", ["0.5%", "0.15%", "0.04%"])
def test_a_recipe_is_the_largest_inside_the_budget(template, budget: str) -> None:  # type: ignore[no-untyped-def]
    spec = minilm_spec()
    most = Budget.parse(budget).limits(spec)[1]
    found = fitted(template, spec, Budget.parse(budget))
    assert len(found) in (0, len(template.rates.at))
    for member in found:
        assert member.counts.deployed <= most
        assert member.hash == build_graph(member.recipe, spec).trial_hash()
    if found and template.sizes and found[0].size != template.sizes[-1]:
        size = template.sizes[template.sizes.index(found[0].size) + 1]
        larger = template.space.bind(spec).materialize({"size": size})
        assert build_graph(larger, spec).parameter_count().deployed > most
    assert len({m.hash for m in found}) == len(found)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet", "gpt2", "llama", "t5"])
def test_other_backbones_have_recipes_as_well(family: str) -> None:
    spec = spec_of(tiny_config(family))
    found = [m for t in templates() for m in fitted(t, spec, Budget.parse("20%"))]
    assert len(found) > 20
    assert {"lora", "lora, upper half", "parallel adapter"} <= {m.template for m in found}
    for member in found:
        build_graph(member.recipe, spec)
        assert member.counts.deployed <= Budget.parse("20%").limits(spec)[1]


def test_smaller_sizes_take_larger_rates() -> None:
    rates = Rates((1e-3, 4e-3), size=16, power=0.5)
    assert rates.of(16) == [1e-3, 4e-3]
    assert rates.of(64) == [1e-3, 4e-3]
    assert rates.of(4) == [2e-3, 8e-3]
    assert Rates((1e-2, 3e-2), size=100, power=1.0).of(1) == [3e-2, 3e-2]
    assert Rates((5e-2,)).of(None) == [5e-2]


def test_no_recipe_fits_what_is_too_small() -> None:
    assert not [m for t in templates() for m in fitted(t, minilm_spec(), Budget.parse(50))]


@pytest.mark.parametrize("deep", [True, False])
def test_the_hidden_layers_of_a_head_learn_more_slowly(deep: bool) -> None:
    spec = replace(minilm_spec(), logits=LogitsSpec(384, 2, deep=deep))
    members = [m for t in templates() for m in fitted(t, spec, Budget.parse("0.5%"))]
    assert len(members) > 20
    for member in members:
        rates = {name: g.learning_rate for name, g in member.recipe.training.groups.items() if "head" in name}
        assert rates == {"head": 1e-2, **({"head.hidden": 3e-4} if deep else {})}
