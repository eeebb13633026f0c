"""Options that several methods have do the same in each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, build, toy_spec

from autopeft.hybrid import Hybrid, attach
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe


def _with(field: str) -> list[str]:
    return [
        name
        for name in method_names()
        if field in get_method(name).Config.model_fields
        and "hook" in get_method(name).traits.ways
        and "region" not in get_method(name).traits.ways  # which lays out what its hooks see
        and "prompt" not in get_method(name).traits.ways  # rows lie in a batch, which this has none of
        and "calibration" not in get_method(name).traits.needs  # nothing is there before data have settled it
    ]


def _made(name: str, **config: Any) -> tuple[Any, Any]:
    config |= {
        "kadaptation": {"phm_dim": 2, "scale": 1.0},
        "serial_adapter": {"variant": "houlsby"},
        "linear_adapter": {"variant": "parallel"},  # `series` is fed Y, which is zero
        "lora_dropout": {"expected": False},  # else p scales what is evaluated
    }.get(name, {})
    module, sites = build(name, toy_spec(hidden=8, ffn=8, kv=8), **config)
    randomise(module, std=0.5)
    return module, sites[0]


X, Y = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(200, 8)


@pytest.mark.parametrize("name", _with("dropout"))
def test_dropout_acts_while_training_and_only_then(name: str) -> None:
    module, site = _made(name, dropout=0.5)
    plain, _ = _made(name, dropout=0.0)
    plain.load_state_dict(module.state_dict())
    deltas = {}
    for training in (True, False):
        for made, which in ((module, "dropped"), (plain, "plain")):
            made.train(training)
            torch.manual_seed(0)
            deltas[training, which] = made.delta(site, X, Y, CALL).detach()
    torch.testing.assert_close(deltas[False, "dropped"], deltas[False, "plain"])
    torch.testing.assert_close(deltas[True, "plain"], deltas[False, "plain"])
    assert not torch.allclose(deltas[True, "dropped"], deltas[False, "dropped"], atol=1e-2)


ROWS = [
    name
    for name in method_names()
    if "dropout" in get_method(name).Config.model_fields and get_method(name).traits.ways & {"prompt", "kv"}
]


def _on_bert(name: str, **config: Any) -> Hybrid:
    own: dict[str, Any] = {"idpg": {"phm_dim": 4}, "smop": {"noise": 0.0}}.get(name, {})
    item = {name: {**own, **config}}
    body = {"model": [item]} if get_method(name).traits.level == "model" else {"layers": [{"attach": [item]}]}
    return attach(tiny_model("bert"), Recipe.from_dict({"name": "r", **body}), seed=0)


@pytest.mark.parametrize("name", ROWS)
def test_dropout_of_rows_acts_while_training_and_only_then(name: str) -> None:
    """On prompts and prefixes. The backbone has none, and everything else that the methods draw is off."""
    dropped, plain = _on_bert(name, dropout=0.5), _on_bert(name, dropout=0.0)
    randomise(dropped.root, std=0.5)
    plain.root.load_state_dict(dropped.root.state_dict())
    found = {}
    for training in (True, False):
        for hybrid, which in ((dropped, "dropped"), (plain, "plain")):
            hybrid.root.train(training)
            torch.manual_seed(0)
            found[training, which] = logits(hybrid.model, tiny_inputs("bert", pad=2)).detach()
    assert torch.equal(found[False, "dropped"], found[False, "plain"])
    assert torch.equal(found[True, "plain"], found[False, "plain"])
    assert not torch.allclose(found[True, "dropped"], found[False, "dropped"], atol=1e-3)


@pytest.mark.parametrize("name", _with("alpha"))
def test_alpha_scales_the_change(name: str) -> None:
    """s = α by the rank of the factors, whatever else the method does with them."""
    module, site = _made(name, rank=3, alpha=3.0)
    other, _ = _made(name, rank=3, alpha=12.0)
    other.load_state_dict(module.state_dict())
    first, second = (m.eval().delta(site, X, Y, CALL).detach() for m in (module, other))
    torch.testing.assert_close(4 * first, second, atol=1e-4, rtol=1e-4)
    assert bool(first.abs().max() > 1e-3)
