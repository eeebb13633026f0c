"""Prompt-tuning: trained vectors in front of the input embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from autopeft.method import MethodConfig, Narrow, ParameterCount, PeftFormat, Traits, register
from autopeft.nn import PromptInit, PromptTable, prompt_width
from autopeft.spec import BackboneSpec, Site

__all__ = ["PromptTuning"]


@register("prompt_tuning")
class PromptTuning:
    """H₀ = [P; Emb(x)] with P (length × d) trained; in the encoder where there are two stacks.

    Lester et al. 2021, arXiv:2104.08691. `init` (§3.2): `uniform` in [−0.5, 0.5]; `normal` N(0, 0.02);
    `vocabulary` copies embeddings of frequent tokens, taking the first 5,000 ids as these (vocabularies are
    ordered by frequency, roughly; BERT's first 1,000 are mostly unused); `labels` begins each of the first
    rows as a class label, the mean of its tokens' embeddings, and the others as `vocabulary` does, which is
    the paper's own init. The labels' tokens are `label_words`, in the order of the classes: an id, or several
    for a label of several tokens, as `tokenizer(name, add_special_tokens=False).input_ids` gives them. Labels
    that there is no row for are left out. Vision backbones have no vocabulary and get the rows at the end.
    With a recipe's `from:` it begins with a stored prompt of the same shape that `prompt_tuning`, `spot`,
    `tpt` or `p_tuning` left: they leave rows among the embeddings alone. The sequence grows by `length`. The
    paper has 100 rows by default and finds marginal gains above 20. Not the identity at init; not mergeable.
    length·d parameters.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings",),
        default_sites=("embeddings",),
        level="model",
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"
    peft = PeftFormat("prompt")
    narrow: ClassVar[Narrow] = {"length": {"table": (0,)}}

    class Config(MethodConfig):
        length: int = Field(default=20, ge=1, le=4096, description="l")
        init: PromptInit | Literal["labels"] = "uniform"
        label_words: tuple[int | tuple[int, ...], ...] | None = Field(
            default=None, min_length=1, description="for each class the id, or the ids, of its label's tokens"
        )

        @model_validator(mode="after")
        def _labels_have_words(self) -> PromptTuning.Config:
            words = self.label_words
            if (self.init == "labels") != (words is not None) or () in (words or ()):
                raise ValueError(
                    "init 'labels' and label_words go together, an id or several for each class, but got "
                    f"init={self.init!r}, label_words={words!r}"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config

    def _width(self, sites: Sequence[Site], spec: BackboneSpec) -> int:
        return prompt_width("prompt_tuning", sites, spec, self.config.init)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = self.config.length * self._width(sites, spec)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        labels = [(word,) if isinstance(word, int) else word for word in c.label_words or ()]
        init: PromptInit = "vocabulary" if c.init == "labels" else c.init
        return PromptTable(c.length, self._width(sites, spec), init, labels=labels)
