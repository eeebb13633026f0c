"""Hyperformer, PHA and CIAT's embedding adapter: counts, laws and golden numbers."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from autopeft.methods.additive.adapters.pha import instance_loss, prototype_loss
from support.steps import NO_STEP
from support.tiny import tiny_inputs, tiny_model
from torch import Tensor, nn
from transformers import BartConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.errors import CompositionError
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.method import Call, Context, get_method
from autopeft.nn import TaskGenerator, bottleneck_shapes
from autopeft.recipe import Recipe
from autopeft.spec import Site

T5 = spec_of(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
GLUE = [f"t{i}" for i in range(8)]


def counted(item: Any, spec: Any = T5, level: str = "layers") -> tuple[int, int]:
    tree = {"layers": [{"attach": [item]}]} if level == "layers" else {"model": [item]}
    found = build_graph(Recipe.from_dict(tree), spec).parameter_count()
    return found.deployed, found.trained


@pytest.mark.parametrize(
    ("heads", "count"), [("stack", 5_163_440), ("place", 10_241_760), ("site", 122_296_128)]
)
def test_hyperformer_on_t5_base(heads: str, count: int) -> None:
    item = {"hyperformer": {"heads": heads, "tasks": GLUE}}
    assert counted(item) == (count + 47_616,) * 2
    bare = {"hyperformer": {"heads": heads, "tasks": GLUE, "train_norms": False}}
    assert counted(bare) == (count,) * 2


def test_the_smallest_generator() -> None:
    """454 parameters of a stack of two layers, width 8, m 2, t = q = 4, h 8, without the tasks' vectors."""
    sites = [Site("encoder", i, n, "region", 8, 8) for i in range(2) for n in ("attention", "ffn")]

    def shapes(site: Site) -> dict[str, tuple[int, ...]]:
        return {**bottleneck_shapes(8, 2), "norm.weight": (8,), "norm.bias": (8,)}

    options: dict[str, Any] = {"heads": "stack", "tasks": 3, "vector": 4, "hidden": 8, "width": 4}
    assert TaskGenerator.size(sites, shapes, **options) == 454 + 3 * 4
    made = TaskGenerator(sites, shapes, **options)
    assert sum(p.numel() for p in made.parameters()) == 454 + 3 * 4


@pytest.mark.parametrize("heads", ["stack", "place", "site"])
def test_hyperformers_branch_begins_with_a_tenth(heads: str) -> None:
    torch.manual_seed(0)
    method = get_method("hyperformer")
    site = Site("encoder", 0, "ffn", "region", 256, 256)
    module = method(method.Config(heads=heads, tasks=("a", "b"), train_norms=False)).build([site], None)
    y = torch.randn(8, 16, 256)
    branch = module.delta(site, y, y, Call(Context(task_id=torch.zeros(8, dtype=torch.long))))
    rms = branch.square().mean().sqrt().item()
    if heads != "site":  # gain and bias are N(0, 0.08²), as I has the norm 8 behind its LN
        assert 0.10 < rms < 0.13
    assert rms > 0


def test_the_norm_of_the_branch_has_the_written_gain_and_bias() -> None:
    method = get_method("hyperformer")
    site = Site("encoder", 0, "ffn", "region", 2, 2)
    module: Any = method(method.Config(bottleneck=1, tasks=("a", "b"), train_norms=False)).build([site], None)
    with torch.no_grad():
        for p in module.generator.parameters():
            p.zero_()
        heads = module.generator.heads["encoder-0-ffn"]
        heads["up-bias"].bias.copy_(torch.tensor([3.0, 1.0]))
        heads["norm-weight"].bias.copy_(torch.tensor([0.1, 0.2]))
        heads["norm-bias"].bias.copy_(torch.tensor([0.0, 0.5]))
    y = torch.randn(1, 4, 2)
    found = module.delta(site, y, y, Call(Context(task_id=torch.tensor([1]))))
    torch.testing.assert_close(found, torch.tensor([0.1, 0.3]).expand(1, 4, 2), atol=1e-5, rtol=0)


def test_a_sampler_at_a_temperature_draws_by_the_root_of_sizes() -> None:
    from autopeft.tasks.task_set import Mixture

    drawn = Mixture(temperature=10.0).rows_of([100_000, 1_000_000])
    shares = [n / sum(drawn) for n in drawn]
    assert shares == pytest.approx([0.44269, 0.55731], abs=1e-4)
    drawn = Mixture().rows_of([100_000, 1_000_000])
    assert [n / sum(drawn) for n in drawn] == pytest.approx([0.09091, 0.90909], abs=1e-4)


# PHA
# ------------------------------------------------------------------------------------------------------


