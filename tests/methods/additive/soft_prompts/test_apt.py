from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.classifiers import classifier, encoded_rows
from support.tiny import ARCHITECTURES, logits, randomise, tiny_inputs, tiny_model
from support.toy import configured, counted, sites_of, toy_specs
from torch import Tensor
from transformers import PreTrainedModel, RobertaConfig

from autopeft.backbones import base_model_of, spec_of
from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.injection.rows import ReadRows
from autopeft.method import decay_targets
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec
from autopeft.tasks.kinds import get_kind
from autopeft.training.checks import check_recipe
from autopeft.training.losses import logits_of

SMALL = {"length": 3, "dropout": 0.0}


def recipe(method: str = "apt", *model: Any, **config: Any) -> Recipe:
    attached = [{"attach": [{method: {**SMALL, **config}}]}]
    return Recipe.from_dict({"autopeft": 2, "name": "a", "layers": attached, "model": list(model)})


def attached(name: str, *model: Any, **config: Any) -> tuple[PreTrainedModel, Any, Hybrid]:
    backbone = tiny_model(name)
    hybrid = attach(backbone, recipe("apt", *model, **config), seed=0)
    randomise(hybrid.root, std=0.5)
    return backbone, hybrid.modules["apt"], hybrid


def test_defaults_are_those_of_p_tuning_v2() -> None:
    ours, theirs = configured("apt").config, configured("p_tuning_v2").config
    for name in ("length", "reparameterization", "dropout", "std"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.token_gate, ours.layer_gate) == (True, True)


@given(toy_specs, st.integers(1, 6), st.none() | st.integers(1, 7), st.booleans(), st.booleans())
def test_counts_are_what_it_holds(
    spec: BackboneSpec, length: int, mid: int | None, token: bool, layer: bool
) -> None:
    gates = {"token_gate": token, "layer_gate": layer or not token}
    deployed, trained, held, held_trained = counted(
        "apt", spec, length=length, reparameterization=mid, **gates
    )
    assert (deployed, trained) == (held, held_trained)


@pytest.mark.parametrize("length", [8, 128])
def test_count_of_the_formula(length: int) -> None:
    """2·L·l·d + L·d·l + L."""
    spec = spec_of(RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16))
    method = configured("apt", length=length)
    count = method.parameter_count(sites_of(method, spec), spec)
    assert count.deployed == count.trained == 24 * (2 * length * 1024 + length * 1024 + 1)


