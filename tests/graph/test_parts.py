"""What the graph and the parts say of a recipe equals what a scan without memory says."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import reference
from support.tiny import tiny_config
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.counting import Counter, Measure
from autopeft.errors import UsageError
from autopeft.graph import build_graph, parts, parts_of
from autopeft.recipe import EntryItem, LayerBlock, Recipe
from autopeft.spec import BackboneSpec

BERT, T5, LLAMA, GPT2 = (spec_of(tiny_config(n)) for n in ("bert", "t5", "llama", "gpt2"))
DEEP = spec_of(BertConfig(hidden_size=32, num_hidden_layers=12, num_attention_heads=4, intermediate_size=64))

ENTRIES = st.one_of(
    st.builds(
        lambda m, r, s: {m: {"rank": r, "sites": s}},
        st.sampled_from(["lora", "dora"]),
        st.integers(1, 3),
        st.lists(st.sampled_from(["q", "v", "up", "cross_q", "qkv"]), min_size=1, max_size=3, unique=True),
    ),
    st.sampled_from(
        [
            "ia3",
            {"serial_adapter": {"bottleneck": 2}},
            {"serial_adapter": {"bottleneck": 2, "variant": "pfeiffer"}},
            {"parallel_adapter": {"bottleneck": 3, "sites": ["attention", "ffn"], "scale": "learned"}},
            {"prefix_tuning": {"length": 2, "reparameterization": 5}},
        ]
    ),
)
TREES = st.recursive(
    ENTRIES,
    lambda inner: st.builds(
        lambda kind, children: {kind: children},
        st.sampled_from(["sum", "gate", "chain"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=5,
)
ATS = st.sampled_from(["all", "0-1", "first 2", "last 1", [1], [0, 2], [9], "g2"])
BLOCKS = st.fixed_dictionaries(
    {
        "at": ATS,
        "stack": st.sampled_from(["all", "all", "encoder", "decoder"]),
        "attach": st.lists(TREES, min_size=1, max_size=3),
    }
)
BITFIT_TWICE = {"sum": ["bitfit", "bitfit"]}
MODEL = st.lists(
    st.sampled_from(["bitfit", {"prompt_tuning": {"length": 3}}, {"fish_mask": {"keep": 9}}, BITFIT_TWICE]),
    max_size=2,
)


def outcome(call: Any) -> Any:
    """What a call returns, or its error."""
    try:
        return call()
    except UsageError as error:
        return type(error), str(error)


def by_graph(recipe: Recipe, spec: BackboneSpec) -> Measure:
    graph = build_graph(recipe, spec)
    total = graph.parameter_count()
    return Measure(total.deployed, total.trained, graph.hash())


@settings(max_examples=200, deadline=None)
@given(layers=st.lists(BLOCKS, max_size=3), model=MODEL, spec=st.sampled_from([BERT, T5, LLAMA, GPT2, DEEP]))
def test_graph_counter_and_reference_agree(layers: list[Any], model: list[Any], spec: BackboneSpec) -> None:
    recipe = Recipe.from_dict({"layers": layers, "model": model})
    expected = outcome(lambda: by_graph(recipe, spec))
    assert outcome(lambda: Counter(spec).measure(recipe)) == expected
    counts = outcome(lambda: Counter(spec).count(recipe, head=7))
    if isinstance(expected, Measure):
        assert reference(recipe, spec) == expected
        assert (counts.deployed, counts.trained, counts.head) == (expected.deployed, expected.trained, 7)
        assert Counter(spec).hash(recipe) == expected.hash
    else:
        assert counts == expected


def test_errors_name_the_entries_of_the_recipe_each_time() -> None:
    lost = {"lora": {"sites": ["cross_q"]}}
    recipe = Recipe.from_dict({"layers": [{"stack": "encoder", "attach": ["lora", lost]}]})
    counter = Counter(T5)
    for _ in range(2):
        for call in (counter.count, counter.measure, lambda r: build_graph(r, T5)):
            with pytest.raises(UsageError, match="lora_2 finds none of its sites"):
                call(recipe)


def test_a_config_that_was_never_read_is_checked_too() -> None:
    block = LayerBlock(attach=(EntryItem(method="lora", config={"rank": 1}),))
    assert Counter(BERT).count(Recipe(layers=(block,))).deployed == 3 * 2 * 64
    block = LayerBlock(attach=(EntryItem(method="lora", config={"rank": True}),))
    with pytest.raises(ValueError, match="rank"):
        Counter(BERT).count(Recipe(layers=(block,)))


def test_entries_of_one_name_are_left_to_the_graph() -> None:
    """Such a recipe cannot be read from data; the graph sees one of the two entries."""
    item = EntryItem(method="lora", config={"rank": 1}, alias="mine")
    recipe = Recipe(layers=(LayerBlock(attach=(item,)), LayerBlock(attach=(item,))))
    assert Counter(BERT).measure(recipe) == by_graph(recipe, BERT)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_RESULTS", 10)
    spec = replace(BERT)
    for rank in range(1, 40):
        for at in ("all", [0], [1, 2]):
            recipe = Recipe.from_dict({"layers": [{"at": at, "attach": [{"lora": {"rank": rank}}, "ia3"]}]})
            assert Counter(spec).measure(recipe) == reference(recipe, spec)
            known = parts_of(spec).living
            assert sum(len(s._counts) + len(s._texts) for s in known) <= 10


def test_counters_of_one_spec_share_and_the_last_few_specs_are_kept() -> None:
    specs = [replace(BERT) for _ in range(30)]
    assert parts_of(specs[0]) is parts_of(specs[0])
    assert parts_of(specs[0]) is not parts_of(specs[1])
    held = [weakref.ref(parts_of(spec)) for spec in specs]
    gc.collect()
    assert held[0]() is None
    assert parts_of(specs[-1]) is held[-1]()
