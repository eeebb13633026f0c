from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import RecipeError
from autopeft.recipe import CompositionItem, EntryItem, Recipe, recipe_names

MINIMAL = {"layers": [{"attach": ["lora"]}]}


def recipe(*items: Any, **rest: Any) -> Recipe:
    return Recipe.from_dict({"layers": [{"attach": list(items)}], **rest})


def message(tree: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(tree)
    return str(caught.value)


def test_items_take_every_written_form() -> None:
    read = recipe(
        "lora",
        {"lora": None},
        {"lora": {"rank": 4}, "as": "small"},
        {"gate": ["lora", {"sum": [{"lora": {"rank": 2}}, "ia3"]}]},
        {"gate": {"children": ["lora"], "masked": False}, "as": "g"},
    )
    items = read.layers[0].attach
    assert items[0] == items[1] == EntryItem(method="lora")
    assert items[2] == EntryItem(method="lora", config={"rank": 4}, alias="small")
    assert isinstance(items[3], CompositionItem)
    assert items[3].options == {"masked": True}
    assert isinstance(items[4], CompositionItem)
    assert items[4].options == {"masked": False}
    assert items[4].alias == "g"


def test_entries_have_unique_names_in_file_order() -> None:
    read = Recipe.from_dict(
        {
            "layers": [
                {"attach": ["lora", {"gate": [{"lora": {}, "as": "mine"}, "lora"]}]},
                {"at": "first 2", "attach": ["lora"]},
            ],
            "model": ["bitfit"],
        }
    )
    refs = read.entries()
    assert [r.name for r in refs] == ["lora", "mine", "lora_2", "lora_3", "bitfit"]
    assert [r.path for r in refs] == [(0,), (1, 0), (1, 1), (0,), (0,)]
    assert [r.block for r in refs] == [0, 0, 0, 1, None]


@pytest.mark.parametrize(
    "alias", ["lora", "lora_2", "head", "gate", "dora", "keys", "spec", "recipe", "two words", "a.b"]
)
def test_alias_that_collides_or_misleads_is_refused(alias: str) -> None:
    assert "as" in message({"layers": [{"attach": ["lora", "lora", {"lora": {}, "as": alias}]}]})


@pytest.mark.parametrize("key", [3, True, None, ("a",)])
@pytest.mark.parametrize(
    ("where", "what"),
    [("layers", "an item"), ("model", "an item"), ("sum", "an item"), ("policies", "a policy")],
)
def test_a_name_that_is_no_text_is_refused(where: str, what: str, key: Any) -> None:
    trees: dict[str, Any] = {
        "layers": {"layers": [{"attach": [{key: {}}]}]},
        "model": {"model": [{key: {}}]},
        "sum": {"layers": [{"attach": [{"sum": ["lora", {key: {}}]}]}]},
        "policies": {"training": {"policies": [{key: {}}]}},
    }
    said = f"{what} has a name that is text, but this has {key!r}; `autopeft methods` lists the names"
    assert said in message(trees[where])


@pytest.mark.parametrize("key", [None, 1.5])
def test_a_key_that_is_no_text_is_unknown(key: Any) -> None:
    assert f"unknown key {key!r}" in message({key: 1})


def test_two_equal_aliases_are_refused() -> None:
    tree = {"layers": [{"attach": [{"lora": {}, "as": "a"}, {"ia3": {}, "as": "a"}]}]}
    assert "'a' is taken" in message(tree)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"layers": [{"attach": ["lra"]}]}, "Did you mean 'lora'"),
        ({"layers": [{"attach": [{"lora": {"rnk": 2}}]}]}, "Did you mean 'rank'"),
        ({"layers": [{"attach": [{"lora": {"rank": "8"}}]}]}, "layers[0].attach[0].lora.rank"),
        ({"layers": [{"attach": [{"lora": {"rank": 8.5}}]}]}, "lora.rank"),
        (
            {"layers": [{"attach": [{"lora": {"rank": {"choose": [4, 8]}}}]}]},
            "lora.rank: should be a valid integer, but got a mapping with the key 'choose'.",
        ),
        ({"layers": [{"attach": [{"lora": {"rank": True}}]}]}, "lora.rank"),
        ({"layers": [{"attach": [{"lora": {"rank": 0}}]}]}, "greater than or equal to 1"),
        ({"layers": [{"attach": [{"lora": {"sites": ["atention"]}}]}]}, "no site 'atention'"),
        ({"layers": [{"attach": [{"lora": {"sites": ["ffn_norm"]}}]}]}, "cannot sit at 'ffn_norm'"),
        ({"layers": [{"attach": [{"route": {"children": ["lora"], "top_k": 0}}]}]}, "greater than or equal"),
        ({"layers": [{"attach": [{"gate": []}]}]}, "at least one child"),
        ({"layers": [{"attach": [{"gate": {"children": ["lora"], "maskd": True}}]}]}, "'masked'"),
        ({"layers": [{"attach": [{"gate": {"children": ["lora"], "masked": 1}}]}]}, "true or false"),
        ({"layers": [{"attach": [{"lora": {}, "ia3": {}}]}]}, "2 keys"),
        ({"layers": [{"attach": []}]}, "at least one method"),
        ({"layers": [{"at": "frist 2", "attach": ["lora"]}]}, "Did you mean 'first 2'"),
        ({"layers": [{"stack": "encodr", "attach": ["lora"]}]}, "Did you mean 'encoder'"),
        ({"layers": {"attach": ["lora"]}}, "is a list"),
        ({"layers": [{"attach": ["prompt_tuning"]}]}, "under 'model:'"),
        ({"model": ["lora"]}, "under 'layers:'"),
        ({"layers": [{"attach": ["lora_plus"]}]}, "in 'policies:'"),
        ({**MINIMAL, "training": {"policies": ["lora"]}}, "does not belong here"),
        ({**MINIMAL, "training": {"learning_rat": 1.0}}, "Did you mean 'learning_rate'"),
        ({**MINIMAL, "training": {"learning_rate": 0}}, "greater than 0"),
        ({**MINIMAL, "training": {"groups": {"lroa": {}}}}, "Did you mean 'lora'"),
        ({**MINIMAL, "training": {"groups": {"lora": {"lr": 1}}}}, "training.groups.lora.lr"),
        ({**MINIMAL, "nme": "x"}, "Did you mean 'name'"),
        ({**MINIMAL, "name": "two\nlines"}, "one line"),
        ({**MINIMAL, "autopeft": 3}, "upgrade AutoPEFT"),
        ({**MINIMAL, "autopeft": "1"}, "schema version"),
        ([], "is a mapping"),
        (None, "empty"),
    ],
)
def test_bad_recipes_get_one_clear_sentence(tree: Any, expected: str) -> None:
    assert expected in message(tree)


