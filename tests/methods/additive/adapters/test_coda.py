"""CoDA: the frozen layer for the tokens that are chosen, a light adapter for all."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.toy import build
from support.training import encoded_task, tiny_bert
from torch import Tensor, nn
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan, train

ENCODERS = ["bert", "roberta", "distilbert", "mpnet", "vit", "t5", "bart"]


def recipe(*more: Any, at: str = "all", stack: str = "encoder", **config: Any) -> Recipe:
    items = [{"coda": {"bottleneck": 4, **config}}, *more]
    return Recipe.from_dict({"name": "c", "layers": [{"at": at, "stack": stack, "attach": items}]})


def inputs_of(name: str) -> dict[str, Tensor]:
    return tiny_inputs(name) if name == "vit" else tiny_inputs(name, pad=2)


def layers_of(hybrid: Hybrid) -> list[nn.Module]:
    stack = hybrid.injection.layout.stacks[0]
    return [hybrid.injection.base.get_submodule(path) for path in stack.layers]


def exact(scores: Sequence[float], k: int) -> list[float]:
    """λ that maximises s·λ + ε·H(λ), ε = 0.5, under Σλ = k and 0 ≤ λ ≤ 1. Its optimality conditions give
    λ = min(1, exp((s − τ)/ε)); the τ at which the sum is k is found by bisection."""

    def at(tau: float) -> list[float]:
        return [math.exp(min(0.0, (s - tau) / 0.5)) for s in scores]

    below, above = min(scores) - 100.0, max(scores) + 100.0
    for _ in range(200):
        tau = (below + above) / 2
        below, above = (tau, above) if sum(at(tau)) > k else (below, tau)
    return at(below)


def after_20(scores: Sequence[float], k: int) -> list[float]:
    """λ as the defaults have it: twenty coordinate steps, ε from 4 by 0.7 down to 0.03, from b = −s."""
    if k == len(scores):
        return [1.0] * k  # nothing else has the sum k
    eps, a, b = 4.0, 0.0, [-s for s in scores]
    for step in range(20):
        eps = max(0.03, 4.0 * 0.7**step)
        inner = [(s + low) / eps for s, low in zip(scores, b, strict=True)]
        top = max(inner)
        a = eps * (math.log(k) - top - math.log(sum(math.exp(v - top) for v in inner)))
        b = [min(0.0, -s - a) for s in scores]
    return [math.exp((s + a + low) / eps) for s, low in zip(scores, b, strict=True)]


@pytest.mark.parametrize("reduction", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("reference", "options"),
    [(after_20, {}), (exact, {"temperature": 0.5, "iterations": 1000})],
    ids=["twenty steps", "exact"],
)
def test_chosen_tokens_and_their_weights_are_those_of_the_papers_problem(
    reference: Callable[[Sequence[float], int], list[float]], options: dict[str, Any], reduction: int
) -> None:
    """In plain Python, on the tokens that are there alone: s = Xₙ·w, the ⌈n/reduction⌉ largest, and their λ.

    Rows have lengths from 1 to 11, padding stands in front, behind and between, and tokens are repeated.
    """
    torch.manual_seed(0)
    module, (site, *_) = build("coda", spec_of(tiny_config("bert")), reduction=reduction, **options)
    width, masks = site.in_features, [[1] * 11, [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0], [1] + [0] * 10]
    masks += [[1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0], [0] * 5 + [1] * 6]
    x = nn.functional.layer_norm(torch.randn(len(masks), 11, width), (width,)) * torch.rand(11, 1).add(0.5)
    x[:, 7] = x[:, 5]
    x[0, 3] = x[0, 1]
    rows, weights = module.routed(site, x, torch.tensor(masks))
    w = module[site].router.double().tolist()
    for row, mask in enumerate(masks):
        there = [i for i, real in enumerate(mask) if real]
        scores = [
            math.fsum(a * b for a, b in zip(x[row, i].double().tolist(), w, strict=True)) for i in there
        ]
        k = -(-len(there) // reduction)
        chosen = sorted(range(len(there)), key=lambda j: (-scores[j], j))[:k]
        assert rows[row, :k].tolist() == [there[j] for j in chosen]
        expected = [reference(scores, k)[j] for j in chosen]
        assert weights[row, :k].tolist() == pytest.approx(expected, abs=2e-4)
        assert not weights[row, k:].any()


@pytest.mark.parametrize("width", [64, 1024])
def test_the_weights_teach_a_fresh_router_on_any_width(width: int) -> None:
    """From N(0, 1) scores of a wide model would lie so far apart that all chosen λ are 1."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=4)
    module, (site,) = build("coda", spec_of(config))
    x = nn.functional.layer_norm(torch.randn(30, 48, width), (width,))
    _, weights = module.routed(site, x, None)
    router = module[site].router
    gradients = [torch.autograd.grad(row.sum(), router, retain_graph=True)[0].norm() for row in weights]
    assert sum(float(g) > 1e-3 for g in gradients) >= 27
    assert 0.1 < float(((weights > 0.01) & (weights < 0.99)).float().mean()) < 0.5


