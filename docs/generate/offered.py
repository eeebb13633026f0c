"""Whether the default search space offers a method, and why it leaves the others out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from autopeft.method import get_method, method_names
from autopeft.recipe.yaml_text import read_yaml
from autopeft.search.space.space import Space

__all__ = ["LEFT_OUT", "offered", "offered_in_words", "why_not"]

_PROMPTS = "`prompt_tuning`, which is offered, stands for prompts"
LEFT_OUT = {
    "aprompt": "its parts are prompts and rows of keys and values, for which `prompt_tuning` and "
    "`p_tuning_v2` are offered",
    "apt": "it is `p_tuning_v2`, which is offered, with gates that read the text",
    "child_tuning_d": "it tunes a tenth of the backbone and more",
    "coda": "it runs a layer for some tokens alone, to save time: no score says what that is worth",
    "deep_prompt": "the space `noah` has it; `p_tuning_v2`, which is offered, stands for prompts of layers",
    "dept": _PROMPTS,
    "dylora": "it is a LoRA that works at every rank, and a search chooses the rank itself",
    "embedding_adapter": "it acts on the embeddings, so that no trial could leave its lower layers alone",
    "intrinsic_said": "a step of it costs more than one of full fine-tuning",
    "laplace_lora": "its training is that of `lora`, which is offered; its posterior is found afterwards",
    "linear_adapter": "`serial_adapter` and `parallel_adapter`, which are offered, stand for adapters",
    "lpt": _PROMPTS,
    "mean_pooling": "`--pooling` chooses it for a whole search",
    "mixlora": "it runs each FFN once for every expert that a position chooses",
    "p_tuning": "it trains many times what it leaves",
    "periodic_lora": "its training cannot pause at a rung",
    "prefix_propagation": _PROMPTS,
    "prefix_tuning": "it trains many times what it leaves; its rows alone are `p_tuning_v2`, and offered",
    "sam": "`fish_mask`, which is offered, stands for entries that gradients choose before training",
    "sensitivity_tuning": "it chooses its structure itself, by a pass over rows in each trial",
    "smop": _PROMPTS,
}
"""Reasons that a method's traits do not tell."""


@cache
def offered() -> frozenset[str]:
    """The methods of the default space."""
    space = Space.named("default")
    tree = read_yaml(space.text, space.name)
    left = [tree[part] for part in ("vars", "layers", "model")]
    words: set[str] = set()
    while left:
        node = left.pop()
        if isinstance(node, str):
            words.add(node)
        elif isinstance(node, Mapping):
            words.update(node)
            left += node.values()
        elif isinstance(node, list):
            left += node
    return frozenset(words & set(method_names()))


def why_not(name: str) -> str:
    """Why the default space leaves a method out.

    Raises:
        KeyError: neither its traits nor `LEFT_OUT` say it.
    """
    traits = get_method(name).traits
    reasons = {
        "it is a policy, which needs its method in the recipe": traits.level == "training",
        "it starts from another training": "artefacts" in traits.needs,
        "it needs several tasks at once": "several_tasks" in traits.needs,
        "it needs an encoder and a decoder": "encoder_decoder" in traits.needs,
        "it trains in phases, so that a trial of it cannot pause at a rung": traits.phased,
        "it runs the bare backbone once more in each step": bool(traits.features),
    }
    return next((reason for reason, holds in reasons.items() if holds), None) or LEFT_OUT[name]


def offered_in_words(name: str) -> str:
    """Whether the default space offers a method, in a sentence."""
    if name in offered():
        return "The default search space offers it."
    return f"The default search space leaves it out: {why_not(name)}."
