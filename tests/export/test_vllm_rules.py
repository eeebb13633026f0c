"""vLLM's rules for LoRAs, held against adapters that keep them and that do not."""

from __future__ import annotations

from typing import Any

import pytest

from autopeft.export.vllm_rules import smallest_rank, vllm_findings

GOOD: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 8,
    "target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"],
    "modules_to_save": None,
    "use_dora": False,
    "bias": "none",
    "rank_pattern": {"^a": 4},
    "alpha_pattern": {"^a": 4.0},
}


def states(family: str = "llama", **changes: Any) -> dict[str, str]:
    return {found.rule: found.state for found in vllm_findings({**GOOD, **changes}, family)}


def test_a_lora_as_we_write_it_keeps_all() -> None:
    assert set(states().values()) == {"kept"}
    (rank,) = [f for f in vllm_findings({**GOOD, "r": 40, "lora_alpha": 40}, "llama") if f.rule == "rank"]
    assert rank.text == "The rank is 40; start it with --max-lora-rank 64."


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("rank", {"r": 600, "lora_alpha": 600}),
        ("rank", {"rank_pattern": {"^a": 513}, "alpha_pattern": {"^a": 513.0}}),
        ("modules_to_save", {"modules_to_save": ["classifier"]}),
        ("dora", {"use_dora": True}),
        ("biases", {"bias": "all"}),
        ("scale", {"alpha_pattern": {}}),
        ("maps", {"target_modules": ["lm_head"]}),
    ],
)
def test_what_breaks_a_rule_is_named(rule: str, changes: dict[str, Any]) -> None:
    assert [name for name, state in states(**changes).items() if state == "broken"] == [rule]


def test_families_and_other_types() -> None:
    assert states("bert")["maps"] == "broken"
    assert states("phi3")["maps"] == "unknown"
    (found,) = vllm_findings({"peft_type": "IA3"}, "llama")
    assert (found.rule, found.state) == ("type", "broken")
    assert found.to_dict()["text"].endswith("--as lora or --as merged.")


def test_ranks_that_vllm_takes() -> None:
    assert [smallest_rank(rank) for rank in (1, 2, 8, 9, 300, 512, 513)] == [1, 8, 8, 16, 320, 512, None]
