"""`merge:`: rules on tensors, against peft's and by hand; entries that start from several inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft.utils.merge_utils as theirs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor

from autopeft.errors import MethodError, RecipeError
from autopeft.export.peft_format import to_peft
from autopeft.hybrid import attach, load
from autopeft.hybrid.combining import combine, combine_pairs, matching
from autopeft.recipe import Recipe
from autopeft.recipe.models import Merge

UNITS = {"down.weight": (0,), "down.bias": (0,), "up.weight": (1,)}


def drawn(n: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(n)]


def test_the_soup_of_two_adapters_is_no_mean_of_their_outputs() -> None:
    # d = m = 1, no biases: (W_dn, W_up) = (1, 1) and (3, -1) at x = 1
    down, up = (
        combine(Merge(), "w", [torch.tensor(float(a)), torch.tensor(float(b))]) for a, b in ((1, 3), (1, -1))
    )
    assert (down.relu() * up).item() == 0.0


def test_the_mean_of_one_is_that_one_and_the_order_of_sources_does_not_matter() -> None:
    one, two, three = drawn(3, 4, 5)
    assert torch.equal(combine(Merge(), "w", [one]), one)
    torch.testing.assert_close(
        combine(Merge(), "w", [one, two, three]), combine(Merge(), "w", [three, one, two])
    )


def test_sums_are_about_the_value_that_does_nothing() -> None:
    merged = combine(
        Merge(how="sum", weights=(2.0, 1.0)), "l", [torch.tensor([1.5]), torch.tensor([0.8])], 1.0
    )
    torch.testing.assert_close(merged, torch.tensor([1 + 2 * 0.5 - 0.2]))


def test_ties_by_hand() -> None:
    # the two largest of four stay; at the first place the sum is -1, so that 3 does not agree
    states = [torch.tensor([3.0, 0.1, 2.0, 0.2]), torch.tensor([-4.0, 0.3, 1.0, 0.1])]
    merged = combine(Merge(how="ties", density=0.5), "w", states)
    torch.testing.assert_close(merged, torch.tensor([-4.0, 0.0, 1.5, 0.0]))


@given(
    seed=st.integers(0, 99),
    density=st.floats(0.2, 0.99),
    weights=st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
)
def test_rules_on_tensors_are_those_of_peft(seed: int, density: float, weights: list[float]) -> None:
    states, own = drawn(3, 6, 7, seed=seed), torch.tensor(weights)
    ties = Merge(how="ties", density=density, weights=tuple(weights))
    torch.testing.assert_close(combine(ties, "w", states), theirs.ties(states, own, density))
    plain = Merge(how="sum", weights=tuple(weights))
    torch.testing.assert_close(combine(plain, "w", states), theirs.task_arithmetic(states, own))


def test_dare_keeps_a_share_and_scales_it_up() -> None:
    states, merge = [torch.ones(20_000), 2 * torch.ones(20_000)], Merge(how="dare", density=0.3)
    merged = combine(merge, "w", states)
    assert merged.mul(0.3).unique().tolist() == pytest.approx([0, 1, 2, 3])
    assert merged.mean().item() == pytest.approx(3, abs=4 * (5 * 0.7 / 0.3 / 20_000) ** 0.5)
    assert torch.equal(merged, combine(merge, "w", states))
    assert not torch.equal(merged, combine(merge, "v", states))
    assert not torch.equal(merged, combine(Merge(how="dare", density=0.3, seed=1), "w", states))
    # what agrees is then averaged over those that were kept
    elected = combine(Merge(how="dare_ties", density=0.3), "w", states)
    assert elected.mul(0.3).unique().tolist() == pytest.approx([0, 1, 1.5, 2])


def test_the_svd_leaves_the_nearest_product_of_its_rank() -> None:
    pairs = [(a, b, s) for a, b, s in zip(drawn(2, 2, 6), drawn(2, 5, 2, seed=1), (2.0, 0.5), strict=True)]
    wanted = 3 * 2.0 * pairs[0][1] @ pairs[0][0] - 0.5 * pairs[1][1] @ pairs[1][0]
    merge = Merge(how="svd", weights=(3.0, -1.0))
    a, b = combine_pairs(merge, pairs, 4, 2.0)
    torch.testing.assert_close(2.0 * b @ a, wanted)
    a, b = combine_pairs(merge, pairs, 2, 2.0)
    lost = torch.linalg.svdvals(wanted)[2:].norm()
    torch.testing.assert_close((wanted - 2.0 * b @ a).norm(), lost)
    a, b = combine_pairs(merge, pairs, 8, 2.0)  # more ranks than the matrix has
    assert (a.shape, b.shape) == ((8, 6), (5, 8))
    torch.testing.assert_close(2.0 * b @ a, wanted)


def test_units_that_were_swapped_are_matched() -> None:
    # d 1, m 2, ReLU: the aligned mean does what each adapter does, the plain mean does nothing
    anchor = {"down.weight": torch.tensor([[1.0], [3.0]]), "up.weight": torch.tensor([[1.0, -1.0]])}
    other = {"down.weight": torch.tensor([[3.0], [1.0]]), "up.weight": torch.tensor([[-1.0, 1.0]])}
    order = matching(anchor, other, UNITS, both=False)
    assert order.tolist() == [1, 0]
    down = (anchor["down.weight"] + other["down.weight"][order]) / 2
    up = (anchor["up.weight"] + other["up.weight"][:, order]) / 2
    assert (up @ down.relu()).item() == -2.0
    plain = (anchor["up.weight"] + other["up.weight"]) @ (anchor["down.weight"] + other["down.weight"]).relu()
    assert plain.item() == 0.0
    assert (2 * up @ (2 * down).relu()).item() == -8.0  # the aligned sum


def test_the_weights_that_leave_a_unit_count_where_they_are_asked_for() -> None:
    anchor = {"down.weight": torch.tensor([[1.0], [1.0]]), "up.weight": torch.tensor([[5.0, -5.0]])}
    other = {"down.weight": torch.tensor([[1.0], [1.1]]), "up.weight": torch.tensor([[-5.0, 5.0]])}
    assert matching(anchor, other, UNITS, both=True).tolist() == [1, 0]
    assert matching(anchor, other, UNITS, both=False).tolist() == [0, 1]


# Entries
# ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left(folder: str, item: Any, seed: int) -> dict[str, Tensor]:
    recipe = Recipe.from_dict({"name": folder, "layers": [{"attach": [item]}]})
    with attach(tiny_model("bert"), recipe, seed=seed) as hybrid:
        randomise(hybrid.root, seed=seed)
        hybrid.save(folder)
        return {key: value.clone() for key, value in hybrid.root.state_dict().items()}


def merging(item: Any, merge: Any, *sources: str) -> Recipe:
    entry = {**(item if isinstance(item, dict) else {item: {}}), "from": list(sources), "merge": merge}
    return Recipe.from_dict({"inputs": {name: name for name in sources}, "layers": [{"attach": [entry]}]})


SHARED = {"lora": {"rank": 2, "shared_down": True}}
ITEMS = (
    {"lora": {"rank": 2}},
    {"serial_adapter": {"bottleneck": 3}},
    "ia3",
    {"p_tuning_v2": {"length": 2}},
    SHARED,
)


@pytest.mark.parametrize("item", ITEMS)
def test_a_soup_is_the_mean_of_each_tensor(here: Path, item: Any) -> None:
    one, two, three = (left(name, item, seed) for seed, name in enumerate("abc"))
    hybrid = attach(tiny_model("bert"), merging(item, "mean", "a", "b", "c"))
    for key, value in hybrid.root.state_dict().items():
        torch.testing.assert_close(value, (one[key] + two[key] + three[key]) / 3)
    assert hybrid.counts().deployed == hybrid.counts().trained == sum(v.numel() for v in one.values())


@pytest.mark.parametrize("item", ITEMS)
def test_any_rule_leaves_an_entry_that_is_saved_and_loaded(here: Path, item: Any) -> None:
    for seed, name in enumerate("ab"):
        left(name, item, seed)
    rules: list[Any] = ["sum", {"how": "ties", "density": 0.4}, "dare", "dare_ties"]
    rules += ["svd"] if item == ITEMS[0] else []
    rules += [{"how": "mean", "align": "both"}] if item in ITEMS[:2] else []
    seen = []
    for rule in rules:
        hybrid = attach(tiny_model("bert"), merging(item, rule, "a", "b"))
        hybrid.save("merged")
        (batch,) = (tiny_inputs("bert"),)
        told, again = logits(hybrid.model, batch), load(tiny_model("bert"), "merged")
        assert torch.equal(logits(again.model, batch), told)
        assert again.recipe == hybrid.recipe
        assert all(not torch.equal(told, other) for other in seen)
        seen.append(told)


def test_merged_loras_are_exported_as_one_lora(here: Path) -> None:
    for seed, name in enumerate("ab"):
        left(name, ITEMS[0], seed)
    hybrid = attach(tiny_model("bert"), merging(ITEMS[0], "ties", "a", "b"))
    batch = tiny_inputs("bert")
    told = logits(hybrid.model, batch)
    to_peft(hybrid, here / "peft")
    theirs: Any = PeftModel.from_pretrained(tiny_model("bert"), here / "peft").eval()
    torch.testing.assert_close(logits(theirs, batch), told, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(hybrid.merge(), batch), told, atol=1e-5, rtol=1e-5)


def test_factors_of_ia3_add_up_about_one(here: Path) -> None:
    one, two = left("a", "ia3", 0), left("b", "ia3", 1)
    hybrid = attach(tiny_model("bert"), merging("ia3", {"how": "sum", "weights": [0.5, 2.0]}, "a", "b"))
    for key, value in hybrid.root.state_dict().items():
        torch.testing.assert_close(value, 1 + 0.5 * (one[key] - 1) + 2.0 * (two[key] - 1))


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ({"how": "sum", "weights": [0.7, 0.4]}, "linear"),
        ({"how": "sum", "weights": [0.7, -0.4]}, "linear"),
        ({"how": "ties", "density": 0.5, "weights": [0.7, 0.4]}, "ties"),
        ({"how": "svd", "weights": [0.7, 0.4]}, "svd"),
    ],
)
def test_loras_become_what_peft_makes_of_them(here: Path, rule: dict[str, Any], kind: str) -> None:
    """The same weights in the same model: logits of the merged LoRA equal those of peft's."""
    item = {"lora": {"rank": 2, "alpha": 6}}
    sources = {name: left(name, item, seed) for seed, name in enumerate("ab", start=1)}
    hybrid = attach(tiny_model("bert"), merging(item, rule, "a", "b"))
    batch = tiny_inputs("bert")
    ours = logits(hybrid.model, batch)

    config = LoraConfig(r=2, lora_alpha=6, target_modules=["query", "value"])
    model: Any = get_peft_model(tiny_model("bert"), config, adapter_name="a")
    model.add_adapter("b", config)
    for name, tensors in sources.items():
        for key, value in tensors.items():
            _, _, at, factor = key.split(".")
            _, layer, site = at.split("-")
            attention = model.base_model.model.bert.encoder.layer[int(layer)].attention.self
            module = getattr(attention, {"q": "query", "v": "value"}[site])
            getattr(module, f"lora_{factor}")[name].weight.data.copy_(value)
    options = {"density": rule["density"]} if "density" in rule else {"svd_rank": 2} if kind == "svd" else {}
    model.add_weighted_adapter(["a", "b"], rule["weights"], "merged", combination_type=kind, **options)
    model.set_adapter("merged")
    torch.testing.assert_close(logits(model, batch), ours, rtol=1e-5, atol=1e-5)
    model.set_adapter("a")
    assert (logits(model, batch) - ours).abs().max() > 1e-3


