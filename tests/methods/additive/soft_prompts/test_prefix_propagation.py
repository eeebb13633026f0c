from __future__ import annotations

from typing import Any

import pytest
import torch
from support.dropped import assert_dropped
from support.tiny import randomise, tiny_inputs, tiny_model
from support.toy import configured, sites_of
from torch import Tensor
from transformers import BertConfig

from autopeft.backbones import base_model_of, spec_of
from autopeft.errors import MethodError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe


def attached(name: str = "bert", **config: Any) -> tuple[Any, Any, Hybrid]:
    model = tiny_model(name)
    entry = {"prefix_propagation": {"length": 3, **config}}
    hybrid = attach(model, Recipe.from_dict({"autopeft": 2, "name": "p", "model": [entry]}), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid.modules["prefix_propagation"], hybrid


def test_defaults_are_those_of_the_authors_code() -> None:
    """MonliH/prefix-propagation, run_script."""
    c = configured("prefix_propagation").config
    assert (c.length, c.dropout) == (8, 0.1)


def test_count_is_half_of_p_tuning_v2s() -> None:
    spec = spec_of(BertConfig())
    counts = []
    for name in ("prefix_propagation", "p_tuning_v2"):
        method = configured(name, length=8)
        counts.append(method.parameter_count(sites_of(method, spec), spec).deployed)
    assert counts == [12 * 8 * 768, 2 * 12 * 8 * 768]


def test_it_computes_the_papers_formula() -> None:
    """Zero words in front, with positions, types and the norm; to their states each layer adds its rows."""
    model, module, hybrid = attached()
    inputs = tiny_inputs("bert", pad=2)
    ours = model(**inputs).logits
    hybrid.detach()
    words = model.get_input_embeddings()(inputs["input_ids"])
    embeds = torch.cat([torch.zeros(2, 3, 32), words], dim=1)
    mask = torch.cat([torch.ones(2, 3), inputs["attention_mask"]], dim=1)
    base = base_model_of(model)

    def add(i: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        rows = module.rows[f"encoder-{i}-layer"]
        return (torch.cat([args[0][:, :3] + rows, args[0][:, 3:]], dim=1), *args[1:])

    for i, layer in enumerate(base.encoder.layer):
        layer.register_forward_pre_hook(lambda _, args, i=i: add(i, args))
    states = base(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[:, 3:]
    expected = model.classifier(base.pooler(states))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_dropout_acts_on_what_layers_add_while_they_train() -> None:
    """Drawn for each text and layer; what layers have made of the rows is not dropped."""
    model, module, hybrid = attached(length=20, dropout=0.25)
    inputs, added = tiny_inputs("bert", batch=40), list[Tensor]()
    entering: list[Tensor] = []
    for i, layer in enumerate(base_model_of(model).encoder.layer):
        key = f"encoder-{i}-layer"
        # Registered before and behind the method's own hook: the difference is what it adds.
        layer.register_forward_pre_hook(lambda _, args: entering.append(args[0]), prepend=True)
        layer.register_forward_pre_hook(lambda _, args: added.append(args[0] - entering[-1]))
        assert module.rows[key].shape == (20, 32)
    for training in (True, False):
        added.clear()
        hybrid.root.train(training)
        model(**inputs)
        assert len(added) == len(module.rows)
        for found, rows in zip(added, module.rows.values(), strict=True):
            assert not found[:, 20:].any()
            if training:
                assert_dropped(found[:, :20], rows, 0.25)
                assert not torch.equal(found[0] == 0, found[1] == 0)
            else:
                torch.testing.assert_close(found[:, :20], rows.expand(40, -1, -1), atol=1e-5, rtol=1e-5)


def test_rows_read_the_text() -> None:
    model, _, hybrid = attached()
    layer = base_model_of(model).encoder.layer[0]
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _, __, out: seen.append(out[:, :3]))
    for seed in (1, 2):
        model(**tiny_inputs("bert", seed=seed))
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert hybrid.counts().deployed == len(base_model_of(model).encoder.layer) * 3 * 32


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_decoders_are_refused(name: str) -> None:
    with pytest.raises(MethodError, match="use prefix_tuning"):
        attached(name)
