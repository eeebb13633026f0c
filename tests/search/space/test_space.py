from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from support.toy import toy_spec
from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config, ViTConfig

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.errors import RecipeError
from autopeft.graph import build_graph
from autopeft.recipe import CompositionItem, EmptyRecipe, EntryItem, Recipe
from autopeft.recipe.tasks import tasks_of
from autopeft.recipe.yaml_text import read_yaml
from autopeft.search.space.space import BoundSpace, Space, space_names
from autopeft.spec import BackboneSpec

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
BERT = spec_of(BertConfig())
MINILM = spec_of(
    BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
)
LLAMA_7B = spec_of(LlamaConfig())
T5 = spec_of(T5Config(d_model=64, num_layers=4, num_decoder_layers=2, d_ff=128, d_kv=16, num_heads=4))
BACKBONES = {
    "bert": BERT,
    "minilm": MINILM,
    "llama": spec_of(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "gpt2": spec_of(GPT2Config(n_embd=64, n_layer=4, n_head=4)),
    "t5": T5,
    "vit": spec_of(ViTConfig(**SMALL)),
}


def space(body: str, spec: BackboneSpec = MINILM) -> BoundSpace:
    return Space.from_yaml("autopeft: 2\nname: s\n" + body, "s.yaml").bind(spec)


def message(body: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Space.from_yaml(body, "s.yaml")
    return str(caught.value)


def blocks(recipe: Recipe) -> list[tuple[Any, list[str]]]:
    return [(b.at, [i.method for i in b.attach if isinstance(i, EntryItem)]) for b in recipe.layers]


SCALED = """
vars: {r: {float: [0.1, 0.9]}, k: {choice: [0, 1, 2, 8, 32]}, t: {scaled: %s}}
layers: [{attach: [{lora: {rank: $k}}, ia3]}]
training: {groups: {lora: {learning_rate: $t}}}
"""


def test_a_built_in_space_is_read_once_and_each_asker_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Space.named("autopeft")
    here = first.bind(BERT)
    monkeypatch.setattr(Space, "from_yaml", lambda *_: pytest.fail("it was read before"))
    again = Space.named("autopeft")
    assert again.text == first.text
    assert again.bind(MINILM).spec is MINILM
    assert first.bind(BERT) is here, "what one is bound to is not the other's"


def test_a_name_under_vars_may_be_that_of_a_choice_in_another() -> None:
    told = "vars: {%s, %s}\nlayers: [{attach: [$a, $method]}]"
    nested = "a: {choice: [{lora: {rank: 2}}, {choice: [{dora: {rank: 2}}, ssf]}]}"
    plain = "method: {choice: [ia3, bitfit]}"
    for parts in ((nested, plain), (plain, nested)):
        assert len(space(told % parts).parameters) == 3


def test_autopeft_space_has_the_size_of_the_paper() -> None:
    built_in = Space.named("autopeft")
    assert built_in.bind(BERT).cardinality() == 5_451_776
    assert built_in.bind(MINILM).cardinality() == 85_184
    assert built_in.bind(BERT).continuous == ()


def test_autopeft_sizes_decode_as_in_the_paper() -> None:
    bound = Space.named("autopeft").bind(BERT)
    size = bound.parameter("serial_adapter.bottleneck")
    assert size.sizes == (768, 384, 192, 96, 48, 24, 12, 6, 3, 1, 0)
    assert size.ordered
    on = {f"layer_{i}.on": i in (1, 4) for i in range(12)}
    values = {
        "serial_adapter.bottleneck": "hidden/32",
        "parallel_adapter.bottleneck": 0,
        "prefix_tuning.length": 1,
        **on,
    }
    recipe = bound.materialize(values)
    assert blocks(recipe) == [((1, 4), ["serial_adapter", "prefix_tuning"])]
    assert count(recipe, BERT).deployed == 2 * (2 * 768 * (24 + 1) + 24 + 768)


def _untrained(recipe: Recipe) -> str:
    return build_graph(Recipe.from_dict({**recipe.to_dict(), "training": {}}), LLAMA_7B).trial_hash()


def test_the_placement_study_holds_each_place_and_size_once_and_what_it_found_best() -> None:
    """LLM-Adapters: 4 prefix lengths, 4 sizes at 3 places of three methods; counts as on LLaMA-7B."""
    bound = Space.named("llm_adapters").bind(LLAMA_7B)
    names = [p.name for p in bound.parameters]
    values = [dict(zip(names, v, strict=True)) for v in product(*(p.choices for p in bound.parameters))]
    # Rates are left out: in the space the prefix's stands in a group, where a head is not of it.
    found = {_untrained(r): r for r in map(bound.materialize, values)}
    assert len(found) == 4 + 3 * 3 * 4
    assert {len(r.entries()) for r in found.values()} == {1}
    assert all(
        _untrained(Recipe.named(f"llm-adapters-{m}")) in found
        for m in ("lora", "parallel", "prefix", "series")
    )
    sizes = {r.entries()[0].item.config["rank"]: r for r in found.values() if r.entries()[0].method == "lora"}
    assert {rank: recipe.entries()[0].item.config["alpha"] for rank, recipe in sizes.items()} == {
        4: 8.0, 8: 16.0, 16: 32.0, 32: 64.0
    }  # fmt: skip


@pytest.mark.parametrize("name", space_names())
@pytest.mark.parametrize("family", BACKBONES)
def test_built_in_spaces_give_countable_recipes_on_every_backbone(name: str, family: str) -> None:
    bound = Space.named(name).bind(BACKBONES[family])
    rng = random.Random(0)
    full = 0
    for _ in range(24):
        values = bound.sample(rng)
        bound.check(values)
        try:
            recipe = bound.materialize(values)
        except EmptyRecipe:
            continue
        full += 1
        assert count(recipe, BACKBONES[family]).deployed > 0
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert full > 12
    assert bound.materialize(bound.middle()).entries()


def test_default_space_leaves_out_what_a_backbone_cannot_take() -> None:
    bound = Space.named("default").bind(BACKBONES["llama"])
    recipe = bound.materialize({**bound.middle(), "whole_model.on": True, "whole_model": "bitfit"})
    assert "bitfit" not in [e.method for e in recipe.entries()]
    assert "bias" in bound.left_out["bitfit"]
    assert "bitfit" not in recipe.training.groups
    sites = {
        s for e in recipe.entries() if e.method in ("lora", "dora", "adalora") for s in e.item.config["sites"]
    }
    assert sites <= set(BACKBONES["llama"].site_names())


def test_shared_choices_variables_and_training() -> None:
    bound = space(
        """
vars: {r: {choice: [2, 4]}}
layers:
  - at: first 2
    attach: [{lora: {rank: $r, alpha: {float: [1, 64], log: true}}}]
  - at: last 1
    attach: [{lora: {rank: $r}, as: top}]
training:
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
  groups: {top: {weight_decay: {choice: [0.0, 0.1]}}}
  policies: [{lora_plus: {ratio: {int: [2, 32], log: true}}}]
"""
    )
    names = ["r", "lora.alpha", "learning_rate", "top.weight_decay", "lora_plus.ratio"]
    assert [p.name for p in bound.parameters] == names
    assert bound.cardinality() == 2 * 2 * 31
    assert bound.continuous == ("lora.alpha", "learning_rate")
    values = {
        "r": 4,
        "lora.alpha": 8.0,
        "learning_rate": 1e-3,
        "top.weight_decay": 0.1,
        "lora_plus.ratio": 16,
    }
    recipe = bound.materialize(values)
    assert [e.item.config["rank"] for e in recipe.entries()] == [4, 4]
    assert recipe.training.groups["top"].weight_decay == 0.1
    assert recipe.training.policies[0].config == {"ratio": 16.0}


def test_a_space_draws_the_optimizer_and_the_rates_of_parts() -> None:
    bound = space(
        """
layers:
  - attach: [{lora: {rank: 2}}, {prefix_tuning: {length: 2, reparameterization: {choice: [null, 4]}}}]
training:
  optimizer:
    choice:
      - {betas: [0.9, {choice: [0.98, 0.999]}], epsilon: {float: [1.0e-8, 1.0e-6], log: true}}
      - {name: sgd, momentum: {choice: [0.0, 0.9]}}
      - {name: adafactor}
  groups:
    lora.up: {learning_rate: {float: [1.0e-4, 1.0e-2], log: true}}
    prefix_tuning.mlp: {learning_rate: 1.0e-4}
"""
    )
    names = [p.name for p in bound.parameters]
    assert {"optimizer", "lora.up.learning_rate", "prefix_tuning.reparameterization"} < set(names)
    seen = set()
    for seed in range(60):
        draw = random.Random(seed)
        values = {p.name: p.sample(draw) for p in bound.parameters}
        recipe = bound.materialize(values)
        seen.add(recipe.training.optimizer.name)
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
        assert recipe.training.settings("lora", part="up")[0] == values["lora.up.learning_rate"]
        assert ("prefix_tuning.mlp" in recipe.training.groups) == (
            values["prefix_tuning.reparameterization"] is not None
        )
    assert seen == {"adamw", "sgd", "adafactor"}


def test_wrong_optimizers_and_parts_of_a_space_are_told_before_anything_is_drawn() -> None:
    text = """
layers:
  - attach: [{lora: {rank: {choice: [0, 2]}}}]
training:
  optimizer: {name: {choice: [adamw, adamv]}}
  groups: {lora.upp: {learning_rate: 1.0e-3}}
"""
    with pytest.raises(RecipeError) as error:
        space(text)
    for said in ("'adamv'", "Did you mean 'adam", "'upp'", "Did you mean 'up'?"):
        assert said in str(error.value)


def test_parts_of_an_alias_that_is_drawn_for_each_layer_are_those_of_all_its_layers() -> None:
    bound = space(
        """
layers:
  - each_layer: [{optional: {lora: {rank: 2}, as: own}}]
training: {groups: {own.up: {learning_rate: 0.1}}}
"""
    )
    groups = bound.materialize(bound.middle()).training.groups
    assert set(groups) == {f"own_{layer}.up" for layer in range(len(bound.parameters))}


def test_each_layer_draws_for_every_layer() -> None:
    bound = space(
        "layers: [{at: '1-2', each_layer: [{lora: {rank: {choice: [0, 2]}}, as: mine}, optional: ia3]}]"
    )
    assert [p.name for p in bound.parameters] == [
        "layer_1.mine.rank",
        "layer_1.ia3.on",
        "layer_2.mine.rank",
        "layer_2.ia3.on",
    ]
    assert bound.cardinality() == 16
    values = {"layer_1.mine.rank": 2, "layer_1.ia3.on": True, "layer_2.mine.rank": 0, "layer_2.ia3.on": False}
    assert blocks(bound.materialize(values)) == [((1,), ["lora", "ia3"])]
    both = bound.materialize({**values, "layer_2.mine.rank": 2})
    assert [e.name for e in both.entries()] == ["mine_1", "ia3", "mine_2"]


def test_a_number_that_is_larger_for_smaller_sizes() -> None:
    bound = space(SCALED % "$r, with: $k, at: 8, power: 0.5, most: 0.5")
    assert [p.name for p in bound.parameters] == ["r", "k"]

    def rate(number: float, size: int) -> float | None:
        recipe = bound.materialize({"r": number, "k": size})
        return recipe.training.groups["lora"].learning_rate

    assert [rate(0.1, k) for k in (32, 8, 2)] == [0.1, 0.1, 0.2]
    assert rate(0.1, 1) == pytest.approx(0.1 * 8**0.5, rel=1e-2)
    assert rate(0.3, 1) == 0.5
    assert rate(0.9, 1) == 0.9
    assert bound.materialize({"r": 0.1, "k": 0}).training.groups == {}


def test_first_layer_and_switches() -> None:
    bound = space(
        """
vars: {first: {int: [0, last]}, on: {each_layer: {choice: [true, false]}}}
layers:
  - {at: {from: $first, switch: $on}, attach: [lora]}
  - {at: {of: last 2, switch: $on}, each_layer: [{ia3: {}}]}
"""
    )
    assert bound.parameter("first").high == 5
    on = {f"layer_{i}.on": i != 4 for i in range(6)}
    assert blocks(bound.materialize({"first": 3, **on})) == [((3, 5), ["lora"]), ((5,), ["ia3"])]
    everything = bound.materialize({"first": 0, **dict.fromkeys(on, True)})
    assert everything.layers[0].at == "all"
    with pytest.raises(EmptyRecipe):
        bound.materialize({"first": 0, **dict.fromkeys(on, False)})


def test_items_that_act_by_the_task_are_told_the_tasks_and_nothing_else_is() -> None:
    space = Space.from_yaml("""
autopeft: 2
name: by-task
vars:
  switch: {each_layer: {choice: [true, false]}}
  own: {choice: [null, {switch: [{lora: {rank: {choice: [2, 4]}}}]}]}
layers:
  - at: {from: 2, switch: $switch}
    attach: [$own, {optional: {hyperformer: {heads: stack}}}]
training:
  learning_rate: 1.0e-3
  groups: {hyperformer: {learning_rate: 1.0e-2}}
""")
    found = space.for_tasks(["a", "b"])
    told = read_yaml(found.text, "space")
    assert told["layers"] == [
        {
            "at": {"from": 2, "switch": "$switch"},
            "attach": ["$own", {"optional": {"hyperformer": {"heads": "stack", "tasks": ["a", "b"]}}}],
        }
    ]
    (own,) = (choice for choice in told["vars"]["own"]["choice"] if choice)
    assert (own["switch"]["tasks"], own["switch"]["copies"]) == (["a", "b"], 2)
    assert told["vars"]["switch"] == {"each_layer": {"choice": [True, False]}}
    assert told["training"]["groups"] == {"hyperformer": {"learning_rate": 1.0e-2}}
    bound = found.bind(BERT)
    assert tasks_of(bound.materialize(bound.middle())) == ("a", "b")


@pytest.mark.parametrize("name", space_names())
def test_built_in_spaces_act_alike_on_all_tasks(name: str) -> None:
    space = Space.named(name)
    assert space.for_tasks(["a", "b"]) is space


def test_choice_of_items_compositions_and_absence() -> None:
    bound = space(
        """
layers:
  - attach:
      - choice:
          - lora: {rank: {choice: [0, 3]}}
          - gate: [{lora: {rank: 5}}, {serial_adapter: {bottleneck: {choice: [0, 4]}}}]
          - null
      - optional: {chain: [ia3]}
"""
    )
    values = {"method": "gate", "lora.rank": 3, "serial_adapter.bottleneck": 0, "chain.on": False}
    gated = bound.materialize(values).layers[0].attach
    assert len(gated) == 1
    assert isinstance(gated[0], CompositionItem)
    assert [c.method for c in gated[0].children if isinstance(c, EntryItem)] == ["lora"]
    assert blocks(bound.materialize({**values, "method": "lora"})) == [("all", ["lora"])]
    with pytest.raises(EmptyRecipe):
        bound.materialize({**values, "method": None})
    with pytest.raises(EmptyRecipe):
        bound.materialize({**values, "method": "lora", "lora.rank": 0})


@pytest.mark.parametrize("zero", ["0", "'0'", "0%", "0.0%"])
def test_zero_keep_is_absent(zero: str) -> None:
    bound = space(f"model: [{{fish_mask: {{keep: {{choice: [{zero}, 0.1%]}}}}}}]")
    with pytest.raises(EmptyRecipe):
        bound.materialize({"fish_mask.keep": bound.parameters[0].choices[0]})


def test_stacks_of_different_depth_get_a_block_each() -> None:
    body = "layers: [{at: {switch: {choice: [true, false]}}, attach: [lora]}]"
    bound = space(body, T5)
    assert len(bound.parameters) == 4
    recipe = bound.materialize(
        {"layer_0.on": False, "layer_1.on": True, "layer_2.on": False, "layer_3.on": True}
    )
    assert [(b.stack, b.at) for b in recipe.layers] == [("encoder", (1, 3)), ("decoder", (1,))]
    assert count(recipe, T5).deployed > 0
    only = space("layers: [{stack: decoder, attach: [lora]}, {attach: [ia3]}]", MINILM)
    assert blocks(only.materialize({})) == [("all", ["ia3"])]


def test_values_are_checked() -> None:
    bound = space("layers: [{attach: [{lora: {rank: {choice: [1, 2]}, alpha: {float: [1, 2]}}}]}]")
    good = {"lora.rank": 1, "lora.alpha": 1.5}
    bound.check(good)
    for bad in (
        {"lora.rank": 1},
        {**good, "lora.rank": 3},
        {**good, "lora.rank": True},
        {**good, "lora.alpha": 2.5},
        {**good, "lora.alpha": float("nan")},
        {**good, "lora.alpha": "1"},
        {**good, "lora.rnk": 1},
    ):
        with pytest.raises(RecipeError):
            bound.materialize(bad)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("layers: [{attach: [{lora: {rank: {choice: [0, 9999]}}}]}]", "lora.rank: should be less than"),
        ("layers: [{attach: [{lora: {rank: {int: [0, 9999]}}}]}]", "lora.rank: should be less than"),
        ("layers: [{attach: [{choice: [{lora: {rank: -1}}, {lra: {}}]}]}]", "Did you mean 'lora'"),
        ("layers: [{attach: [{lora: {sites: {choice: [[q], [qq]]}}}]}]", "no site 'qq'"),
        ("layers: [{attach: [{lora: {rank: {choice: []}}}]}]", "1 to 1000 options"),
        ("layers: [{attach: [{lora: {rank: {choice: [1, 1]}}}]}]", "offered twice"),
        ("layers: [{attach: [{lora: {rank: {int: [4, 1]}}}]}]", "[1, 4]"),
        ("layers: [{attach: [{lora: {rank: {int: [1.5, 4]}}}]}]", "whole numbers"),
        ("layers: [{attach: [{lora: {rank: {int: [0, 4], log: true}}}]}]", "starts above 0"),
        ("layers: [{attach: [{lora: {rank: {int: [1, 4], lg: true}}}]}]", "Did you mean 'log'"),
        ("layers: [{attach: [{lora: {rank: $r}}]}]", "not declared"),
        ("vars: {rank: {choice: [1]}}\nlayers: [{attach: [{lora: {rank: $rnk}}]}]", "Did you mean '$rank'"),
        ("vars: {r: {choice: [1]}}\nlayers: [{attach: [lora]}]", "never used"),
        ("vars: {r: 3}\nlayers: [{attach: [lora]}]", "declares a choice"),
        (
            "vars: {r: {each_layer: {choice: [1]}}}\nlayers: [{attach: [{lora: {rank: $r}}]}]",
            "drawn for each layer",
        ),
        ("layers: [{at: {switch: {choice: [1, 2]}}, attach: [lora]}]", "true and false"),
        ("layers: [{at: {from: {choice: [0.5]}}, attach: [lora]}]", "index of a layer"),
        ("layers: [{at: {form: 1}, attach: [lora]}]", "Did you mean 'from'"),
        ("layers: [{at: {choice: [all, al]}, attach: [lora]}]", "does not name layers"),
        ("layers: [{attach: [lora], each_layer: [lora]}]", "either 'attach'"),
        ("layers: [{attach: []}]", "at least one"),
        (
            "layers: [{attach: [lora]}]\ntraining: {groups: {lroa: {learning_rate: 0.1}}}",
            "Did you mean 'lora'",
        ),
        ("layers: [{attach: [lora]}]\ntraining: {learning_rate: {float: [0, 1]}}", "learning_rate"),
        ("layers: [{attach: [{lora: {}, as: a}, {ia3: {}, as: a}]}]", "taken"),
        ("name: x", "at least one method"),
        ("autopeft: 7\nlayers: []", "upgrade AutoPEFT"),
        ("a: &x 1", "anchor"),
        ("layers: [{stack: enc, attach: [lora]}]", "Did you mean 'encoder'"),
        ("layers: [{stack: {choice: [all, foo]}, attach: [lora]}]", "'foo' is no stack"),
        ("layers: [{at: {choice: [{choice: [all, g1]}, g2]}, attach: [lora]}]", "without choices inside"),
        ("layers: [{at: {of: [0, {optional: 1}]}, attach: [lora]}]", "without choices inside"),
        (
            "layers: [{attach: [{choice: [ia3, {gate: [{choice: [{lora: {rank: {choice: [1, -1]}}}]}]}]}]}]",
            "gate[0].lora.rank",
        ),
        ("layers: [{attach: [{gate: [{lora: {rank: 2}}, {lora: {rank: -2}}]}]}]", "gate[1].lora.rank"),
        ("layers: [{attach: [{gate: [lora], of: 2}]}]", "one name, but this has 2 keys"),
        ("layers: [{attach: [{gate: {children: [lora], tp: {choice: [1, 2]}}}]}]", "unknown key 'tp'"),
        (f"{SCALED % '$r, at: 12'}", "'with' is a number"),
        (f"{SCALED % '$r, with: $k, at: 0'}", "'at' is a number above 0, but got 0"),
        (f"{SCALED % '$r, with: $k, at: 12, power: -1'}", "'power' is a number above 0"),
        (f"{SCALED % '$r, with: $k, at: 12, most: x'}", "'most' is a number above 0"),
        (f"{SCALED % '$r, with: $k, size: 12'}", "unknown key 'size'"),
        (f"{SCALED % '$r, with: $kk, at: 12'}", "Did you mean '$k'"),
        (f"{SCALED % '[1], with: $k, at: 12'}", "'scaled' is a number"),
        (f"{SCALED % '$r, with: $k, at: 12}, u: {scaled: $r, with: $k, at: 2'}", "'u' is never used"),
        (f"{SCALED % '$r, with: $k, at: 64'}", "learning_rate: should be less"),
        (
            f"layers: [{{attach: [{', '.join(f'{{ia3: {{}}, as: a{i}}}' for i in range(500))}]}}]\n"
            f"training:\n  learning_rate: {{choice: [{', '.join(f'0.{i}' for i in range(100, 500))}]}}\n"
            f"  groups: {{{', '.join(f'a{i}: {{}}' for i in range(500))}}}",
            "too much to choose from",
        ),
    ],
)
def test_bad_spaces_are_refused_when_read(body: str, expected: str) -> None:
    assert expected in message(body)


