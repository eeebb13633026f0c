"""A few rows of each kind of task, for tiny models: random words, in the batches that the kind has in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from autopeft.assets.images import image_processor_of
from autopeft.tasks import Task, task_set
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.tasks.images import image_of
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.spans import Answers
from autopeft.tasks.kinds.tags import Tags
from autopeft.tasks.task import Source, Split, SplitName

__all__ = ["END", "TWO", "WORDS", "kind_of_two", "tiny_rows"]

WORDS, _LONGEST = 40, 16
"""Size of the vocabulary, with its special tokens in front."""
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
END = _SPECIAL.index("</s>")
_IMAGES = "image_classification"
_TOLD = "w7"
"""The word that a class tells of."""
TWO = ("first", "second")
"""The names of the tasks of a set."""
_ROWS: dict[SplitName, int] = {"train": 24, "select": 8, "test": 8}


def tiny_rows(kind: str, config: PretrainedConfig) -> EncodedTask:
    """Rows of random words, or noise, with answers of a kind.

    Args:
        config: of a model that knows `WORDS` tokens or more, or takes images of its own `image_size`.
    """
    return _images(config) if get_kind(kind).head.modality == "vision" else _texts(kind)


def kind_of_two(kind: str) -> str:
    """The kind of a set of two tasks of a kind."""
    return _two(kind).kind


def _two(kind: str) -> Task:
    # A set is scored by the mean of metrics that need no written answers.
    metric = next(m.name for m in get_kind(kind).scorer.metrics if not m.generated and m.high <= 1)
    seeds = zip((0, 9), TWO, strict=True)
    return task_set([replace(_of_texts(kind, seed), name=name, metric=metric) for seed, name in seeds])


@cache
def _texts(kind: str) -> EncodedTask:
    members = getattr(get_kind(kind).schema, "members", ())
    task = _two(members[0].kind) if members else _of_texts(kind)
    return encode(task, _tokenizer(ends=get_kind(kind).head.new_head), _LONGEST)


def _of_texts(kind: str, first_seed: int = 0) -> Task:
    seeds = zip(_ROWS, range(first_seed, first_seed + len(_ROWS)), strict=True)
    return _task(kind, {name: _MADE[kind](*_words(_ROWS[name], seed)) for name, seed in seeds})


def _images(config: PretrainedConfig) -> EncodedTask:
    from transformers import ViTImageProcessorPil

    side = int(config.image_size)
    inner = ViTImageProcessorPil(size={"height": side, "width": side})
    splits = {name: _pictures(rows, seed, side) for seed, (name, rows) in enumerate(_ROWS.items())}
    return encode(_task(_IMAGES, splits), image_processor_of(inner, config, "a tiny model"), _LONGEST)


def _task(kind: str, splits: dict[SplitName, Split]) -> Task:
    # A metric of what is written is a reward too, for methods that learn from some.
    metric = next((m for m in get_kind(kind).scorer.metrics if m.generated), None)
    measured = get_kind(kind).scorer.metric_for(()) if metric is None else metric.name
    return Task(
        "random", kind, _NAMES.get(kind, ()), splits, measured, None, Source("memory", "random", "0" * 64)
    )


def _pictures(rows: int, seed: int, side: int) -> Split:
    """Noise that is dark or light."""
    rng = np.random.default_rng(seed)
    told = rng.integers(0, 2, size=rows)
    found = []
    for i, label in enumerate(told):
        values = rng.integers(0, 128, size=(side, side, 3)) + 127 * label
        found.append(image_of(Image.fromarray(values.astype(np.uint8)), f"image {i}"))
    return Split([image.digest for image in found], None, told.tolist(), {"image": found})


def _words(rows: int, seed: int) -> tuple[list[str], list[str], list[int]]:
    """Texts, an answer to each, and whether the text has a certain word."""
    rng = np.random.default_rng(seed)

    def some(least: int, most: int) -> list[list[str]]:
        return [
            [f"w{word}" for word in rng.integers(8, WORDS, size=count)]
            for count in rng.integers(least, most, size=rows)
        ]

    texts, answers = some(3, 11), some(1, 4)
    told = rng.integers(0, 2, size=rows).tolist()
    for text, label in zip(texts, told, strict=True):
        if label:
            text[rng.integers(0, len(text))] = _TOLD
    return [" ".join(text) for text in texts], [" ".join(answer) for answer in answers], told


def _classes(texts: list[str], answers: list[str], told: list[int]) -> Split:
    return Split(texts, None, told)


def _numbers(texts: list[str], answers: list[str], told: list[int]) -> Split:
    return Split(texts, None, [label + len(text) / 100 for text, label in zip(texts, told, strict=True)])


def _marks(texts: list[str], answers: list[str], told: list[int]) -> Split:
    return Split(
        texts, None, [np.array([label, len(text) % 2]) for text, label in zip(texts, told, strict=True)]
    )


def _tags(texts: list[str], answers: list[str], told: list[int]) -> Split:
    words = [text.split() for text in texts]
    tags = [Tags([int(word == _TOLD) for word in row], _NAMES["token_classification"]) for row in words]
    return Split(texts, None, tags, {"words": words})


def _conversations(texts: list[str], answers: list[str], told: list[int]) -> Split:
    turns = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        for text, answer in zip(texts, answers, strict=True)
    ]
    return Split(texts, None, answers, {"messages": turns})


def _targets(texts: list[str], answers: list[str], told: list[int]) -> Split:
    return Split(texts, None, answers)


def _spans(texts: list[str], answers: list[str], told: list[int]) -> Split:
    found = []
    for text in texts:
        word = text.split()[-1]
        found.append(Answers([(len(text) - len(word), word)], text, null=False))
    return Split(answers, texts, found)


def _choices(texts: list[str], answers: list[str], told: list[int]) -> Split:
    others = [*answers[1:], answers[0]]
    pairs = [[own, other] for own, other in zip(answers, others, strict=True)]
    return Split(texts, None, told, {"choices": pairs})


_NAMES: dict[str, tuple[str, ...]] = {
    "classification": ("no", "yes"),
    "multi_label": ("told", "odd"),
    "token_classification": ("O", "told"),
    _IMAGES: ("dark", "light"),
}
_MADE: dict[str, Callable[[list[str], list[str], list[int]], Split]] = {
    "classification": _classes,
    "regression": _numbers,
    "multi_label": _marks,
    "token_classification": _tags,
    "question_answering": _spans,
    "causal_lm": _conversations,
    "seq2seq": _targets,
    "multiple_choice": _choices,
}


def _tokenizer(*, ends: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of words, which `ends` each text by a token for it, where encoder-decoders look for one."""
    words = [*_SPECIAL, *(f"w{number}" for number in range(len(_SPECIAL), WORDS))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        inner.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        model_max_length=96, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
