"""Hybrids on the second device: what a seed draws, copies, and moves from device to device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from support.tiny import randomise, tiny_inputs, tiny_model

from autopeft.hybrid import attach
from autopeft.hybrid.draws import seeded
from autopeft.recipe import Recipe

LORA = Recipe.from_dict({"name": "l", "layers": [{"attach": [{"lora": {"rank": 2}}]}]})
PREFIX = Recipe.from_dict({"name": "p", "layers": [{"attach": [{"prefix_tuning": {"length": 2}}, "ia3"]}]})


def inputs_on(device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) for name, value in tiny_inputs("bert", batch=4, pad=2).items()}


def test_what_a_seed_draws_is_drawn_on_the_device(acc: torch.device) -> None:
    with seeded(7):
        first = [torch.rand(3, device=acc), torch.empty(9, device=acc).normal_()]
    with seeded(7):
        again = [torch.rand(3, device=acc), torch.empty(9, device=acc).normal_()]
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, again, strict=True))
    assert len(set(first[1].cpu().tolist())) == 9


def test_a_copy_stays_on_the_device(acc: torch.device) -> None:
    model: Any = tiny_model("bert").to(acc)
    hybrid = attach(model, LORA, seed=0)
    copied = copy.deepcopy(model)
    assert {p.device for p in copied.parameters()} == {acc}
    expected = model(**inputs_on(acc)).logits.cpu()
    hybrid.detach()
    assert torch.equal(copied(**inputs_on(acc)).logits.cpu(), expected)


def test_an_attached_hybrid_moves_with_its_model(acc: torch.device) -> None:
    model: Any = tiny_model("bert")
    hybrid = attach(model, PREFIX, seed=0)
    randomise(hybrid.root)
    expected = model(**inputs_on(torch.device("cpu"))).logits.detach()
    model.to(acc)
    assert torch.equal(model(**inputs_on(acc)).logits.cpu(), expected)
    model.to("cpu")
    assert torch.equal(model(**inputs_on(torch.device("cpu"))).logits, expected)
