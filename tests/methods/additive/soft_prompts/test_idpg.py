from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.dropped import assert_dropped
from support.tiny import randomise, tiny_inputs, tiny_model
from support.toy import configured, counted, sites_of, toy_spec
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, RobertaConfig

from autopeft.backbones import spec_of
from autopeft.errors import MethodError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.tasks.kinds import get_kind
from autopeft.training.checks import check_recipe

SMALL = {"length": 3, "phm_dim": 4, "dropout": 0.0}


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict({"autopeft": 2, "name": "i", "model": [{"idpg": {**SMALL, **config}}]})


def attached(name: str, **config: Any) -> tuple[PreTrainedModel, Any, Hybrid]:
    model = tiny_model(name)
    hybrid = attach(model, recipe(**config), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid.modules["idpg"], hybrid


def test_defaults_are_those_of_the_authors_code() -> None:
    """CSerxy/IDPG, IDPG-PHM.sh and the scripts that it calls."""
    c = configured("idpg").config
    assert (c.length, c.bottleneck, c.phm_dim, c.dropout, c.deeper) == (5, 16, 16, 0.1, "previous")


def test_count_of_the_paper() -> None:
    """RoBERTa-large, with 24 places: some 134K in the paper."""
    large = RobertaConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    spec, method = spec_of(large), configured("idpg")
    assert method.parameter_count(sites_of(method, spec), spec).deployed == 137_232


@given(st.integers(1, 4), st.sampled_from((1, 2, 3, 6)), st.integers(1, 2))
def test_count_is_what_it_holds(length: int, n: int, blocks: int) -> None:
    config = {"length": length, "phm_dim": n, "bottleneck": n * blocks}
    deployed, trained, held, held_trained = counted("idpg", toy_spec(hidden=6), **config)
    assert deployed == trained == held == held_trained


def _generated(module: Any, feature: Tensor) -> Tensor:
    """GELU(f·W₁ + b₁)·W₂ with each W as an explicit sum of Kronecker products."""
    g = module.generator
    down = sum(torch.kron(s, r) for s, r in zip(g.down_rules, g.down, strict=True))
    up = sum(torch.kron(s, r) for s, r in zip(g.up_rules, g.up, strict=True))
    hidden = F.gelu(feature @ down + g.bias)
    return (hidden @ up).view(len(feature), module.slot.length, -1)


@pytest.mark.parametrize("deeper", ["previous", "sentence"])
@pytest.mark.parametrize("layers", [True, False])
def test_it_computes_the_papers_formula(deeper: str, layers: bool) -> None:
    """The prompt of [CLS] behind [CLS], and behind each layer but the last what comes to its rows."""
    sites = {} if layers else {"sites": ["embeddings"]}
    model, module, hybrid = attached("bert", deeper=deeper, **sites)
    inputs = tiny_inputs("bert", pad=2)
    ours = model(**inputs).logits
    hybrid.detach()
    base, ids, mask = model.base_model, inputs["input_ids"], inputs["attention_mask"]
    sentence = base(**inputs).last_hidden_state[:, 0]
    prompt = _generated(module, sentence) + module.biases["encoder-embeddings"]
    words = model.get_input_embeddings()(ids)
    embeds = torch.cat([words[:, :1], prompt, words[:, 1:]], dim=1)
    longer = torch.cat([mask[:, :1], torch.ones_like(mask[:, :3]), mask[:, 1:]], dim=1)

    def add(i: int, output: Tensor) -> Tensor:
        feature = sentence if deeper == "sentence" else output[:, 0]
        made = _generated(module, feature) + module.biases[f"encoder-{i}-layer"]
        return torch.cat([output[:, :1], output[:, 1:4] + made, output[:, 4:]], dim=1)

    places = list(base.encoder.layer)[:-1] if layers else []
    assert len(module.biases) == 1 + len(places)
    for i, layer in enumerate(places):
        layer.register_forward_hook(lambda _, __, output, i=i: add(i, output))
    expected = model(inputs_embeds=embeds, attention_mask=longer).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("deeper", ["previous", "sentence"])
def test_dropout_acts_on_the_sentence_and_in_front_of_the_second_map(deeper: str) -> None:
    """Not on what layers make of [CLS]; where the sentence is read there too, it is the same draw."""
    # W₂ puts the hidden features out as they are: one row as wide as they are.
    config = {"length": 1, "bottleneck": 32, "phm_dim": 1, "dropout": 0.25, "deeper": deeper}
    model, module, hybrid = attached("bert", **config)
    inputs = tiny_inputs("bert", batch=100)
    sentence = tiny_model("bert").base_model(**inputs).last_hidden_state[:, 0]
    g, seen, made = module.generator, list[tuple[Any, Tensor, Tensor]](), module._rows
    with torch.no_grad():
        g.up_rules.fill_(1.0)
        g.up[0] = torch.eye(32)

    def watched(site: Any, feature: Tensor) -> Tensor:
        seen.append((site, feature, made(site, feature)))
        return seen[-1][2]

    module._rows = watched
    read: list[Tensor] = []
    for layer in model.base_model.encoder.layer:
        layer.register_forward_hook(lambda _, __, output: read.append(output[:, 0]))
    for training in (True, False):
        seen.clear()
        read.clear()
        hybrid.root.train(training)
        model(**inputs)
        features = [feature for _, feature, _ in seen]
        if training:
            assert_dropped(features[0], sentence, 0.25)
        else:
            torch.testing.assert_close(features[0], sentence, atol=1e-5, rtol=1e-5)
        of_layers = read[len(model.base_model.encoder.layer) :]  # behind those of the pass without the prompt
        for i, feature in enumerate(features[1:]):
            assert torch.equal(feature, features[0] if deeper == "sentence" else of_layers[i])
        for site, feature, rows in seen:
            hidden = F.gelu(feature @ (g.down_rules[0] * g.down[0]) + g.bias)
            found = (rows - module.biases[site.key])[:, 0]
            if training:
                assert_dropped(found, hidden, 0.25)
            else:
                torch.testing.assert_close(found, hidden, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "t5", "vit", "gpt2"])