def test_all_problems_are_reported_at_once() -> None:
    text = message({"nme": 1, "layers": [{"at": [], "attach": ["lra", {"lora": {"rank": 0, "x": 1}}]}]})
    assert len(text.splitlines()) == 5


def test_structure_hash_ignores_names_training_and_spelt_out_defaults() -> None:
    plain = recipe({"lora": {}}, name="a")
    same = recipe({"lora": {"rank": 8}, "as": "x"}, name="b", training={"learning_rate": 0.1}, reference="r")
    assert plain.structure_hash() == same.structure_hash()
    assert plain.hash() != same.hash()
    others = [
        recipe({"lora": {"rank": 4}}),
        recipe("lora", "lora"),
        recipe({"gate": ["lora"]}),
        recipe({"sum": ["lora"]}),
    ]
    assert len({plain.structure_hash(), *(o.structure_hash() for o in others)}) == 5


def test_hash_follows_group_settings_through_renaming() -> None:
    def grouped(alias: str, rate: float) -> str:
        training = {"groups": {alias: {"learning_rate": rate}}}
        return recipe("lora", {"lora": {}, "as": alias}, training=training).hash()

    assert grouped("a", 0.1) == grouped("b", 0.1)
    assert grouped("a", 0.1) != grouped("a", 0.2)


def test_recipe_without_entries_is_valid() -> None:
    assert Recipe.from_dict({"name": "head-only"}).entries() == []


