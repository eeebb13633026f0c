"""`fuse` against arithmetic by hand, against the library `adapters`, and on frozen children from inputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from support.steps import NO_STEP
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor
from transformers import BertConfig, BertModel

from autopeft.backbones import spec_of_model
from autopeft.composition import ChildSpec, Fuse, default_options
from autopeft.errors import CompositionError, UsageError
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid, attach, load
from autopeft.method import Call, Context
from autopeft.nn import Fusion
from autopeft.recipe import Recipe
from autopeft.spec import Site

ADAPTER = {"serial_adapter": {"bottleneck": 3}}


class Adds:
    """A child that adds what it is told, and reads the site's input."""

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value = name, value

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return self.value.expand_as(y)

    def reads(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return x


def fused(width: int, *values: Tensor, sites: int = 1, **options: Any) -> tuple[Fuse, list[Any], Site]:
    places = tuple(Site("encoder", i, "ffn", "region", width, width) for i in range(sites))
    children: list[Any] = [Adds(f"c{i}", value) for i, value in enumerate(values)]
    specs = [ChildSpec(c.name, c.name, frozenset({"hook"}), places) for c in children]
    return Fuse.build(specs, {**default_options("fuse"), **options}), children, places[0]


def test_by_hand() -> None:
    """d 2, N 2, all maps the identity: no scaling by the root of the width."""
    z = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    made, children, site = fused(2, *z)
    own = made[site]
    with torch.no_grad():
        for linear in (own.query, own.key, own.value):
            assert linear is not None
            linear.weight.copy_(torch.eye(2))
    x = torch.tensor([[[1.0, 0.0]]])
    alpha = own.eval().weights(x, torch.stack(z)[None, None])
    torch.testing.assert_close(alpha, torch.tensor([[[0.73106, 0.26894]]]), atol=1e-5, rtol=0)
    out = torch.tensor([0.5, 0.5]) + made.delta(site, children, x, x, Call(Context()))
    torch.testing.assert_close(out, torch.tensor([[[1.23106, 0.76894]]]), atol=1e-5, rtol=0)


def test_weights_sum_to_one_and_follow_their_children() -> None:
    own = Fusion(4, 4, dropout=0.5).eval()
    u, z = torch.randn(2, 3, 4), torch.randn(2, 3, 5, 4)
    alpha = own.weights(u, z)
    torch.testing.assert_close(alpha.sum(-1), torch.ones(2, 3))
    order = [1, 0, 2, 3, 4]
    torch.testing.assert_close(own.weights(u, z[..., order, :]), alpha[..., order])
    torch.testing.assert_close(own(u, z[..., order, :]), own(u, z))


def test_dropout_falls_on_scores_before_the_softmax() -> None:
    own = Fusion(4, 4, dropout=0.4)
    with torch.no_grad():
        own.query.bias.fill_(1.0)
        own.key.bias.fill_(1.0)
    alpha = own.weights(torch.randn(400, 3, 4), torch.randn(400, 3, 2, 4))
    torch.testing.assert_close(alpha.sum(-1), torch.ones(400, 3))  # weights themselves are not dropped
    # Both scores of a position are zero, so that α is uniform, with probability 0.4².
    share = (alpha[..., 0] == 0.5).float().mean().item()
    assert share == pytest.approx(0.16, abs=4 * (0.16 * 0.84 / 1200) ** 0.5)


def test_the_start() -> None:
    own = Fusion(768, 768)
    assert own.value is not None
    assert own.value.weight.diagonal().eq(1).all()
    assert own.value.weight.sum().item() == pytest.approx(768 + 768 * 767 * 1e-6, abs=1e-2)
    assert own.distance().item() == pytest.approx(5.8906e-7, rel=1e-3)
    for linear in (own.query, own.key):
        assert not linear.bias.any()
        assert 0.0197 < linear.weight.std().item() < 0.0203
        assert abs(linear.weight.mean().item()) < 4 * 0.02 / 768


def test_the_regularizer_is_a_term_of_the_loss() -> None:
    made, _, _ = fused(768, torch.zeros(768), torch.zeros(768))
    term = made.loss_terms(NO_STEP)
    assert term is not None
    assert term.item() == pytest.approx(5.8906e-9, rel=1e-3)
    twice, _, _ = fused(768, torch.zeros(768), torch.zeros(768), sites=2, regularization=0.02)
    assert twice.loss_terms(NO_STEP).item() == pytest.approx(4 * 5.8906e-9, rel=1e-3)  # type: ignore[union-attr]
    assert fused(4, torch.zeros(4), torch.zeros(4), value=False)[0].loss_terms(NO_STEP) is None


@pytest.mark.parametrize(("value", "count"), [(True, 21_252_096), (False, 14_174_208)])
def test_the_published_counts(value: bool, count: int) -> None:
    assert 12 * Fusion.size(768, 768, value=value) == count
    assert 12 * sum(p.numel() for p in Fusion(768, 768, value=value).parameters()) == count


def wave(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    """Numbers that anyone can compute again."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(0.37 * steps**1.1 + crc32(name.encode()) % 1000)).float().view(shape)


def test_it_is_that_of_the_library_adapters() -> None:
    """The same weights in the same model. The numbers are those of `adapters` 1.3.0 (`Fuse` of three
    `SeqBnConfig(reduction_factor=4)` in eval mode)."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=40, max_position_embeddings=16, **sizes)  # type: ignore[arg-type]
    model = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(float("LayerNorm.weight" in name) + wave(name, tuple(value.shape), 0.3))
    children = [{"serial_adapter": {"bottleneck": 4}, "as": name} for name in "abc"]
    hybrid = attach(model, recipe_of(*children))
    with torch.no_grad():
        for key, value in hybrid.root.named_parameters():
            who, _, at, *part, kind = key.split(".")
            who = who.replace("fuse", "fusion")
            value.copy_(wave(f"{who} {at.split('-')[1]} {part[0]} {kind}", tuple(value.shape), 0.5))
    ids = torch.tensor([[1, 5, 9, 13, 2], [7, 3, 30, 2, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    out = model.eval()(**batch).last_hidden_state
    first = [
        [1.9579615592956543, -2.3810338973999023, 0.31706464290618896, -0.8246358036994934],
        [0.7604764699935913, -2.9439616203308105, -0.05103684216737747, 0.7106386423110962],
    ]
    fourth = [
        [1.6038477420806885, -1.6106104850769043, 0.1101917028427124, -0.541534423828125],
        [1.007710337638855, -2.0743792057037354, -0.2889856994152069, 0.18867996335029602],
    ]
    torch.testing.assert_close(out[:, 0, :4], torch.tensor(first), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(out[:, 3, :4], torch.tensor(fourth), atol=2e-6, rtol=1e-6)
    term = hybrid.modules["fuse"].loss_terms(NO_STEP)  # type: ignore[operator]
    assert term.item() == pytest.approx(0.9836504459381104, rel=1e-6)


# On a model
# ------------------------------------------------------------------------------------------------------------


def recipe_of(*items: Any, inputs: Any = None, **options: Any) -> Recipe:
    tree: dict[str, Any] = {"layers": [{"attach": [{"fuse": {"children": list(items), **options}}]}]}
    return Recipe.from_dict(tree | ({"inputs": inputs} if inputs else {}))


def left(folder: str, item: Any, seed: int) -> Hybrid:
    recipe = Recipe.from_dict({"name": folder, "layers": [{"attach": [item]}]})
    with attach(tiny_model("bert"), recipe, seed=seed) as hybrid:
        randomise(hybrid.root, seed=seed)
        hybrid.save(folder)
    return hybrid


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A fusion of three adapters that were trained before."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        left(name, ADAPTER, seed)
    children = [{**ADAPTER, "as": f"on_{name}", "from": name, "frozen": True} for name in "abc"]
    return recipe_of(*children, inputs={name: name for name in "abc"})


def test_children_stay_and_the_fusion_learns(frozen: Recipe) -> None:
    model: Any = tiny_model("bert")
    hybrid = attach(model, frozen, seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(hybrid.parameter_groups())
    for seed in range(3):
        model.train()
        loss = model(**tiny_inputs("bert", seed=seed)).logits.square().sum()
        (loss + hybrid.modules["fuse"].loss_terms(NO_STEP)).backward()  # type: ignore[operator]
        optimizer.step()
        optimizer.zero_grad()
    learnt = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[1] for k in learnt if k.startswith("autopeft.")} == {"fuse"}
    assert {k.split(".")[0] for k in learnt} == {"autopeft", "classifier"}
    counts = hybrid.counts()
    adapters = 3 * (2 * 32 * 3 + 3 + 32)
    assert counts.trained == 3 * Fusion.size(32, 32)
    assert counts.deployed == counts.trained + 3 * adapters


def test_it_is_saved_and_loaded_without_its_inputs(frozen: Recipe, tmp_path: Path) -> None:
    hybrid = attach(tiny_model("bert"), frozen, seed=0)
    randomise(hybrid.root.get_submodule("fuse"))
    hybrid.save("fused")
    for name in "abc":
        (tmp_path / name / "weights.safetensors").unlink()
    again = load(tiny_model("bert"), "fused")
    batch = tiny_inputs("bert")
    assert torch.equal(logits(again.model, batch), logits(hybrid.model, batch))
    assert again.counts() == hybrid.counts()


def test_it_does_not_merge(frozen: Recipe) -> None:
    with pytest.raises(UsageError, match="fuse"):
        attach(tiny_model("bert"), frozen).merge()


def test_alone_at_a_site_a_child_acts_as_without(frozen: Recipe) -> None:
    where = {"layers": [{"at": "last 2", "attach": [{"fuse": [ADAPTER, {**ADAPTER, "as": "b"}]}]}]}
    graph = build_graph(Recipe.from_dict(where), spec_of_model(tiny_model("bert"))[0])
    (node,) = graph.nodes()
    assert node.count.trained == 2 * Fusion.size(32, 32)
    batch = tiny_inputs("bert")
    two = recipe_of(
        {"lora": {"sites": ["q", "v"], "rank": 2}}, {"lora": {"sites": ["v"], "rank": 2}, "as": "b"}
    )
    hybrid = attach(tiny_model("bert"), two, seed=0)
    with torch.no_grad():
        for name in ("lora", "b"):
            randomise(hybrid.root.get_submodule(name))
        for pair in hybrid.modules["b"].children_by_site():  # type: ignore[operator]
            pair.B.zero_()
    fuse: Any = hybrid.modules["fuse"]
    assert [key.split("-")[-1] for key in fuse.at] == ["v"] * 3
    told = logits(hybrid.model, batch)
    with torch.no_grad():
        for fusion in fuse.children_by_site():
            fusion.query.weight.zero_()
            fusion.query.bias.zero_()
            fusion.value.weight.copy_(2 * torch.eye(32))  # α = ½ of each, and b adds nothing
    alone = Recipe.from_dict({"layers": [{"attach": [{"lora": {"sites": ["q", "v"], "rank": 2}}]}]})
    plain = attach(tiny_model("bert"), alone, seed=0)
    plain.modules["lora"].load_state_dict(hybrid.modules["lora"].state_dict())
    torch.testing.assert_close(logits(hybrid.model, batch), logits(plain.model, batch), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(told, logits(plain.model, batch), atol=1e-5)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"lora": {"sites": ["q"]}}, {"lora": {"sites": ["v"]}, "as": "b"}], "no site in common"),
        ([{"lora": {}}, {"dora": {}}], "dora alters weights"),
        ([{"lora": {}}, {"prefix_tuning": {}}], "adds rows"),
    ],
)
def test_what_cannot_be_fused_is_refused(items: Any, words: str) -> None:
    with pytest.raises(CompositionError, match=words):
        build_graph(recipe_of(*items), spec_of_model(tiny_model("bert"))[0])


def test_what_alters_the_input_of_a_site_is_refused() -> None:
    hybrid = attach(tiny_model("bert"), recipe_of("ia3", {"ia3": {}, "as": "b"}))
    with pytest.raises(CompositionError, match="alters what goes into"):
        logits(hybrid.model, tiny_inputs("bert"))