def test_an_svd_takes_loras_of_any_rank(here: Path) -> None:
    left("a", {"lora": {"rank": 2, "alpha": 2}}, 1)
    left("b", {"lora": {"rank": 1, "alpha": 5}}, 2)
    both = Recipe.from_dict(
        {
            "inputs": {"a": "a", "b": "b"},
            "layers": [
                {
                    "attach": [
                        {"lora": {"rank": 2, "alpha": 2}, "from": "a", "as": "one"},
                        {"lora": {"rank": 1, "alpha": 5}, "from": "b", "as": "two"},
                    ]
                }
            ],
        }
    )
    batch = tiny_inputs("bert")
    wanted = logits(attach(tiny_model("bert"), both).model, batch)
    merged = attach(tiny_model("bert"), merging({"lora": {"rank": 3}}, "svd", "a", "b"))
    torch.testing.assert_close(logits(merged.model, batch), wanted, rtol=1e-5, atol=1e-5)


def test_an_adapter_whose_units_were_shuffled_merges_to_itself(here: Path) -> None:
    item = {"serial_adapter": {"bottleneck": 5}}
    one = left("a", item, 1)
    recipe = Recipe.from_dict({"name": "b", "layers": [{"attach": [item]}]})
    with attach(tiny_model("bert"), recipe) as other:
        order = torch.tensor([3, 0, 4, 1, 2])
        shuffled = {
            key: value.index_select(1 if "up.weight" in key else 0, order) if "up.bias" not in key else value
            for key, value in one.items()
        }
        other.root.load_state_dict(shuffled)
        other.save("b")
    batch = tiny_inputs("bert")
    alone = logits(attach(tiny_model("bert"), merging(item, "mean", "a")).model, batch)
    for align in ("incoming", "both"):
        rule = {"how": "mean", "align": align}
        aligned = attach(tiny_model("bert"), merging(item, rule, "a", "b"))
        torch.testing.assert_close(logits(aligned.model, batch), alone, rtol=1e-5, atol=1e-6)
        assert "15 of 15" in " ".join(aligned.remarks())
    plain = attach(tiny_model("bert"), merging(item, "mean", "a", "b"))
    assert (logits(plain.model, batch) - alone).abs().max() > 1e-3


