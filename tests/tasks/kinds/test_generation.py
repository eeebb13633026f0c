"""What is written in batches with kept keys and values is what each row alone gives, read anew each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cases import recipe_of
from support.language import TEMPLATE, word_tokenizer
from support.tiny import randomise, tiny_model
from torch import nn
from transformers import ByT5Tokenizer, MistralConfig, MistralForCausalLM, PreTrainedModel

from autopeft.assets import warn_once
from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid import attach
from autopeft.hybrid.prediction import predictive
from autopeft.recipe import Recipe
from autopeft.tasks.kinds import Generation
from autopeft.tasks.kinds.chat_templates import TurnEnd, turn_end
from autopeft.tasks.kinds.generation import generate, room_of
from autopeft.tasks.kinds.generative import generate_texts, own_ends

PROMPTS = [[5, 9, 11], [7, 8, 12, 30, 22, 41, 3], [44], [6, 6, 17, 23, 24]]
CASES = ("lora", "prefix", "serial-pfeiffer", "parallel", "prompt", "ia3")
WHOLE = ("gate", "route-sequence", "lora-dropout", "laplace")  # no key is kept under these
OF_TEXTS = ("apt", "idpg", "smop", "lpt", "selective-prompt")  # nor under prompts that depend on the text
OPTIONS: dict[str, Any] = {"ends": (), "pad": 0}


def with_hybrid(case: str, name: str) -> PreTrainedModel:
    model = tiny_model(name)
    hybrid = attach(model, recipe_of(case), seed=0)
    randomise(hybrid.root, std=0.1)
    hybrid.model.eval()
    return model


@torch.no_grad()
def one_by_one(model: nn.Module, prompt: list[int], new: int) -> list[int]:
    """The most probable token, again and again, of the row as a whole."""
    tokens = list(prompt)
    for _ in range(new):
        ids = torch.tensor([tokens])
        logits = predictive(model, lambda ids=ids: model(input_ids=ids, use_cache=False).logits[:, -1])
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("case", [*CASES, *WHOLE, *OF_TEXTS])
def test_a_batch_gives_what_each_row_alone_gives(case: str, name: str) -> None:
    model = with_hybrid(case, name)
    wanted = [one_by_one(model, prompt, 6) for prompt in PROMPTS]
    if (case, name) != ("gate", "gpt2"):  # this one writes the same token behind all
        assert len({tuple(row) for row in wanted}) > 1
    with torch.no_grad():
        assert generate(model, PROMPTS, Generation(), most=6, **OPTIONS) == wanted


BEGUN_ALIKE = [[2, 40, 31, 22, 13, 4, 15, 26, 37, *row] for row in PROMPTS]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("case", "once"),
    [
        *((c, c != "prompt") for c in CASES),
        *((c, c == "laplace") for c in WHOLE),
        *((c, False) for c in OF_TEXTS),
    ],
)
def test_what_prompts_begin_with_is_read_once(case: str, once: bool, name: str) -> None:
    model = with_hybrid(case, name)
    wanted = [one_by_one(model, prompt, 6) for prompt in BEGUN_ALIKE]
    read: list[tuple[int, ...]] = []
    live: Any = model.base_model
    hook = live.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with hook, torch.no_grad():
        assert generate(model, BEGUN_ALIKE, Generation(), most=6, **OPTIONS) == wanted
    assert (read[:2] == [(1, 9), (4, 7)]) == once


def asked_for_a_cache(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]] = PROMPTS
) -> list[bool]:
    """Whether each call of transformers' `generate` was one with a cache, while a text is written."""
    inner, asked = type(model).generate, []

    def told(self: Any, **kwargs: Any) -> Any:
        asked.append(self.generation_config.use_cache)
        return inner(self, **kwargs)

    monkeypatch.setattr(type(model), "generate", told)
    generate(model, prompts, Generation(), most=3, **OPTIONS)
    return asked


