"""The fixed recipes: their counts on the backbones of the papers, how they train, and that they do."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from transformers import (
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PersimmonConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
)

from autopeft.backbones import spec_of
from autopeft.errors import UsageError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe, TrainingSection, recipe_names
from autopeft.recipe.layers import resolve_layers, spindle_sizes
from autopeft.recipe.tasks import for_tasks, lacks_tasks
from autopeft.spec import BackboneSpec

BERT = spec_of(BertConfig())
ROBERTA = spec_of(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))
ROBERTA_LARGE = spec_of(
    RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, hidden_size=1024,
        num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
    )
)  # fmt: skip
LLAMA = spec_of(LlamaConfig())  # LLaMA-7B
T5 = spec_of(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))

T5_V1_1_LARGE = spec_of(
    T5Config(
        d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
)  # fmt: skip

BART_1024 = spec_of(BartConfig(d_model=1024, encoder_layers=6, decoder_layers=6))
# The widths of ChatGLM-6B, whose maps of queries, keys and values are one.
CHATGLM = spec_of(GPT2Config(n_embd=4096, n_layer=28, n_head=32, n_inner=16384))
TASKS = [f"t{i}" for i in range(16)]

# name → (backbone, deployed, trained): published, or by the papers' formulas.
COUNTS: dict[str, tuple[BackboneSpec, int, int]] = {
    "adamix": (ROBERTA_LARGE, 811_392, 1_992_192),
    "compacter++": (T5, 57_088 + 47_616, 57_088 + 47_616),
    "llm-adapters-lora": (LLAMA, 56_098_816, 56_098_816),
    "llm-adapters-parallel": (LLAMA, 247_463_936, 247_463_936),
    "llm-adapters-prefix": (LLAMA, 2_621_440, 2_621_440),
    "llm-adapters-series": (LLAMA, 67_108_864, 67_108_864),
    "ciat": (BART_1024, 27_307_008, 27_307_008),
    "mixlora": (LLAMA, 203_423_744, 203_423_744),
    "moelora": (CHATGLM, 29_361_664, 29_361_664),
    "mam": (ROBERTA, 589_824 + 9_408, 15_391_520 + 304_320),
    "molora": (T5_V1_1_LARGE, 43_130_880, 43_130_880),
    "pfeiffer": (BERT, 894_528, 894_528),
    "s4": (ROBERTA, 605_332, 9_472_660),
    "sapa-prefix": (BERT, 1_105_920 + 19_008, 15_388_448 + 2 * 451_872),
    "unipelt": (BERT, 1_410_672, 9_857_024 + 294_912 + 894_528 + 36_912),
}
# name → a tiny backbone that it fits.
FITTING: dict[str, Callable[[], tuple[str, PreTrainedModel]]] = {
    "compacter++": lambda: ("t5", tiny_model("t5")),
    "molora": lambda: ("mt5", tiny_model("mt5")),
    "moelora": lambda: ("gpt2", tiny_model("gpt2")),
    "ciat": lambda: ("bart", tiny_model("bart")),
    "mixlora": lambda: ("llama", tiny_model("llama")),
    "s4": lambda: ("roberta", tiny_model("roberta", num_hidden_layers=6)),
    **dict.fromkeys(
        ("llm-adapters-lora", "llm-adapters-parallel", "llm-adapters-prefix", "llm-adapters-series"),
        lambda: ("llama", tiny_model("llama")),
    ),
    **dict.fromkeys(
        ("adamix", "houlsby", "mam", "pfeiffer", "sapa-prefix", "unipelt"),
        lambda: ("bert", tiny_model("bert")),
    ),
}
# What differs from the section's own defaults: AdamW, 6 % of warm-up, a linear fall, clipping at 1, no decay.
TRAINING: dict[str, dict[str, Any]] = {
    "adamix": {"learning_rate": 3e-4, "weight_decay": 0.1, "dropout": True},
    "compacter++": {"learning_rate": 3e-3, "dropout": True},
    "houlsby": {
        "learning_rate": 3e-4, "weight_decay": 0.01, "warmup": 0.1, "dropout": True,
        "optimizer": {"epsilon": 1e-6},
    },
    "llm-adapters-lora": {"learning_rate": 3e-4},
    "llm-adapters-parallel": {"learning_rate": 3e-4},
    "llm-adapters-prefix": {"learning_rate": 3e-2},
    "llm-adapters-series": {"learning_rate": 3e-4},
    "mam": {
        "learning_rate": 1e-4, "weight_decay": 0.1, "dropout": True,
        "optimizer": {"betas": [0.9, 0.98], "epsilon": 1e-6},
    },
    "ciat": {
        "learning_rate": 4.9e-4, "dropout": True, "optimizer": {"betas": [0.9, 0.98], "epsilon": 1e-9},
    },
    "mixlora": {
        "learning_rate": 2e-4, "weight_decay": 0.01, "warmup": 0.0, "schedule": "constant",
        "max_grad_norm": 0.0,
    },
    "moelora": {"learning_rate": 2e-4, "warmup": 0.0},
    "molora": {
        "learning_rate": 3e-4, "warmup": 0.0, "schedule": "constant", "optimizer": {"name": "adafactor"},
    },
    "pfeiffer": {"learning_rate": 1e-4, "warmup": 0.0, "dropout": True},
    "s4": {"learning_rate": 5e-5, "warmup": 0.0, "dropout": True},
    "sapa-prefix": {"learning_rate": 1e-4, "warmup": 0.0, "dropout": True},
    "unipelt": {"learning_rate": 5e-4, "warmup": 0.0, "dropout": True},
}  # fmt: skip


# What each entry trains with: the layers, the method, the sites that it sits at and all options, those also
# that the recipe leaves to the method. The recipes say where figures differ from a source, and why.
PFEIFFER = {
    # adapter-hub/adapters configuration/adapter_config.py, SeqBnConfig: ReLU, no dropout, norms frozen.
    "variant": "pfeiffer", "activation": "relu", "scale": 1.0, "bias": True, "dropout": 0.0,
    "train_norms": None, "embeddings_norm": True,
}  # fmt: skip
LINEAR = {
    # AGI-Edgerunners/LLM-Adapters finetune.py, peft/src/peft/tuners/bottleneck.py: 256, tanh, 1, no dropout.
    "bottleneck": 256, "activation": "tanh", "scale": 1.0, "bias": False, "dropout": 0.0,
}  # fmt: skip
LORA = {
    "dropout": 0.0,
    "rank_stabilized": False,
    "std": None,
    "shared_down": False,
}  # microsoft/LoRA loralib/layers.py
PREFIX = {"dropout": 0.0, "std": None}  # no source has dropout on it; maps start as torch starts them
OPTIONS: dict[str, list[tuple[str, str, str, dict[str, Any]]]] = {
    # microsoft/AdaMix roberta_large_mnli_expert_soup.sh: adapter_size 16; expert_soup.py: GELU, biases.
    "adamix": [
        ("all", "linear_adapter", "down", {
            "variant": "series", "bottleneck": 16, "activation": "gelu", "scale": 1.0, "bias": True,
            "dropout": 0.0,
        }),
    ],
    "compacter++": [
        # rabeehk/compacter seq2seq/configs/compacter++.json: hypercomplex_division 4, unfreeze_layer_norms,
        # task_reduction_factor 32 (768 / 32 = 24); seq2seq/adapters/adapter_configuration.py: the rank.
        ("all", "compacter", "ffn", {
            "variant": "compacter_plus_plus", "bottleneck": 24, "phm_dim": 4, "rank": 1, "activation": "gelu",
            "train_norms": True,
        }),
    ],
    "houlsby": [
        # google-research/adapter-bert README.md, modeling.py: size 64, GELU, all LayerNorms are trained.
        ("all", "serial_adapter", "attention ffn", {
            "variant": "houlsby", "bottleneck": 64, "activation": "gelu", "scale": 1.0, "bias": True,
            "dropout": 0.0, "train_norms": None, "embeddings_norm": True,
        }),
    ],
    "llm-adapters-lora": [
        # AGI-Edgerunners/LLM-Adapters math_running_commands: r 32, α 64, five maps; finetune.py: 0.05.
        ("all", "lora", "q k v up down", {
            "rank": 32, "alpha": 64.0, "dropout": 0.05, "rank_stabilized": False, "std": None,
            "shared_down": False,
        }),
    ],
    # AGI-Edgerunners/LLM-Adapters math_running_commands: up_proj and down_proj, in parallel.
    "llm-adapters-parallel": [("all", "linear_adapter", "up down", {"variant": "parallel", **LINEAR})],
    # AGI-Edgerunners/LLM-Adapters math_running_commands: 10 virtual tokens, in peft an nn.Embedding: N(0, 1).
    "llm-adapters-prefix": [
        ("all", "p_tuning_v2", "attention", {
            "length": 10, "reparameterization": None, "dropout": 0.0, "std": 1.0,
        }),
    ],
    # arXiv:2304.01933: series adapters behind the MLP; the rest as in parallel.
    "llm-adapters-series": [("all", "linear_adapter", "down", {"variant": "series", **LINEAR})],
    "molora": [
        # for-ai/parameter-efficient-moe src/molora.py: rank 4, alpha 16, normal of 0.02;
        # ahmetustun/flaxformer (branch lora) components/dense.py: wi_0 and wo.
        ("all", "lora", sites, {
            "rank": 4, "alpha": 16.0, "dropout": 0.0, "rank_stabilized": False, "std": 0.02,
            "shared_down": False,
        })
        for sites in ["q k v o gate_proj down"] * 10 + ["cross_q cross_k cross_v cross_o"] * 10
    ],
    "ciat": [
        # Yaoming95/CIAT transformer_encoder_CIAT.py: d // 2, the preset's residual dropout; Dense of Keras.
        ("all", "parallel_adapter", "attention ffn", {
            "bottleneck": 512, "scale": 1.0, "activation": "relu", "bias": True, "dropout": 0.3,
            "input": "normed", "init": "glorot",
        }),
        ("none", "embedding_adapter", "embeddings", {
            "bottleneck": 512, "activation": "relu", "dropout": 0.3,
        }),
    ],
    "mixlora": [
        # TUDB-Labs/MoE-PEFT templates/mixlora.json: 8, 2, 16, 32, 0.05; mixlora/config.py: 0.001.
        ("all", "mixlora", "ffn gate_proj up down", {
            "experts": 8, "top_k": 2, "rank": 16, "alpha": 32.0, "dropout": 0.05, "balance": 0.001,
        }),
        ("all", "lora", "q k v o", {
            "rank": 16, "alpha": 32.0, "dropout": 0.05, "rank_stabilized": False, "std": None,
            "shared_down": False,
        }),
    ],
    "moelora": [
        # MOELoRA-peft experiments/moelora.bash: r 16 of 8 experts, α 32, dropout 0.1; N(0, 0.01²).
        ("all", "lora", "qkv o up down", {
            "rank": 2, "alpha": 4.0, "dropout": 0.1, "rank_stabilized": False, "std": 0.01,
            "shared_down": False,
        })
    ] * 8,
    "mam": [
        # jxhe/unify-parameter-efficient-tuning exps/run_glue.sh: attn_bn 16, mid_dim 800, ffn_bn 16, scalar
        # 2; src/transformers/models/roberta/modeling_roberta.py: dropout 0.1.
        ("all", "prefix_tuning", "attention", {"length": 16, "reparameterization": 800, **PREFIX}),
        ("all", "parallel_adapter", "ffn", {
            "bottleneck": 16, "scale": 2.0, "activation": "relu", "bias": True, "dropout": 0.1, "input": None,
            "init": "lora",
        }),
    ],
    # adapters, SeqBnConfig: reduction_factor 16 (of BERT-base: 768 / 16 = 48).
    "pfeiffer": [("all", "serial_adapter", "ffn", {"bottleneck": 48, **PFEIFFER})],
    "s4": [
        # arXiv:2301.01821: the groups and their strategies. Sizes are this project's, by 0.5 %; α is 2·r.
        ("g1", "serial_adapter", "ffn", {"bottleneck": 16, **PFEIFFER}),
        ("g1", "lora", "q v", {"rank": 8, "alpha": 16.0, **LORA}),
        ("g2", "serial_adapter", "ffn", {"bottleneck": 16, **PFEIFFER}),
        ("g2", "prefix_tuning", "attention", {"length": 16, "reparameterization": 512, **PREFIX}),
        ("g3", "serial_adapter", "ffn", {"bottleneck": 13, **PFEIFFER}),
        ("g3", "prefix_tuning", "attention", {"length": 14, "reparameterization": 512, **PREFIX}),
        ("g3", "bitfit", "layer", {"terms": "all", "pooler": True}),
        ("g4", "prefix_tuning", "attention", {"length": 14, "reparameterization": 512, **PREFIX}),
        ("g4", "bitfit", "layer", {"terms": "all", "pooler": True}),
        ("g4", "lora", "q v", {"rank": 7, "alpha": 14.0, **LORA}),
    ],
    "sapa-prefix": [
        # cambridgeltl/autopeft: ReLU, parallel scale 4, MLP 800, no dropout; sizes are a point of its space.
        ("all", "serial_adapter", "ffn", {"bottleneck": 24, **PFEIFFER}),
        ("all", "parallel_adapter", "ffn", {
            "bottleneck": 24, "scale": 4.0, "activation": "relu", "bias": True, "dropout": 0.0, "input": None,
            "init": "lora",
        }),
        ("all", "prefix_tuning", "attention", {"length": 12, "reparameterization": 800, **PREFIX}),
    ],
    "unipelt": [
        # morningmoni/UniPELT run_glue.py: lora_r 8, lora_alpha 16, prefix_len 10, mid_dim 512;
        # transformers/adapters/configuration.py, pfeiffer: reduction 16 (768 / 16 = 48).
        ("all", "lora", "q v", {"rank": 8, "alpha": 16.0, **LORA}),
        # transformers/models/bert/modeling_bert.py: `init_weights` starts the prefix and its MLP from 0.02.
        (
            "all", "prefix_tuning", "attention",
            {"length": 10, "reparameterization": 512, "dropout": 0.0, "std": 0.02},
        ),
        ("all", "serial_adapter", "ffn", {"bottleneck": 48, **PFEIFFER}),
    ],
}  # fmt: skip


def recipe_named(name: str) -> Recipe:
    """A fixed recipe, for 16 tasks where it acts by the task."""
    found = Recipe.named(name)
    return for_tasks(found, TASKS) if lacks_tasks(found) else found


def graph_of(name: str, spec: BackboneSpec) -> CompositionGraph:
    return build_graph(recipe_named(name), spec)


def deployed(recipe: Recipe, spec: BackboneSpec) -> int:
    return build_graph(recipe, spec).parameter_count().deployed


def with_options(name: str, **options: Any) -> Recipe:
    """A fixed recipe with other options, for the entries that have them."""
    data = copy.deepcopy(Recipe.named(name).to_dict())
    for block in data["layers"]:
        for item in block["attach"]:
            (method,) = item
            item[method] |= {k: v for k, v in options.items() if k in item[method]}
    return Recipe.from_dict(data)


def test_every_fixed_recipe_has_its_rows() -> None:
    names = set(recipe_names())
    assert {*COUNTS, "houlsby"} == names
    assert FITTING.keys() == TRAINING.keys() == OPTIONS.keys() == names


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_paper(name: str) -> None:
    spec, small, large = COUNTS[name]
    found = graph_of(name, spec).parameter_count()
    assert (found.deployed, found.trained) == (small, large)


@pytest.mark.parametrize(
    ("name", "spec", "count"), [("mam", ROBERTA, 589_824), ("sapa-prefix", BERT, 1_105_920)]
)
def test_papers_that_count_no_biases(name: str, spec: BackboneSpec, count: int) -> None:
    assert deployed(with_options(name, bias=False), spec) == count


def test_mam_of_the_generation_tasks() -> None:
    """BART-large: 12 + 12 layers of width 1024, 6.7 % of 406 M; T5 of that size has the same sites."""
    large = spec_of(T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=12, num_heads=16))
    recipe = with_options("mam", length=30, bottleneck=512, bias=False)
    assert deployed(recipe, large) == 27_377_664


def test_unipelt_and_its_gates() -> None:
    graph = graph_of("unipelt", BERT)
    found = {name: entry.count.deployed for name, entry in graph.entries.items()}
    assert found == {"lora": 294_912, "prefix_tuning": 184_320, "serial_adapter": 894_528}
    assert [node.count.deployed for node in graph.nodes()] == [36_912]
    assert graph.entries["prefix_tuning"].count.trained == 9_857_024


def test_houlsby_is_two_adapters_a_layer_and_the_norms() -> None:
    recipe = Recipe.named("houlsby")
    adapters = Recipe.from_dict(
        {"layers": [{"attach": [{"serial_adapter": {"variant": "houlsby", "train_norms": False}}]}]}
    )
    assert deployed(adapters, BERT) == 24 * 99_136 == 2_379_264
    inside, outside = 24 * 2 * 768, 2 * 768  # of the layers, of the embeddings
    assert deployed(recipe, BERT) - 2_379_264 in (inside, inside + outside)


def test_compacters_share_of_t5() -> None:
    """0.047 % of T5-base (Table 1)."""
    assert 0.000_465 < deployed(Recipe.named("compacter++"), T5) / T5.parameters < 0.000_475


@pytest.mark.parametrize("name", recipe_names())
def test_the_file_names_its_source_and_its_count(name: str) -> None:
    text = files("autopeft.methods.hybrid").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    comment = text.partition("autopeft: 2")[0]
    assert f"\nname: {name}\n" in text
    assert Recipe.named(name).reference.startswith("arXiv:")
    assert re.search(r"\b[\w-]+/[\w-]+\b", comment), "no repository or file of the authors"
    wanted = {"houlsby": 2_379_264, "compacter++": 57_088}.get(name) or COUNTS[name][1]
    assert f"{wanted:,}" in comment


@pytest.mark.parametrize("name", recipe_names())
def test_it_has_the_options_of_its_sources(name: str) -> None:
    spec, recipe = (COUNTS.get(name) or (BERT,))[0], recipe_named(name)
    layers = {at: resolve_layers(at, spec.stacks[0].layers) for at in ("all", "g1", "g2", "g3", "g4")}
    layers["none"] = [None]  # type: ignore[list-item]
    found, expected = [], []
    for entry in build_graph(recipe, spec).entries.values():
        options = entry.method.config.model_dump(exclude={"sites"})
        named = entry.method.config.sites or ()
        names = {site.name for site in entry.sites if site.name in named or "cross" not in site.name}
        found.append((entry.method.name, names, {s.layer for s in entry.sites}, options))
    for at, method, sites, options in OPTIONS[name]:
        expected.append((method, set(sites.split()), set(layers[at]), options))
    assert found == expected
    assert spec.stacks[0].layers > 4


@pytest.mark.parametrize("name", recipe_names())
def test_it_trains_as_its_authors_do(name: str) -> None:
    wanted = Recipe.from_dict({"layers": [{"attach": ["lora"]}], "training": TRAINING[name]}).training
    found = Recipe.named(name).training
    assert found == wanted
    defaults = TrainingSection()
    assert (defaults.warmup, defaults.schedule, defaults.max_grad_norm) == (0.06, "linear", 1.0)


@pytest.mark.parametrize("name", recipe_names())
def test_it_attaches_trains_saves_and_loads(name: str, tmp_path: Path) -> None:
    family, model = FITTING[name]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hybrid = attach(model, recipe_named(name), seed=0)
    inputs = tiny_inputs(family, pad=2)
    if hybrid.tasks:
        inputs["task_id"] = torch.arange(2)
    if name == "llm-adapters-prefix":
        assert 0.9 < torch.cat([p.flatten() for p in hybrid.root.parameters()]).std().item() < 1.1
    start = [p.detach().clone() for p in hybrid.root.parameters()]
    optimizer = hybrid.optimizer()
    section = hybrid.recipe.training.optimizer
    if section.name == "adamw":
        assert {group["betas"] for group in optimizer.param_groups} == {section.betas}
        assert {group["eps"] for group in optimizer.param_groups} == {section.epsilon}
    losses = []
    torch.manual_seed(0)
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        loss = logits(model, inputs).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses)))
    # Keys' b₂ shifts all scores of a query alike, so that its gradient may be zero; everything else moves.
    moved = [not torch.equal(a, b) for a, b in zip(start, hybrid.root.parameters(), strict=True)]
    # Of four copies each forward trains one.
    assert sum(moved) > (0.5 if name == "adamix" else 0.9) * len(moved)
    randomise(hybrid.root)
    model.eval()
    expected = logits(model, inputs)
    hybrid.save(tmp_path)
    _, fresh = FITTING[name]()
    again = load(fresh, tmp_path)
    assert again.recipe == hybrid.recipe
    torch.testing.assert_close(logits(fresh.eval(), inputs), expected, atol=1e-5, rtol=1e-5)
    hybrid.detach()
    heads = ("classifier", "lm_head")
    after = model.state_dict()
    assert [k for k, v in before.items() if not k.startswith(heads) and not torch.equal(v, after[k])] == []


# Logits of the library `adapters` 1.3.0 (transformers 4.57.6, torch 2.13, CPU) on these weights: MAMConfig of
# PrefixTuningConfig(prefix_length=16, bottleneck_size=800) and ParBnConfig(reduction_factor=2, scaling=2.0,
# non_linearity="relu"). There they equal this package's to the last bit.
ADAPTERS = {
    "bert": [[0.323491632938385, 0.6346938014030457], [0.35234832763671875, 0.873401403427124]],
    "roberta": [[-0.49563220143318176, -0.9040074348449707], [-0.2565493881702423, -0.42762625217437744]],
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_mam_equals_the_adapters_library(name: str) -> None:
    model = tiny_model(name)
    hybrid = attach(model, Recipe.named("mam"), seed=0)
    randomise(hybrid.root)
    found = logits(model, tiny_inputs(name, pad=2))
    torch.testing.assert_close(found, torch.tensor(ADAPTERS[name]), atol=2e-6, rtol=2e-6)


# S4

SETS = {
    "g1": {"serial_adapter", "lora"},
    "g2": {"serial_adapter", "prefix_tuning"},
    "g3": {"serial_adapter", "prefix_tuning", "bitfit"},
    "g4": {"prefix_tuning", "bitfit", "lora"},
}


@pytest.mark.parametrize("layers", [4, 6, 12, 24])
def test_s4s_groups_have_their_strategies(layers: int) -> None:
    graph = graph_of("s4", spec_of(RobertaConfig(num_hidden_layers=layers)))
    by_layer: list[set[str]] = [set() for _ in range(layers)]
    for entry in graph.entries.values():
        for site in entry.sites:
            by_layer[int(site.layer or 0)].add(entry.method.name)
    sizes = spindle_sizes(layers)
    assert by_layer == [SETS[group] for group, n in zip(SETS, sizes, strict=True) for _ in range(n)]
    if layers == 12:
        assert sizes == (2, 4, 4, 2)


def test_s4_gives_every_layer_the_same_allowance() -> None:
    """0.5 % of the backbone; biases first, then equal shares: one more of any size would be too much."""
    graph = graph_of("s4", ROBERTA)
    allowance = ROBERTA.parameters * 0.005 / 12
    spent = dict.fromkeys(range(12), 0.0)
    for entry in graph.entries.values():
        layers = {site.layer for site in entry.sites}
        per_layer = entry.count.deployed / len(layers)
        biases = 8_448 if len({s.layer for s in entry.sites} & set(range(6, 12))) else 0
        share = (allowance - biases) / 2
        one_more = {"serial_adapter": 2 * 768 + 1, "lora": 4 * 768, "prefix_tuning": 2 * 768}
        if entry.method.name == "bitfit":
            assert per_layer == 8_448
        else:
            assert per_layer <= share < per_layer + one_more[entry.method.name]
        for layer in layers:
            spent[int(layer or 0)] += per_layer
    assert all(0.95 * allowance < n <= allowance for n in spent.values())
    assert 0.0048 < sum(spent.values()) / ROBERTA.parameters <= 0.005


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("s4", tiny_config("bert"), "at least 4 layers"),
        ("s4", T5Config(num_layers=6), "bitfit trains biases, and 't5' has none"),
        (
            "llm-adapters-prefix",
            PersimmonConfig(hidden_size=32, num_hidden_layers=6, num_attention_heads=4),
            "p_tuning_v2 needs the width of keys and values",
        ),
    ],
)
def test_a_backbone_that_does_not_fit_gets_a_sentence(name: str, config: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        graph_of(name, spec_of(config))
