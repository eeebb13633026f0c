"""What a graph tells of how a hybrid can be served agrees with what is found when it is live."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import randomise, tiny_model

from autopeft.backbones import spec_of_model
from autopeft.errors import AutoPEFTError
from autopeft.export.lora_weights import lora_weights
from autopeft.export.merged_format import merge
from autopeft.export.peft_format import NotExpressible, peft_adapter
from autopeft.graph import SERVED, VLLM_RANKS, build_graph, unservable, unservable_entries
from autopeft.hybrid import Hybrid, attach
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe

LORA = {"lora": {"rank": 2, "sites": ["q", "down"]}}
CASES: dict[str, tuple[str, list[Any], list[Any]]] = {
    "lora": ("llama", [LORA], []),
    "two-loras": ("llama", [LORA, {"lora": {"rank": 3, "sites": ["q"]}}], []),
    "lora-ia3": ("llama", [LORA, {"ia3": {"sites": ["k"]}}], []),
    "chain": ("llama", [{"chain": [LORA, {"lora": {"rank": 1, "sites": ["q"]}}]}], []),
    "gate": ("llama", [{"gate": [LORA]}], []),
    "dora": ("llama", [{"dora": {"rank": 2}}], []),
    "vera": ("llama", [{"vera": {"rank": 4}}], []),
    "adalora": ("llama", [{"adalora": {"rank": 2}}], []),
    "capaboost": ("llama", [{"capaboost": {"rank": 2}}], []),
    "periodic": ("llama", [{"periodic_lora": {"rank": 2}}], []),
    "kadaptation": ("llama", [{"kadaptation": {"phm_dim": 4}}], []),
    "adapter": ("llama", ["serial_adapter"], []),
    "ssf": ("llama", [{"ssf": {"sites": ["q"]}}], []),
    "prefix": ("llama", [{"p_tuning_v2": {"length": 3}}], []),
    "prefix-some-layers": ("llama", [{"p_tuning_v2": {"length": 3, "sites": ["attention"]}}], [1]),
    "prompt": ("llama", [], [{"prompt_tuning": {"length": 3}}]),
    "spot": ("llama", [], [{"spot": {"length": 3}}]),
    "ensemble": ("llama", [{"lora_dropout": {"rank": 2}}], []),
    "gpt2-parts": ("gpt2", [{"lora": {"sites": ["q"]}}], []),
    "gpt2-qkv": ("gpt2", [{"lora": {"sites": ["qkv"]}}], []),
    "gpt2-prefix": ("gpt2", [{"p_tuning_v2": {"length": 3}}], []),
    "t5-ssf": ("t5", [{"ssf": {"sites": ["q"]}}], []),
    "bert-lora": ("bert", [LORA], []),
    "slots": ("llama", [], [{"p_tuning": {"length": 3, "slots": [{"length": 3, "offset": 1}]}}]),
    "bert-prompt": ("bert", [], [{"prompt_tuning": {"length": 3}}]),
    "bert-bitfit": ("bert", [LORA], ["bitfit"]),
}


def live(name: str, layers: list[Any], whole: list[Any]) -> Hybrid:
    at: Any = whole if whole and isinstance(whole[0], int) else "all"
    body = {
        "name": "x",
        "layers": [{"at": at, "attach": layers}] if layers else [],
        "model": [] if at == whole else whole,
    }
    if any("from" in item for item in layers if isinstance(item, dict)):
        body["inputs"] = {"source": "source"}
    hybrid = attach(tiny_model(name), Recipe.from_dict(body), seed=0, runs=None)  # inputs are not there
    randomise(hybrid.root)
    return hybrid


def has_head(hybrid: Hybrid) -> bool:
    return bool(hybrid.head())


@pytest.mark.parametrize("case", CASES)
def test_peft_and_merged_are_what_is_found_live(case: str) -> None:
    hybrid = live(*CASES[case])
    head = has_head(hybrid)
    try:
        peft_adapter(hybrid)
        expressible = True
    except NotExpressible:
        expressible = False
    assert (unservable(hybrid.graph, "peft", head=head) is None) == expressible
    why = unservable(hybrid.graph, "merged", head=head)
    try:
        merge(hybrid)
        merged = True
    except AutoPEFTError:
        merged = False
    assert (why is None) == merged


@pytest.mark.parametrize("case", CASES)
def test_what_vllm_takes_is_exact_and_of_a_rank_that_is_known(case: str) -> None:
    name, layers, whole = CASES[case]
    hybrid = live(name, layers, whole)
    why = unservable(hybrid.graph, "vllm", head=has_head(hybrid))
    allowed = {"lora", "two-loras", "vera", "adalora", "capaboost", "periodic"}
    assert (why is None) == (case in allowed), why
    if why is None:
        found = lora_weights(hybrid)
        assert found.exact
        ranks = [getattr(entry.method, "change_rank") for entry in hybrid.graph.entries.values()]  # noqa: B009
        assert found.rank <= sum(ranks)
        assert not found.biases


def test_ranks_that_add_up_to_too_much_are_refused() -> None:
    spec, _ = spec_of_model(tiny_model("llama"))
    big = {"lora": {"rank": 300, "sites": ["q"]}}

    def graph(*layers: Any) -> Any:
        return build_graph(Recipe.from_dict({"name": "x", "layers": [{"attach": list(layers)}]}), spec)

    assert unservable(graph(big), "vllm", head=False) is None
    why = unservable(graph(big, big), "vllm", head=False)
    assert why == f"at decoder.0.q the ranks add up to 600, and vLLM takes at most {VLLM_RANKS[-1]}"
    assert "no trained head" in str(unservable(graph(big), "vllm", head=True))


def test_how_much_stands_in_the_way() -> None:
    spec, _ = spec_of_model(tiny_model("llama"))
    items = [LORA, {"lora": {"sites": ["v"]}}, {"ia3": {"sites": ["k"]}}, "serial_adapter"]
    graph = build_graph(Recipe.from_dict({"name": "x", "layers": [{"attach": items}]}), spec)
    assert {way: unservable_entries(graph, way) for way in SERVED} == {"peft": 2, "merged": 1, "vllm": 2}


@pytest.mark.parametrize("name", method_names())
def test_what_gives_a_bias_says_so(name: str) -> None:
    """`Traits.shifts` is what merging does to a linear map without a bias."""
    method = get_method(name)
    if not method.traits.mergeable or "hook" not in method.traits.ways:
        return
    items = [{name: {"phm_dim": 4} if name == "kadaptation" else {}}]
    if "artefacts" in method.traits.needs:
        items[0]["from"] = "source"
    hybrid = live("llama", *((items, []) if method.traits.level == "layers" else ([], items)))
    entry = next(iter(hybrid.graph.entries.values()))
    site = next(s for s in entry.sites if s.kind == "linear")
    module: Any = hybrid.modules[entry.name]
    _, bias = module.merged(site, torch.zeros(site.out_features, site.in_features), None)
    assert (bias is not None) == entry.traits.shifts