@pytest.mark.parametrize(("name", "tensors"), [("bert", 4), ("t5", 2)])
def test_the_norms_of_its_layers_are_trained_and_counted(name: str, tensors: int) -> None:
    """A layer of BERT has two norms with a gain and a bias each, a layer of T5's encoder has two gains."""
    without = attach(tiny_model(name), recipe(train_norms=False, at="first 1"), seed=0)
    model, inputs = tiny_model(name), inputs_of(name)
    hybrid = attach(model, recipe(at="first 1"), seed=0)
    module: Any = hybrid.modules["coda"]
    changes = list(module.norms.parameters())
    assert len(changes) == tensors
    more = hybrid.graph.parameter_count().deployed - without.graph.parameter_count().deployed
    assert more == sum(p.numel() for p in changes) == tensors * hybrid.spec.stacks[0].hidden
    assert all(re.search(r"\.0\.", tensor) for tensor in module.norms.names)
    gradients = torch.autograd.grad(model(**inputs).logits.square().sum(), changes)
    assert all(bool(gradient.any()) for gradient in gradients)
    assert module.parts()["norms"] == changes
    assert "norms" not in without.graph.entries["coda"].method.part_names


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("reduction", [2, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_is_the_formula_over_the_dense_layer(name: str, reduction: int, attention: str) -> None:
    """Y = X + f(Xₙ) + λ·(layer(X) − X), against the backbone's own layer, run whole with the same norms."""
    if name == "mpnet" and attention == "sdpa":
        attention = "eager"
    model, inputs = tiny_model(name, attention=attention), inputs_of(name)
    bare = copy.deepcopy(model)
    hybrid = attach(model, recipe(reduction=reduction, at="first 1"), seed=0)
    randomise(hybrid.root, std=0.5)
    seen: dict[str, Any] = {}
    (layer, dense) = (
        m.get_submodule(hybrid.injection.layout.stacks[0].layers[0]) for m in bases(model, bare)
    )

    def mine(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen["x"] = args[0] if args else kwargs["hidden_states"]
        seen["y"] = output[0] if isinstance(output, tuple) else output

    def theirs(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen["dense"] = output[0] if isinstance(output, tuple) else output

    layer.register_forward_hook(mine, with_kwargs=True)
    dense.register_forward_hook(theirs, with_kwargs=True)
    module: Any = hybrid.modules["coda"]
    with torch.no_grad():
        for tensor in module.norms.names:
            bare.base_model.get_parameter(tensor).add_(module.norms[tensor])
    routed = module.routed

    def watched(*args: Any) -> Any:
        seen["routed"] = routed(*args)
        seen["normed"] = args[1]
        return seen["routed"]

    module.routed = watched
    logits(model, inputs)
    logits(bare, inputs)
    x, (rows, weights) = seen["x"], seen["routed"]
    real = inputs["attention_mask"].sum(1) if "attention_mask" in inputs else torch.full((2,), x.shape[1])
    assert torch.equal((weights > 0).sum(1), -(-real // reduction)), "k of each row"
    mask = torch.zeros(x.shape[:2]).scatter(1, rows, weights)[..., None]
    site = hybrid.graph.entries["coda"].sites[0]
    expected = x + module[site](seen["normed"]) + mask * (seen["dense"] - x)
    torch.testing.assert_close(seen["y"], expected, atol=1e-5, rtol=1e-4)
    pre_norm = name in ("vit", "t5")
    assert torch.equal(seen["normed"], x) != pre_norm
    hybrid.detach()
    assert "forward" not in layer.__dict__
    assert all("forward" not in m.__dict__ for m in model.modules())


def bases(*models: Any) -> Any:
    return (model.base_model for model in models)


@pytest.mark.parametrize("name", ENCODERS)
def test_with_all_tokens_and_a_fresh_adapter_it_is_the_dense_model(name: str) -> None:
    model, inputs = tiny_model(name), inputs_of(name)
    before = logits(model, inputs)
    with attach(model, recipe(reduction=1), seed=0):
        torch.testing.assert_close(logits(model, inputs), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["t5", "modernbert", "nomic_bert", "deberta-v2"])
def test_of_equal_tokens_the_first_are_chosen_whatever_else_is_in_the_batch(name: str) -> None:
    """Here positions come later than the embeddings, so that equal tokens have equal scores in layer 0."""
    model, whole = tiny_model(name), tiny_inputs(name, batch=3, length=11)
    whole["input_ids"][:, :] = torch.tensor([7, 9, 7, 7, 12, 9, 7, 9, 12, 7, 9])
    hybrid = attach(model, recipe(reduction=2), seed=0)
    randomise(hybrid.root, std=0.5)
    together = logits(model, whole)
    alone = {k: v[:1] for k, v in whole.items()}
    torch.testing.assert_close(logits(model, alone), together[:1], atol=1e-5, rtol=1e-4)
    fill = {"input_ids": 0, "attention_mask": 0}
    padded = {k: nn.functional.pad(v, (0, 6), value=fill[k]) if k in fill else v for k, v in whole.items()}
    torch.testing.assert_close(logits(model, padded), together, atol=1e-5, rtol=1e-4)
    module: Any = hybrid.modules["coda"]
    site = hybrid.graph.entries["coda"].sites[0]
    rows, weights = module.routed(site, torch.ones(2, 40, site.in_features), None)
    assert rows.tolist() == [list(range(20))] * 2
    assert bool((weights == weights[0, 0]).all())


@pytest.mark.parametrize("name", ["bert", "t5", "vit", "distilbert"])
def test_k_tokens_of_each_row_reach_the_frozen_maps(name: str) -> None:
    model, inputs = tiny_model(name), inputs_of(name)
    hybrid = attach(model, recipe(reduction=3), seed=0)
    counted: dict[str, list[int]] = {"q": [], "up": [], "k": []}
    linear = nn.functional.linear
    widths = {
        id(hybrid.injection.base.get_submodule(place.entry).weight): place.site.name  # type: ignore[arg-type]
        for place in hybrid.injection.layout.stacks[0].places
        if place.site.name in counted
    }

    def watched(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        if id(weight) in widths:
            counted[widths[id(weight)]].append(x.shape[1])
        return linear(x, weight, *rest)

    nn.functional.linear, kept = watched, linear
    try:
        logits(model, inputs)
    finally:
        nn.functional.linear = kept
    length = max(counted["k"])
    real = int(inputs["attention_mask"].sum(1).max()) if "attention_mask" in inputs else length
    assert set(counted["q"]) == set(counted["up"]) == {-(-real // 3)}
    assert set(counted["k"]) == {length}, "all of them are attended to"


@pytest.mark.parametrize("name", ["bert", "vit", "t5"])
def test_each_router_gets_a_gradient_from_what_its_layer_makes(name: str) -> None:
    model, inputs = tiny_model(name), inputs_of(name)
    hybrid = attach(model, recipe(reduction=3), seed=0)
    stack: Any = hybrid.injection.base.get_submodule(hybrid.injection.layout.stacks[0].map.root)
    given = {k: v for k, v in inputs.items() if k != "decoder_input_ids"}
    stack(**given).last_hidden_state.pow(3).sum().backward()
    for own in hybrid.modules["coda"].children_by_site():  # type: ignore[operator]
        assert float(own.router.grad.norm()) > 0


def test_the_router_and_the_adapter_learn() -> None:
    bert = tiny_bert()
    hybrid = attach(bert, recipe(reduction=2, stack="all"), seed=0)
    before = {n: p.clone() for n, p in hybrid.root.named_parameters()}
    backbone = {n: p.clone() for n, p in hybrid.backbone_parameters().items()}
    train(hybrid, encoded_task(), TrainingPlan(steps=4, batch_size=8, device="cpu", micro_batch=3))
    still = [n for n, p in hybrid.root.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    assert all(torch.equal(p, backbone[n]) for n, p in hybrid.backbone_parameters().items())


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_runs_the_tokens_of_its_own_forward(reentrant: bool) -> None:
    """Two forwards are open at once, with other tokens chosen in each; LoRA acts inside."""
    model = tiny_model("bert")
    hybrid = attach(model, recipe("lora", reduction=3), seed=0)
    randomise(hybrid.root, std=0.3)
    inputs, other = tiny_inputs("bert", pad=2), tiny_inputs("bert", pad=1, seed=5)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    model.train()

    def gradients() -> list[Tensor]:
        hybrid.root.zero_grad()
        first, second = model(**inputs).logits, model(**other).logits
        (first.pow(2).mean() + 0.5 * second.sin().mean()).backward()
        return [p.grad.clone() for p in hybrid.root.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_what_acts_inside_acts_on_chosen_tokens_alone() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert", pad=2)
    inside = [
        "serial_adapter",
        {"ia3": {}},
        {"p_tuning_v2": {"length": 2}},
        {"lora": {"sites": ["q", "o", "up"]}},
    ]
    hybrid = attach(model, recipe(*inside, reduction=1), seed=0)
    randomise(hybrid.root, std=0.3)
    with torch.no_grad():
        for own in hybrid.modules["coda"].children_by_site():  # type: ignore[operator]
            own.up.weight.zero_()
            own.up.bias.zero_()
        for change in hybrid.modules["coda"].norms.parameters():  # type: ignore[union-attr, operator]
            change.zero_()
    dense = logits(model, inputs)
    others = {k: v for k, v in hybrid.root.state_dict().items() if not k.startswith("coda.")}
    hybrid.detach()
    plain = Recipe.from_dict({"name": "p", "layers": [{"attach": inside}]})
    again = attach(model, plain, seed=0)
    again.root.load_state_dict(others)
    torch.testing.assert_close(logits(model, inputs), dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "match"), [("llama", "take an encoder"), ("gpt2", "causal"), ("t5", "`stack: encoder`")]
)
def test_causal_stacks_are_refused_with_the_way_out(name: str, match: str) -> None:
    with pytest.raises(CompositionError, match=match):
        attach(tiny_model(name), recipe(stack="all"), seed=0)


def test_two_in_one_layer_and_one_in_a_composition_are_refused() -> None:
    model = tiny_model("bert")
    with pytest.raises(UsageError, match="only one can"):
        attach(model, recipe({"coda": {"bottleneck": 2}}), seed=0)
    body = {"layers": [{"attach": [{"sum": ["coda", "lora"]}]}]}
    with pytest.raises(CompositionError, match="list it by itself"):
        attach(model, Recipe.from_dict({"name": "s", **body}), seed=0)
    assert all("forward" not in m.__dict__ for m in model.modules())


@pytest.mark.parametrize("at", ["last 1", "first 1"])
def test_untouched_layers_below_are_stored_and_the_losses_are_those_of_plain_training(at: str) -> None:
    losses = []
    for shortcuts in (True, False):
        hybrid = attach(tiny_bert(), recipe(reduction=2, at=at, stack="all"), seed=0)
        plan = TrainingPlan(steps=4, batch_size=8, device="cpu", shortcuts=shortcuts)
        losses.append(train(hybrid, encoded_task(), plan).losses)
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
