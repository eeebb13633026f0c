"""What vLLM wants of a LoRA, as a list of findings that say what to change.

Sources, in vllm-project/vllm: `vllm/lora/peft_helper.py` (`PEFTHelper`: no `modules_to_save`, no DoRA, no
biases, one scale `lora_alpha / r` for all maps), `vllm/config/lora.py` (`MaxLoRARanks`), and
`vllm/model_executor/models/` for the families whose classes are of `SupportsLoRA`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autopeft.graph import VLLM_RANKS, WITHOUT_VLLM_LORA

__all__ = ["VLLMFinding", "smallest_rank", "vllm_findings"]

_DEFAULT_RANK = 16
_FAMILIES = ("llama", "mistral", "qwen2")
_PACKED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class VLLMFinding:
    """One rule, and whether a LoRA keeps it.

    Attributes:
        rule: its name.
        state: `kept`, `broken`, or `unknown` where only vLLM itself can say.
        text: what is there, and what to change where it is not kept.
    """

    rule: str
    state: Literal["kept", "broken", "unknown"]
    text: str

    def to_dict(self) -> dict[str, str]:
        """The finding as data."""
        return {"rule": self.rule, "state": self.state, "text": self.text}


def smallest_rank(rank: int) -> int | None:
    """The smallest `--max-lora-rank` that takes LoRAs of this rank; `None` where there is none."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def vllm_findings(config: Mapping[str, Any], family: str) -> list[VLLMFinding]:
    """Hold peft's `adapter_config.json` against vLLM's rules.

    Args:
        config: the adapter's config.
        family: `model_type` of the backbone.
    """
    if config.get("peft_type") != "LORA":
        return [
            VLLMFinding(
                "type",
                "broken",
                f"vLLM serves LoRAs, and this is {config.get('peft_type')}; export it with --as lora or "
                "--as merged.",
            )
        ]
    return [
        _rank(config),
        _heads(config),
        _dora(config),
        _biases(config),
        _scale(config),
        _maps(config, family),
    ]


def _rank(config: Mapping[str, Any]) -> VLLMFinding:
    rank = max([int(config.get("r", 0)), *map(int, (config.get("rank_pattern") or {}).values())])
    allowed = smallest_rank(rank)
    if allowed is None:
        return VLLMFinding(
            "rank",
            "broken",
            f"The rank is {rank} and vLLM takes at most {VLLM_RANKS[-1]}; export it with "
            f"--rank {VLLM_RANKS[-1]}.",
        )
    needed = f"; start it with --max-lora-rank {allowed}" if allowed > _DEFAULT_RANK else ""
    return VLLMFinding("rank", "kept", f"The rank is {rank}{needed}.")


def _heads(config: Mapping[str, Any]) -> VLLMFinding:
    saved = config.get("modules_to_save")
    if saved:
        text = (
            f"The adapter holds {', '.join(saved)}, and vLLM takes no modules_to_save; export it with "
            "--as merged."
        )
        return VLLMFinding("modules_to_save", "broken", text)
    return VLLMFinding("modules_to_save", "kept", "The adapter holds no whole modules.")


def _dora(config: Mapping[str, Any]) -> VLLMFinding:
    if config.get("use_dora"):
        return VLLMFinding("dora", "broken", "vLLM takes no DoRA; export it with --as lora or --as merged.")
    return VLLMFinding("dora", "kept", "The adapter is no DoRA.")


def _biases(config: Mapping[str, Any]) -> VLLMFinding:
    if config.get("bias", "none") != "none":
        text = "The adapter changes biases, which vLLM ignores or refuses; export it with --as merged."
        return VLLMFinding("biases", "broken", text)
    return VLLMFinding("biases", "kept", "The adapter changes no biases.")


def _scale(config: Mapping[str, Any]) -> VLLMFinding:
    """vLLM reads neither `alpha_pattern` nor `rank_pattern`, but the ranks of the tensors: it multiplies all
    of them by `lora_alpha / r`."""
    rank, alpha = float(config.get("r", 1)), float(config.get("lora_alpha", 1))
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    scales = {float(alphas.get(k, alpha)) / float(ranks.get(k, rank)) for k in {*ranks, *alphas}} | {
        alpha / rank
    }
    if max(scales) - min(scales) > 1e-6 * max(map(abs, scales)):
        text = "Maps have scales of their own, and vLLM takes one for all; --as lora writes one."
        return VLLMFinding("scale", "broken", text)
    return VLLMFinding("scale", "kept", "All maps have one scale.")


def _maps(config: Mapping[str, Any], family: str) -> VLLMFinding:
    if family in WITHOUT_VLLM_LORA:
        text = f"vLLM takes no LoRA for {family!r}; export it with --as merged."
        return VLLMFinding("maps", "broken", text)
    targets = config.get("target_modules") or ()
    names = {
        str(target).rpartition(".")[2] for target in ([targets] if isinstance(targets, str) else targets)
    }
    if family not in _FAMILIES:
        text = f"Whether vLLM takes a LoRA of {', '.join(sorted(names))} for {family!r} is not known here."
        return VLLMFinding("maps", "unknown", text)
    other = sorted(names - set(_PACKED))
    if other:
        text = (
            f"vLLM's {family!r} takes no LoRA of {', '.join(other)}; leave these maps out, or export it "
            "with --as merged."
        )
        return VLLMFinding("maps", "broken", text)
    return VLLMFinding("maps", "kept", "All maps are such as vLLM's class of this family has.")
