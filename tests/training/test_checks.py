"""What is refused before a training begins, by what its kind of task predicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.tiny import tiny_config, tiny_model
from support.training import encoded_task
from transformers import BertForMaskedLM, BertForSequenceClassification, PreTrainedModel

from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.verbalised import verbalised
from autopeft.tasks.kinds.verbaliser import LabelWords, Template
from autopeft.training.checks import check_recipe
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

WORDS = LabelWords(("bad", "great"))
MASKED = verbalised(WORDS, Template.parse("{text} {mask}"))
NEXT = verbalised(WORDS, Template.parse("{text}"))


def checked(model: PreTrainedModel, kind: Any, level: str, item: Any) -> None:
    body = {"model": [item]} if level == "model" else {"layers": [{"attach": [item]}]}
    check_recipe(attach(model, Recipe.from_dict({"name": "c", **body}), seed=0), kind)


@pytest.mark.parametrize(
    ("level", "item"),
    [
        ("model", "lpt"),
        ("model", "smop"),
        ("model", "selective_prompt"),
        ("model", {"idpg": {"phm_dim": 4}}),
        ("layers", "apt"),
    ],
)
def test_a_prompt_made_of_the_text_stands_before_a_label_word_and_before_no_text(
    level: str, item: Any
) -> None:
    """One word is predicted, behind the end of what was read; a text has its next ones in what is read."""
    checked(tiny_model("gpt2"), NEXT, level, item)
    for name in ("causal_lm", "multiple_choice"):
        with pytest.raises(CompositionError, match="see what they are to predict"):
            checked(tiny_model("gpt2"), get_kind(name), level, item)


@pytest.mark.parametrize("masked", [True, False])
def test_a_head_of_its_own_takes_no_vocabulary_s_place(masked: bool) -> None:
    model = BertForMaskedLM(tiny_config("bert")) if masked else tiny_model("gpt2")
    with pytest.raises(CompositionError, match="one of 50 words: as many would begin at random"):
        checked(model, MASKED if masked else NEXT, "model", "infoprompt")
    checked(tiny_model("bert"), get_kind("classification"), "model", "infoprompt")


def dept(longest: int) -> dict[str, Any]:
    return {"dept": {"length": 3, "rank": 2, "max_length": longest}}


def prompt(longest: int) -> dict[str, Any]:
    return {"prompt_tuning": {"length": 64 - longest}}


@pytest.mark.parametrize("made", [prompt, dept])
@pytest.mark.parametrize("split", ["train", "select", "test"])
def test_a_row_without_room_is_refused_before_the_first_step(split: str, made: Any) -> None:
    data = encoded_task()
    short = {name: part.take(np.flatnonzero(part.lengths < 9)) for name, part in data.splits.items()}
    longest = int(data.splits[split].lengths.max())  # type: ignore[index]
    data = replace(data, splits={**short, split: data.splits[split]})  # type: ignore[dict-item,index]
    plan = TrainingPlan(steps=2, batch_size=4, device="cpu")
    with attach(
        tiny_model("bert"), Recipe.from_dict({"name": "c", "model": [made(longest)]}), seed=0
    ) as fits:
        assert train(fits, data, plan).steps == 2
    told: list[int] = []
    tight = attach(tiny_model("bert"), Recipe.from_dict({"name": "c", "model": [made(longest - 1)]}), seed=0)
    with pytest.raises(UsageError, match=f"row of {split} has {longest} tokens, .* room for {longest - 1},"):
        train(tight, data, plan, on_step=lambda step, loss: told.append(step))
    assert not told


def test_a_row_beyond_the_positions_is_refused_before_the_first_step() -> None:
    data = encoded_task()
    longest = max(int(part.lengths.max()) for part in data.splits.values())
    hybrids = []
    for positions in (longest, longest - 1):
        config = tiny_config("bert")
        config.max_position_embeddings = positions
        recipe = Recipe.from_dict({"name": "c", "layers": [{"attach": ["lora"]}]})
        hybrids.append(attach(BertForSequenceClassification(config), recipe, seed=0))
    plan = TrainingPlan(steps=1, batch_size=4, device="cpu")
    assert train(hybrids[0], data, plan).steps == 1
    with pytest.raises(UsageError, match=f"has {longest} tokens, .* positions for {longest - 1}: "):
        train(hybrids[1], data, plan)
