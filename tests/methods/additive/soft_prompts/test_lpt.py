from __future__ import annotations

from typing import Any

import pytest
import torch
from support.dropped import assert_dropped
from support.tiny import ARCHITECTURES, logits, randomise, tiny_inputs, tiny_model
from support.toy import configured, sites_of
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, RobertaConfig

from autopeft.backbones import base_model_of, spec_of
from autopeft.errors import MethodError, UsageError
from autopeft.graph import first_layer
from autopeft.hybrid import Hybrid, attach
from autopeft.injection.depth import trunk_depths
from autopeft.method import Call, Context
from autopeft.recipe import Recipe
from autopeft.tasks.kinds import get_kind
from autopeft.training.checks import check_recipe

SMALL = {"length": 3, "bottleneck": 4, "dropout": 0.0}
KINDS = ("npg", "appg", "mppg", "none")


def recipe(**config: Any) -> Recipe:
    return Recipe.from_dict({"autopeft": 2, "name": "l", "model": [{"lpt": {**SMALL, **config}}]})


def attached(name: str, **config: Any) -> tuple[PreTrainedModel, Any, Hybrid]:
    model = tiny_model(name)
    hybrid = attach(model, recipe(**config), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid.modules["lpt"], hybrid


def large(**config: Any) -> int:
    spec = spec_of(RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16))
    method = configured("lpt", **config)
    (site,) = sites_of(method, spec)
    assert site.layer == 12
    deployed: int = method.parameter_count([site], spec).deployed
    return deployed


def test_counts_of_the_paper() -> None:
    assert large() == 791_680
    assert large(generator="appg") == large(generator="mppg") == 263_296
    assert large(generator="none") == 5 * 1024


def test_defaults_are_those_of_the_authors_code() -> None:
    """xyltt/LPT, encoder-only/run_roberta.sh and arguments.py."""
    c = configured("lpt").config
    assert (c.length, c.layer, c.generator, c.bottleneck, c.dropout) == (5, None, "npg", 128, 0.1)


