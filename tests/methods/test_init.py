"""How each method starts: what its parameters are drawn from, as its paper or the authors' code has it.

Which file says so stands under `training.init` in `methods/defaults.yaml`. The bricks of `autopeft.nn` are
tested in `tests/nn/test_init.py`; here it is that each method takes the right ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.laws import (
    HUNDREDTH,
    KAIMING,
    NORMAL,
    ONES,
    ZEROS,
    Law,
    constant,
    glorot,
    linear,
    normal,
    products,
    starts,
    truncated,
    uniform,
)
from support.tiny import randomise, tiny_config
from support.toy import build, toy_spec
from transformers import BertConfig, LlamaConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.method import get_method, method_names
from autopeft.spec import LogitsSpec

WIDTH = 400
SPEC = toy_spec(hidden=WIDTH, ffn=2 * WIDTH, kv=WIDTH)
WIDE = BertConfig(hidden_size=WIDTH, num_hidden_layers=12, num_attention_heads=4, intermediate_size=2 * WIDTH)
# The toy has no layers as places of their own.
LAYERED = spec_of(BertConfig(hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4))
TASKS = tuple(f"t{i}" for i in range(40))
TWO_STACKS = spec_of(T5Config(d_model=WIDTH, d_kv=100, d_ff=2 * WIDTH, num_layers=30, num_heads=4))
SPECS = {
    "pha": TWO_STACKS,
    "hyperformer": spec_of(BertConfig(hidden_size=WIDTH, num_hidden_layers=30, num_attention_heads=4)),
    "mixlora": spec_of(
        LlamaConfig(hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, intermediate_size=800)
    ),
    "infoprompt": replace(SPEC, logits=LogitsSpec(WIDTH, WIDTH)),
    "ipa": replace(SPEC, logits=LogitsSpec(WIDTH, 10 * WIDTH, tokens=True)),
    "xattn_tuning": spec_of(tiny_config("bart")),
    "coda": spec_of(WIDE),
    "aprompt": LAYERED,
    "deep_prompt": LAYERED,
    "lpt": LAYERED,
    "prefix_propagation": LAYERED,
    "selective_prompt": LAYERED,
}
PAIR = {"at.*.A": KAIMING, "at.*.B": ZEROS}
KRONECKER = {"at.*.A": ZEROS, "at.*.B": KAIMING}
ADAPTER = {"at.*.down.weight": KAIMING, "at.*.up.weight": ZEROS, "at.*.bias": ZEROS}
KAIMING_0 = uniform(lambda t: (6 / t.shape[-1]) ** 0.5, "Kaiming-uniform (a = 0)")
SLOW_AND_FAST = {"at.*.left": glorot(), "at.*.right": ZEROS, "slow.*": HUNDREDTH, "offsets.*": ZEROS}

# name → (options, the law of each parameter and of each buffer of floating point)
CASES: dict[str, tuple[dict[str, Any], Mapping[str, Law]]] = {
    "adalora": (
        {},
        {"at.*.P": normal(0.02), "at.*.Q": normal(0.02), "at.*.E": ZEROS, "sensitivity.*": ZEROS},
    ),
    "autolora": ({}, {**PAIR, "at.*.selection": ONES}),
    "bitfit": ({}, {"biases.*": ZEROS}),
    "child_tuning_d": ({}, {"entries.values": ZEROS, "rest.*": ZEROS}),
    # Flattened, and without the entries that are in no mask.
    "capaboost": ({}, {"at.*.A.values": uniform(WIDTH**-0.5), "at.*.B.values": ZEROS}),
    "compacter": (
        {"phm_dim": 16, "bottleneck": 32},
        {
            "at.*.left": glorot(2**0.5),
            "at.*.right": glorot(2**0.5),
            "at.*.bias": ZEROS,
            "rules": normal(1e-4),
            "norms.*": ZEROS,
        },
    ),
    # The row norms of the weight take the place of the ones when it is attached.
    "dora": ({}, {**PAIR, "at.*.magnitude": ONES, "at.*.pretrained": ONES}),
    "dylora": ({}, {"at.*.A.*": KAIMING, "at.*.B.*": ZEROS}),
    "fish_dip": ({}, {"entries.values": ZEROS}),
    "far": ({}, {"at.*.values": ZEROS, "at.*.bias": ZEROS}),
    "fish_mask": ({}, {"entries.values": ZEROS}),
    "hiwi": ({}, {"at.*.down.weight": KAIMING, "at.*.up.weight": ZEROS}),
    "ia3": ({}, {"at.*.factors": ONES}),
    "intrinsic_said": ({}, {"z": ZEROS, "scales": ONES}),
    "kadaptation": ({"phm_dim": 20}, SLOW_AND_FAST),
    "kadaptation-full": (
        {"phm_dim": 20, "rules": "full"},
        {**SLOW_AND_FAST, "slow.*": products(0.01)},
    ),
    "krona": ({}, KRONECKER),
    "krona-parallel": (
        {"variant": "parallel_residual", "scale": "learned", "a1": 8},
        {**KRONECKER, "at.*.scale": ONES, "at.*.residual": ZEROS},
    ),
    "lorahub": ({}, {"at.*": ZEROS}),
    "mixlora": (
        {"experts": 4},
        {"linears.*.A": KAIMING, "linears.*.B": ZEROS, "routers.*.weight": normal(0.02)},
    ),
    "hyperformer": (
        {"tasks": TASKS, "heads": "stack", "vector": 700},
        {
            **dict.fromkeys(("generator.tasks", "generator.layers.*", "generator.places.*"), NORMAL),
            "generator.projectors.*.weight": normal(0.01),
            "generator.heads.*.weight": normal(0.01),
            "generator.*.bias": ZEROS,
            "generator.norms.*.weight": ONES,
            "norms.*": ZEROS,
        },
    ),
    "pha": (
        {"tasks": TASKS},
        {
            "own.at.*.weight": glorot(1e-4),
            "own.at.*.bias": ZEROS,
            **dict.fromkeys(("generator.tasks", "generator.layers.*"), NORMAL),
            "generator.projectors.*.0.*": linear(128),
            "generator.projectors.*.2.*": linear(128),
            "generator.norms.*.weight": ONES,
            "generator.norms.*.bias": ZEROS,
            "generator.heads.*.down-weight.weight": uniform(1e-3 * (3 / (64 * WIDTH)) ** 0.5),
            "generator.heads.*.up-weight.weight": uniform(1e-3 * (3 / (64 * 64)) ** 0.5),
            "generator.heads.*-bias.weight": uniform(1e-3 * (3 / 64) ** 0.5),
            "generator.heads.*.bias": ZEROS,
            "retriever.0.*": linear(WIDTH),
            "retriever.2.*": linear(128),
        },
    ),
    "embedding_adapter": (
        {},
        {
            **{f"at.*.{map}.weight": glorot() for map in ("down", "up")},
            **{f"at.*.{map}.bias": ZEROS for map in ("down", "up", "norm")},
            "at.*.norm.weight": ONES,
        },
    ),
    "intrinsic_prompt": (
        {"length": 4, "dimension": 40, "hidden": 50, "tasks": TASKS},
        {
            "encoder.*": linear(4 * WIDTH),
            "decoder.0.*": linear(40),
            "decoder.2.*": linear(50),
            "prompts": ZEROS,
        },
    ),
    "intrinsic_prompt-task": (
        {"length": 4, "dimension": 1500, "hidden": 50, "stage": "task"},
        {"z": normal(0.02), "decoder_0_*": linear(1500), "decoder_2_*": linear(50)},
    ),
    "laplace_lora": ({}, {**PAIR, "at.*.posterior_*": ZEROS, "posterior_precision": ZEROS}),
    "lora": ({}, PAIR),
    "lora-normal": ({"std": 0.02}, {"at.*.A": normal(0.02), "at.*.B": ZEROS}),
    "lora-shared": ({"shared_down": True}, {"downs.*.A": KAIMING, "at.*.B": ZEROS}),
    "lora_dropout": ({}, PAIR),
    "lt_sft": ({}, {"entries.values": ZEROS}),
    "moslora": ({"rank": 40}, {**PAIR, "at.*.M": KAIMING}),
    "mov": ({}, {"at.*.factors": ONES, "at.*.router.weight": normal(0.02)}),
    "linear_adapter": ({}, {"at.*.weight": normal(0.02)}),
    "linear_adapter-bias": ({"bias": True}, {"at.*.weight": normal(0.02), "at.*.bias": ZEROS}),
    "apt": ({}, {"at.*.rows": normal(0.02), "at.*.gate": normal(0.02), "at.*.scale": ONES}),
    "apt-std": (
        {"std": 1.0, "length": 20},
        {"at.*.rows": NORMAL, "at.*.gate": normal(0.02), "at.*.scale": ONES},
    ),
    "aprompt": (
        {"kv_length": 10, "qk_width": 8},
        {
            "first.at.*.table": uniform(0.5),
            "inputs.*": normal(0.02),
            "prefixes.at.*.rows": normal(0.02),
            "terms.at.*.queries": normal(0.02),
            "terms.at.*.keys": ZEROS,
        },
    ),
    "p_tuning_v2": ({}, {"at.*.rows": normal(0.02)}),
    "p_tuning_v2-std": ({"std": 1.0}, {"at.*.rows": NORMAL}),
    "p_tuning_v2-mlp": (
        {"reparameterization": 1500},
        {
            "encoders.*.embedding": normal(0.02),
            "encoders.*.down.weight": normal(0.02),
            "encoders.*.down.bias": ZEROS,
            "at.*.up.weight": normal(0.02),
            "at.*.up.bias": ZEROS,
        },
    ),
    "infoprompt": (
        {"length": 2, "latent": WIDTH},
        {
            **{f"{n}.*": linear(WIDTH) for n in ("generator", "mean", "output", "log_std", "critic")},
            "words": normal(0.02),
        },
    ),
    "ipa": (
        {"bins": 40},
        {
            "policy.decoder.*proj.weight": normal(0.02),
            "policy.decoder.embed_tokens.weight": normal(0.02),
            "policy.decoder.*norm.weight": ONES,
            "policy.controls": normal(0.02),
        },
    ),
    "idpg": ({}, {"generator.*": normal(0.05), "biases.*": uniform(0.5)}),
    "deep_prompt": ({"length": 20}, {"rows.*": uniform((6 / (101 * WIDTH)) ** 0.5)}),
    "lpt": ({}, {"down.*": linear(WIDTH), "up.*": linear(128)}),
    "lpt-table": ({"generator": "none"}, {"table": NORMAL}),
    "selective_prompt": (
        {"keep": 1},
        {"down.*": linear(WIDTH), "up.*": linear(128), "gates": ZEROS},
    ),
    "selective_prompt-phm": (
        {"keep": 1, "bottleneck": 800, "phm_dim": 8},
        {
            **{f"{maps}.{factor}": normal(0.05) for maps in ("down", "up") for factor in ("rules", "weight")},
            "down.bias": linear(WIDTH),
            "up.bias": linear(800),
            "gates": ZEROS,
        },
    ),
    "pafi": ({}, {"entries.values": ZEROS}),
    "coda": ({"bottleneck": 100}, {**ADAPTER, "at.*.router": normal(WIDTH**-0.5), "norms.*": ZEROS}),
    "parallel_adapter": ({}, ADAPTER),
    "parallel_adapter-glorot": (
        {"init": "glorot"},
        {"at.*.weight": glorot(), "at.*.bias": ZEROS},
    ),
    "parallel_adapter-learned": ({"scale": "learned"}, {**ADAPTER, "at.*.scale": ONES}),
    "periodic_lora": ({}, {**PAIR, "at.*.past_*": ZEROS}),
    "prefix_tuning": ({"reparameterization": None}, {"at.*.rows": normal(0.02)}),
    "prefix_tuning-mlp": (
        {"reparameterization": 1500},
        {
            "encoders.*.embedding": NORMAL,
            "encoders.*.down.weight": linear(WIDTH),
            "encoders.*.down.bias": linear(WIDTH),
            "at.*.up.weight": linear(1500),
            "at.*.up.bias": linear(1500),
        },
    ),
    "prefix_tuning-std": (
        {"reparameterization": 1500, "std": 0.02},
        {
            "encoders.*.embedding": normal(0.02),
            "encoders.*.down.weight": normal(0.02),
            "encoders.*.down.bias": ZEROS,
            "at.*.up.weight": normal(0.02),
            "at.*.up.bias": ZEROS,
        },
    ),
    "prefix_propagation": ({}, {"rows.*": normal(0.02)}),
    "prompt_tuning": ({}, {"table": uniform(0.5)}),
    # Rows of an orthogonal matrix that is much wider than high.
    "smop": ({}, {"prompts": NORMAL, "router.weight": normal(WIDTH**-0.5)}),
    # Embeddings take the place of the prompt when it is attached.
    "dept": ({}, {"table": uniform(0.5), "A": KAIMING, "B": ZEROS}),
    "p_tuning": (
        {"length": 20},
        {
            "embedding": NORMAL,
            "lstm.*": uniform((WIDTH // 2) ** -0.5),
            "mlp.*": linear(WIDTH),
        },
    ),
    "p_tuning-mlp": ({"length": 20, "encoder": "mlp"}, {"embedding": NORMAL, "mlp.*": linear(WIDTH)}),
    "xprompt": ({"length": 50, "init": "uniform"}, {"values": uniform(0.5)}),
    "spot": ({}, {"table": uniform(0.5), "task_prompt": ZEROS}),
    "tpt": (
        {"length": 4, "source_width": 50, "hidden": 100},
        {
            "projector.down.*": linear(200),
            "projector.up.*": linear(100),
            "projector.norm.weight": ONES,
            "projector.norm.bias": ZEROS,
            "source": ZEROS,
        },
    ),
    "prompt_tuning-normal": ({"init": "normal"}, {"table": normal(0.02)}),
    "sam": ({}, {"entries.values": ZEROS}),
    "s_bitfit": ({}, {"entries.values": ZEROS}),
    "s_diff_pruning": ({}, {"entries.values": ZEROS}),
    # What calibration settles is empty before; `tests/nn/test_init.py` has the law of what it puts in.
    "sensitivity_tuning": ({}, {"at.*.A": ZEROS, "at.*.B": ZEROS, "entries.values": ZEROS}),
    "serial_adapter": ({}, {"at.*.weight": normal(0.02), "at.*.bias": ZEROS}),
    "serial_adapter-houlsby": (
        {"variant": "houlsby"},
        {"at.*.weight": truncated(1e-3), "at.*.bias": ZEROS, "norms.*": ZEROS},
    ),
    "serial_adapter-bapna": (
        {"variant": "bapna"},
        {
            **{f"at.*.{map}.weight": normal(0.02) for map in ("down", "up")},
            **{f"at.*.{map}.bias": ZEROS for map in ("down", "up", "norm")},
            "at.*.norm.weight": ONES,
        },
    ),
    "serial_adapter-hyperformer": (
        {"variant": "hyperformer"},
        {
            **{f"at.*.{map}.weight": normal(0.02) for map in ("down", "up")},
            **{f"at.*.{map}.bias": ZEROS for map in ("down", "up", "norm")},
            "at.*.norm.weight": ONES,
            "norms.*": ZEROS,
        },
    ),
    "sora": ({"rank": 128}, {**PAIR, "at.*.gate": NORMAL}),
    "ssf": ({}, {"at.*.scale": normal(0.02, mean=1.0), "at.*.shift": normal(0.02)}),
    "u_bitfit": ({}, {"entries.values": ZEROS}),
    "u_diff_pruning": ({}, {"entries.values": ZEROS}),
    "xattn_tuning": ({}, {"tensors.*": ZEROS}),
    "vera": ({}, {"A": KAIMING_0, "B": KAIMING_0, "at.*.d": constant(0.1), "at.*.b": ZEROS}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_parameter_follows_its_law(case: str) -> None:
    options, laws = CASES[case]
    torch.manual_seed(0)
    method = case.partition("-")[0]
    module, _ = build(method, SPECS.get(method, SPEC), **options)
    assert starts(module, laws) == []


def test_every_method_that_places_something_has_a_row() -> None:
    places = {name for name in method_names() if get_method(name).traits.level != "training"}
    places -= {name for name in places if get_method(name).traits.pools}  # which has no parameters
    assert {case.partition("-")[0] for case in CASES} == places


def test_an_orthogonal_mixer_is_one() -> None:
    module, sites = build("moslora", SPEC, rank=40, mixer="orthogonal")
    mixer = module[sites[0]].M.detach()
    torch.testing.assert_close(mixer @ mixer.T, torch.eye(40), atol=1e-5, rtol=0)
    assert bool((mixer - torch.eye(40)).abs().max() > 0.1)


def test_autolora_retrains_from_the_init_of_lora() -> None:
    module, _ = build("autolora", SPEC)
    torch.manual_seed(0)
    randomise(module)
    with torch.no_grad():
        for pair in module.children_by_site():
            pair.selection.copy_(torch.arange(8.0))
    module.restart()
    assert starts(module, PAIR) == []
    assert set(module.ranks().values()) == {2}, "of eight terms, those above an eighth"
