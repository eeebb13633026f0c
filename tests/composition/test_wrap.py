"""Wraps: a child with other values in its parameters' places, on real hybrids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor, nn

from autopeft.composition import Wrap
from autopeft.errors import CompositionError
from autopeft.hybrid import Hybrid, attach, load
from autopeft.recipe import Recipe

HOSTS: dict[str, Any] = {
    "lora": {"lora": {"rank": 4}},
    "serial": {"serial_adapter": {"bottleneck": 4}},
    "parallel": {"parallel_adapter": {"bottleneck": 4}},
    "krona": "krona",
    "chain": {"chain": ["ia3", {"lora": {"rank": 4, "sites": ["k", "v"]}}]},
    "gate": {"gate": [{"lora": {"rank": 4}}, {"serial_adapter": {"bottleneck": 4}}]},
}
HALVES = {"copies": 3, "density": 0.5}
HIDDEN: dict[str, Any] = {"hiwi": {"rank": 2, "target": "weight", "sites": ["up"]}}


def recipe(*layers: Any, model: Sequence[Any] = ()) -> Recipe:
    body: dict[str, Any] = {"name": "w", "model": list(model)}
    return Recipe.from_dict({**body, "layers": [{"attach": list(layers)}]} if layers else body)


def _hybrid(item: Any, name: str = "bert") -> Hybrid:
    hybrid = attach(tiny_model(name), recipe(item), seed=0)
    for module in hybrid.modules.values():
        randomise(module, std=0.3)
    hybrid.model.eval()
    return hybrid


def _wrap(hybrid: Hybrid) -> Any:
    return next(module for module in hybrid.modules.values() if isinstance(module, Wrap))


def _wrapped(kind: str, child: Any, **options: Any) -> dict[str, Any]:
    return {kind: {"children": [child], **options}}


@torch.no_grad()
def _set(hybrid: Hybrid, values: dict[str, dict[str, Tensor]]) -> None:
    for entry, own in values.items():
        for name, parameter in hybrid.modules[entry].named_parameters():
            parameter.copy_(own[name])


@pytest.mark.parametrize("host", ["lora", "serial", "parallel", "krona"])
def test_masked_copies_are_the_sum_of_children_with_masked_values(host: str) -> None:
    item = HOSTS[host] if isinstance(HOSTS[host], dict) else {HOSTS[host]: {}}
    hybrid, inputs = _hybrid(_wrapped("masked_copies", item, **HALVES)), tiny_inputs("bert")
    wrap, entry = _wrap(hybrid), next(iter(hybrid.graph.entries))
    own = dict(hybrid.modules[entry].named_parameters())
    copies = {
        f"copy{i}": {n: p if p.ndim < 2 else p * wrap.masks(n, p)[i] for n, p in own.items()}
        for i in range(3)
    }
    alone = _hybrid({"sum": [{**item, "as": name} for name in copies]})
    _set(alone, copies)
    torch.testing.assert_close(logits(hybrid.model, inputs), logits(alone.model, inputs))
    assert not torch.equal(logits(hybrid.model, inputs), logits(_hybrid(item).model, inputs))


def test_masks_have_exactly_their_share_and_are_drawn_again_the_same() -> None:
    wrap = _wrap(_hybrid(_wrapped("masked_copies", "lora", copies=4, density=0.3, seed=5)))
    parameter = nn.Parameter(torch.ones(7, 11))
    masks = wrap.masks("a", parameter)
    assert masks.sum(dim=(1, 2)).tolist() == [int(0.3 * 77)] * 4
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 4
    again = _wrap(_hybrid(_wrapped("masked_copies", "lora", copies=4, density=0.3, seed=5)))
    assert torch.equal(again.masks("a", parameter), masks)
    assert not torch.equal(again.masks("b", parameter), masks)
    other = _wrap(_hybrid(_wrapped("masked_copies", "lora", copies=4, density=0.3, seed=6)))
    assert not torch.equal(other.masks("a", parameter), masks)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("kind", "options"), [("masked_copies", {"copies": 1, "density": 1.0}), ("weight_drop", {"p": 0.5})]
)
def test_with_the_parameters_as_they_are_it_is_the_child(
    kind: str, options: dict[str, Any], host: str
) -> None:
    hybrid, inputs = _hybrid(_wrapped(kind, HOSTS[host], **options)), tiny_inputs("bert")
    assert torch.equal(logits(hybrid.model, inputs), logits(_hybrid(HOSTS[host]).model, inputs))
    assert hybrid.counts().deployed == _hybrid(HOSTS[host]).counts().deployed


def test_an_entry_in_no_mask_has_no_gradient_and_the_others_have_one() -> None:
    hybrid = _hybrid(_wrapped("masked_copies", {"lora": {"rank": 4}}, copies=2, density=0.2))
    logits(hybrid.model, tiny_inputs("bert")).square().sum().backward()  # type: ignore[no-untyped-call]
    wrap, parameters = _wrap(hybrid), dict(hybrid.modules["lora"].named_parameters())
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad != 0, wrap.masks(name, parameter).any(dim=0)), name


def test_weight_drop_leaves_out_its_share_anew_at_each_call_and_keeps_the_mean() -> None:
    hybrid, inputs = _hybrid(_wrapped("weight_drop", {"lora": {"rank": 4}}, p=0.3)), tiny_inputs("bert")
    expected = logits(hybrid.model, inputs)
    wrap = _wrap(hybrid).train()
    assert not torch.equal(logits(hybrid.model, inputs), logits(hybrid.model, inputs))
    wrap.eval()
    assert torch.equal(logits(hybrid.model, inputs), expected)
    (value,) = wrap.train().values(None)
    torch.manual_seed(0)
    drawn = value("a", torch.ones(500, 400))
    assert float((drawn == 0).float().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(drawn.mean()) == pytest.approx(1, abs=0.01)
    assert torch.equal(value("b", torch.ones(500)), torch.ones(500)), "vectors are not masked"


def test_what_is_recomputed_draws_the_same_again() -> None:
    hybrid, inputs = _hybrid(_wrapped("weight_drop", {"lora": {"rank": 4}}, p=0.5)), tiny_inputs("bert")
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            hybrid.model.gradient_checkpointing_enable({"use_reentrant": False})
            hybrid.model.train()
            for module in hybrid.model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        _wrap(hybrid).train()
        hybrid.root.zero_grad()
        torch.manual_seed(3)
        logits(hybrid.model, inputs).square().sum().backward()  # type: ignore[no-untyped-call]
        found.append({n: p.grad.clone() for n, p in hybrid.root.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_prefixes_are_dropped_too() -> None:
    item = {"prefix_tuning": {"length": 3, "reparameterization": None}}
    hybrid, inputs = _hybrid(_wrapped("weight_drop", item, p=0.5)), tiny_inputs("bert")
    assert torch.equal(logits(hybrid.model, inputs), logits(_hybrid(item).model, inputs))
    _wrap(hybrid).train()
    assert not torch.equal(logits(hybrid.model, inputs), logits(_hybrid(item).model, inputs))


def test_an_inner_wrap_comes_first() -> None:
    inner = _wrapped("masked_copies", {"lora": {"rank": 4}}, **HALVES)
    hybrid, inputs = _hybrid(_wrapped("weight_drop", inner, p=0.25)), tiny_inputs("bert")
    assert torch.equal(logits(hybrid.model, inputs), logits(_hybrid(inner).model, inputs))
    hybrid.modules["weight_drop"].train()
    assert not torch.equal(logits(hybrid.model, inputs), logits(_hybrid(inner).model, inputs))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("kind", ["masked_copies", "weight_drop"])
def test_it_merges_where_its_child_does(kind: str, name: str) -> None:
    weight = "krona" if kind == "masked_copies" else {"dora": {"rank": 2, "sites": ["v"]}}
    child = {"sum": [{"lora": {"rank": 4}}, weight]}
    hybrid, inputs = _hybrid(_wrapped(kind, child), name), tiny_inputs(name)
    expected = logits(hybrid.model, inputs)
    assert not torch.allclose(expected, logits(tiny_model(name), inputs), atol=1e-3)
    torch.testing.assert_close(logits(hybrid.merge(), inputs), expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("child", [{"lora": {"rank": 4}}, {"krona": {}}])
def test_what_is_dropped_while_training_is_not_merged(child: dict[str, Any]) -> None:
    hybrid, inputs = _hybrid(_wrapped("weight_drop", child, p=0.5)), tiny_inputs("bert")
    expected = logits(hybrid.model, inputs)
    hybrid.root.train()
    changes = hybrid.weight_changes()
    assert all(module.training for module in hybrid.root.modules())
    merged = hybrid.merge()
    torch.testing.assert_close(logits(merged, inputs), expected, atol=3e-5, rtol=1e-4)
    own = dict(merged.base_model.named_parameters())
    assert all(torch.allclose(own[name], value, atol=1e-5) for name, value in changes.tensors.items())


def test_what_is_saved_acts_the_same_again(tmp_path: Path) -> None:
    hybrid, inputs = _hybrid(_wrapped("masked_copies", HOSTS["serial"], **HALVES)), tiny_inputs("bert")
    expected = logits(hybrid.model, inputs)
    hybrid.save(tmp_path / "saved")
    again = load(tiny_model("bert"), tmp_path / "saved")
    assert torch.equal(logits(again.model, inputs), expected)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (_wrapped("weight_drop", "adalora"), "settles how large it is"),
        (_wrapped("masked_copies", {"sum": ["lora", "sora"]}), "settles how large it is"),
        (_wrapped("masked_copies", "prefix_tuning"), "more prefixes instead of a richer one"),
        (_wrapped("weight_drop", "periodic_lora"), "parameters come and go"),
        (_wrapped("masked_copies", "dora"), "only one for all copies"),
        (_wrapped("masked_copies", "hiwi"), "hiwi is saved with other parameters than it trains"),
        (_wrapped("masked_copies", HIDDEN), "saved with other parameters than it trains"),
        (_wrapped("masked_copies", {"sum": ["lora", HIDDEN]}), "saved with other parameters than it trains"),
        ({"weight_drop": ["lora", "ia3"]}, "wraps one child, but has 2"),
        (_wrapped("weight_drop", "vera"), "no matrix among the parameters of vera"),
        (
            _wrapped("masked_copies", {"sum": ["ia3", "bitfit"]}),
            "no matrix among the parameters of ia3 and bitfit",
        ),
        (_wrapped("masked_copies", {"laplace_lora": {"rank": 2}}), "laplace_lora has a posterior"),
    ],
)
def test_what_it_cannot_hold_is_refused(item: Any, said: str) -> None:
    with pytest.raises(CompositionError, match=said):
        attach(tiny_model("bert"), recipe(item))


@pytest.mark.parametrize("child", [HIDDEN, {"hiwi": {"rank": 3}}])
def test_what_is_deployed_with_other_parameters_may_be_dropped_while_it_trains(
    child: dict[str, Any], tmp_path: Path
) -> None:
    hybrid, inputs = _hybrid(_wrapped("weight_drop", child, p=0.5)), tiny_inputs("bert")
    expected = logits(hybrid.model, inputs)
    _wrap(hybrid).train()
    assert not torch.equal(logits(hybrid.model, inputs), expected)
    hybrid.save(tmp_path / "saved")
    again = load(tiny_model("bert"), tmp_path / "saved")
    torch.testing.assert_close(logits(again.model, inputs), expected)


def test_values_are_put_in_at_each_tensor_that_is_altered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever site the child that alters it belongs to."""
    hybrid = _hybrid(_wrapped("weight_drop", {"hiwi": {"rank": 3}}))
    own = dict(hybrid.model.base_model.named_parameters())
    patches = {n: patch for n, patch in hybrid.injection.patches().items() if n in own}
    assert len(patches) > 2
    assert not any(torch.equal(patch.new(own[n]), own[n]) for n, patch in patches.items())
    monkeypatch.setattr(_wrap(hybrid), "values", lambda site: [lambda name, p: torch.zeros_like(p)])
    assert all(torch.equal(patch.new(own[n]), own[n]) for n, patch in patches.items())


def test_masks_that_were_made_in_inference_mode_train() -> None:
    hybrid = _hybrid(_wrapped("masked_copies", HOSTS["lora"], **HALVES))
    with torch.inference_mode():
        logits(hybrid.model, tiny_inputs("bert"))
    logits(hybrid.model, tiny_inputs("bert")).sum().backward()
    assert all(p.grad is not None for p in hybrid.modules["lora"].parameters())


def test_a_posterior_may_be_dropped_while_it_trains() -> None:
    assert _wrap(_hybrid(_wrapped("weight_drop", {"laplace_lora": {"rank": 2}}))).kind == "weight_drop"


def test_a_prompt_is_refused() -> None:
    with pytest.raises(CompositionError, match="list it beside"):
        attach(tiny_model("bert"), recipe(model=[_wrapped("weight_drop", "prompt_tuning")]))


def test_the_backbone_and_the_parameters_are_as_they_were_after_a_forward() -> None:
    hybrid = _hybrid(_wrapped("masked_copies", HOSTS["chain"], **HALVES))
    before = {name: id(p) for name, p in hybrid.model.named_parameters()}
    logits(hybrid.model, tiny_inputs("bert"))
    assert {name: id(p) for name, p in hybrid.model.named_parameters()} == before