def test_built_in_recipes_load_and_others_are_refused_with_near_matches(tmp_path: Any) -> None:
    assert {"mam", "unipelt", "sapa-prefix"} <= set(recipe_names())
    for name in recipe_names():
        assert Recipe.load(name) == Recipe.named(name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(Recipe.named(name).to_yaml(), encoding="utf-8")
        assert Recipe.load(path) == Recipe.named(name)
    with pytest.raises(RecipeError, match="Did you mean 'unipelt'"):
        Recipe.load("unipel")
    with pytest.raises(RecipeError, match=r"Did you mean 'mam\.yaml'"):
        Recipe.load(tmp_path / "mm.yaml")
    with pytest.raises(RecipeError, match="folder"):
        Recipe.load(tmp_path)


LORA = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.integers(1, 1024),
        "alpha": st.floats(1e-8, 4096),
        "dropout": st.floats(0, 0.99),
        "rank_stabilized": st.booleans(),
        "sites": st.lists(st.sampled_from(["q", "v", "up", "down"]), min_size=1, unique=True),
    },
)
ENTRY = st.one_of(st.just("lora"), st.just("ia3"), st.builds(lambda c: {"lora": c}, LORA))
ITEM = st.recursive(
    ENTRY,
    lambda inner: st.one_of(
        st.builds(
            lambda kind, kids: {kind: kids},
            st.sampled_from(["sum", "chain", "gate"]),
            st.lists(inner, min_size=1),
        ),
        st.builds(
            lambda kids, m: {"gate": {"children": kids, "masked": m}},
            st.lists(inner, min_size=1),
            st.booleans(),
        ),
    ),
    max_leaves=5,
)
AT = st.one_of(
    st.sampled_from(["all", "0-5", "first 2", "last 4", "last 50%", "g1", "g4"]),
    st.lists(st.integers(0, 40), min_size=1, unique=True),
)
BLOCK = st.fixed_dictionaries(
    {"attach": st.lists(ITEM, min_size=1, max_size=3)},
    optional={"at": AT, "stack": st.sampled_from(["all", "encoder", "decoder"])},
)
GROUP = st.fixed_dictionaries(
    {}, optional={"learning_rate": st.floats(1e-12, 10), "weight_decay": st.floats(0, 1)}
)
LINE = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=40).filter(
    lambda t: t.strip() and t.isprintable()
)
TREE = st.fixed_dictionaries(
    {"layers": st.lists(BLOCK, max_size=3)},
    optional={
        "name": LINE,
        "reference": LINE,
        "model": st.lists(st.sampled_from(["bitfit", {"prompt_tuning": {"length": 3}}]), max_size=2),
        "training": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(1e-12, 10),
                "warmup": st.floats(0, 1),
                "schedule": st.sampled_from(["linear", "cosine", "constant"]),
                "dropout": st.booleans(),
                "groups": st.dictionaries(st.just("head"), GROUP),
                "policies": st.just([{"lora_plus": {"ratio": 4.0}}]),
            },
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(tree=TREE)
def test_yaml_and_dict_round_trips_are_the_identity(tree: dict[str, Any]) -> None:
    read = Recipe.from_dict(tree)
    again = Recipe.from_yaml(read.to_yaml())
    assert again == read
    assert Recipe.from_dict(read.to_dict()) == read
    assert again.hash() == read.hash()


def test_it_shows_itself_on_one_line() -> None:
    shown = repr(recipe("lora", {"gate": ["ia3", "lora"]}, name="mine", model=["bitfit"]))
    assert shown == "Recipe('mine': lora + ia3 + bitfit)"
    assert str(recipe("lora", name="mine")) == "Recipe('mine': lora)"
    assert repr(Recipe(name="none")) == "Recipe('none': head only)"
    assert len(repr(Recipe(name="x" * 5_000))) < 300


def test_a_notebook_shows_where_its_items_stand() -> None:
    evil = "<script>alert(1)</script>"
    made = recipe({"lora": {"rank": 3}}, name=evil, reference=evil)._repr_html_()
    assert "<script" not in made
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in made
    assert "lora (rank 3)" in made
    assert "rank: 3" in made, "the file itself can be unfolded"
