"""The named backbones on which pages count: configurations with published sizes, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from transformers import BertConfig, GPT2Config, LlamaConfig, PretrainedConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.errors import AutoPEFTError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.recipe import Recipe
from autopeft.recipe.tasks import for_tasks, lacks_tasks
from autopeft.spec import BackboneSpec

__all__ = ["BACKBONES", "SEVERAL", "Named", "on_the_first_that_fits", "shown_and_trained"]


@dataclass(frozen=True)
class Named:
    """A backbone's usual name, and its spec."""

    name: str
    spec: BackboneSpec


@cache
def _configs() -> Mapping[str, PretrainedConfig]:
    return {
        "BERT-base": BertConfig(),
        "LLaMA-7B": LlamaConfig(),
        "GPT-2 small": GPT2Config(),
        "T5-base": T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12),
        "T5 v1.1 base": T5Config(
            d_model=768,
            d_kv=64,
            d_ff=2048,
            num_layers=12,
            num_heads=12,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        ),
    }


# What a command names instead: a packaged model of the family. Encoders are the default's family.
_PACKAGED = {"LLaMA-7B": "smollm2-135m"}
_NOT_PACKAGED = ("T5 v1.1 base",)
SEVERAL = ("trec", "sms-spam")
BACKBONES = ("BERT-base", "LLaMA-7B", "GPT-2 small", "T5-base", "T5 v1.1 base")


@cache
def named(name: str) -> Named:
    """One of `BACKBONES`."""
    return Named(name, spec_of(_configs()[name]))


def on_the_first_that_fits(recipe: Recipe) -> tuple[Named, CompositionGraph]:
    """The first backbone that takes the recipe, and the graph on it, for two tasks where it acts by the task.

    Raises:
        AutoPEFTError: none of them does; the message is that of the last one.
    """
    recipe = for_tasks(recipe, SEVERAL) if lacks_tasks(recipe) else recipe
    for name in BACKBONES[:-1]:
        try:
            return named(name), build_graph(recipe, named(name).spec)
        except AutoPEFTError:
            continue  # a decoder's method, or sites that an encoder lacks: the next one may have them
    return named(BACKBONES[-1]), build_graph(recipe, named(BACKBONES[-1]).spec)


def shown_and_trained(recipe: str, backbone: Named, task: str = "trec") -> str:
    """The commands that show and train a recipe, on a packaged model of the backbone's family, or on a folder
    that the reader has where no package has one."""
    if backbone.name in _NOT_PACKAGED:
        words = (f"show {recipe}", f"train --recipe {recipe} --task FILE")
        commands = [f"autopeft {command} --model FOLDER" for command in words]
        return "\n".join(["```text", *commands, "```"])
    option = f" --model {_PACKAGED[backbone.name]}" if backbone.name in _PACKAGED else ""
    commands = [f"autopeft show {recipe}{option}", f"autopeft train --recipe {recipe} --task {task}{option}"]
    return "\n".join(["```bash", *commands, "```"])