def test_a_frozen_merge_is_deployed_and_does_not_train(here: Path) -> None:
    for seed, name in enumerate("ab"):
        left(name, ITEMS[1], seed)
    tree = merging(ITEMS[1], "mean", "a", "b").to_dict()
    tree["layers"][0]["attach"][0]["frozen"] = True
    hybrid = attach(tiny_model("bert"), Recipe.from_dict(tree))
    assert hybrid.counts().trained == 0 < hybrid.counts().deployed
    assert not any(p.requires_grad for p in hybrid.root.parameters())


@pytest.mark.parametrize(
    ("source", "target", "rule", "words"),
    [
        ({"lora": {"alpha": 1}}, "lora", "sum", "with alpha: 1.*give 'lora' alpha: 1"),
        ({"lora": {"rank": 2}}, {"lora": {"rank": 3}}, "mean", "with rank: 2"),
        ("ia3", "ia3", "svd", "no product of two factors"),
        (SHARED, SHARED, "svd", "several B of its lora read one A"),
        (SHARED, SHARED, {"how": "mean", "align": "both"}, "several B of its lora read one A"),
        ("ia3", "ia3", {"how": "mean", "align": "both"}, "no hidden units"),
        (ITEMS[3], ITEMS[3], {"align": "both"}, "no hidden units"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    here: Path, source: Any, target: Any, rule: Any, words: str
) -> None:
    for seed, name in enumerate("ab"):
        left(name, source, seed)
    with pytest.raises(MethodError, match=words):
        attach(tiny_model("bert"), merging(target, rule, "a", "b"))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("men", "'mean'"),
        ({"how": "ties", "density": 0}, "greater than 0"),
        ({"how": "sum", "density": 0.5}, "for ties, dare"),
        ({"how": "mean", "weights": [1, 2]}, "not for the mean"),
        ({"how": "sum", "weights": [1.0]}, "each of the 2"),
        ({"how": "sum", "seed": 1}, "which draw"),
        ({"how": "svd", "align": "both"}, "leave it out"),
        ({"hw": "svd"}, "unknown key 'hw'"),
        (3, "the name of a rule"),
    ],
)
def test_a_rule_that_is_none_is_refused(rule: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        merging("ia3", rule, "a", "b")


def test_a_merge_belongs_to_an_entry_with_inputs() -> None:
    with pytest.raises(RecipeError, match="merges nothing"):
        Recipe.from_dict({"layers": [{"attach": [{"ia3": {}, "merge": "mean"}]}]})
    with pytest.raises(RecipeError, match="takes no 'merge'"):
        Recipe.from_dict({"layers": [{"attach": [{"sum": ["ia3"], "merge": "mean"}]}]})


def test_the_rule_is_a_part_of_the_recipe_and_of_its_hash(here: Path) -> None:
    for seed, name in enumerate("ab"):
        left(name, "ia3", seed)
    rules: list[Any] = ["mean", "sum", {"how": "sum", "weights": [1.0, 2.0]}, {"how": "dare", "seed": 3}]
    found = [attach(tiny_model("bert"), merging("ia3", rule, "a", "b")).recipe for rule in rules]
    assert len({recipe.hash() for recipe in found}) == len(rules)
    for recipe, rule in zip(found, rules, strict=True):
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
        assert recipe.to_dict()["layers"][0]["attach"][0]["merge"] == rule