def test_pha_on_t5_base() -> None:
    deployed, trained = counted({"pha": {"tasks": GLUE}})
    assert trained == 7_766_336
    assert trained - deployed == 106_688  # the retriever
    small = spec_of(T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2))
    assert counted({"pha": {"bottleneck": 4, "tasks": ["a", "b", "c"]}}, small)[1] == 39_716


def test_the_contrasts_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    tasks, kinds = torch.tensor([0, 0, 1]), torch.eye(2)
    among = instance_loss(features, tasks, 0.1)
    assert among is not None
    assert 0.1 * among.item() == pytest.approx(0.1 * math.log(1 + math.exp(-4)), abs=1e-7)  # 0.0018150
    towards = prototype_loss(features, kinds, tasks, 0.1)
    assert 0.1 * towards.item() == pytest.approx(-0.73333, abs=1e-5)
    assert instance_loss(features, torch.tensor([0, 1, 2]), 0.1) is None


def test_the_contrasts_reach_the_encoders_adapters_and_not_the_generator() -> None:
    item = {"pha": {"bottleneck": 3, "tasks": ["a", "b"]}}
    model: Any = tiny_model("t5")
    hybrid = attach(model, Recipe.from_dict({"layers": [{"attach": [item]}]}), seed=0)
    (module,) = hybrid.modules.values()
    model.train()(**tiny_inputs("t5", batch=4), task_id=torch.tensor([0, 0, 1, 1]))
    cast(Tensor, cast(Any, module).loss_terms(NO_STEP)).backward()
    touched = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith("own.") for n in touched)
    assert any(n.startswith("retriever.") for n in touched)
    assert {n for n in touched if n.startswith("generator.")} == {"generator.tasks"}


def test_pha_needs_two_stacks_and_two_tasks() -> None:
    with pytest.raises(CompositionError, match="encoder and a decoder"):
        attach(
            tiny_model("bert"), Recipe.from_dict({"layers": [{"attach": [{"pha": {"tasks": ["a", "b"]}}]}]})
        )
    with pytest.raises(CompositionError, match="needs two or more"):
        attach(tiny_model("t5"), Recipe.from_dict({"layers": [{"attach": [{"pha": {"tasks": ["a"]}}]}]}))


# CIAT
# ------------------------------------------------------------------------------------------------------


def test_the_embedding_adapter_by_hand() -> None:
    method = get_method("embedding_adapter")
    site = Site("encoder", None, "embeddings", "region", 2, 2)
    module: Any = method(method.Config(bottleneck=1)).build([site], None)
    adapter = module[site]
    with torch.no_grad():
        adapter.down.weight.copy_(torch.tensor([[2.0, 1.0]]))
        adapter.down.bias.fill_(0.5)
        adapter.up.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        adapter.up.bias.copy_(torch.tensor([0.1, 0.2]))
    x = torch.tensor([[[1.0, -1.0]]])
    found = module.delta(site, x, x, Call(Context()))
    torch.testing.assert_close(x + found, torch.tensor([[[2.6, -2.3]]]), atol=1e-5, rtol=0)


def ciat(spec: Any, bottleneck: int) -> int:
    tree = Recipe.named("ciat").to_dict()
    tree["layers"][0]["attach"][0]["parallel_adapter"]["bottleneck"] = bottleneck
    tree["model"][0]["embedding_adapter"]["bottleneck"] = bottleneck
    return build_graph(Recipe.from_dict(tree), spec).parameter_count().deployed


@pytest.mark.parametrize(
    ("width", "layers", "count"), [(1024, 6, 27_307_008), (512, 6, 6_837_760), (8, 2, 792)]
)
def test_a_set_of_ciat(width: int, layers: int, count: int) -> None:
    config = BartConfig(
        d_model=width, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, vocab_size=100,
    )  # fmt: skip
    assert ciat(spec_of(config), width // 2) == count


def test_training_one_direction_leaves_the_others_alone() -> None:
    layers = {
        "switch": {"children": [{"parallel_adapter": {"bottleneck": 3, "init": "glorot"}}], "copies": 2}
    }
    embeddings = {"switch": {"children": [{"embedding_adapter": {"bottleneck": 3}}], "copies": 2}}
    for item in (layers, embeddings):
        cast(Any, item["switch"])["tasks"] = ["en-es", "es-en"]
    tree = {"layers": [{"attach": [layers]}], "model": [embeddings]}
    model: Any = tiny_model("bart")
    hybrid = attach(model, Recipe.from_dict(tree), seed=0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam(hybrid.root.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(**tiny_inputs("bart"), task_id=torch.zeros(2, dtype=torch.long)).logits.sum().backward()
        optimizer.step()
    moved = {n.split(".")[1] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"parallel_adapter", "embedding_adapter"}
    # A parallel adapter reads what the frozen sub-layer reads, and nothing of what that makes of it.
    assert isinstance(cast(nn.Module, hybrid.modules["switch"]), nn.Module)
