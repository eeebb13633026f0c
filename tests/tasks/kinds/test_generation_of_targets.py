"""What a decoder writes to what its encoder reads, in batches and with kept keys and values, is what each row
alone gives, read anew each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cases import recipe_of
from support.language import encoder_decoder, side_tokenizer
from support.tiny import ENCODER_DECODERS, randomise, tiny_model
from torch import nn
from transformers import PreTrainedModel

from autopeft.errors import UsageError
from autopeft.hybrid import attach
from autopeft.hybrid.prediction import predictive
from autopeft.tasks.kinds import Generation
from autopeft.tasks.kinds.generation import generate
from autopeft.tasks.kinds.generative import generate_texts

SOURCES = [[5, 9, 11], [7, 8, 12, 30, 22, 41, 3], [44], [6, 6, 17, 23, 24]]
CASES = ("lora", "prefix", "serial-pfeiffer", "parallel", "prompt", "ia3")
WHOLE = ("gate", "route-sequence", "lora-dropout", "laplace")  # no key is kept under these
OPTIONS: dict[str, Any] = {"ends": (), "pad": 0}
STARTS = {"t5": 0, "bart": 2}


def with_hybrid(case: str, name: str) -> PreTrainedModel:
    model = tiny_model(name)
    hybrid = attach(model, recipe_of(case), seed=0)
    randomise(hybrid.root, std=0.1)
    return hybrid.model.eval()


@torch.no_grad()
def one_by_one(model: nn.Module, name: str, source: list[int], new: int) -> list[int]:
    """The most probable token, again and again, of source and target as a whole."""
    tokens = [STARTS[name]]
    for _ in range(new):
        ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([tokens])}
        logits = predictive(model, lambda ids=ids: model(**ids, use_cache=False).logits[:, -1])
        tokens.append(int(logits.argmax()))
    return tokens[1:]


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize("case", [*CASES, *WHOLE])
def test_a_batch_gives_what_each_row_alone_gives(case: str, name: str) -> None:
    model = with_hybrid(case, name)
    wanted = [one_by_one(model, name, source, 6) for source in SOURCES]
    with torch.no_grad():
        assert generate(model, SOURCES, Generation(), most=6, **OPTIONS) == wanted


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_rows_of_one_batch_differ(name: str) -> None:
    """Or the test above would see little."""
    model = with_hybrid("lora", name)
    assert len({tuple(one_by_one(model, name, source, 6)) for source in SOURCES}) > 1


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize("case", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_changes_no_token(
    case: str, name: str, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, how = with_hybrid(case, name), Generation(beams=beams)
    inner, asked = type(model).generate, []

    def anew(self: Any, **kwargs: Any) -> Any:
        asked.append(self.generation_config.use_cache)
        self.generation_config.use_cache = False
        return inner(self, **kwargs)

    with torch.no_grad():
        kept = generate(model, SOURCES, how, most=6, **OPTIONS)
        monkeypatch.setattr(type(model), "generate", anew)
        assert generate(model, SOURCES, how, most=6, **OPTIONS) == kept
    assert asked == [True]


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_beams_are_those_of_transformers(name: str) -> None:
    model = with_hybrid("lora", name)
    with torch.no_grad():
        found = generate(model, SOURCES[1:2], Generation(beams=4), most=8, ends=(9,), pad=0)
        wanted = model.generate(
            torch.tensor(SOURCES[1:2]), num_beams=4, max_new_tokens=8, do_sample=False, eos_token_id=9
        )
    assert found == [[token for token in wanted[0, 1:].tolist() if token != 0]]


@pytest.mark.parametrize("case", ["lora-dropout", "laplace"])
def test_beams_of_several_models(case: str) -> None:
    """Each beam of a row reads that row's source."""
    model = with_hybrid(case, "t5")
    with torch.no_grad():
        together = generate(model, SOURCES, Generation(beams=2), most=4, **OPTIONS)
        alone = [generate(model, [row], Generation(beams=2), most=4, **OPTIONS)[0] for row in SOURCES]
    assert together == alone


def test_a_first_token_that_the_model_forces_comes_first() -> None:
    """mBART's is the language to write in."""
    model = tiny_model("bart")
    plain = generate(model, SOURCES, Generation(), most=4, **OPTIONS)
    model.generation_config.forced_bos_token_id = 33
    forced = generate(model, SOURCES, Generation(), most=4, **OPTIONS)
    assert [row[0] for row in forced] == [33] * 4
    assert [row[0] for row in plain] != [33] * 4


def test_what_the_model_says_else_of_generation_changes_nothing() -> None:
    model = with_hybrid("lora", "t5")
    plain = generate(model, SOURCES, Generation(), most=6, **OPTIONS)
    own = model.generation_config
    own.num_beams, own.repetition_penalty, own.min_new_tokens, own.do_sample = 3, 9.0, 40, True
    own.forced_eos_token_id, own.no_repeat_ngram_size, own.length_penalty = 7, 1, 2.0
    assert generate(model, SOURCES, Generation(), most=6, **OPTIONS) == plain
    assert model.generation_config is own


def test_the_first_token_of_the_configuration_does_as_well() -> None:
    """A generation_config.json may not repeat it."""
    model = with_hybrid("lora", "bart")
    plain = generate(model, SOURCES, Generation(), most=6, **OPTIONS)
    model.generation_config.decoder_start_token_id = None
    assert generate(model, SOURCES, Generation(), most=6, **OPTIONS) == plain


def test_a_decoder_that_does_not_know_its_first_token_is_refused() -> None:
    model = tiny_model("t5")
    model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id = None
    with pytest.raises(UsageError, match=r"does not know what its decoder begins with"):
        generate(model, SOURCES, Generation(), most=4, **OPTIONS)


def test_both_sides_have_the_positions_for_themselves(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("bart")  # of 64 positions
    source = [5] * 63 + [9]
    found = generate(model, [source], Generation(), most=200, **OPTIONS)
    assert len(found[0]) == 63
    assert generate(model, [[5] * 70 + [9]], Generation(), most=200, **OPTIONS) == found
    assert any("lose their end: the model has 64 positions" in r.getMessage() for r in caplog.records)


def test_pieces_are_the_whole_and_of_beams_one() -> None:
    model, tokenizer = encoder_decoder("t5"), side_tokenizer()
    for beams in (1, 3):
        pieces: list[str] = []
        how = Generation(beams=beams)
        (found,) = generate_texts(model, tokenizer, [[7, 8, 3]], how, most=6, told=pieces.append)
        assert "".join(pieces).strip() == found.text
        assert found.text
    assert len(pieces) == 1


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"beams": 0}, "beams is from 1 to 100, but got 0"),
        ({"beams": 101}, "beams is from 1 to 100, but got 101"),
        ({"beams": 2, "temperature": 0.5}, "leave one of them out"),
    ],
)
def test_beams_out_of_range_are_refused(said: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Generation(**said)
