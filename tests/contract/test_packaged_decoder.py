"""Every prompt and prefix on the packaged language model: a batch that is padded on the left writes, with and
without a cache, what each row writes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.cases import CASES, recipe_of
from support.tiny import randomise
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autopeft.assets import load_tokenizer, resolve_model
from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid import attach
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.tasks.kinds import Generation, get_kind
from autopeft.tasks.kinds.chat_templates import turn_end
from autopeft.tasks.kinds.generative import generate_texts, own_ends

pytestmark = pytest.mark.slow

TEXTS = ("The film was", "What is the capital of France?", "Once upon a time there was a small")
NEW = 12
STD = {"aprompt-scores": 1.0}  # a product of two of its numbers is what acts
Packaged = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def prompting() -> set[str]:
    """The registered methods that put rows, or keys and values, in front of a text."""
    return {name for name in method_names() if get_method(name).traits.ways & {"prompt", "kv"}}


def methods_in(recipe: Recipe) -> set[str]:
    return {entry.method for entry in recipe.entries()}


ALONE = [case for case in CASES if methods_in(recipe_of(case)) <= prompting()]
ON_ENCODERS = ("prefix-propagation",)  # its rows in front read the text
IN_ONE_LAYER = ("deep-prompt",)  # no cache has rows that leave behind their layer


@pytest.fixture(scope="module")
def packaged() -> Packaged:
    source = resolve_model("smollm2-135m")
    model: Any = get_kind("causal_lm").head.load_model(source, ())
    return model.float().eval(), load_tokenizer(source)


@pytest.fixture(scope="module")
def prompts(packaged: Packaged) -> list[list[int]]:
    found = [packaged[1](text).input_ids for text in TEXTS]
    assert len({len(row) for row in found}) == len(found)
    return found


def test_every_prompt_and_prefix_is_here() -> None:
    assert {name for case in ALONE for name in methods_in(recipe_of(case))} == prompting()


@torch.no_grad()
def written(model: Any, prompts: Sequence[Sequence[int]], *, cached: bool) -> list[list[int]]:
    """What transformers' own `generate` makes of prompts that are padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    how: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found: Tensor = model.generate(ids, attention_mask=mask, use_cache=cached, **how)
    rows: list[list[int]] = found[:, width:].tolist()
    return rows


@torch.no_grad()
def last_logits(model: Any, prompt: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([prompt]), use_cache=False).logits[:, -1]
    return logits


@pytest.mark.parametrize("case", ALONE)
def test_the_same_is_written_with_a_cache_and_beside_other_rows(
    case: str, packaged: Packaged, prompts: list[list[int]]
) -> None:
    model, tokenizer = packaged
    bare = last_logits(model, prompts[0])
    if case in ON_ENCODERS:
        with pytest.raises(UsageError, match="use prefix_tuning or p_tuning_v2"):
            attach(model, recipe_of(case))
        return
    with attach(model, recipe_of(case), seed=0) as hybrid:
        randomise(hybrid.root, std=STD.get(case, 0.1))
        model.eval()
        assert not torch.allclose(last_logits(model, prompts[0]), bare, atol=1e-2), "it acts"
        sees = any(entry.traits.sees_text for entry in hybrid.graph.entries.values())
        kept = not (sees or case in IN_ONE_LAYER)
        alone = [written(model, [row], cached=kept)[0] for row in prompts]
        assert len({tuple(row) for row in alone}) > 1
        assert written(model, prompts, cached=False) == alone
        if kept:
            assert written(model, prompts, cached=True) == alone
        else:
            why = "depends on the text" if sees else "in one layer alone"
            with pytest.raises(CompositionError, match=rf"{why}, .* with use_cache=False"):
                written(model, prompts, cached=True)
        with torch.no_grad():
            answers = generate_texts(model, tokenizer, prompts, Generation(), most=NEW)
        ends = set(turn_end(tokenizer, own_ends(model)).tokens)
        for row, answer in zip(alone, answers, strict=True):
            stop = next((i + 1 for i, token in enumerate(row) if token in ends), NEW)
            assert list(answer.tokens) == row[:stop]