@pytest.mark.parametrize("case", [*CASES, *WHOLE, *OF_TEXTS])
def test_whether_a_cache_serves_is_known_beforehand(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serves = case in CASES or case == "laplace"
    assert asked_for_a_cache(with_hybrid(case, "llama"), monkeypatch) == [serves]


def test_no_cache_serves_a_prompt_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    item = {"p_tuning": {"length": 2, "encoder": "mlp", "slots": [{"length": 2, "anchor": "end"}]}}
    randomise(attach(model, Recipe.from_dict({"name": "end", "model": [item]}), seed=0).root)
    model.eval()
    wanted = [one_by_one(model, prompt, 3) for prompt in PROMPTS]
    assert asked_for_a_cache(model, monkeypatch) == [False]
    assert generate(model, PROMPTS, Generation(), most=3, **OPTIONS) == wanted


def test_no_cache_serves_rows_behind_more_tokens_than_a_prompt_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_hybrid("p-tuning-slots", "llama")  # one row is behind three tokens
    long = [prompt for prompt in PROMPTS if len(prompt) > 2]
    wanted = [one_by_one(model, prompt, 3) for prompt in PROMPTS]
    assert generate(model, PROMPTS, Generation(), most=3, **OPTIONS) == wanted
    assert asked_for_a_cache(model, monkeypatch) == [False]
    assert asked_for_a_cache(model, monkeypatch, long) == [True]


def test_what_goes_wrong_with_a_cache_is_not_tried_without() -> None:
    model = with_hybrid("lora", "llama")

    failed: list[str] = []

    def fails(*args: Any, **kwargs: Any) -> None:
        if not failed:
            failed.append("once")
            raise CompositionError("something else")

    with model.base_model.register_forward_pre_hook(fails), pytest.raises(CompositionError, match="else"):
        generate(model, PROMPTS, Generation(), most=3, **OPTIONS)


def test_what_one_row_begins_with_otherwise_is_read_with_it() -> None:
    model = with_hybrid("lora", "llama")
    prompts = [*BEGUN_ALIKE[:2], [3, *BEGUN_ALIKE[2][1:]]]
    found = generate(model, prompts, Generation(), most=6, **OPTIONS)
    assert found == [one_by_one(model, prompt, 6) for prompt in prompts]
    same = generate(model, [BEGUN_ALIKE[0]] * 3, Generation(), most=6, **OPTIONS)
    assert same == [one_by_one(model, BEGUN_ALIKE[0], 6)] * 3


def test_a_window_of_attention_reaches_as_far_back_as_in_one_row() -> None:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    config = MistralConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        sliding_window=8,
        max_position_embeddings=64,
        **sizes,
    )
    model = MistralForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    found = generate(model, BEGUN_ALIKE, Generation(), most=6, **OPTIONS)
    assert found == [one_by_one(model, prompt, 6) for prompt in BEGUN_ALIKE]


def test_a_model_without_a_hybrid_writes_too() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        found = generate(model, PROMPTS, Generation(max_new_tokens=3), most=6, **OPTIONS)
    assert found == [one_by_one(model, prompt, 3) for prompt in PROMPTS]


def test_what_the_model_itself_says_of_generation_changes_nothing() -> None:
    """A stranger's generation_config.json may hold anything."""
    model = with_hybrid("lora", "llama")
    plain = generate(model, PROMPTS, Generation(), most=6, **OPTIONS)
    own = model.generation_config
    own.num_beams, own.repetition_penalty, own.min_new_tokens, own.do_sample = 3, 9.0, 40, True
    assert generate(model, PROMPTS, Generation(), most=6, **OPTIONS) == plain
    assert model.generation_config is own


def test_an_end_token_ends_a_row() -> None:
    model = with_hybrid("lora", "llama")
    plain = generate(model, PROMPTS, Generation(), most=6, **OPTIONS)
    end = plain[1][2]
    found = generate(model, PROMPTS, Generation(), most=6, ends=(end,), pad=0)
    assert found == [row[: row.index(end) + 1] if end in row else row for row in plain]
    assert len(found[1]) < 6


