"""MixLoRA: golden numbers, the dense loop, and positions that go to experts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from autopeft.methods.reparameterized.low_rank.mixlora import pooled_balance
from support.steps import NO_STEP
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor

from autopeft.errors import CompositionError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe

FIRST, LAST = [2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]


def recipe(**options: Any) -> Recipe:
    given = {"rank": 2, "experts": 4, "dropout": 0.0, **options}
    return Recipe.from_dict({"layers": [{"attach": [{"mixlora": given}]}]})


def balance(*rows: list[float]) -> float:
    p = torch.tensor(rows).softmax(-1)
    return pooled_balance(p, p.topk(2, dim=-1).indices).item()


def test_the_balance_loss_by_hand() -> None:
    assert balance(FIRST, LAST) == pytest.approx(2.0, abs=1e-4)
    assert balance(FIRST, FIRST) == pytest.approx(3.3392, abs=1e-4)


def attached(**options: Any) -> tuple[Any, Hybrid, Any]:
    model: Any = tiny_model("llama")
    hybrid = attach(model, recipe(**options), seed=0)
    (module,) = hybrid.modules.values()
    return model, hybrid, module


def test_it_is_of_the_rows_of_all_layers_together() -> None:
    """One layer's rows go to the first two experts, the other's to the last two: even, and 3.3392 by
    layer."""
    _, _, module = attached(balance=1.0)
    for layer, logits_ in (("decoder-0", FIRST), ("decoder-1", LAST)):
        p = torch.tensor([logits_, logits_]).softmax(-1)
        module._routed[layer] = p, p.topk(2, dim=-1).indices
    assert module.loss_terms(NO_STEP).item() == pytest.approx(2.0, abs=1e-4)


def test_padding_is_not_counted_and_a_term_has_a_gradient() -> None:
    model, _, module = attached(balance=1.0)
    terms = []
    for pad in (0, 3):
        model.train()(**tiny_inputs("llama", pad=pad))
        terms.append(cast(Tensor, module.loss_terms(NO_STEP)))
    torch.testing.assert_close(*terms)
    terms[0].backward()
    assert all(r.weight.grad.abs().sum() > 0 for r in module.routers.children_by_site())
    with torch.no_grad(), pytest.raises(CompositionError, match="gets no gradient here"):
        model(**tiny_inputs("llama"))


def dense(model: Any, hybrid: Hybrid, module: Any, top_k: int) -> None:
    """Replace the sparse FFNs by a loop over all experts on all positions."""

    def around(site: Any, x: Tensor, call: Any) -> Tensor:
        p = module.routers[site](x).softmax(-1)
        kept, chosen = p.topk(top_k, dim=-1)
        weights = torch.zeros_like(p).scatter(-1, chosen, kept / kept.sum(-1, keepdim=True))
        mlp = model.get_submodule(f"model.layers.{site.layer}.mlp")
        scale = module.config.scale

        def linear(name: str, e: int, h: Tensor) -> Tensor:
            own = {"gate_proj": "gate_proj", "up": "up_proj", "down": "down_proj"}[name]
            pair = module.linears.at[f"{site.stack}-{site.layer}-{name}"].pairs[e]
            base = torch.nn.functional.linear(h, mlp.get_submodule(own).weight)
            return base + scale * (h @ pair.A.T @ pair.B.T)

        total = torch.zeros_like(x)
        for e in range(module.config.experts):
            inner = mlp.act_fn(linear("gate_proj", e, x)) * linear("up", e, x)
            total = total + weights[..., e : e + 1] * linear("down", e, inner)
        call.region(x[:, :0])  # the frozen one has to be asked once
        return total

    module._rows = _Anywhere()
    module.around = around


class _Anywhere(dict[str, Any]):
    """Rows of no expert, for the region that is asked about no position."""

    def get(self, key: str, default: Any = None) -> Any:
        from autopeft.methods.reparameterized.low_rank.mixlora import _Rows

        return _Rows([0] * 5)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_it_is_the_dense_loop(top_k: int) -> None:
    model, hybrid, module = attached(top_k=top_k)
    randomise(hybrid.root, std=0.3)
    inputs = tiny_inputs("llama", batch=3, length=9, pad=2)
    sparse = logits(model.eval(), inputs, length=9)
    sparse.square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    model.zero_grad()
    dense(model, hybrid, module, top_k)
    looped = logits(model, inputs, length=9)
    torch.testing.assert_close(sparse, looped, atol=3e-5, rtol=1e-4)
    looped.square().sum().backward()
    for name, p in module.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], p.grad, atol=1e-3, rtol=1e-3)


def test_one_expert_is_lora_on_the_ffn() -> None:
    model, hybrid, module = attached(experts=1, top_k=1, rank=3)
    randomise(hybrid.root, std=0.3)
    inputs = tiny_inputs("llama")
    found = logits(model.eval(), inputs)
    other: Any = tiny_model("llama")
    lora = {"lora": {"rank": 3, "sites": ["gate_proj", "up", "down"]}}
    plain = attach(other, Recipe.from_dict({"layers": [{"attach": [lora]}]}), seed=0)
    with torch.no_grad():
        for key, pair in cast(Any, plain.modules["lora"]).at.items():
            own = module.linears.at[key].pairs[0]
            pair.A.copy_(own.A)
            pair.B.copy_(own.B)
    torch.testing.assert_close(logits(other.eval(), inputs), found, atol=1e-5, rtol=1e-4)


def test_an_expert_that_no_position_chooses_stays_as_it_is() -> None:
    model, hybrid, module = attached(top_k=1, balance=1e-6)
    randomise(hybrid.root, std=0.3)
    with torch.no_grad():
        for router in module.routers.children_by_site():
            router.weight.zero_()  # of equal weights the same is taken
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = hybrid.optimizer()
    logits(model.train(), tiny_inputs("llama")).square().sum().backward()
    (used,) = {int(e) for _, chosen in module._routed.values() for e in chosen.flatten()}
    optimizer.step()
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n]) and "pairs" in n}
    assert moved == {n for n in before if f".pairs.{used}." in n}


def test_llama_2_7b() -> None:
    from transformers import LlamaConfig

    from autopeft.backbones import spec_of
    from autopeft.graph import build_graph

    graph = build_graph(Recipe.named("mixlora"), spec_of(LlamaConfig()))
    assert graph.parameter_count().deployed == 203_423_744


def test_a_family_without_one_module_for_its_ffn_is_refused() -> None:
    with pytest.raises(CompositionError, match="the FFN of 'bert' is no single module"):
        attach(tiny_model("bert"), recipe())


def test_texts_are_written_from_a_cache() -> None:
    model, hybrid, _ = attached()
    randomise(hybrid.root, std=0.3)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    inputs = tiny_inputs("llama")
    found = [model.eval().generate(**inputs, **options, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*found)


TRAINS = """
import json
import autopeft
from autopeft.search.execution.process import peak_memory
from autopeft.tasks import load_task

rows = load_task("gym:chain_sum", metric="likelihood").subset(64, 8, 8)
done = autopeft.train(
    recipe="mixlora", task=rows, model="smollm2-135m", steps=3, batch_size=16, max_length=128, device="cpu",
    out="run",
)
inputs = done.tokenizer("12 + 7 =", return_tensors="pt")
options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
found = [done.hybrid.model.generate(**inputs, **options, use_cache=cached) for cached in (True, False)]
print(json.dumps([peak_memory(), *(tokens[0].tolist() for tokens in found)]))
"""


@pytest.mark.slow
def test_smollm2_is_trained_within_twelve_gigabytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINS], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    most, cached, plain = json.loads(done.stdout.splitlines()[-1])
    assert most < 12e9
    assert cached == plain
