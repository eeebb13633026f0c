"""Classification by a verbaliser: the label words of a language model in the place of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from autopeft.assets import ModelSource, check_weights, load_config, load_model, resolve_model, unquantized
from autopeft.backbones import spec_of
from autopeft.errors import TaskError, UsageError
from autopeft.tasks.kinds.classification import CLASSIFICATION, ClassHead
from autopeft.tasks.kinds.cloze import (
    EncodedCloze,
    cut_rows,
    encode_cloze,
    label_logits,
    read_in,
    read_words,
    word_tokens,
)
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.registry import register_options
from autopeft.tasks.kinds.task_kind import TaskKind, told_name
from autopeft.tasks.kinds.verbaliser import EXAMPLES, LabelWords, Template

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import Split

__all__ = ["verbalised"]

_WITHOUT = "leave out the label words (--label-words) for a head of the task's own"


class ClozeEncoder(Encoder):
    """Tokens of a template with the texts of rows in it, and where the label word is predicted.

    Args:
        words: label words, one for each class.
        template: that texts are put in; `None` where it is not known yet.
    """

    def __init__(self, words: LabelWords, template: Template | None) -> None:
        super().__init__()
        self.words, self._template = words, template

    @property
    def template(self) -> Template:
        """What texts are put in.

        Raises:
            TaskError: it is left open.
        """
        return _named(self._template)

    def facts(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """The template and the label words."""
        words = zip(names, self.words.words, strict=True)
        told = ", ".join(f"{word!r} for {name!r}" for name, word in words)
        return [("template", repr(str(self.template))), ("label words", told)]

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedCloze:
        """The rows in the template. See `encode_cloze`.

        Raises:
            TaskError, UsageError: see there; or the rows have not as many texts as the template.
        """
        _check_pairs(self.template, pairs=rows.pairs is not None)
        found = encode_cloze(
            rows.texts, rows.pairs, self.words, self.template, tokenizer, max_length, kind=self.kind,
            cached=cached,
        )  # fmt: skip
        return replace(found, labels=self.label_array(rows.labels)) if labelled else found

    def truncated(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float:
        """Share of rows whose texts are cut; the template never is."""
        if not len(rows):
            return 0.0
        _check_pairs(self.template, pairs=rows.pairs is not None)
        word_tokens(self.words, self.template, tokenizer)  # before anything is trained
        return float(np.mean(cut_rows(rows.texts, rows.pairs, self.template, tokenizer, max_length)))


class ClozeHead(ClassHead):
    """The head of a language model, of which the label words are read. No head is put on the backbone, and
    that of the language model stays as it was trained, so that a backbone as it is answers too.

    Args:
        template: that texts are put in; `None` where it is not known yet.
    """

    new_head = False
    pooled = False  # the batch says which position is read

    def __init__(self, template: Template | None) -> None:
        self.template = template
        masked = template is None or template.masked
        self.auto_class = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        self.peft_task_type = None if masked else "CAUSAL_LM"
        self.hub_pipeline = None

    def config(self, names: Sequence[str]) -> dict[str, Any]:
        """Nothing is set: the vocabulary is the backbone's."""
        return {}

    def names_in(self, config: Any) -> tuple[str, ...] | None:
        """`None`: a configuration does not say what is done with a backbone."""
        return None

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        """Encoder-decoders and what reads no text are, and those that the template is not for."""
        if spec.encoder_decoder or spec.modality != "text":
            what = "an encoder-decoder" if spec.encoder_decoder else "no model of texts"
            return (
                f"{model!r} is {what}, and label words are for masked language models and decoders: take one "
                f"(--model), or {_WITHOUT}."
            )
        causal = _causal(spec)
        if self.template is None or causal != self.template.masked:
            return None
        example = repr(EXAMPLES[not causal, self.template.of_pairs])
        if causal:
            return (
                f"The template {str(self.template)!r} has a {{mask}}, but {model!r} is a decoder, which "
                f"predicts what comes next: end the template where the word comes, as in {example}."
            )
        return (
            f"The template {str(self.template)!r} has no {{mask}}, but {model!r} is no decoder: it predicts "
            f"words at a mask. Write one where the word comes, as in {example}."
        )

    def check_weights(self, source: ModelSource) -> None:
        """See `Head.check_weights`."""
        self._check(source)
        check_weights(source, self.auto_class)

    def load_model(
        self,
        source: ModelSource | str,
        names: Sequence[str],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> PreTrainedModel:
        """See `Head.load_model`.

        Raises:
            UsageError: the backbone is refused (see `refused`), transformers has no such language model of
                its architecture, or the weights lack its head, which would be random.
        """
        found = resolve_model(source) if isinstance(source, str) else source
        self._check(found)
        return load_model(found, self.auto_class, seed=seed, dtype=dtype, new_head=False)

    def _check(self, source: ModelSource) -> None:
        name = source.alias or source.path
        config = unquantized(load_config(source), name)
        refused = self.refused(spec_of(config), name)
        if refused is not None:
            raise UsageError(refused)
        if type(config) not in self.auto_class._model_mapping:
            what = "masked language model" if _named(self.template).masked else "decoder with a vocabulary"
            raise UsageError(
                f"transformers has no {what} of the architecture {config.model_type!r} ({name!r}): take "
                f"another backbone (--model), or {_WITHOUT}."
            )

    def logits_of(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (rows, classes) of the label words where the word is predicted."""
        return label_logits(super().logits_of(output, batch), batch)

    def reads(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The mask, or the last token, of each row."""
        return read_in(batch)

    def reading(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """One position of each row goes through the vocabulary's projection, for the label words alone."""
        return read_words(model, batch)


def verbalised(words: LabelWords, template: Template | None) -> TaskKind:
    """Classification by label words.

    Args:
        words: one for each class.
        template: that texts are put in; `None` for the default of the backbone, which is not known yet.
    """
    return TaskKind(
        told_name(CLASSIFICATION.name, {"label_words": words, "template": template}),
        CLASSIFICATION.summary,
        schema=CLASSIFICATION.schema,
        encoder=ClozeEncoder(words, template),
        head=ClozeHead(template),
        scorer=CLASSIFICATION.scorer,
        settle=partial(_settled, words, template),
    )


def _settled(
    words: LabelWords,
    template: Template | None,
    names: Sequence[str],
    pairs: bool,
    backbone: BackboneSpec | None,
) -> TaskKind:
    """The words in the order of the classes, and the template or the backbone's default.

    Raises:
        TaskError: the words do not fit the classes, or the template the texts; or neither template nor
            backbone is known.
    """
    words = words.in_order(names)
    if template is None and backbone is not None:
        template = Template.parse(EXAMPLES[not _causal(backbone), pairs])
    _check_pairs(_named(template), pairs=pairs)
    return verbalised(words, template)


@register_options(CLASSIFICATION.name, "label_words", "template")
def _told(told: Mapping[str, str]) -> TaskKind:
    if "label_words" not in told:
        raise TaskError(
            "A template is for label words, and there are none; name one for each class (--label-words "
            "bad,great), or leave out the template."
        )
    template = told.get("template")
    words = LabelWords.parse(told["label_words"])
    return verbalised(words, None if template is None else Template.parse(template))


def _named(template: Template | None) -> Template:
    """A template that is not left open.

    Raises:
        TaskError: it is.
    """
    if template is None:
        raise TaskError(
            f"Label words stand in a template, and none is named: write {EXAMPLES[True, False]!r} for a "
            f"masked language model, or {EXAMPLES[False, False]!r} for a decoder (--template)."
        )
    return template


def _check_pairs(template: Template, *, pairs: bool) -> None:
    """Compare the template with rows that are pairs of texts, or not.

    Raises:
        TaskError: it has not as many texts.
    """
    if template.of_pairs != pairs:
        have, has = ("two texts", "no {text_pair}") if pairs else ("one text", "a {text_pair}")
        raise TaskError(
            f"The rows have {have} each, but the template {str(template)!r} has {has}; write for example "
            f"{EXAMPLES[template.masked, pairs]!r} (--template)."
        )


def _causal(spec: BackboneSpec) -> bool:
    return all(stack.causal for stack in spec.stacks)