def test_problems_carry_the_line_of_the_option() -> None:
    text = message(
        "layers:\n  - attach:\n      - lora:\n          rank: {choice: [1, 2]}\n          alpha: 0\n"
    )
    assert text.startswith("s.yaml:5: layers[0].attach[0].lora.alpha")


def test_hidden_and_last_follow_the_backbone() -> None:
    items = "[{lora: {rank: {int: [1, hidden/64]}}}, {serial_adapter: {bottleneck: hidden/1000}}]"
    body = f"layers: [{{attach: {items}}}]"
    assert space(body, BERT).parameter("lora.rank").high == 12
    assert space(body, MINILM).parameter("lora.rank").high == 6
    recipe = space(body, MINILM).materialize({"lora.rank": 2})
    assert recipe.entries()[1].item.config == {"bottleneck": 1}


def test_every_member_of_a_small_space_is_reached() -> None:
    bound = space("layers: [{attach: [{lora: {rank: {choice: [0, 1]}}}, {optional: ia3}]}]")
    hashes = set()
    for combination in product(*(p.choices for p in bound.parameters)):
        values = dict(zip((p.name for p in bound.parameters), combination, strict=True))
        try:
            hashes.add(bound.materialize(values).structure_hash())
        except EmptyRecipe:
            hashes.add("empty")
    assert len(hashes) == bound.cardinality() == 4