def watched(module: Any) -> list[Tensor]:
    """What the gates are in each forward from now on, layer by layer."""
    seen: list[Tensor] = []
    plain = type(module).gates

    def gates(*args: Any) -> Any:
        seen.append(plain(module, *args))
        return seen[-1]

    module.gates = gates
    return seen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_text_has_gates_of_its_own(name: str) -> None:
    model, module, hybrid = attached(name)
    seen = watched(module)
    inputs = tiny_inputs(name)
    logits(model, inputs)
    assert [tuple(alpha.shape) for alpha in seen] == [(2, 3)] * len(hybrid.graph.sites())
    assert {site.stack for site in hybrid.graph.sites()} == {hybrid.spec.stacks[0].name}
    assert all(bool(((alpha > 0) & (alpha < 1)).all()) for alpha in seen)
    before = [alpha.clone() for alpha in seen]
    seen.clear()
    logits(model, {**tiny_inputs(name, seed=5)})
    same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(before, seen, strict=True)]
    # In front of its first layer ViT's [CLS] has seen nothing of the image.
    assert same == [name == "vit", *[False] * (len(seen) - 1)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gates_at_one_are_p_tuning_v2_exactly(name: str) -> None:
    model, module, hybrid = attached(name)
    inputs = tiny_inputs(name, pad=0 if name == "vit" else 2)
    with torch.no_grad():
        for own in module.children_by_site():
            own.scale.fill_(1.0)
    module.gates = lambda site, x, call: torch.ones(len(x), 3)
    found = logits(model, inputs)
    rows = {s.key: module[s].rows.detach().clone() for s in hybrid.graph.sites()}
    plain = tiny_model(name)
    there = attach(plain, recipe("p_tuning_v2"), seed=0)
    other: Any = there.modules["p_tuning_v2"]
    for site in there.graph.sites():
        if site.key not in rows:  # APT is in the stack that reads the text
            continue
        with torch.no_grad():
            other[site].rows.copy_(rows[site.key])
    if name not in ("t5", "bart"):
        assert torch.equal(found, logits(plain, inputs))
        return
    states = [m.get_encoder()(inputs["input_ids"], inputs["attention_mask"])[0] for m in (model, plain)]
    assert torch.equal(*states)


def test_keys_and_values_are_both_gated() -> None:
    """λ·α ⊙ P_k and λ·α ⊙ P_v, with a λ for each layer and an α for each text and token of the prefix."""
    model, module, hybrid = attached("bert")
    gates, plain, found = watched(module), type(module).key_value, list[tuple[Any, Tensor, Tensor]]()

    def watch(site: Any, x: Tensor, call: Any) -> Any:
        found.append((site, *plain(module, site, x, call)))
        return found[-1][1:]

    module.key_value = watch
    with torch.no_grad():
        for i, own in enumerate(module.children_by_site()):
            own.scale.fill_(0.5 + i)
    logits(model, tiny_inputs("bert", pad=2))
    assert len(found) == len(hybrid.graph.sites())
    for (site, keys, values), alpha in zip(found, gates, strict=True):
        rows, kv = module[site].rows, site.kv_features
        factor = (module[site].scale * alpha)[..., None]
        torch.testing.assert_close(keys, factor * rows[:, :kv])
        torch.testing.assert_close(values, factor * rows[:, kv:])


def test_a_layer_gate_at_zero_is_no_absent_prefix() -> None:
    """Keys and values are zero, and still take their share of the softmax."""
    model, module, hybrid = attached("bert")
    inputs = tiny_inputs("bert")
    with torch.no_grad():
        for own in module.children_by_site():
            own.scale.zero_()
    zeroed = logits(model, inputs)
    with torch.no_grad():
        for own in module.children_by_site():
            own.rows.zero_()
            own.scale.fill_(7.0)
    torch.testing.assert_close(logits(model, inputs), zeroed)
    hybrid.detach()
    assert not torch.allclose(logits(model, inputs), zeroed, atol=1e-3)


@pytest.mark.parametrize(("name", "row"), [("bert", 0), ("llama", 6), ("t5", None), ("vit", 0)])
def test_what_the_gates_read(name: str, row: int | None) -> None:
    """[CLS], the last token, or the mean of what the first attention reads, prompts and padding apart."""
    prompt = {"prompt_tuning": {"length": 2}}
    model, module, hybrid = attached(name, prompt)
    seen = watched(module)
    site = hybrid.graph.sites()[1]
    attention = base_model_of(model).get_submodule(hybrid.injection.places[site.key].entry)
    read: list[Tensor] = []

    def watch(_: Any, args: Any, kwargs: Any) -> None:
        read.append(args[0] if args else kwargs["hidden_states"])

    attention.register_forward_pre_hook(watch, with_kwargs=True)
    inputs = tiny_inputs(name, pad=0 if name == "vit" else 2)
    logits(model, inputs)
    text = read[0][:, :5] if name == "vit" else read[0][:, 2:9]
    expected = text.mean(1) if row is None else text[:, row]
    torch.testing.assert_close(seen[0], torch.sigmoid(expected @ module[site].gate))


@pytest.mark.parametrize("summary", ["first", "last", "mean"])
def test_padding_is_not_read_on_either_side(summary: str) -> None:
    model, module, _ = attached("llama", summary=summary)
    seen = watched(module)
    inputs = tiny_inputs("llama")
    alone = model(input_ids=inputs["input_ids"][:1, 2:]).logits
    expected = [alpha.clone() for alpha in seen]
    seen.clear()
    inputs["attention_mask"][0, :2] = 0
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    together = model(**inputs, position_ids=positions).logits
    torch.testing.assert_close(together[:1, 2:], alone, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine[:1], theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("off", "held"), [("token_gate", {"rows", "scale"}), ("layer_gate", {"rows", "gate"})]
)
def test_ablations_hold_nothing_of_what_is_off(off: str, held: set[str]) -> None:
    model, module, hybrid = attached("bert", **{off: False})
    assert {name.rpartition(".")[2] for name, _ in module.named_parameters()} == held
    assert hybrid.graph.entries["apt"].traits.sees_text == (off == "layer_gate")
    randomise(hybrid.root, std=0.5)
    logits(model, tiny_inputs("bert"))


def test_without_token_gates_every_attention_of_both_stacks_has_prefixes() -> None:
    _, _, hybrid = attached("t5", token_gate=False)
    assert {(s.stack, s.name) for s in hybrid.graph.sites()} == {
        ("encoder", "attention"),
        ("decoder", "attention"),
        ("decoder", "cross_attention"),
    }


def test_without_any_gate_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="take that"):
        configured("apt", token_gate=False, layer_gate=False)


def test_a_text_that_grows_is_refused_a_cache_and_written_without() -> None:
    model, _, _ = attached("llama")
    inputs = tiny_inputs("llama")
    settings: dict[str, Any] = {"max_new_tokens": 3, "eos_token_id": None, "do_sample": False}
    with pytest.raises(CompositionError, match="use_cache=False"):
        model.generate(**inputs, use_cache=True, **settings)
    assert model.generate(**inputs, use_cache=False, **settings).shape == (2, 10)


def test_a_language_model_takes_layer_gates_only() -> None:
    with pytest.raises(UsageError, match="see what they are to predict"):
        check_recipe(attached("gpt2")[2], get_kind("causal_lm"))
    check_recipe(attached("gpt2", token_gate=False)[2], get_kind("causal_lm"))


def test_layer_gates_decay_towards_one() -> None:
    _, module, hybrid = attached("bert")
    targets = decay_targets(hybrid.modules.values())
    for own in module.children_by_site():
        assert targets[id(own.scale)] == 1.0
        assert id(own.gate) not in targets


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_last_layer_for_the_read_position_alone_has_the_same_gates(name: str) -> None:
    hybrid = attach(classifier(name), recipe(), seed=0)
    randomise(hybrid.root, std=0.5)
    batch = encoded_rows(name).collate(list(range(6)))
    stack = hybrid.injection.layout.stacks[-1]
    rows = ReadRows(hybrid.injection.base, stack, "first" if name == "bert" else "last", list)
    expected = logits_of(hybrid.model, batch)
    with rows.of(batch["attention_mask"]):
        torch.testing.assert_close(logits_of(hybrid.model, batch), expected, atol=1e-5, rtol=1e-5)


def test_gates_of_full_precision_on_a_backbone_of_half() -> None:
    model = tiny_model("bert").to(torch.bfloat16)
    module: Any = attach(model, recipe(), seed=0).modules["apt"].float()
    logits(model, tiny_inputs("bert")).float().pow(2).sum().backward()
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
