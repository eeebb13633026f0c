"""Attention that calls no replaceable function: the forward that stands in for MPNet's, and its prefixes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from injection.test_traps import prefix_recipe
from support.classifiers import classifier, encoded_rows
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import base_model_of
from autopeft.errors import CompositionError
from autopeft.hybrid import Hybrid, attach
from autopeft.injection.rows import ReadRows
from autopeft.injection.undispatched import dispatching
from autopeft.recipe import Recipe
from autopeft.training.losses import logits_of


def attentions(model: PreTrainedModel) -> list[Any]:
    return [layer.attention.attn for layer in base_model_of(model).encoder.layer]


def prefixed(length: int = 3) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model("mpnet")
    hybrid = attach(model, prefix_recipe(length), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_without_a_prefix_it_is_the_class_s_own_forward(training: bool, masked: bool) -> None:
    module = attentions(tiny_model("mpnet"))[0].train(training)
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(2, 5, 32, generator=generator), torch.randn(2, 4, 5, 5, generator=generator)
    mask = torch.zeros(2, 1, 5, 5)
    mask[1, ..., 3:] = torch.finfo(torch.float32).min
    given = (mask, bias) if masked else ()
    torch.manual_seed(1)
    expected = module(x, *given, output_attentions=True)
    own = dispatching([module])
    torch.manual_seed(1)
    got = module(x, *given, output_attentions=True)
    assert len(module(x, *given)) == 1
    for forward in own:
        forward.remove()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert "forward" not in module.__dict__


@contextmanager
def written_out(model: PreTrainedModel, pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """MPNet's attention written out head by head, with keys and values in front of its own."""

    def forward(module: Any, keys: Tensor, values: Tensor) -> Any:
        def attend(x: Tensor, mask: Tensor | None, bias: Tensor, output_attentions: bool = False) -> Any:
            length, width = keys.shape[1], module.attention_head_size
            rows = []
            for b in range(len(x)):
                heads = []
                for h in range(module.num_attention_heads):
                    part = slice(h * width, (h + 1) * width)
                    k = torch.cat([keys[0], module.k(x[b])])[:, part]
                    v = torch.cat([values[0], module.v(x[b])])[:, part]
                    scores = module.q(x[b])[:, part] @ k.T / width**0.5
                    front = scores[:, :length]
                    behind = scores[:, length:] + bias[b, h] + (0.0 if mask is None else mask[b, 0])
                    heads.append(torch.cat([front, behind], 1).softmax(1) @ v)
                rows.append(torch.cat(heads, 1))
            return (module.o(torch.stack(rows)),)

        return attend

    modules = attentions(model)
    for module, pair in zip(modules, pairs, strict=True):
        module.__dict__["forward"] = forward(module, *pair)
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward")


@pytest.mark.parametrize("pad", [0, 2])
def test_a_prefix_equals_attention_that_is_written_out(pad: int) -> None:
    model, hybrid = prefixed()
    inputs = tiny_inputs("mpnet", pad=pad)
    got = logits(model, inputs)
    parameters = list(hybrid.root.parameters())
    gradients = torch.autograd.grad(got.sin().sum(), parameters)
    module: Any = hybrid.modules["prefix_tuning"]
    pairs = [module.key_value(site, None, None) for site in hybrid.graph.sites()]
    hybrid.detach()
    with written_out(model, pairs):
        expected = logits(model, inputs)
        wanted = torch.autograd.grad(expected.sin().sum(), parameters)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    assert not torch.allclose(got, logits(model, inputs), atol=1e-2)
    for mine, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_attentions_without_a_prefix_keep_the_class_s_forward() -> None:
    model = tiny_model("mpnet")
    with attach(model, prefix_recipe(at=[1]), seed=0):
        assert ["forward" in module.__dict__ for module in attentions(model)] == [False, True, False]
    with attach(model, Recipe.from_dict({"layers": [{"attach": ["lora", "serial_adapter"]}]}), seed=0):
        assert not any("forward" in module.__dict__ for module in attentions(model))


def test_a_copy_has_a_forward_of_its_own() -> None:
    model, hybrid = prefixed()
    inputs = tiny_inputs("mpnet")
    expected = logits(model, inputs)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    randomise(hybrid.root, std=0.3, seed=9)
    for copied in copies:
        assert torch.equal(logits(copied, inputs), expected)
        assert all(a.__dict__["forward"].args == (a,) for a in attentions(copied))
    assert not torch.allclose(logits(model, inputs), expected)


def test_a_forward_that_somebody_else_put_there_stays_and_the_prefix_is_not_ignored_in_silence() -> None:
    model = tiny_model("mpnet")
    module = attentions(model)[0]
    theirs = type(module).forward.__get__(module)
    module.forward = theirs
    with attach(model, prefix_recipe(), seed=0):
        assert module.__dict__["forward"] is theirs
        with pytest.raises(CompositionError, match="did not call the attention function"):
            logits(model, tiny_inputs("mpnet"))
    assert module.__dict__["forward"] is theirs


def test_other_modules_are_left_alone() -> None:
    assert dispatching([nn.Linear(2, 2), attentions(tiny_model("mpnet"))[0].q]) == []


@pytest.mark.parametrize("items", [[{"lora": {"rank": 2}}], [{"prefix_tuning": {"length": 2}}]])
def test_where_one_position_is_read_the_last_attention_asks_for_it_alone(items: list[Any]) -> None:
    hybrid = attach(classifier("mpnet"), Recipe.from_dict({"layers": [{"attach": items}]}), seed=0)
    seen: list[int] = []
    attentions(hybrid.model)[-1].dropout.register_forward_hook(lambda m, args, out: seen.append(out.shape[2]))
    batch = encoded_rows("mpnet").collate(list(range(4)))
    rows = ReadRows(hybrid.injection.base, hybrid.injection.layout.stacks[-1], "first", list)
    before = ["forward" in a.__dict__ for a in attentions(hybrid.model)]
    with rows.of(batch["attention_mask"]):
        logits_of(hybrid.model, batch)
    logits_of(hybrid.model, batch)
    assert seen == [1, batch["input_ids"].shape[1]]
    assert ["forward" in a.__dict__ for a in attentions(hybrid.model)] == before
