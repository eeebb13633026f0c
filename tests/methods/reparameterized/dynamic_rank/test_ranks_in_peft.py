"""Dynamic ranks beside HF peft: AdaLoRA itself, the others by the LoRA that they come down to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.steps import NO_STEP
from support.tiny import randomise, tiny_inputs, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.spec import Site

peft = pytest.importorskip("peft")

PATHS = {
    "bert": {"q": "attention.self.query", "v": "attention.self.value", "up": "intermediate.dense"},
    "llama": {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "up": "mlp.up_proj"},
    "gpt2": {"qkv": "attn.c_attn", "up": "mlp.c_fc"},
}
LABELS = torch.tensor([1, 0])


def _attached(name: str, method: str, **config: Any) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model(name)
    item = {method: {"sites": list(PATHS[name]), **config}}
    hybrid = attach(model, Recipe.from_dict({"name": "x", "layers": [{"attach": [item]}]}), seed=0)
    randomise(hybrid.root)
    return model, hybrid


def _theirs(name: str, kind: str, **config: Any) -> Any:
    settings = getattr(peft, kind)(
        target_modules=rf".*\.\d+\.({'|'.join(PATHS[name].values())})",
        fan_in_fan_out=name == "gpt2",
        **config,
    )
    return peft.get_peft_model(tiny_model(name), settings).eval()


def _sites(hybrid: Hybrid) -> tuple[Site, ...]:
    return next(iter(hybrid.graph.entries.values())).sites


def _module(hybrid: Hybrid) -> Any:
    return next(iter(hybrid.modules.values()))


def _layer(theirs: nn.Module, name: str, site: Site) -> Any:
    path = f".{site.layer}.{PATHS[name][site.name]}"
    (found,) = (m for n, m in theirs.named_modules() if n.endswith(path) and hasattr(m, "base_layer"))
    return found


def _triplets(name: str, ours: Hybrid, theirs: Any) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """(ours, theirs) of all P, E and Q; peft adds 1e-5 to the rank, which is taken off here."""
    pairs = []
    for site in _sites(ours):
        own, layer = _module(ours)[site], _layer(theirs, name, site)
        layer.ranknum["default"].data.sub_(1e-5)
        pairs += [(own.P, layer.lora_B["default"]), (own.E, layer.lora_E["default"])]
        pairs.append((own.Q, layer.lora_A["default"]))
    return pairs


def _copy(pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own.view_as(other))


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, float(b.detach().abs().max())), rtol=1e-5)


def _adalora(name: str, **config: Any) -> Any:
    settings = {"total_step": 100, "init_r": 3, "target_r": 2, "lora_alpha": 12, "lora_dropout": 0.0}
    return _theirs(name, "AdaLoraConfig", **{**settings, **config})


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_outputs_and_gradients_of_adalora(name: str) -> None:
    model, hybrid = _attached(name, "adalora", rank=2, initial_rank=3, alpha=12.0)
    theirs = _adalora(name)
    pairs = _triplets(name, hybrid, theirs)
    _copy(pairs)
    inputs = tiny_inputs(name, pad=2)
    a, b = model(**inputs).logits, theirs(**inputs).logits
    assert_close(a, b)
    assert not torch.allclose(a, tiny_model(name)(**inputs).logits, atol=1e-2)
    upstream = torch.randn(a.shape, generator=torch.Generator().manual_seed(7))
    (a * upstream).sum().backward()
    (b * upstream).sum().backward()
    for own, other in pairs:
        assert own.grad is not None
        assert float(own.grad.abs().max()) > 0
        assert_close(own.grad, other.grad.view_as(own))


def test_the_orthogonality_loss_of_adalora() -> None:
    model, hybrid = _attached("bert", "adalora", rank=2, initial_rank=3, alpha=12.0, orthogonality=0.3)
    theirs = _adalora("bert", orth_reg_weight=0.3)
    pairs = _triplets("bert", hybrid, theirs)
    _copy(pairs)
    inputs = {**tiny_inputs("bert", pad=2), "labels": LABELS}
    a = model(**inputs).loss + _module(hybrid).loss_terms(NO_STEP)
    b = theirs.base_model(**inputs).loss
    assert_close(a, b)
    assert float(_module(hybrid).loss_terms(NO_STEP).detach()) > 0.1
    a.backward()
    b.backward()
    for own, other in pairs:
        assert_close(own.grad, other.grad.view_as(own))  # type: ignore[arg-type]


def test_scores_and_allocations_of_adalora_on_the_same_gradients() -> None:
    """Forty steps with the same random gradients and updates, through all phases of the schedule."""
    total, warmup, final = 40, 6, 8
    _, hybrid = _attached(
        "bert", "adalora", rank=2, initial_rank=4, interval=3, warmup=warmup / total, final=final / total
    )
    module, sites = _module(hybrid), _sites(hybrid)
    theirs = _adalora("bert", init_r=4, total_step=total, tinit=warmup, tfinal=final, deltaT=3)
    allocator = theirs.base_model.rankallocator
    scores: list[Tensor] = []
    combine = allocator._combine_ipt
    allocator._combine_ipt = lambda e, ab: scores.append(combine(e, ab)) or scores[-1]
    pairs = _triplets("bert", hybrid, theirs)
    _copy(pairs)
    order = [_layer(theirs, "bert", s) for s in sites]
    generator = torch.Generator().manual_seed(1)
    allocated = 0
    for step in range(total):
        with torch.no_grad():
            for own, other in pairs:
                update = torch.randn(own.shape, generator=generator)
                own.add_(0.1 * update)
                other.add_(0.1 * update.view_as(other))
                own.grad = torch.randn(own.shape, generator=generator)
                other.grad = own.grad.view_as(other).clone()
        scores.clear()
        module.after_step(step, total)
        theirs.base_model.update_and_allocate(step + 1)
        for own, other in pairs:
            torch.testing.assert_close(own, other.view_as(own), atol=1e-7, rtol=1e-6)
        if scores:
            allocated += 1
            names = [n for n, _ in theirs.named_modules() if hasattr(_, "lora_E") and "default" in _.lora_E]
            by_layer = dict(zip(names, scores, strict=True))
            at = {id(m): n for n, m in theirs.named_modules()}
            expected = torch.stack([by_layer[at[id(layer)]] for layer in order])
            torch.testing.assert_close(module.scores(), expected, atol=1e-9, rtol=1e-4)
    assert allocated == len(range(9, 32, 3)) + 1
    kept = [int((layer.lora_E["default"] != 0).sum()) for layer in order]
    assert sum(kept) == 2 * len(sites)
    assert kept == module.kept.sum(dim=1).tolist()


def _as_lora(name: str, hybrid: Hybrid, alpha: float, ranks: dict[str, int]) -> Any:
    """peft's LoRA with our deployed factors; α/r is the same at all sites."""
    pattern = {f"{s.layer}.{PATHS[name][s.name]}": ranks[s.path] for s in _sites(hybrid)}
    scales = {k: alpha * r for k, r in pattern.items()}
    theirs = _theirs(
        name, "LoraConfig", r=1, lora_alpha=1, lora_dropout=0.0, rank_pattern=pattern, alpha_pattern=scales
    )
    for site in _sites(hybrid):
        own, layer = _module(hybrid)[site], _layer(theirs, name, site)
        _copy([(own.A, layer.lora_A["default"].weight), (own.B, layer.lora_B["default"].weight)])
    return theirs


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_dylora_at_a_rank_is_a_lora_of_that_rank(name: str, rank: int) -> None:
    model, hybrid = _attached(name, "dylora", rank=4, alpha=6.0)
    inputs = tiny_inputs(name, pad=2)
    _module(hybrid).use(rank)
    expected = model(**inputs).logits
    _module(hybrid).deploy()
    theirs = _as_lora(name, hybrid, 6.0 / rank, {s.path: rank for s in _sites(hybrid)})
    assert_close(theirs(**inputs).logits, expected)
    assert not torch.allclose(expected, tiny_model(name)(**inputs).logits, atol=1e-2)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_sora_after_folding_is_a_lora_with_a_rank_for_each_site(name: str) -> None:
    model, hybrid = _attached(name, "sora", rank=4, alpha=6.0)
    module = _module(hybrid)
    with torch.no_grad():
        for i, gate in enumerate(module.gates()):
            gate[: i % 4] = 0.0
    inputs = tiny_inputs(name, pad=2)
    expected, ranks = model(**inputs).logits, module.ranks()
    assert set(ranks.values()) == {1, 2, 3, 4}
    module.deploy()
    theirs = _as_lora(name, hybrid, 6.0 / 4, ranks)
    assert_close(theirs(**inputs).logits, expected)
