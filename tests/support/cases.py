"""One small recipe for each way to use each method; what holds for all of them is tested over this table."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.inputs import RUNS
from autopeft.recipe import Recipe
from support import on_logits, on_scores

__all__ = ["BY_TASK", "CASES", "ON_ENCODERS", "TASKS", "attach_case", "recipe_of"]

# name → (level, item); every registered method that places something has at least one row.
CASES: dict[str, tuple[str, Any]] = {
    "lora": ("layers", {"lora": {"rank": 3}}),
    "lora-shared": ("layers", {"lora": {"rank": 2, "sites": ["q", "k", "v", "o"], "shared_down": True}}),
    "lorahub": ("layers", {"lorahub": {"rank": 3}, "from": "loras"}),
    "lora-all": ("layers", {"lora": {"rank": 2, "sites": ["q", "k", "v", "o", "up", "down"]}}),
    "dora": ("layers", {"dora": {"rank": 3}}),
    "ia3": ("layers", "ia3"),
    "serial-pfeiffer": ("layers", {"serial_adapter": {"bottleneck": 4, "variant": "pfeiffer"}}),
    "serial-houlsby": ("layers", {"serial_adapter": {"bottleneck": 4, "variant": "houlsby"}}),
    "serial-bapna": ("layers", {"serial_adapter": {"bottleneck": 4, "variant": "bapna"}}),
    "parallel": ("layers", {"parallel_adapter": {"bottleneck": 4}}),
    "parallel-attention": ("layers", {"parallel_adapter": {"bottleneck": 4, "sites": ["attention"]}}),
    "linear-series": ("layers", {"linear_adapter": {"bottleneck": 4}}),
    "linear-input": ("layers", {"linear_adapter": {"variant": "input", "bottleneck": 4, "sites": ["up"]}}),
    "linear-parallel": (
        "layers",
        {"linear_adapter": {"variant": "parallel", "bottleneck": 4, "scale": 2.0, "sites": ["up", "down"]}},
    ),
    "prefix": ("layers", {"prefix_tuning": {"length": 3, "reparameterization": None}}),
    "p-tuning-v2": ("layers", {"p_tuning_v2": {"length": 3}}),
    "p-tuning-v2-mlp": ("layers", {"p_tuning_v2": {"length": 3, "reparameterization": 8, "dropout": 0.0}}),
    "parallel-residual": (
        "layers",
        {"parallel_adapter": {"bottleneck": 4, "sites": ["attention", "ffn"], "input": "residual"}},
    ),
    "mean-pooling": ("model", "mean_pooling"),
    "mean-pooling-itself": ("model", {"mean_pooling": {"pooler": False}}),
    "embedding-adapter": ("model", {"embedding_adapter": {"bottleneck": 4}}),
    "parallel-glorot": ("layers", {"parallel_adapter": {"bottleneck": 4, "init": "glorot"}}),
    "serial-hyperformer": ("layers", {"serial_adapter": {"bottleneck": 4, "variant": "hyperformer"}}),
    "mixlora": ("layers", {"mixlora": {"rank": 2, "experts": 3, "dropout": 0.0, "balance": 0.0}}),
    "coda": ("layers", {"coda": {"bottleneck": 4, "reduction": 2}}),
    "parallel-normed": ("layers", {"parallel_adapter": {"bottleneck": 4, "input": "normed"}}),
    "apt": ("layers", {"apt": {"length": 3, "dropout": 0.0}}),
    "apt-layer": ("layers", {"apt": {"length": 3, "dropout": 0.0, "token_gate": False}}),
    "prefix-mlp": ("layers", {"prefix_tuning": {"length": 3, "reparameterization": 8}}),
    "prompt": ("model", {"prompt_tuning": {"length": 4}}),
    "p-tuning": ("model", {"p_tuning": {"length": 4}}),
    "p-tuning-slots": (
        "model",
        {
            "p_tuning": {
                "length": 4,
                "slots": [{"length": 2, "offset": 1}, {"length": 1}, {"length": 1, "offset": 3}],
                "encoder": "mlp",
                "hidden": 8,
            }
        },
    ),
    "infoprompt": ("model", {"infoprompt": {"length": 2, "latent": 6}}),
    "idpg": ("model", {"idpg": {"length": 3, "phm_dim": 4, "dropout": 0.0}}),
    "idpg-sentence": (
        "model",
        {"idpg": {"length": 2, "phm_dim": 2, "bottleneck": 6, "dropout": 0.0, "deeper": "sentence"}},
    ),
    "xprompt": ("model", {"xprompt": {"length": 4, "pieces": 4, "init": "uniform"}}),
    "spot": ("model", {"spot": {"length": 4}}),
    "tpt": ("model", {"tpt": {"length": 4, "source_width": 16, "hidden": 6}, "from": "source"}),
    "lpt": ("model", {"lpt": {"length": 3, "bottleneck": 4, "dropout": 0.0}}),
    "lpt-appg": ("model", {"lpt": {"length": 3, "bottleneck": 4, "dropout": 0.0, "generator": "appg"}}),
    "lpt-table": ("model", {"lpt": {"length": 3, "dropout": 0.0, "generator": "none"}}),
    "deep-prompt": ("layers", {"deep_prompt": {"length": 3}}),
    "aprompt": ("model", {"aprompt": {"length": 2, "kv_length": 3, "qk_width": 4, "positions": 24}}),
    "aprompt-scores": ("model", {"aprompt": {"length": 0, "kv_length": 0, "qk_width": 2}}),
    "selective-prompt": (
        "model",
        {"selective_prompt": {"length": 3, "keep": 1, "bottleneck": 4, "dropout": 0.0}},
    ),
    "selective-prompt-shared": (
        "model",
        {
            "selective_prompt": {
                "length": 2,
                "keep": 2,
                "bottleneck": 4,
                "phm_dim": 2,
                "shared": True,
                "dropout": 0.0,
            }
        },
    ),
    "selective-prompt-all": (
        "model",
        {"selective_prompt": {"length": 2, "bottleneck": 4, "dropout": 0.0}},
    ),
    "prefix-propagation": ("model", {"prefix_propagation": {"length": 3, "dropout": 0.0}}),
    "smop": ("model", {"smop": {"length": 3, "experts": 3, "noise": 0.0}}),
    "smop-two": ("model", {"smop": {"length": 2, "top_k": 2, "noise": 0.0}}),
    "dept": ("model", {"dept": {"length": 3, "rank": 2, "max_length": 24}}),
    "bitfit": ("model", "bitfit"),
    "bitfit-layers": ("layers", "bitfit"),
    "pafi": ("model", {"pafi": {"keep": "2%"}}),
    "xattn": ("model", "xattn_tuning"),
    "xattn-embeddings": ("model", {"xattn_tuning": {"embeddings": "both"}}),
    "xattn-layers": ("layers", "xattn_tuning"),
    "far": ("layers", {"far": {"retention": 0.2}}),
    "far-rest": ("layers", {"far": {"retention": 0.2, "sites": ["down"], "rest": "trained"}}),
    "sensitivity": (
        "model",
        {"sensitivity_tuning": {"keep": "6%", "batches": 2, "batch_size": 2, "rank": 2}},
    ),
    "sensitivity-adapter": (
        "model",
        {"sensitivity_tuning": {"keep": "6%", "batches": 2, "batch_size": 2, "rank": 2, "module": "adapter"}},
    ),
    "fish": ("model", {"fish_mask": {"keep": "2%", "samples": 4}}),
    "fish-dip": ("model", {"fish_dip": {"keep": "2%", "every": 3}}),
    "child-d": ("model", {"child_tuning_d": {"keep": "5%"}}),
    "child-d-frozen": ("model", {"child_tuning_d": {"rest": "frozen"}}),
    "sam": ("model", {"sam": {"keep": "3%", "batches": 4}}),
    "sam-curvature": ("model", {"sam": {"keep": "3%", "batches": 2, "score": "g2_over_h"}}),
    "lt-sft": ("model", {"lt_sft": {"keep": "2%", "l1_full": 0.1, "l1_sparse": 0.1}}),
    "u-diff-pruning": ("model", {"u_diff_pruning": {"keep": "2%"}}),
    "s-diff-pruning": ("model", {"s_diff_pruning": {"keep": "2%"}}),
    "u-bitfit": ("model", {"u_bitfit": {"keep": "40%"}}),
    "s-bitfit": ("model", {"s_bitfit": {"keep": "40%"}}),
    "vera": ("layers", {"vera": {"rank": 6}}),
    "vera-mixed": ("layers", {"vera": {"rank": 5, "sites": ["q", "k", "v", "o", "up", "down"]}}),
    "krona": ("layers", {"krona": {"sites": ["q", "v", "down"]}}),
    "krona-parallel": ("layers", {"krona": {"variant": "parallel", "a1": 8, "scale": "learned"}}),
    "krona-residual": ("layers", {"krona": {"variant": "parallel_residual", "scale": 2}}),
    "moslora": ("layers", {"moslora": {"rank": 3}}),
    "lora-dropout": ("layers", {"lora_dropout": {"rank": 3}}),
    "lora-dropout-mean": ("layers", {"lora_dropout": {"rank": 3, "ensemble": 0}}),
    "periodic-lora": ("layers", {"periodic_lora": {"rank": 2, "stages": 3}}),
    "laplace": ("layers", {"laplace_lora": {"rank": 3, "n_kfac": 4}}),
    "laplace-mean": ("layers", {"laplace_lora": {"rank": 2, "sub": "last_layer", "samples": 0}}),
    "capaboost": ("layers", {"capaboost": {"rank": 3, "copies": 3, "density": 0.4}}),
    "capaboost-2:4": ("layers", {"capaboost": {"rank": 4, "pattern": "2:4", "sites": ["q", "down"]}}),
    "ssf": ("layers", "ssf"),
    "ssf-some": ("layers", {"ssf": {"sites": ["q", "down", "ffn_norm"]}}),
    "compacter": ("layers", {"compacter": {"bottleneck": 8, "rank": 2}}),
    "compacter++": ("layers", {"compacter": {"variant": "compacter_plus_plus", "bottleneck": 8}}),
    "kadaptation": ("layers", {"kadaptation": {"phm_dim": 4, "scale": 8}}),
    "kadaptation-full": (
        "layers",
        {"kadaptation": {"phm_dim": 4, "rank": 2, "rules": "full", "sites": ["q", "k", "v", "down"]}},
    ),
    "dylora": ("layers", {"dylora": {"rank": 3}}),
    "adalora": ("layers", {"adalora": {"rank": 2, "interval": 1}}),
    "sora": ("layers", {"sora": {"rank": 3, "threshold": 0.01}}),
    "autolora": ("layers", {"autolora": {"rank": 3, "selection_learning_rate": 0.1}}),
    "ipa": ("model", {"ipa": {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1}}),
    "mov": ("layers", {"mov": {"experts": 3}}),
    "mov-top": ("layers", {"mov": {"experts": 4, "top_k": 2}}),
    "hiwi": ("layers", {"hiwi": {"rank": 3}}),
    "hiwi-weight": ("layers", {"hiwi": {"rank": 2, "target": "weight", "sites": ["q", "up", "down"]}}),
    "said": ("model", {"intrinsic_said": {"dimension": 160}}),
    "said-some": ("model", {"intrinsic_said": {"dimension": 40, "tensors": ["up", "down"]}}),
    "gate": (
        "layers",
        {
            "gate": [
                {"lora": {"rank": 2}},
                {"prefix_tuning": {"length": 2}},
                {"serial_adapter": {"bottleneck": 12}},
            ]
        },
    ),
    "route": ("layers", {"route": {"children": [{"lora": {"rank": 2}}], "copies": 3}}),
    "route-sequence": (
        "layers",
        {
            "route": {
                "children": [{"prefix_tuning": {"length": 2}}, {"lora": {"rank": 2}}, {"ia3": {}}],
                "level": "sequence",
            }
        },
    ),
    "masked-copies": ("layers", {"masked_copies": {"children": [{"lora": {"rank": 3}}], "copies": 3}}),
    "weight-drop": (
        "layers",
        {"weight_drop": {"children": [{"sum": ["ia3", {"prefix_tuning": {"length": 2}}]}], "p": 0.3}},
    ),
    "fuse": (
        "layers",
        {
            "fuse": {
                "children": [
                    {"linear_adapter": {"bottleneck": 4}},
                    {"linear_adapter": {"bottleneck": 3}, "as": "b"},
                ],
                "dropout": 0.0,
            }
        },
    ),
    "fuse-loras": (
        "layers",
        {
            "fuse": {
                "children": [{"lora": {"rank": 3}}, {"lora": {"rank": 2}, "as": "second"}],
                "dropout": 0.0,
                "value": False,
            }
        },
    ),
    "mole": (
        "layers",
        {
            "mole": {
                "children": [{"lora": {"rank": 3}}, {"lora": {"rank": 2}, "as": "second"}, "ia3"],
                "balance": 0.0,
            }
        },
    ),
    "adamix": (
        "layers",
        {
            "adamix": {
                "children": [{"linear_adapter": {"bottleneck": 4, "activation": "gelu", "bias": True}}],
                "copies": 3,
            }
        },
    ),
    "adamix-lora": (
        "layers",
        {
            "adamix": {
                "children": [{"lora": {"rank": 3}}],
                "copies": 2,
                "copied": "both",
                "init": "equal",
            }
        },
    ),
    "chain": (
        "layers",
        {"chain": [{"serial_adapter": {"bottleneck": 12}}, {"parallel_adapter": {"bottleneck": 12}}]},
    ),
}


TASKS = ("first", "second", "third")
_GENERATED = {"bottleneck": 3, "vector": 4, "hidden": 8, "width": 4, "tasks": list(TASKS)}
BY_TASK: dict[str, tuple[str, Any]] = {
    "switch": (
        "layers",
        {
            "switch": {
                "children": [{"lora": {"rank": 3}}, "ia3", {"lora": {"rank": 1}, "as": "c"}],
                "tasks": list(TASKS),
            }
        },
    ),
    "switch-prefixes": (
        "layers",
        {"switch": {"children": [{"prefix_tuning": {"length": 2}}], "copies": 3, "tasks": list(TASKS)}},
    ),
    "task-route": (
        "layers",
        {"task_route": {"children": [{"lora": {"rank": 2}}], "copies": 4, "tasks": list(TASKS), "vector": 6}},
    ),
    "moa": ("layers", {"moa": {"children": [{"lora": {"rank": 2}}], "copies": 3, "tasks": list(TASKS)}}),
    "moa-first": (
        "layers",
        {
            "moa": {
                "children": [{"serial_adapter": {"bottleneck": 3, "activation": "gelu"}}],
                "copies": 3,
                "tasks": list(TASKS),
                "router": "first_layer",
            }
        },
    ),
    "hyperformer": ("layers", {"hyperformer": _GENERATED}),
    "hyperformer-place": ("layers", {"hyperformer": {**_GENERATED, "heads": "place", "train_norms": False}}),
    "hyperformer++": ("layers", {"hyperformer": {**_GENERATED, "heads": "stack"}}),
    "pha": ("layers", {"pha": _GENERATED}),
}
"""What acts by the task of a row: see `contract/test_acting_by_task.py`."""

UNFILLED = ("lorahub",)
"""What starts from trainings of the very model, which the models of the tests have none of."""

ON_ENCODERS = tuple(
    case for case in CASES if not case.startswith("xattn") and case not in ("ipa", "mixlora", *UNFILLED)
)
"""The cases that an encoder by itself can take, with all that they start from."""


INPUTS = {"source": "tests/fixtures/prompt", "loras": "none"}
"""What another training has left: a prompt of 4 rows of width 16."""


def attach_case(model: PreTrainedModel, case: str) -> Hybrid:
    """A case on a model, one of `UNFILLED` without what it starts from, as saved hybrids are attached."""
    return attach(model, recipe_of(case), seed=0, runs=None if case in UNFILLED else RUNS)


def recipe_of(case: str) -> Recipe:
    level, item = {**CASES, **BY_TASK, **on_logits.CASES, **on_scores.CASES}[case]
    body: dict[str, Any] = {"autopeft": 2, "name": case}
    start = item.get("from") if isinstance(item, dict) else None
    if start is not None:
        body["inputs"] = {start: INPUTS[start]}
    body[level] = [{"at": "all", "attach": [item]}] if level == "layers" else [item]
    return Recipe.from_dict(body)