def _rows(module: Any, kind: str, states: Tensor, lengths: list[int]) -> Tensor:
    """The paper's generators, one text after the other."""
    if kind == "none":
        return module.table.expand(len(states), -1, -1)
    if kind == "npg":
        return module.up(F.relu(module.down(states[:, 0]))).view(len(states), 3, -1)
    pool = torch.nn.AdaptiveMaxPool1d(3) if kind == "mppg" else torch.nn.AdaptiveAvgPool1d(3)
    texts = [module.down(row[:n]).T[None] for row, n in zip(states, lengths, strict=True)]
    return module.up(F.relu(torch.cat([pool(text) for text in texts]).transpose(1, 2)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_the_papers_formula(kind: str, attention: str) -> None:
    """Layers below p run on n positions, those above on n + l, none of which has a position of its own."""
    model = tiny_model("bert", attention=attention)
    hybrid = attach(model, recipe(generator=kind, layer=1), seed=0)
    randomise(hybrid.root, std=0.5)
    module: Any = hybrid.modules["lpt"]
    inputs = tiny_inputs("bert", pad=2)
    inputs["attention_mask"][0, 5:] = 0
    lengths: list[int] = []
    layers = base_model_of(model).encoder.layer
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    ours = model.base_model(**inputs).last_hidden_state
    assert lengths == [9] + [12] * (len(layers) - 1)
    hybrid.detach()
    base, mask = base_model_of(model), inputs["attention_mask"]
    states = base.embeddings(input_ids=inputs["input_ids"])
    hide = torch.zeros(2, 1, 1, 12)
    hide[:, 0, 0, 3:] = (1 - mask).float() * torch.finfo(torch.float32).min
    plain = base.encoder.layer[0](states, hide[..., 3:].expand(-1, -1, 9, -1))
    states = torch.cat([_rows(module, kind, plain, [5, 7]), plain], dim=1)
    for layer in layers[1:]:
        states = layer(states, hide.expand(-1, -1, 12, -1))
    torch.testing.assert_close(ours[mask == 1], states[:, 3:][mask == 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_on_the_rows_while_they_train(kind: str) -> None:
    """Each text has a draw of its own, of a table too."""
    _, module, hybrid = attached("bert", generator=kind, dropout=0.25)
    (site,) = hybrid.graph.sites()
    states, call = torch.randn(100, 9, 32), Call(Context())
    expected = _rows(module, kind, states, [9] * 100)
    torch.testing.assert_close(module.eval().prompt(site, states, call), expected)
    found = module.train().prompt(site, states, call)
    assert_dropped(found, expected, 0.25)
    assert not torch.equal(found[0] == 0, found[1] == 0)


@pytest.mark.parametrize(
    ("name", "left"), [("gpt2", False), ("gpt2", True), ("llama", False), ("llama", True)]
)
def test_decoders_make_the_rows_of_the_last_token(name: str, left: bool) -> None:
    """Of what layer p reads of it, on whichever side padding is."""
    model, module, _ = attached(name, layer=1)
    inputs = tiny_inputs(name, pad=0 if left else 2)
    if left:
        inputs["attention_mask"][0, :2] = 0
    else:
        inputs["attention_mask"][0, 5:] = 0
    states = tiny_model(name)(**inputs, output_hidden_states=True).hidden_states[1]
    last = states[[0, 1], [6, 6] if left else [4, 6]]
    seen: list[Tensor] = []
    prompt = module.prompt

    def watched(*args: Any) -> Tensor:
        seen.append(prompt(*args))
        return seen[-1]

    module.prompt = watched
    model(**inputs)
    expected = module.up(F.relu(module.down(last))).view(2, 3, -1)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_below_stay_untouched(name: str) -> None:
    """No gradient, none of the sequence's length, and the trunk may be kept."""
    model, _, hybrid = attached(name, layer=1)
    stack = hybrid.spec.stacks[0]
    assert first_layer(hybrid.graph) == trunk_depths(hybrid.injection)[stack.name] == 1
    below = hybrid.injection.layout.stacks[0].layers[0]
    seen: list[Tensor] = []
    layer = base_model_of(model).get_submodule(below)
    layer.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    logits(model, tiny_inputs(name)).sum().backward()
    assert not seen[0].requires_grad


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "vit"])
def test_all_hidden_states_are_those_of_the_text(name: str) -> None:
    model, _, _ = attached(name, layer=1)
    inputs = tiny_inputs(name, pad=0 if name == "vit" else 2)
    output = model(**inputs, output_hidden_states=True)
    states = output.encoder_hidden_states if name == "t5" else output.hidden_states
    lengths = {h.shape[1] for h in states}
    if name == "t5":  # the decoder attends to what the encoder's rows have become
        assert lengths == {9, 12}
    else:
        assert len(lengths) == 1


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_decoder_sees_a_table_from_every_token_and_padding_from_none(name: str) -> None:
    model, _, _ = attached(name, generator="none", layer=1)
    inputs = tiny_inputs(name)
    alone = model(**{k: v[:, 2:] for k, v in inputs.items()}).logits
    inputs["attention_mask"][:, :2] = 0
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    padded = model(**inputs, position_ids=positions).logits[:, 2:]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
    first = {k: v[:, :4] for k, v in tiny_inputs(name).items()}
    whole = model(**tiny_inputs(name)).logits[:, :4]
    torch.testing.assert_close(model(**first).logits, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prompt_at_the_input_and_two_late_ones_stand_in_one_sequence(attention: str) -> None:
    items = [
        {"p_tuning": {"length": 2, "slots": [{"length": 2, "offset": 1}], "encoder": "mlp"}},
        {"lpt": {**SMALL, "layer": 1}},
        {"idpg": {"length": 2, "phm_dim": 4, "dropout": 0.0}},
    ]
    late = {"lpt": {**SMALL, "length": 2, "layer": 1, "generator": "none"}}
    made = Recipe.from_dict({"autopeft": 2, "name": "m", "model": [*items, {**late, "as": "second"}]})
    model = tiny_model("bert", attention=attention)
    randomise(attach(model, made, seed=0).root, std=0.3)
    bare = logits(model, tiny_inputs("bert"))
    torch.testing.assert_close(logits(model, tiny_inputs("bert", pad=4)), bare, atol=1e-5, rtol=1e-4)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(MethodError, match="p may be 1 to"):
        attach(tiny_model("bert"), recipe(layer=9))


def test_a_language_model_takes_a_table_only() -> None:
    with pytest.raises(UsageError, match="see what they are to predict"):
        check_recipe(attached("gpt2")[2], get_kind("causal_lm"))
    check_recipe(attached("gpt2", generator="none")[2], get_kind("causal_lm"))
