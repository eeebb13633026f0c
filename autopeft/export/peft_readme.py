"""The README beside an adapter in peft's format: what to type to load it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from autopeft.assets import MODEL_ALIASES, head_names
from autopeft.assets.heads import plain_options, renamed
from autopeft.runs.markdown import plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["how_to_load"]

# What peft's `AutoPeftModelFor…` and transformers' `AutoModelFor…` are called for peft's words of tasks.
_AUTO = {
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
    "SEQ_2_SEQ_LM": "Seq2SeqLM",
    "CAUSAL_LM": "CausalLM",
}
_OF_TOKENS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "QUESTION_ANS")  # heads whose outputs are no labels


def how_to_load(model: PreTrainedModel, task_type: str | None, base: str | None, named: str) -> str:
    """Text in Markdown, whose blocks of code run in the adapter's folder.

    Args:
        model: what the adapter was on.
        task_type: peft's word, if it has one.
        base: what `adapter_config.json` names; `None` where it names nothing.
        named: the name by which AutoPEFT knows the base.
    """
    purpose = None if task_type is None else _AUTO.get(task_type)
    classified = bool(head_names(model)) and task_type not in _OF_TOKENS
    options = plain_options(model, labels=classified)
    # In the dtype of the checkpoint, bf16 for example, the logits would be others than those of the training.
    options += ", dtype=torch.float32"
    kind = type(model).__name__ if purpose is None else f"AutoModelFor{purpose}"
    there = f"base = {kind}.from_pretrained({json.dumps(base or named or 'path/of/the/base')}{options})"
    lines = ["# An adapter in the format of Hugging Face peft", ""]
    # peft has another meaning for `key_mapping`, so that its one call cannot load such a base.
    if base is not None and purpose is not None and not renamed(type(model.config), model.base_model_prefix):
        lines += [
            f"`adapter_config.json` names the base, {plain(base)}, so one call loads both:",
            "",
            "```python",
            "import torch",
            f"from peft import AutoPeftModelFor{purpose}",
            "",
            f'model = AutoPeftModelFor{purpose}.from_pretrained("."{options})',
            "```",
            "",
            "Where the base lies elsewhere, name its place:",
            "",
        ]
    else:
        lines += ["Load the base first, then the adapter:", ""]
    lines += [
        "```python",
        "import torch",
        "from peft import PeftModel",
        f"from transformers import {kind}",
        "",
        there,
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
        "",
    ]
    if named in MODEL_ALIASES:
        lines += [
            f"The base is AutoPEFT's packaged model `{named}`. On another machine, "
            f"`autopeft.assets.resolve_model({named!r}).path` is its place.",
            "",
        ]
    return "\n".join(lines)
