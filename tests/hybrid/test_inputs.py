from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.fingerprint import changed, fingerprint
from support.saved_model import save_backbone
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from transformers import BertForSequenceClassification

from autopeft.assets import load_model, resolve_model
from autopeft.backbones import spec_of_model
from autopeft.counting import Counter
from autopeft.errors import DataError, MethodError, RecipeError, UsageError
from autopeft.hybrid import Hybrid, attach, load, pinned, with_inputs
from autopeft.recipe import Recipe

LORA = {"lora": {"rank": 2}}
VERA, CAPA = {"vera": {"rank": 8}}, {"capaboost": {"rank": 4}}
FAR = {"far": {"retention": 0.5}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left(folder: str, *items: Any, seed: int = 1, level: str = "layers") -> Hybrid:
    """What some training has left in a folder."""
    body = {"layers": [{"attach": list(items)}]} if level == "layers" else {"model": list(items)}
    with attach(tiny_model("bert"), Recipe.from_dict({"name": "source", **body}), seed=seed) as hybrid:
        randomise(hybrid.root, seed=seed)
        hybrid.save(folder)
    return hybrid


def starting(*items: Any, level: str = "layers", **inputs: Any) -> Recipe:
    body = {"layers": [{"attach": list(items)}]} if level == "layers" else {"model": list(items)}
    return Recipe.from_dict({"inputs": inputs, **body})


def same(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "item", [LORA, VERA, CAPA, {"parallel_adapter": {"bottleneck": 3}}, "ia3", {"p_tuning_v2": {"length": 2}}]
)
def test_an_entry_starts_with_the_values_of_its_input(item: Any) -> None:
    source = left("source", item)
    named = item if isinstance(item, dict) else {item: {}}
    hybrid = attach(tiny_model("bert"), starting({**named, "from": "source"}, source="source"), seed=5)
    assert same(hybrid.root, source.root)
    assert all(p.requires_grad for p in hybrid.root.parameters())


def test_an_entry_of_several_is_named_or_found_by_its_method() -> None:
    source = left("source", {**LORA, "as": "small"}, {"lora": {"rank": 3}, "as": "large"}, "ia3")
    start = {"lora": {"rank": 3}, "from": "source.large"}
    hybrid = attach(tiny_model("bert"), starting(start, {"ia3": {}, "from": "source"}, source="source"))
    assert same(hybrid.modules["lora"], source.modules["large"])
    assert same(hybrid.modules["ia3"], source.modules["ia3"])
    for wrong in ("source", "source.lrge"):
        with pytest.raises(DataError, match=r"small, large, ia3; write 'from: source.ENTRY'"):
            attach(tiny_model("bert"), starting({**LORA, "from": wrong}, source="source"))


def test_what_settles_the_reading_of_the_head_is_no_entry_to_start_from() -> None:
    tree = {"name": "source", "layers": [{"attach": [LORA]}], "model": ["mean_pooling"]}
    with attach(tiny_model("bert"), Recipe.from_dict(tree), seed=1) as hybrid:
        randomise(hybrid.root)
        hybrid.save("source")
    hub = {"lorahub": {"rank": 2}, "from": "source"}
    assert attach(tiny_model("bert"), starting(hub, source="source")).modules.keys() == {"lorahub"}


def test_what_was_attached_is_recorded_with_the_hash_of_its_content(here: Path) -> None:
    left("source", LORA)
    recipe = starting({**LORA, "from": "source"}, source="source")
    hybrid = attach(tiny_model("bert"), recipe)
    (sha256,) = (item.sha256 for item in hybrid.recipe.inputs.values())
    assert hybrid.recipe == pinned(recipe) == recipe.pinned({"source": str(sha256)})
    hybrid.save("target")
    assert Recipe.from_file("target/recipe.yaml") == hybrid.recipe
    shutil.copytree("source", "runs/night/winner")
    again = starting({**LORA, "from": "source"}, source={"run": "night", "sha256": sha256})
    assert same(attach(tiny_model("bert"), again).root, hybrid.root)
    elsewhere = here / "elsewhere"
    shutil.move("runs", elsewhere)
    assert pinned(again, elsewhere) == again
    with pytest.raises(DataError, match="missing"):
        pinned(again)


def test_a_saved_hybrid_needs_its_inputs_no_more() -> None:
    left("source", LORA)
    hybrid = attach(tiny_model("bert"), starting({**LORA, "from": "source"}, source="source"))
    randomise(hybrid.root)
    hybrid.save("target")
    shutil.rmtree("source")
    loaded = load(tiny_model("bert"), "target")
    assert same(loaded.root, hybrid.root)
    assert loaded.recipe == hybrid.recipe


def test_another_content_than_the_recipe_allows_is_refused() -> None:
    left("source", LORA)
    recipe = pinned(starting({**LORA, "from": "source"}, source="source"))
    tensors = load_file("source/weights.safetensors")
    tensors["encoder.0.q.lora.A"][0, 0] += 1
    save_file(tensors, "source/weights.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=rf"altered.*{recipe.inputs['source'].sha256}.*write the new hash"):
        attach(tiny_model("bert"), recipe)


def test_the_recipe_of_an_input_counts_for_its_hash() -> None:
    left("source", LORA)
    recipe = pinned(starting({**LORA, "from": "source"}, source="source"))
    Path("source/recipe.yaml").write_text(Path("source/recipe.yaml").read_text() + "# read\n")
    with pytest.raises(DataError, match="altered"):
        pinned(recipe)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (LORA, {"lora": {"rank": 3}}, r"shape \(3, 32\).*\(2, 32\).*size and the sites"),
        (LORA, {"lora": {"rank": 2, "sites": ["q"]}}, "only one of them has"),
        ("ia3", LORA, "its own method, lora.*ia3"),
        ({"prefix_tuning": {"length": 2, "reparameterization": 4}},) * 2 + ("reparameterization",),
        (VERA, {"vera": {"rank": 8, "seed": 1}}, "has seed: 1, and .* with seed: 0.*give 'vera' seed: 0"),
        (CAPA, {"capaboost": {"rank": 4, "pattern": "2:4"}}, "has pattern: 2:4"),
        (FAR, FAR, "far keeps '.*index', which"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_leaves_the_model(source: Any, target: Any, words: str) -> None:
    left("source", source)
    model = tiny_model("bert")
    before = fingerprint(model)
    with pytest.raises(MethodError, match=words):
        attach(model, starting({**target, "from": "source"}, source="source"))
    assert not changed(before, fingerprint(model))


def test_numbers_that_are_not_finite_are_refused() -> None:
    left("source", LORA)
    tensors = load_file("source/weights.safetensors")
    tensors["encoder.0.q.lora.A"][0, 0] = float("nan")
    save_file(tensors, "source/weights.safetensors", metadata={"format": "pt"})
    with pytest.raises(MethodError, match="not finite"):
        attach(tiny_model("bert"), starting({**LORA, "from": "source"}, source="source"))


def test_more_numbers_than_the_backbone_has_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    left("source", LORA)
    monkeypatch.setattr("autopeft.hybrid.inputs.SCAFFOLDING", 10)
    spec = attach(tiny_model("bert"), Recipe.from_dict({})).spec
    size = spec.parameters // 100 * 100 + 100
    tensors = load_file("source/weights.safetensors")
    tensors["encoder.0.q.lora.more"] = torch.zeros(size)
    save_file(tensors, "source/weights.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("autopeft.hybrid.inputs.safe_open", None)  # nothing is read
    with pytest.raises(DataError, match="at most"):
        attach(tiny_model("bert"), starting({**LORA, "from": "source"}, source="source"))


@pytest.mark.parametrize("what", ["folder", "weights", "recipe", "winner"])
def test_links_that_lead_out_are_not_followed(what: str, here: Path) -> None:
    left("inside/source", LORA)
    left("outside", LORA)
    inside = here / "inside"
    links = {
        "folder": (inside / "link", here / "outside"),
        "weights": (inside / "source/weights.safetensors", here / "outside/weights.safetensors"),
        "recipe": (inside / "source/recipe.yaml", here / "outside/recipe.yaml"),
        "winner": (inside / "run/winner", here / "outside"),
    }
    link, to = links[what]
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(to)
    recipe = starting({**LORA, "from": "a"}, a={"folder": "link", "winner": "run"}.get(what, "source"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inside)
        with pytest.raises(UsageError, match=r"link|leads out|missing"):
            pinned(recipe)


def test_what_was_opened_elsewhere_is_not_looked_for() -> None:
    source = left("source", LORA)
    recipe, found = with_inputs(starting({**LORA, "from": "source"}, source="source"))
    shutil.move("source", "elsewhere")
    opened = {a.sha256: replace(a, folder=Path("elsewhere")) for a in found.values()}
    hybrid = attach(tiny_model("bert"), recipe, inputs=opened)
    assert same(hybrid.root, source.root)
    assert hybrid.recipe == recipe
    with pytest.raises(DataError, match="missing"):
        attach(tiny_model("bert"), recipe, inputs={})


def test_what_was_trained_on_another_backbone_is_refused(here: Path) -> None:
    """By the hash that its run recorded: family and shapes are the same."""
    for seed in range(2):
        save_backbone(here / f"model{seed}", seed=seed)
    with attach(load_model("model0"), Recipe.from_dict({"layers": [{"attach": [LORA]}]})) as hybrid:
        hybrid.save("source/winner")
    origin, content = "folder", resolve_model("model0").sha256
    recipe = starting({**LORA, "from": "source"}, source="source")

    def record(**backbone: Any) -> None:
        told = {"task": "t", "model": "model0", "backbone": backbone}
        Path("source/manifest.json").write_text(json.dumps(told))

    record(origin=origin, sha256=content)
    attach(load_model("model0"), recipe)
    with pytest.raises(DataError, match=rf"another backbone: on 'model0' .* {str(content)[:12]}.*'model1'"):
        attach(load_model("model1"), recipe)
    attach(BertForSequenceClassification.from_pretrained("model1"), recipe)  # nobody knows its hash
    for kind in ({"origin": "package", "sha256": content}, {"origin": origin, "sha256": None}, {}):
        record(**kind)  # hashes of two kinds tell nothing
        attach(load_model("model1"), recipe)


def test_the_first_forward_is_that_of_the_source() -> None:
    source = left("source", {"prompt_tuning": {"length": 3}}, level="model")
    start = starting({"prompt_tuning": {"length": 3}, "from": "source"}, level="model", source="source")
    hybrid = attach(tiny_model("bert"), start)
    again = attach(tiny_model("bert"), source.recipe)
    again.root.load_state_dict(source.root.state_dict())
    inputs = tiny_inputs("bert")
    assert torch.equal(logits(hybrid.model, inputs), logits(again.model, inputs))


# Frozen entries
# -------------------------------------------------------------------------------------------------------

FROZEN = {**LORA, "from": "source", "frozen": True}


def test_a_frozen_entry_acts_and_does_not_train() -> None:
    """It is deployed and not trained, and has no gradient and no place in the optimizer."""
    source = left("source", LORA)
    recipe = starting({"gate": [FROZEN, {"serial_adapter": {"bottleneck": 4}}]}, source="source")
    model = tiny_model("bert")
    hybrid = attach(model, recipe, seed=5)
    frozen = hybrid.modules["lora"]
    assert same(frozen, source.modules["lora"])
    whole = attach(tiny_model("bert"), Recipe.from_dict(_thawed(recipe))).counts()
    size = sum(p.numel() for p in frozen.parameters())
    assert hybrid.counts() == replace(whole, trained=whole.trained - size)
    assert {group["name"].partition(".")[0] for group in hybrid.parameter_groups()} == {
        "gate", "serial_adapter", "head"
    }  # fmt: skip
    held = {id(p) for group in hybrid.optimizer().param_groups for p in group["params"]}
    assert not held & {id(p) for p in frozen.parameters()}
    randomise(hybrid.modules["serial_adapter"])
    before = fingerprint(model)
    logits(model, tiny_inputs("bert")).sum().backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.grad is not None for p in hybrid.modules["serial_adapter"].parameters())
    hybrid.optimizer(lr=0.1).step()
    assert not any("autopeft.lora" in name for name in changed(before, fingerprint(model)))


def _thawed(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.to_dict()
    del tree["inputs"]
    for item in tree["layers"][0]["attach"][0]["gate"]:
        item.pop("from", None)
        item.pop("frozen", None)
    return tree


def test_a_frozen_entry_survives_saving_without_its_input() -> None:
    left("source", LORA)
    recipe = starting(FROZEN, {"serial_adapter": {"bottleneck": 4}}, source="source")
    hybrid = attach(tiny_model("bert"), recipe)
    randomise(hybrid.modules["serial_adapter"])
    expected = logits(hybrid.model, tiny_inputs("bert"))
    hybrid.save("target")
    shutil.rmtree("source")
    loaded = load(tiny_model("bert"), "target")
    assert torch.equal(logits(loaded.model, tiny_inputs("bert")), expected)
    assert not any(p.requires_grad for p in loaded.modules["lora"].parameters())
    assert loaded.counts() == hybrid.counts()


def test_frozen_is_another_structure_and_another_hash() -> None:
    left("source", LORA)
    trains, stays = (pinned(starting(item, source="source")) for item in ({**LORA, "from": "source"}, FROZEN))
    assert Recipe.from_yaml(stays.to_yaml()) == stays
    assert trains.hash() != stays.hash()
    model = tiny_model("bert")
    counter, hashes = Counter(spec_of_model(model)[0]), []
    for recipe in (trains, stays):
        with attach(model, recipe) as hybrid:
            hashes.append((hybrid.graph.hash(), hybrid.graph.trial_hash()))
            measure = counter.measure(recipe)
            assert (measure.hash, measure.trained) == (hybrid.graph.hash(), hybrid.counts().trained)
    assert len(set(hashes)) == len({h for h, _ in hashes}) == 2


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({**LORA, "frozen": True}, "nothing says at which values"),
        ({**FROZEN, "frozen": "yes"}, "true or false"),
        ({"gate": [FROZEN, "ia3"], "frozen": True}, "give it to its children"),
        ({"adalora": {"rank": 2}, "from": "source", "frozen": True}, "cannot be frozen"),
    ],
)
def test_what_cannot_be_frozen_is_said(item: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        starting(item, source="source")
