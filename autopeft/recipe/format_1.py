"""Format 1 of recipes and spaces: what it left out, and what that meant.

A file leaves defaults out. Where a default has changed since, or an option has come that says what once went
without saying, a file of format 1 is read as if it had written down what was meant. Hashes do not see an
option that came later where it says just that, so the hashes of recipes of format 1 stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.method import MethodConfig
from autopeft.recipe.problems import MarkedDict, MarkedList, copy_lines

__all__ = ["CHANGED", "Changed", "canonical_config", "upgraded"]


@dataclass(frozen=True)
class Changed:
    """An option whose default in format 1 was another one.

    Attributes:
        value: what a file of format 1 that leaves it out means.
        added: whether format 1 did not have the option: it always meant `value`.
        idle: whether the option, left at its default, says nothing beside the others of an entry.
    """

    value: Any
    added: bool = False
    idle: Callable[[Mapping[str, Any]], bool] = lambda options: False


def _trains_no_norms(options: Mapping[str, Any]) -> bool:
    trained = options.get("train_norms")
    return trained is False or (trained is None and options.get("variant", "pfeiffer") != "houlsby")


def _leaves_ffn_alone(options: Mapping[str, Any]) -> bool:
    sites, others = options.get("sites"), ("attention", "cross_attention")
    listed = isinstance(sites, (list, tuple)) and all(site in others for site in sites)
    return listed and options.get("input") is None


CHANGED: dict[str, dict[str, Changed]] = {
    "adalora": {"final": Changed(0.3)},
    "autolora": {"rescale": Changed(False, added=True)},
    "lora": {"std": Changed(None, added=True), "shared_down": Changed(False, added=True)},
    "lora_dropout": {"ensemble": Changed(0), "draws": Changed(1, added=True)},
    "parallel_adapter": {
        "input": Changed("normed", added=True, idle=_leaves_ffn_alone),
        "init": Changed("lora", added=True),
    },
    # Bare rows, which are `p_tuning_v2` now.
    "prefix_tuning": {"reparameterization": Changed(None), "std": Changed(None, added=True)},
    "prompt_tuning": {"label_words": Changed(None, added=True)},
    "serial_adapter": {"embeddings_norm": Changed(False, added=True, idle=_trains_no_norms)},
    "sora": {"threshold": Changed(3e-4), "shrinkage": Changed(None, added=True)},
}
"""By method, then by option."""


def upgraded(tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe or space of format 1 as one of format 2 with the same meaning; what is malformed stays so."""
    found = copy_lines(tree, MarkedDict(tree))
    found["autopeft"] = 2
    for key in ("vars", "layers", "model"):
        if key in tree:
            found[key] = _filled(tree[key])
    return found


def _filled(tree: Any) -> Any:
    """The tree with every entry of a changed method complete, wherever in lists, choices or compositions."""
    if isinstance(tree, dict):
        items = {k: _filled(v) for k, v in tree.items()}
        for name in CHANGED.keys() & items.keys():
            items[name] = _entry(name, items[name])
        if isinstance(bare := items.get("optional"), str):
            items["optional"] = _named(bare)
        return copy_lines(tree, MarkedDict(items))
    if isinstance(tree, list):
        listed = MarkedList(map(_named, map(_filled, tree)))
        if isinstance(tree, MarkedList):
            listed.line, listed.lines = tree.line, list(tree.lines)
        return listed
    return tree


def _named(item: Any) -> Any:
    """An item that is a method's name alone, with its options."""
    return {item: _entry(item, None)} if isinstance(item, str) and item in CHANGED else item


def _entry(name: str, body: Any) -> Any:
    if body is not None and not isinstance(body, dict):
        return body
    own = {} if body is None else body
    left_out = {
        option: changed.value
        for option, changed in CHANGED[name].items()
        if option not in own and not changed.idle(own)
    }
    return copy_lines(body, MarkedDict({**own, **left_out}))


def canonical_config(name: str, config: MethodConfig) -> dict[str, Any]:
    """The options of a method that go into hashes: all but those that came later and say what was meant
    before."""
    data: dict[str, Any] = config.model_dump(mode="json")
    for option, changed in CHANGED.get(name, {}).items():
        if changed.added and (data[option] == changed.value or changed.idle(data)):
            del data[option]
    return data