def test_log_sampling_is_even_over_decades() -> None:
    bound = space(
        "layers: [{attach: [lora]}]\ntraining: {learning_rate: {float: [1.0e-4, 1.0e-2], log: true}}"
    )
    rng = random.Random(0)
    drawn = [bound.sample(rng)["learning_rate"] for _ in range(2000)]
    assert all(1e-4 <= d <= 1e-2 for d in drawn)
    assert 0.45 < sum(d < 1e-3 for d in drawn) / 2000 < 0.55


def test_unknown_spaces_name_near_matches(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'default'"):
        Space.load("defalt")
    with pytest.raises(RecipeError, match="no search space file"):
        Space.load(tmp_path / "none.yaml")
    (tmp_path / "mine.yaml").write_text("name: mine\nlayers: [{attach: [lora]}]\n")
    assert Space.load(tmp_path / "mine.yaml").name == "mine"


def test_choices_in_choices_have_names_of_their_own() -> None:
    """A choice inside the second of a name is called after it, as the third of that name would be."""
    second = "{lora: {rank: {choice: [{choice: [3, 4]}, 5]}}}"
    text = f"layers: [{{attach: [{{lora: {{rank: {{choice: [1, 2]}}}}}}, {second}]}}]"
    bound = Space.from_yaml(text).bind(toy_spec())
    assert [p.name for p in bound.parameters] == ["lora.rank", "lora.rank_2", "lora.rank_2_2"]
    first = [p.choices[0] for p in bound.parameters]
    recipe = bound.materialize(dict(zip((p.name for p in bound.parameters), first, strict=True)))
    assert [entry.item.config["rank"] for entry in recipe.entries()] == [1, 3]
