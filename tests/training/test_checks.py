"""What is refused before a training begins, by what its kind of task predicts."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny import tiny_config, tiny_model
from transformers import BertForMaskedLM, PreTrainedModel

from autopeft.errors import CompositionError
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.verbalised import Verbalised
from autopeft.tasks.kinds.verbaliser import LabelWords, Template
from autopeft.training.checks import check_recipe

WORDS = LabelWords(("bad", "great"))
MASKED = Verbalised(WORDS, Template.parse("{text} {mask}"))
NEXT = Verbalised(WORDS, Template.parse("{text}"))


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