def test_texts_differ_in_their_prompts_and_the_prepass_leaves_no_graph(name: str) -> None:
    model, module, _ = attached(name)
    seen: list[tuple[Tensor, Tensor]] = []
    before = type(module).prompt

    def watched(site: Any, x: Tensor, call: Any) -> Tensor:
        rows = before(module, site, x, call)
        seen.append((call.context.features["bare"], rows))
        return rows

    module.prompt = watched
    model(**tiny_inputs(name))
    ((feature, rows),) = seen
    assert not feature.requires_grad
    assert rows.requires_grad
    assert not torch.allclose(rows[0], rows[1])
    model(**tiny_inputs(name))
    assert torch.equal(seen[1][1], rows)


def test_each_of_two_entries_has_its_own_sentence() -> None:
    """One reads [CLS] and one the mean of the text, at the embeddings as behind the layers."""
    items = [
        {"idpg": {**SMALL, "deeper": "sentence", "feature": feature}, "as": feature}
        for feature in ("first", "mean")
    ]
    made = Recipe.from_dict({"autopeft": 2, "name": "i", "model": items})
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2)
    states = model.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = {"first": states[:, 0], "mean": (states * mask).sum(1) / mask.sum(1)}
    hybrid = attach(model, made, seed=0)
    seen: dict[str, list[Tensor]] = {}
    for name in expected:
        module: Any = hybrid.modules[name]
        before = module._rows

        def watched(site: Any, feature: Tensor, name: str = name, before: Any = before) -> Tensor:
            seen.setdefault(name, []).append(feature)
            rows: Tensor = before(site, feature)
            return rows

        module._rows = watched
    model(**inputs)
    for name, features in seen.items():
        assert len(features) == 1 + 2
        for feature in features:
            torch.testing.assert_close(feature, expected[name], atol=1e-5, rtol=1e-5)
    assert set(seen) == set(expected)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_what_else_is_attached_does_not_act_in_the_prepass(name: str) -> None:
    """The feature is the bare backbone's, beside LoRA, prefixes, biases and another prompt."""
    layers = ["lora", {"prefix_tuning": {"length": 2}}]
    items = [{"p_tuning": {"length": 2}}, {"idpg": SMALL}]
    made = Recipe.from_dict({"autopeft": 2, "name": "i", "layers": [{"attach": layers}], "model": items})
    model, inputs = tiny_model(name), tiny_inputs(name, pad=2)
    base = model.get_encoder() if name == "t5" else model.base_model
    encoder = {k: v for k, v in inputs.items() if not k.startswith("decoder")}
    expected = base(**encoder).last_hidden_state
    hybrid = attach(model, made, seed=0)
    randomise(hybrid.root, std=0.5)
    module: Any = hybrid.modules["idpg"]
    seen: list[Tensor] = []
    before = type(module).prompt

    def watched(site: Any, x: Tensor, call: Any) -> Tensor:
        seen.append(call.context.features["bare"])
        return before(module, site, x, call)

    module.prompt = watched
    model(**inputs)
    torch.testing.assert_close(seen[0], expected)


def test_one_block_is_a_dense_map_times_a_scale() -> None:
    model, module, _ = attached("bert", phm_dim=1, bottleneck=5)
    assert module.generator.down.shape == (1, 32, 5)
    assert module.generator.down_rules.shape == (1, 1, 1)
    assert model(**tiny_inputs("bert")).logits.isfinite().all()


def test_widths_must_be_divisible() -> None:
    with pytest.raises(MethodError, match="divides both"):
        attach(tiny_model("bert"), recipe(phm_dim=3))
    with pytest.raises(MethodError, match="name 'embeddings'"):
        attach(tiny_model("bert"), recipe(sites=["layer"]))


def test_a_language_model_would_see_what_it_is_to_predict() -> None:
    _, _, hybrid = attached("gpt2")
    with pytest.raises(UsageError, match="see what they are to predict"):
        check_recipe(hybrid, get_kind("causal_lm"))
    check_recipe(attached("t5")[2], get_kind("seq2seq"))


def test_the_last_token_stands_for_a_text_wherever_padding_is() -> None:
    model, module, _ = attached("gpt2")
    assert (module.feature, module.slot.offset) == ("last", 0)
    inputs = tiny_inputs("gpt2")
    alone = model(**{k: v[:, 2:] for k, v in inputs.items()}).logits
    inputs["attention_mask"][:, :2] = 0
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    padded = model(**inputs, position_ids=positions).logits[:, 2:]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
