"""Classification by a verbaliser: the label words of a language model in the place of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from autopeft.assets import ModelSource, check_weights, load_config, load_model, resolve_model, unquantized
from autopeft.backbones import spec_of
from autopeft.errors import TaskError, UsageError
from autopeft.tasks.kinds.classification import CLASSIFICATION, ClassHead
from autopeft.tasks.kinds.cloze import (
    ClozeEncoder,
    check_pairs,
    label_logits,
    named_template,
    read_in,
    read_words,
)
from autopeft.tasks.kinds.registry import register_options
from autopeft.tasks.kinds.task_kind import TaskKind, name_with_options
from autopeft.tasks.kinds.verbaliser import EXAMPLES, LabelWords, Template

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec

__all__ = ["verbalised"]

_WITHOUT = "leave out the label words (--label-words) for a head of the task's own"


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
            what = (
                "masked language model"
                if named_template(self.template).masked
                else "decoder with a vocabulary"
            )
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
        name_with_options(CLASSIFICATION.name, {"label_words": words, "template": template}),
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
    check_pairs(named_template(template), pairs=pairs)
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


def _causal(spec: BackboneSpec) -> bool:
    return all(stack.causal for stack in spec.stacks)
