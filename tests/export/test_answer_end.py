"""What ends an answer, in the words of the programs that load an export."""

from __future__ import annotations

from typing import Any

import pytest
from support.language import TEMPLATE, word_tokenizer
from support.tiny import tiny_model

from autopeft.export.answer_end import Program, answer_end

WORDS = TEMPLATE.replace("<|end|>", "is over")


@pytest.fixture
def model() -> Any:
    """A decoder whose generation configuration names `</s>`."""
    found = tiny_model("llama")
    found.generation_config.eos_token_id = 3
    return found


@pytest.mark.parametrize(
    ("program", "token", "text"),
    [
        ("transformers", "eos_token_id=[3, 5] to", 'stop_strings=["is over"] and the tokenizer to'),
        ("vLLM", '"stop_token_ids": [5] in', '"stop": ["is over"] in'),
        ("llama.cpp", "--override-kv tokenizer.ggml.eot_token_id=int:5 to", '--reverse-prompt "is over" to'),
    ],
)
def test_each_program_is_told_in_its_own_words(model: Any, program: Program, token: str, text: str) -> None:
    (note,) = answer_end(model, word_tokenizer()).notes([program])
    assert note.startswith("An answer ends with token 5 (<|end|>), which the backbone's generation")
    assert f": give {token} " in note
    (note,) = answer_end(model, word_tokenizer(WORDS)).notes([program], named=True)
    assert note.startswith('An answer ends with the text "is over", ')
    assert f": give {text} " in note


def test_nothing_is_told_where_the_model_says_it(model: Any) -> None:
    assert not list(answer_end(model, word_tokenizer(None)).notes(["vLLM"]))
    assert not list(answer_end(model, word_tokenizer()).notes(["vLLM"], named=True))
    model.generation_config.eos_token_id = [3, 5]
    assert not list(answer_end(model, word_tokenizer()).notes(["vLLM"]))


def test_an_end_of_the_tokenizer_that_the_model_does_not_name_is_told(model: Any) -> None:
    model.generation_config.eos_token_id = None
    (note,) = answer_end(model, word_tokenizer()).notes(["transformers", "vLLM"])
    assert "token 3 (</s>) or 5 (<|end|>)" in note
    assert note.endswith(
        'give eos_token_id=[3, 5] to generate(), and "stop_token_ids": [3, 5] in each request to vLLM.'
    )
