"""The graph: resolution, checks before building, canonical hash."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.counting import Counter
from autopeft.errors import CompositionError, RecipeError, UsageError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.recipe import Recipe

BERT, T5, LLAMA, GPT2 = (spec_of(tiny_config(n)) for n in ("bert", "t5", "llama", "gpt2"))


def recipe(*items: Any, at: Any = "all", model: Any = (), stack: str = "all") -> Recipe:
    layers = [{"at": at, "stack": stack, "attach": list(items)}] if items else []
    return Recipe.from_dict({"autopeft": 2, "name": "x", "layers": layers, "model": list(model)})


def test_default_sites_that_a_backbone_lacks_are_left_out() -> None:
    graph = build_graph(recipe("ia3"), BERT)
    assert {s.name for s in graph.entries["ia3"].sites} == {"k", "v", "down"}
    graph = build_graph(recipe("ia3"), T5)
    assert {s.name for s in graph.entries["ia3"].sites} == {"k", "v", "cross_k", "cross_v", "down"}


def test_stack_and_layers_choose_the_places() -> None:
    graph = build_graph(recipe("lora", at="last 2", stack="decoder"), T5)
    assert {(s.stack, s.layer) for s in graph.entries["lora"].sites} == {("decoder", 1), ("decoder", 2)}


def test_a_prompt_goes_to_the_stack_that_reads_the_input() -> None:
    graph = build_graph(recipe(model=[{"prompt_tuning": {"length": 2}}]), T5)
    assert [s.path for s in graph.entries["prompt_tuning"].sites] == ["encoder.embeddings"]


@pytest.mark.parametrize(
    ("items", "options", "spec", "says"),
    [
        ([{"lora": {"sites": ["ffn"]}}], {}, BERT, "cannot sit at 'ffn'"),
        ([{"lora": {"sites": ["gate_proj"]}}], {}, BERT, "has no site 'gate_proj'"),
        ([{"lora": {"sites": ["qq"]}}], {}, BERT, "Did you mean 'q'"),
        (["lora"], {"at": [0, 9]}, BERT, "Layer 9"),
        (["lora"], {"stack": "decoder"}, BERT, "no stack 'decoder'"),
        ([{"dora": {}}, {"dora": {"sites": ["v"]}}], {}, BERT, "only one"),
        ([{"dora": {"sites": ["qkv"]}}, {"dora": {"sites": ["v"]}}], {}, GPT2, "only one"),
        ([{"dora": {"sites": ["qkv", "v"]}}], {}, GPT2, "only one"),
        ([{"gate": ["dora"]}], {}, BERT, "alters weights"),
        ([{"chain": ["lora"]}], {}, BERT, "at least two"),
        ([{"chain": ["lora", "prefix_tuning"]}], {}, BERT, "beside the chain"),
        ([{"chain": ["lora", "serial_adapter"]}], {}, BERT, "share no site"),
        ([{"chain": [{"lora": {}}, {"dora": {"sites": ["q"]}}]}], {}, BERT, "put dora before lora"),
        ([{"gate": [{"serial_adapter": {"variant": "houlsby"}}]}], {}, BERT, "alters weights"),
        ([], {"model": ["bitfit"]}, LLAMA, "bias"),
        (
            [],
            {"model": ["infoprompt", "infoprompt"]},
            BERT,
            "infoprompt and infoprompt_2 would each put a head",
        ),
    ],
)
def test_impossible_compositions_are_refused_with_the_way_out(
    items: list[Any], options: dict[str, Any], spec: Any, says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        build_graph(recipe(*items, **options), spec)
    for call in (Counter(spec).measure, Counter(spec).count, Counter(spec).hash):
        with pytest.raises(type(caught.value)) as counted:
            call(recipe(*items, **options))
        assert str(counted.value) == str(caught.value)


def test_a_composition_never_takes_the_name_of_an_entry() -> None:
    items: list[Any] = [{"gate": ["lora"]}, {"ia3": {}, "as": "gate_2"}, {"gate": [{"lora": {"rank": 2}}]}]
    graph = build_graph(recipe(*items), BERT)
    assert [n.name for n in graph.nodes()] == ["gate", "gate_3"]


def test_a_chain_takes_a_module_that_trains_norms_besides() -> None:
    adapters = [
        {"parallel_adapter": {"bottleneck": 2}},
        {"serial_adapter": {"bottleneck": 2, "variant": "houlsby"}},
    ]
    graph = build_graph(recipe({"chain": adapters}), BERT)
    assert [n.kind for n in graph.nodes()] == ["chain"]


def test_overlapping_blocks_add_and_compositions_nest() -> None:
    made = Recipe.from_dict(
        {
            "autopeft": 2,
            "name": "x",
            "layers": [
                {
                    "at": "all",
                    "attach": [{"sum": [{"gate": ["lora", {"chain": ["ia3", {"lora": {"sites": ["k"]}}]}]}]}],
                },
                {"at": [1], "attach": [{"lora": {"rank": 2}}]},
            ],
        }
    )
    graph = build_graph(made, BERT)
    assert list(graph.entries) == ["lora", "ia3", "lora_2", "lora_3"]
    assert [n.kind for n in graph.nodes()] == ["sum", "gate", "chain"]
    at_q = graph.trees_at(BERT.find("encoder", 1, "q"))  # type: ignore[arg-type]
    assert len(at_q) == 2
    assert nx.is_directed_acyclic_graph(graph.digraph)
    assert graph.digraph.has_node("module:encoder.1.q.lora_3")
    assert not graph.digraph.has_node("module:encoder.0.q.lora_3")


def test_the_hash_is_of_the_structure() -> None:
    a = build_graph(recipe("lora", "ia3"), BERT).hash()
    assert build_graph(recipe("ia3", {"lora": {"rank": 8}, "as": "mine"}, at="0-2"), BERT).hash() == a
    assert build_graph(recipe("lora", "ia3", at="0-1"), BERT).hash() != a
    assert build_graph(recipe({"lora": {"rank": 4}}, "ia3"), BERT).hash() != a
    assert build_graph(recipe({"gate": ["lora", "ia3"]}), BERT).hash() != a
    first, second = {"serial_adapter": {"bottleneck": 2}}, {"parallel_adapter": {"bottleneck": 2}}
    chained = build_graph(recipe({"chain": [first, second]}), BERT).hash()
    assert build_graph(recipe({"chain": [second, first]}), BERT).hash() != chained
    summed = build_graph(recipe({"sum": [first, second]}), BERT).hash()
    assert build_graph(recipe({"sum": [second, first]}), BERT).hash() == summed


def trained(*items: Any, **training: Any) -> str:
    made = Recipe.from_dict({"layers": [{"attach": list(items)}], "training": training})
    return build_graph(made, BERT).trial_hash()


def test_the_hash_of_a_trial_is_of_the_structure_and_of_how_each_part_trains() -> None:
    one = trained("lora", "ia3", learning_rate=1e-3)
    assert trained("ia3", {"lora": {}, "as": "mine"}, learning_rate=1e-3) == one
    assert trained("lora", "ia3", groups={"lora": {"learning_rate": 1e-3}}) == one
    assert trained("lora", "ia3", learning_rate=2e-3) != one
    assert trained("lora", "ia3", groups={"ia3": {"learning_rate": 2e-3}}) != one
    assert trained("lora", "ia3", groups={"head": {"weight_decay": 0.1}}) != one
    assert trained("lora", "ia3", warmup=0.5) != one
    assert trained("lora", "ia3", policies=["lora_plus"]) != one
    assert trained({"lora": {"rank": 4}}, "ia3") != one


CONTENTS = ["0" * 64, "1" * 64]


def starting(name: str, content: str, entry: str | None, *, frozen: bool) -> CompositionGraph:
    item = {"lora": {}, "from": name if entry is None else f"{name}.{entry}", "frozen": frozen}
    inputs = {name: {"folder": f"at_{name}", "sha256": content}}
    return build_graph(Recipe.from_dict({"inputs": inputs, "layers": [{"attach": [item]}]}), BERT)


starts = st.tuples(st.sampled_from(CONTENTS), st.sampled_from([None, "lora", "small"]), st.booleans())


@given(st.sampled_from(["a", "b"]), starts, st.sampled_from(["a", "b"]), starts)
def test_a_trial_is_told_by_the_content_that_it_starts_from_and_not_by_its_name(
    name: str, one: Any, second: str, other: Any
) -> None:
    a, b = (starting(n, c, e, frozen=f) for n, (c, e, f) in ((name, one), (second, other)))
    assert (a.trial_hash() == b.trial_hash()) == (one == other)
    assert (a.hash() == b.hash()) == (one[-1] == other[-1]), "the structure has no starts"
    assert a.trial_hash() != trained("lora")


def test_a_trial_whose_start_is_not_settled_has_no_hash() -> None:
    recipe = Recipe.from_dict({"inputs": {"a": "x"}, "layers": [{"attach": [{"lora": {}, "from": "a"}]}]})
    with pytest.raises(RecipeError, match="pinned"):
        build_graph(recipe, BERT).trial_hash()
    assert build_graph(recipe, BERT).hash() == build_graph(recipe.pinned({"a": CONTENTS[0]}), BERT).hash()


def test_each_entry_counts_with_its_own_start() -> None:
    def of(*starts: str | None) -> str:
        items = [
            {"lora": {"rank": r}, **({"from": s} if s else {})} for r, s in zip((2, 4), starts, strict=True)
        ]
        used = {s: {"folder": s, "sha256": CONTENTS[s == "b"]} for s in starts if s}
        return build_graph(
            Recipe.from_dict({"inputs": used, "layers": [{"attach": items}]}), BERT
        ).trial_hash()

    assert len({of(*starts) for starts in (("a", None), (None, "a"), ("a", "b"), ("b", "a"))}) == 4


def test_rates_that_nothing_uses_make_no_other_trial() -> None:
    both = {name: {"learning_rate": 1e-3} for name in ("lora", "head")}
    assert trained("lora", learning_rate=1e-2, groups=both) == trained("lora", groups=both)
    summed, gated = {"sum": ["lora"]}, {"gate": ["lora"]}
    assert trained(summed, learning_rate=1e-2, groups=both) == trained(summed, groups=both)
    assert trained(gated, learning_rate=1e-2, groups=both) != trained(gated, groups=both), "gates use it"


def test_which_of_two_entries_has_which_rate_counts_and_their_order_does_not() -> None:
    small, large = {"lora": {"rank": 1}}, {"lora": {"rank": 8}}
    groups = {"lora": {"learning_rate": 1e-2}, "lora_2": {"learning_rate": 1e-4}}
    swapped = {"lora": groups["lora_2"], "lora_2": groups["lora"]}
    assert trained(small, large, groups=groups) == trained(large, small, groups=swapped)
    assert trained(small, large, groups=groups) != trained(small, large, groups=swapped)


ENTRIES = st.sampled_from(
    [
        {"lora": {"rank": 1}},
        {"lora": {"sites": ["up"]}},
        "ia3",
        {"serial_adapter": {"bottleneck": 2}},
        {"prefix_tuning": {"length": 2}},
    ]
)


TREES = st.recursive(
    ENTRIES,
    lambda inner: st.builds(
        lambda k, c: {k: c}, st.sampled_from(["sum", "gate"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)


@given(items=st.lists(TREES, min_size=1, max_size=3))
def test_recipe_to_graph_to_recipe_is_the_identity(items: list[Any]) -> None:
    made = recipe(*items)
    graph = build_graph(made, BERT)
    again = Recipe.from_yaml(graph.recipe.to_yaml())
    assert again == made
    assert build_graph(again, BERT).hash() == graph.hash()
    assert graph.parameter_count() == build_graph(again, BERT).parameter_count()


@pytest.mark.parametrize(
    "items",
    [
        [{"route": {"children": ["autolora"], "copies": 2}}],
        [{"route": {"children": ["autolora", {"sum": ["lora", "periodic_lora"]}]}}],
    ],
)
def test_experts_with_phases_are_refused_before_anything_is_built(items: list[Any]) -> None:
    """The others would stay as they are while one of them searches, so that nothing could be routed."""
    recipe = Recipe.from_dict({"layers": [{"attach": items}]})
    with pytest.raises(CompositionError, match="of a route learn together"):
        build_graph(recipe, BERT)
    with pytest.raises(CompositionError, match="of a route learn together"):
        Counter(BERT).measure(recipe)


@pytest.mark.parametrize(
    "items",
    [
        ["autolora", {"periodic_lora": {"sites": ["k"]}}],
        [{"sum": ["periodic_lora", {"sora": {"stages": 2, "final_threshold": 0.1}}]}],
        [{"route": ["autolora", "lora"]}, {"periodic_lora": {"sites": ["k"]}}],
    ],
)
def test_entries_with_phases_follow_each_other(items: list[Any]) -> None:
    recipe = Recipe.from_dict({"layers": [{"attach": items}]})
    count = build_graph(recipe, BERT).parameter_count()
    assert (count.deployed, count.trained) == Counter(BERT).measure(recipe)[:2]
