"""Sequence to sequence: a target text for a source text, by an encoder-decoder such as T5 or BART."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from autopeft.assets import ModelSource, load_config, load_generation_config, warn_once
from autopeft.errors import DataError, UsageError
from autopeft.tasks.fingerprints import fingerprint_of
from autopeft.tasks.kinds.conversation_tokens import ANSWER_CUT, IGNORED, PROMPT_CUT, EncodedPrompts
from autopeft.tasks.kinds.conversations import MESSAGES, AnswersSchema, pair_columns, read_conversations
from autopeft.tasks.kinds.generation import beginning
from autopeft.tasks.kinds.generative import GenerativeScorer
from autopeft.tasks.kinds.language_model import UNKNOWN, AnswersEncoder, LanguageHead
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.task_kind import TaskKind
from autopeft.tasks.table import ColumnNames, Columns, RawRows, Table
from autopeft.tasks.tokens import (
    Indices,
    check_length,
    content_hash,
    keep_arrays,
    places_of,
    ragged,
    read_arrays,
    tokens_of,
)

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import Split

__all__ = ["EncodedTargets", "TargetEncoder"]

_FORMAT = 1
_CHUNK = 1_000
_APART = 0.02  # from the claim of decoders, which learn the same rows


class SourceSchema(AnswersSchema):
    """Rows are sources with targets: the encoder reads the source, and the decoder predicts each token of the
    target from those before it."""

    turns = False
    learns_texts = False

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims what decoders can learn as well, but for plain texts: sources with targets a little more
        surely than they, prompts with answers and conversations a little less."""
        found = super().claim(tables, named)
        pairs = named == ColumnNames() and pair_columns(tables["train"]) is not None
        return max(0.0, found + (_APART if pairs else -_APART)) if found else 0.0

    def read(self, table: Table, columns: Columns) -> RawRows:
        """See `read_conversations`: the source is what is asked, with the roles where these are several
        messages, and the target the last answer.

        Raises:
            DataError: see `read_conversations`; or there are no targets.
        """
        found = read_conversations(table, columns)
        if any(row[0]["role"] == "assistant" for row in found.fields[MESSAGES]):
            raise DataError(
                f"{table.where} has texts without targets, and {self.kind} learns a target for each source: "
                "name the column of sources with --text and that of targets with --label."
            )
        return replace(found, fields={n: v for n, v in found.fields.items() if n != MESSAGES})

    def read_texts(self, table: Table, columns: Columns, use: Mapping[str, Any]) -> RawRows:
        """See `read_conversations`; rows need no target."""
        found = read_conversations(table, columns, asked=True, plain=False)
        return replace(found, fields={n: v for n, v in found.fields.items() if n != MESSAGES})

    def asked_row(self, messages: Sequence[Mapping[str, str]]) -> Split:
        """See `Schema.asked_row`: the last message alone."""
        from autopeft.tasks.split import Split

        return Split([str(messages[-1]["content"])], None, [""])


