"""`route` against explicit arithmetic on one site, and on tiny models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.steps import NO_STEP
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor

from autopeft.backbones import spec_of_model
from autopeft.composition import ChildSpec, Route, default_options
from autopeft.errors import CompositionError, RecipeError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.events import loss_terms
from autopeft.method import Call, Context
from autopeft.recipe import Recipe
from autopeft.spec import Site

SITE = Site("encoder", 0, "ffn", "region", 4, 4)
X, Y = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1))


class Expert:
    """δ = a·y; one key row of a."""

    def __init__(self, name: str, a: float) -> None:
        self.name, self.a = name, a

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        assert not call.gated, "experts keep their own scale"
        return self.a * y

    def key_value(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        rows = torch.full((1, 1, 4), self.a)
        return rows, 2 * rows


EXPERTS: list[Any] = [Expert("a", 1.0), Expert("b", 3.0), Expert("c", -2.0)]


def route(**options: Any) -> Route:
    specs = [ChildSpec(e.name, e.name, frozenset({"hook"}), (SITE,)) for e in EXPERTS]
    made = Route.build(specs, {**default_options("route"), **options})
    torch.nn.init.normal_(made.routers[SITE].weight, generator=torch.Generator().manual_seed(2))
    return made


def test_each_position_mixes_the_experts_by_its_own_weights() -> None:
    made = route()
    p = torch.softmax(X @ made.routers[SITE].weight.T, -1)
    expected = sum(p[..., i : i + 1] * e.a * Y for i, e in enumerate(EXPERTS))
    torch.testing.assert_close(made.delta(SITE, EXPERTS, X, Y, Call(Context())), expected)


def test_a_side_with_some_of_the_experts_takes_their_weights() -> None:
    made = route()
    call = Call(Context())
    both = made.delta(SITE, EXPERTS[:1], X, Y, call) + made.delta(SITE, EXPERTS[1:], X, Y, call)
    torch.testing.assert_close(made.delta(SITE, EXPERTS, X, Y, call), both)


@pytest.mark.parametrize("renormalize", [True, False])
def test_the_router_learns_through_the_experts_that_are_kept(renormalize: bool) -> None:
    """Against a loop over positions and experts; x gets the gradient of the routing too."""
    made, x = route(top_k=2, renormalize=renormalize), X.clone().requires_grad_()
    weight = made.routers[SITE].weight
    rows = []
    for position, y in zip(x.reshape(-1, 4), Y.reshape(-1, 4), strict=True):
        p = torch.softmax(weight @ position, -1)
        kept = p.detach().topk(2).indices.tolist()
        total = sum(p[i] for i in kept) if renormalize else 1.0
        rows.append(sum(p[i] / total * EXPERTS[i].a * y for i in kept))
    expected = torch.stack(rows).reshape(Y.shape)
    delta = made.delta(SITE, EXPERTS, x, Y, Call(Context()))
    torch.testing.assert_close(delta, expected)
    wanted = torch.autograd.grad(expected.square().sum(), (x, weight))
    found = torch.autograd.grad(delta.square().sum(), (x, weight))
    torch.testing.assert_close(found, wanted)


def test_experts_on_both_sides_of_a_map_are_weighed_by_the_x_that_came() -> None:
    model, hybrid = hybrid_of({"route": [{"ia3": {"sites": ["down"]}}, {"lora": {"sites": ["down"]}}]})
    base: Any = model.base_model
    down = base.encoder.layer[0].output.dense
    seen: list[Tensor] = []
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0]), prepend=True)
    outputs: list[Tensor] = []
    last = down.register_forward_hook(lambda *call: outputs.append(call[-1]))
    logits(model, tiny_inputs("bert"))
    handle.remove()
    last.remove()
    (x,) = seen
    site = next(s for s in hybrid.graph.sites() if (s.layer, s.name) == (0, "down"))
    node: Any = hybrid.modules["route"]
    p = torch.softmax(x @ node.routers[site].weight.T, -1)
    ia3, lora = (m for n, m in hybrid.modules.items() if n != "route")
    scaled = x + p[..., :1] * ia3.delta(site, x, x, Call(Context()))  # type: ignore[operator]
    expected = torch.nn.functional.linear(scaled, down.weight, down.bias)
    expected = expected + p[..., 1:] * lora.delta(site, scaled, expected, Call(Context()))  # type: ignore[operator]
    torch.testing.assert_close(outputs[0], expected, atol=1e-5, rtol=1e-4)


def test_merging_is_refused() -> None:
    _, hybrid = hybrid_of({"route": {"children": ["lora"], "copies": 2}})
    with pytest.raises(CompositionError, match="route"):
        hybrid.merge()


def test_a_sequence_is_routed_as_one_by_its_real_positions() -> None:
    made, mask = route(level="sequence"), torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    mean = torch.stack([X[0, :2].mean(0), X[1].mean(0)])
    p = torch.softmax(mean @ made.routers[SITE].weight.T, -1)[:, None]
    expected = sum(p[..., i : i + 1] * e.a * Y for i, e in enumerate(EXPERTS))
    call = Call(Context(mask=mask))
    torch.testing.assert_close(made.delta(SITE, EXPERTS, X, Y, call), expected)
    keys, values = made.key_value(SITE, EXPERTS, X, call)
    assert keys.shape == (2, 3, 4)
    torch.testing.assert_close(keys[:, :, 0], p[:, 0] * torch.tensor([1.0, 3.0, -2.0]))
    torch.testing.assert_close(values, 2 * keys)


def hybrid_of(item: dict[str, Any], name: str = "bert") -> tuple[Any, Hybrid]:
    model = tiny_model(name)
    hybrid = attach(model, Recipe.from_dict({"layers": [{"attach": [item]}]}), seed=0)
    randomise(hybrid.root)
    return model, hybrid


def lora_states(hybrid: Hybrid) -> list[Any]:
    return [hybrid.modules[n] for n in hybrid.graph.entries]


def test_one_expert_is_that_expert_alone() -> None:
    model, hybrid = hybrid_of({"route": [{"lora": {"rank": 2}}]})
    other, alone = hybrid_of({"lora": {"rank": 2}})
    lora_states(alone)[0].load_state_dict(lora_states(hybrid)[0].state_dict())
    inputs = tiny_inputs("bert", pad=2)
    torch.testing.assert_close(logits(model, inputs), logits(other, inputs), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("top_k", [None, 2])
def test_equal_experts_are_one_whatever_the_routing(top_k: int | None) -> None:
    model, hybrid = hybrid_of({"route": {"children": ["lora"], "copies": 3, "top_k": top_k}}, "llama")
    other, alone = hybrid_of({"lora": {}}, "llama")
    for module in lora_states(hybrid):
        module.load_state_dict(lora_states(alone)[0].state_dict())
    inputs = tiny_inputs("llama")
    torch.testing.assert_close(logits(model, inputs), logits(other, inputs), atol=1e-5, rtol=1e-5)


def test_an_expert_that_no_position_keeps_gets_no_gradient() -> None:
    model, hybrid = hybrid_of(
        {"route": {"children": ["lora"], "copies": 3, "top_k": 1, "renormalize": False}}
    )
    node: Any = hybrid.modules["route"]
    # A weight of zero rows is a tie, which the first expert wins.
    for router in node.routers.children_by_site():
        torch.nn.init.zeros_(router.weight)
    logits(model, tiny_inputs("bert")).sum().backward()
    used = [
        sum(float(p.grad.abs().sum()) for p in m.parameters() if p.grad is not None)
        for m in lora_states(hybrid)
    ]
    assert sum(u > 0 for u in used) == 1


def test_the_count_is_a_router_for_each_site() -> None:
    _, hybrid = hybrid_of({"route": {"children": [{"lora": {"rank": 2}}], "copies": 4}})
    sites = next(iter(hybrid.graph.entries.values())).sites
    experts = sum(e.count.deployed for e in hybrid.graph.entries.values())
    assert hybrid.counts().deployed == experts + sum(4 * s.in_features for s in sites)


def test_a_site_with_one_expert_has_no_router() -> None:
    item = {"route": [{"lora": {"sites": ["q", "v"]}}, {"lora": {"sites": ["q"]}}]}
    _, hybrid = hybrid_of(item)
    node: Any = hybrid.modules["route"]
    assert {key.rpartition(".")[2] for key in node.routers.at} == {"q"} or all(
        "q" in k for k in node.routers.at
    )
    assert all(p.shape[0] == 2 for p in node.parameters())


BALANCED = {"route": {"children": ["lora"], "copies": 4, "top_k": 2, "balance": 0.5}}


def test_the_balance_reaches_the_loss_and_moves_the_router() -> None:
    model, hybrid = hybrid_of(BALANCED)
    hybrid.root.train()
    logits(model, tiny_inputs("bert", pad=2))
    term = loss_terms(hybrid.modules.values(), NO_STEP)
    assert term is not None
    node: Any = hybrid.modules["route"]
    routers = node.routers.children_by_site()
    # The loss of a site is 2 where the use is even, and 4 where two of the four experts take everything.
    assert 0.5 * len(routers) < float(term.detach()) < 0.5 * 4 * len(routers)
    term.backward()
    assert all(r.weight.grad is not None and r.weight.grad.abs().sum() > 0 for r in routers)


def test_padding_does_not_change_the_balance() -> None:
    model, hybrid = hybrid_of(BALANCED)
    model.eval()
    found = []
    for pad in (0, 5):
        hybrid.root.train()
        model(**tiny_inputs("bert", pad=pad))
        term = loss_terms(hybrid.modules.values(), NO_STEP)
        assert term is not None
        found.append(term.detach())
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_the_balance_under_checkpointing() -> None:
    found = []
    for kind in (None, False):
        model, hybrid = hybrid_of(BALANCED)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if kind is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": kind})
        out = model(**tiny_inputs("bert", pad=2)).logits.square().mean()
        term = loss_terms(hybrid.modules.values(), NO_STEP)
        assert term is not None
        (out + term).backward()
        assert loss_terms(hybrid.modules.values(), NO_STEP) is None
        found.append({n: p.grad for n, p in hybrid.root.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, atol=1e-5, rtol=1e-4)


def test_the_balance_is_refused_where_it_would_be_lost() -> None:
    model, _ = hybrid_of(BALANCED)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(CompositionError, match="use_reentrant=False"):
        model(**tiny_inputs("bert"))


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"route": ["dora", "lora"]}, "alters weights"),
        ({"route": ["prefix_tuning", "lora"]}, "level: sequence"),
        ({"route": {"children": ["lora", "lora"], "top_k": 3}}, "keeps 3 experts, but has 2"),
        ({"route": {"children": ["lora", "lora"], "top_k": 1}}, "renormalize: false"),
        ({"route": ["lora", "ssf"]}, "outer: false"),
    ],
)
def test_what_cannot_be_routed_is_refused_with_a_reason(item: Any, said: str) -> None:
    spec, _ = spec_of_model(tiny_model("bert"))
    with pytest.raises(CompositionError, match=said):
        build_graph(Recipe.from_dict({"layers": [{"attach": [item]}]}), spec)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"children": ["lora"], "copies": 0}, "'copies' is a whole number from 1 to 64"),
        ({"children": ["lora", "ia3"], "copies": 2}, "one child"),
        ({"children": ["lora"], "level": "word"}, "'token' or 'sequence'"),
        ({"children": ["lora"], "balance": 0.1}, "set 'top_k'"),
        ({"children": ["lora"], "topk": 1}, "Did you mean 'top_k'"),
    ],
)
def test_bad_options_get_one_clear_sentence(body: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"layers": [{"attach": [{"route": body}]}]})
    assert said in str(caught.value)


def test_copies_are_written_out_and_read_back_the_same() -> None:
    body = {"children": [{"lora": {"rank": 3}}], "copies": 3, "top_k": 2, "balance": 0.01}
    recipe = Recipe.from_dict({"layers": [{"attach": [{"route": body}]}]})
    assert [ref.name for ref in recipe.entries()] == ["lora", "lora_2", "lora_3"]
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.to_dict()["layers"][0]["attach"][0]["route"]["top_k"] == 2