def test_draws_come_from_the_seed_and_the_temperature() -> None:
    model = with_hybrid("lora", "llama")

    def drawn(seed: int, **how: Any) -> list[list[int]]:
        torch.manual_seed(seed)
        return generate(model, PROMPTS, Generation(**how), most=6, **OPTIONS)

    greedy = drawn(0)
    assert drawn(1) == greedy
    assert drawn(1, temperature=5.0) == drawn(1, temperature=5.0) != drawn(2, temperature=5.0)
    assert drawn(3, temperature=5.0, top_p=1e-6) == greedy


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_prompts_beyond_the_positions_lose_their_beginning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    model = with_hybrid("prompt", name)
    assert room_of(model) == 60, "four rows are the prompt's"
    long = [2, *[(7 * i) % 40 + 3 for i in range(70)]]
    found = generate(model, [long, PROMPTS[0]], Generation(), most=6, begin=2, **OPTIONS)
    assert found[0] == one_by_one(model, [2, *long[-53:]], 6)
    assert found[1] == one_by_one(model, PROMPTS[0], 6)
    assert "more than 54 tokens lose their beginning" in caplog.text


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_answer_takes_the_positions_that_its_own_prompt_leaves(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    model = with_hybrid("lora", name)
    assert room_of(model) == 64
    prompts = [[(7 * i) % 40 + 3 for i in range(length)] for length in (20, 3, 40, 3)]
    how = Generation(max_new_tokens=50)
    with torch.no_grad():
        found = generate(model, prompts, how, most=6, **OPTIONS)
        assert [len(row) for row in found] == [44, 50, 32, 50], "the rest, what was asked for, half"
        assert "fewer than 50 tokens" in caplog.text
        assert found[2] == one_by_one(model, prompts[2][-32:], 32)
        for prompt, row in zip(prompts, found, strict=True):
            assert generate(model, [prompt], how, most=6, **OPTIONS) == [row]


def test_what_is_written_beside_dept_ends_where_its_updates_do() -> None:
    model = tiny_model("llama")
    body = {"name": "d", "model": [{"dept": {"length": 4, "rank": 2, "max_length": 9}}]}
    attach(model, Recipe.from_dict(body), seed=0)
    assert room_of(model) == 9
    long = [2, *range(5, 15)]
    first, second = generate(model, [long, PROMPTS[0]], Generation(), most=6, begin=2, **OPTIONS)
    assert (len(first), len(second)) == (4, 6)


@pytest.mark.parametrize("case", ["lora", "gate"])
def test_pieces_are_the_whole(case: str) -> None:
    model, tokenizer = with_hybrid(case, "llama"), word_tokenizer(None, eos_token="<|end|>")
    pieces: list[str] = []
    [whole] = generate_texts(model, tokenizer, [[8, 9]], Generation(), most=12, told=pieces.append)
    assert "".join(pieces).strip() == whole.text


def test_ends_that_are_no_tokens_are_left_out() -> None:
    model = tiny_model("llama")
    words = model.config.vocab_size
    model.generation_config.eos_token_id = [3, words, 10**30, -1, "</s>"]
    assert own_ends(model) == (3,)
    tokenizer = word_tokenizer(None, eos_token="<|end|>")
    assert len(generate_texts(model, tokenizer, [[8, 9]], Generation(), most=3)) == 1


def test_a_tokenizer_in_python_tells_a_text_in_which_the_model_wrote_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, pieces = ByT5Tokenizer(), list[str]()
    written = [*tokenizer("two", add_special_tokens=False)["input_ids"], len(tokenizer), 10_000]

    def told(*args: Any, streamer: Any = None, **more: Any) -> list[list[int]]:
        streamer.put(torch.tensor([[5]]))
        for token in written:
            streamer.put(torch.tensor([token]))
        streamer.end()
        return [written]

    monkeypatch.setattr("autopeft.tasks.kinds.generative.generate", told)
    [found] = generate_texts(tiny_model("llama"), tokenizer, [[5]], Generation(), most=5, told=pieces.append)
    assert found.text == "two"
    assert "".join(pieces) == "two"


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot generate"):
        generate(tiny_model("bert"), PROMPTS, Generation(), most=3, **OPTIONS)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": -1.0}, "a number from 0"),
        ({"temperature": float("nan")}, "a number from 0"),
        ({"top_p": 0.0}, "above 0"),
    ],
)
def test_options_out_of_range_are_refused(said: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Generation(**said)


def test_what_ends_a_turn() -> None:
    tokenizer = word_tokenizer()
    assert turn_end(tokenizer).tokens == (3, 5), "</s>, and <|end|>, which the template writes"
    assert turn_end(word_tokenizer(None)).tokens == (3,)
    assert turn_end(tokenizer, (9, 3)).tokens == (3, 9, 5)
    words = turn_end(word_tokenizer(TEMPLATE.replace("<|end|>", "is over")))
    assert (words.tokens, words.text) == ((3,), "is over")
    silent = turn_end(word_tokenizer("{{ messages[0].content }}"))
    assert (silent.tokens, silent.text) == ((3,), None)


def test_words_that_end_a_turn_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = word_tokenizer(TEMPLATE.replace("<|end|>", "is over"))
    written = tokenizer.convert_tokens_to_ids(["two", "three", "is"])
    model, pieces = tiny_model("llama"), []  # type: ignore[var-annotated]

    def told(*args: Any, streamer: Any = None, **kwargs: Any) -> list[list[int]]:
        if streamer is not None:
            streamer.put(torch.tensor([[1]]))
            for token in written:
                streamer.put(torch.tensor([token]))
            streamer.end()
        return [written]

    monkeypatch.setattr("autopeft.tasks.kinds.generative.generate", told)
    monkeypatch.setattr("autopeft.tasks.kinds.generative.turn_end", lambda *_: TurnEnd((3,), "three"))
    [found] = generate_texts(model, tokenizer, [[1]], Generation(), most=4, told=pieces.append)
    assert found.text == "two"
    assert "".join(pieces).strip() == "two"
