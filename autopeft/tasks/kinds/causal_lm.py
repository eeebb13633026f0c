"""Language models: answers to prompts, or texts, of which each token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from autopeft.errors import TaskError
from autopeft.tasks.kinds.conversation_tokens import EncodedConversations, encode_conversations
from autopeft.tasks.kinds.conversations import AnswersSchema, asked_of, read_conversations, with_turns
from autopeft.tasks.kinds.generative import GenerativeScorer
from autopeft.tasks.kinds.language_model import UNKNOWN, AnswersEncoder, DecoderHead
from autopeft.tasks.kinds.likelihoods import LIKELIHOOD, TOKEN_ACCURACY
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.task_kind import TaskKind
from autopeft.tasks.table import Columns, RawRows, Table

if TYPE_CHECKING:
    from autopeft.tasks.split import Split


class ConversationSchema(AnswersSchema):
    """Rows are conversations, or plain texts."""

    def read(self, table: Table, columns: Columns) -> RawRows:
        """See `read_conversations`."""
        return read_conversations(table, columns)

    def read_texts(self, table: Table, columns: Columns, use: Mapping[str, Any]) -> RawRows:
        """See `read_conversations`; a text alone is gone on with where the model was trained on plain texts,
        and else answered."""
        return read_conversations(table, columns, asked=True, plain=use.get("plain") is True)

    def asked_row(self, messages: Sequence[Mapping[str, str]]) -> Split:
        """See `Schema.asked_row`."""
        from autopeft.tasks.split import Split

        found = [dict(message) for message in messages]
        return Split([asked_of(found)], None, [""], {"messages": [found]})


class ConversationEncoder(AnswersEncoder):
    """Tokens of conversations, of which those of answers are learnt."""

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedConversations:
        """See `Encoder.encode` and `encode_conversations`."""
        messages = rows.fields["messages"]
        found = encode_conversations(
            messages, tokenizer, max_length, kind=self.kind, cached=cached, asked=not labelled
        )
        return found if labelled else replace(found, longest=UNKNOWN)

    def asks(self, rows: Split) -> bool:
        """Whether each row asks for its answer."""
        return all(messages[0]["role"] != "assistant" for messages in rows.fields["messages"])

    def _before(self, rows: Split, examples: Split) -> Split:
        """The rows with all of these examples before what is asked."""
        turns = examples.fields["messages"]
        messages = [with_turns(own, turns) for own in rows.fields["messages"]]
        return replace(rows, fields={**rows.fields, "messages": messages})

    def use(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """See `AnswersEncoder.use`, and whether the rows are `plain` texts."""
        found = super().use(rows, tokenizer, max_length)
        return {**found, "plain": _plain(rows)} if found else {}


class ConversationScorer(GenerativeScorer):
    """Answers in conversations."""

    def check_metric(self, metric: Metric, names: Sequence[str], rows: Split | None = None) -> None:
        """See `Scorer.check_metric`.

        Raises:
            TaskError: the metric compares generated answers, and the rows are plain texts that ask nothing;
                or see `check_installed`.
        """
        super().check_metric(metric, names, rows)
        if metric.generated and rows is not None and len(rows) and _plain(rows):
            raise TaskError(
                f"{metric.name} compares generated answers, but these rows are plain texts that ask nothing: "
                f"take {LIKELIHOOD.name} or {TOKEN_ACCURACY.name} (--metric), or data with prompts."
            )


def _plain(rows: Split) -> bool:
    """Whether all rows are plain texts, of which nothing is asked."""
    return all(messages[0]["role"] == "assistant" for messages in rows.fields["messages"])


register_kind(
    TaskKind(
        "causal_lm",
        "an answer to a prompt, or a text, by a language model",
        schema=ConversationSchema(),
        encoder=ConversationEncoder(),
        head=DecoderHead(),
        scorer=ConversationScorer(),
    )
)