@dataclass(frozen=True, eq=False)
class EncodedTargets(EncodedPrompts):
    """Tokens of sources, as `ids` and `offsets`, and of targets.

    Attributes:
        target_ids: tokens of all targets, one row after the other.
        target_offsets: where those of each row begin, (rows + 1,); rows without a target have none.

    `labels` are the numbers of tokens of the targets, (rows,) int64.
    """

    target_ids: NDArray[np.int32]
    target_offsets: Indices

    @property
    def lengths(self) -> Indices:
        """Tokens of source and target together, (rows,): what a row costs."""
        return np.diff(self.offsets) + np.diff(self.target_offsets)

    @property
    def prompt_lengths(self) -> Indices:
        """Tokens of each source, (rows,)."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """See `EncodedSplit.fingerprint`; of both sides, as a decoder's states depend on both."""
        digest = hashlib.sha256(super().fingerprint.encode())
        for array in (self.target_ids, self.target_offsets):
            digest.update(str((array.dtype, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def offsets_of(self, stack: str) -> Indices:
        """See `EncodedSplit.offsets_of`: a decoder reads the target, moved by one."""
        return self.target_offsets if stack == "decoder" else self.offsets

    def take(self, rows: Indices) -> EncodedTargets:
        """See `EncodedSplit.take`."""
        counts = np.diff(self.target_offsets)[rows]
        return replace(
            super().take(rows),
            target_ids=self.target_ids[places_of(self.target_offsets, np.asarray(rows, dtype=np.int64))],
            target_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """As `EncodedSplit.collate`; `labels` (B, T) int64 are the tokens of the targets, and -100 behind
        them. What the decoder reads is made of them by the model (see `Head.inputs`)."""
        chosen = np.asarray(rows, dtype=np.int64)
        batch = super().collate(chosen, device=device)
        flat, inside = self.layout(chosen, "decoder")
        labels = np.full(inside.shape, IGNORED, dtype=np.int64)
        labels[inside] = self.target_ids[flat]
        return {**batch, "labels": torch.from_numpy(labels).to(device, non_blocking=True)}


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
        """See `Encoder.encode`: sources and targets, each with the special tokens that the tokenizer gives
        its side.

        A target ends with the tokenizer's end token also where the tokenizer itself puts none there, or a
        model would never learn where to end. Either side is cut to `max_length` tokens, at the end that the
        tokenizer cuts, its special tokens kept; a warning says how many were. Rows may lack their target."""
        check_length(tokenizer, max_length)
        targets = [str(label) for label in rows.labels]
        there = np.asarray([bool(target) for target in targets], dtype=bool)
        read = _encoded_side(rows.texts, tokenizer, max_length, target=False, cached=cached)
        whole = [target for target in targets if target]
        written = _encoded_side(whole, tokenizer, max_length, target=True, cached=cached)
        counts, target_cut = np.zeros(len(there), dtype=np.int64), np.zeros(len(there), dtype=np.int8)
        counts[there], target_cut[there] = np.diff(written["offsets"]), written["row_cut"]
        row_cut = (PROMPT_CUT * read["row_cut"] + ANSWER_CUT * target_cut).astype(np.int8)
        for bit, side in ((PROMPT_CUT, "sources"), (ANSWER_CUT, "targets")):
            if cut := int(((row_cut & bit) > 0).sum()):
                warn_once(
                    f"{cut:,} of {len(row_cut):,} {side} do not fit into {max_length} tokens and are cut; "
                    "raise --max-length (max_length=…)."
                )
        return EncodedTargets(
            ids=read["ids"],
            offsets=read["offsets"],
            types=None,
            labels=counts,
            kind=self.kind,
            pad_id=int(tokenizer.pad_token_id),
            pad_type=0,
            max_length=max_length,
            row_cut=row_cut,
            answers=ragged(targets),
            tokenizer=tokenizer,
            longest=max(1, int(counts.max(initial=0))) if labelled else UNKNOWN,
            target_ids=written["ids"],
            target_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )


def _encoded_side(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, *, target: bool, cached: bool
) -> dict[str, NDArray[Any]]:
    """`ids`, `offsets` and `row_cut` (1 where it was) of one side of all rows."""
    if not texts:
        return {
            "ids": np.empty(0, np.int32),
            "offsets": np.zeros(1, np.int64),
            "row_cut": np.empty(0, np.int8),
        }
    key = None
    if cached:
        languages = [str(getattr(tokenizer, name, None)) for name in ("src_lang", "tgt_lang")]
        side = "targets" if target else "sources"
        key = content_hash(
            json.dumps([side, _FORMAT, max_length, fingerprint_of(tokenizer), languages]), texts
        )
    arrays = read_arrays(key, len(texts))
    if arrays is None:
        end: list[int] = []
        if target and tokenizer.eos_token_id is not None:
            put = tokens_of(tokenizer, ["a"], None, target=True)["input_ids"][0]
            end = [] if tokenizer.eos_token_id in put else [int(tokenizer.eos_token_id)]
        most = max_length - len(end)
        ids: list[list[int]] = []
        cut: list[bool] = []
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            found = tokens_of(tokenizer, chunk, None, target=target, truncation=False, verbose=False)
            found = list(found["input_ids"])
            long = [i for i, row in enumerate(found) if len(row) > most]
            if long:
                some = [chunk[i] for i in long]
                short = tokens_of(tokenizer, some, None, target=target, truncation=True, max_length=most)
                for i, row in zip(long, short["input_ids"], strict=True):
                    found[i] = row
            ids += [[*row, *end] for row in found]
            lost = set(long)
            cut += [i in lost for i in range(len(chunk))]
        # A tokenizer without special tokens may give nothing for a text; one padding token keeps the row.
        ids = [row or [int(tokenizer.pad_token_id)] for row in ids]
        arrays = {
            "ids": np.concatenate([np.asarray(row, dtype=np.int32) for row in ids]),
            "offsets": np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64),
            "row_cut": np.asarray(cut, dtype=np.int8),
        }
        arrays = keep_arrays(key, len(texts), arrays)
    return {name: np.asarray(array) for name, array in arrays.items()}


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


class TargetScorer(GenerativeScorer):
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
