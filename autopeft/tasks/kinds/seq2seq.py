"""Sequence to sequence: a target text for a source text, by an encoder-decoder such as T5 or BART."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from autopeft.assets import ModelSource, load_config, load_generation_config
from autopeft.errors import DataError, UsageError
from autopeft.tasks.kinds.conversations import MESSAGES, pair_columns, read_conversations, sureness
from autopeft.tasks.kinds.generation import beginning
from autopeft.tasks.kinds.language_model import UNKNOWN, AnswersEncoder, AnswersSchema, LanguageHead
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.targets import EncodedTargets, encode_targets
from autopeft.tasks.kinds.task_kind import TaskKind
from autopeft.tasks.kinds.writing import WritingScorer
from autopeft.tasks.table import ColumnNames, Columns, RawRows, Table

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import Split

_APART = 0.02  # from the claim of decoders, which learn the same rows


class SourceSchema(AnswersSchema):
    """Rows are sources with targets: the encoder reads the source, and the decoder predicts each token of the
    target from those before it."""

    turns = False

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims what decoders can learn as well, but for plain texts: sources with targets a little more
        surely than they, prompts with answers and conversations a little less."""
        found = sureness(tables, named, plain=False)
        pairs = named == ColumnNames() and pair_columns(tables["train"]) is not None
        return max(0.0, found + (_APART if pairs else -_APART)) if found else 0.0

    def read(self, table: Table, columns: Columns) -> RawRows:
        """See `read_conversations`: the source is what is asked, with the roles where these are several
        messages, and the target the last answer.

        Raises:
            DataError: see `read_conversations`; or there are no targets.
        """
        return self._rows(table, read_conversations(table, columns))

    def _rows(self, table: Table, found: RawRows, *, asked: bool = False) -> RawRows:
        plain = [i for i, row in enumerate(found.fields[MESSAGES]) if row[0]["role"] == "assistant"]
        if plain and not asked:
            raise DataError(
                f"{table.where} has texts without targets, and {self.kind} learns a target for each source: "
                "name the column of sources with --text and that of targets with --label."
            )
        return replace(found, fields={n: v for n, v in found.fields.items() if n != MESSAGES})

    def read_texts(self, table: Table, columns: Columns, use: Mapping[str, Any]) -> RawRows:
        """See `read_conversations`; rows need no target."""
        return self._rows(table, read_conversations(table, columns, asked=True, plain=False), asked=True)

    def asked_row(self, messages: Sequence[Mapping[str, str]]) -> Split:
        """See `Schema.asked_row`: the last message alone."""
        from autopeft.tasks.split import Split

        return Split([str(messages[-1]["content"])], None, [""])


class TargetEncoder(AnswersEncoder):
    """Tokens of sources and targets."""

    def asks(self, rows: Split) -> bool:
        """Each row has a source."""
        return True

    def _before(self, rows: Split, examples: Split) -> Split:
        """The rows with these sources and their targets, a line each, before each source: as FLAN's few-shot
        templates have them (Longpre et al. 2023, arXiv:2301.13688)."""
        pairs = zip(examples.texts, examples.labels, strict=True)
        shown = "".join(f"{source}\n{target}\n\n" for source, target in pairs)
        return replace(rows, texts=[shown + text for text in rows.texts])

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedTargets:
        """See `Encoder.encode` and `encode_targets`."""
        targets = [str(label) for label in rows.labels]
        found = encode_targets(rows.texts, targets, tokenizer, max_length, kind=self.kind, cached=cached)
        return found if labelled else replace(found, longest=UNKNOWN)


class EncoderDecoderHead(LanguageHead):
    """The head of an encoder-decoder, whose decoder reads the target moved by one."""

    auto_class = AutoModelForSeq2SeqLM
    peft_task_type = "SEQ_2_SEQ_LM"
    hub_pipeline = "text2text-generation"
    ahead = 0

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        """See `Head.refused`: one stack is no encoder with a decoder."""
        if spec.encoder_decoder:
            return None
        other = ""
        if all(stack.causal for stack in spec.stacks):
            other = "learn the same rows with --kind causal_lm (kind='causal_lm'), or "
        return (
            f"{model!r} has no encoder with a decoder, which {self.kind} needs: {other}take a model such as "
            "T5 or BART, a folder or a name on the hub (--model)."
        )

    def check_weights(self, source: ModelSource) -> None:
        """See `Head.check_weights`: what the decoder begins with when it writes."""
        beginning(load_config(source), load_generation_config(source))

    def inputs(self, model: torch.nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`decoder_input_ids` (B, T): the labels moved by one, by the model's own rule.

        Raises:
            UsageError: the model has no such rule, or does not know its first token.
        """
        shift: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift is None:
            raise UsageError(
                f"{type(model).__name__} does not say what its decoder reads for labels (it lacks "
                "`prepare_decoder_input_ids_from_labels`), so that it cannot be trained on targets."
            )
        try:
            return {"decoder_input_ids": shift(labels=batch["labels"])}
        except (ValueError, TypeError, RuntimeError) as error:
            raise UsageError(
                f"{type(model).__name__} does not know what its decoder begins with ({error}); set "
                "decoder_start_token_id and pad_token_id in its config.json."
            ) from error


class TargetScorer(WritingScorer):
    """Targets, whose tokens stand where they are predicted."""

    ahead = 0

    def describe_labels(self, names: Sequence[str]) -> str:
        return "the tokens of a target"


register_kind(
    TaskKind(
        "seq2seq",
        "a target text for a source text, by an encoder-decoder",
        schema=SourceSchema(),
        encoder=TargetEncoder(),
        head=EncoderDecoderHead(),
        scorer=TargetScorer(),
    )
)
