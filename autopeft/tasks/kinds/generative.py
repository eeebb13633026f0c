"""Kinds of tasks whose models answer with texts that they generate: their scorer, and what writes for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import TextStreamer

from autopeft.errors import TaskError, UsageError
from autopeft.tasks.kinds.chat_templates import TurnEnd, turn_end
from autopeft.tasks.kinds.conversation_tokens import IGNORED, EncodedPrompts
from autopeft.tasks.kinds.generation import Generation, generate, is_token
from autopeft.tasks.kinds.likelihoods import (
    LIKELIHOOD,
    TOKEN_ACCURACY,
    AnswerLoss,
    row_likelihoods,
    token_loss,
)
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.scorer import Breakdown, Loss, Scorer
from autopeft.tasks.kinds.text_metrics import (
    CHRF,
    EXACT_MATCH,
    LAST_NUMBER,
    ROUGE_1,
    ROUGE_2,
    ROUGE_L,
    check_installed,
)
from autopeft.tasks.tokens import EncodedSplit, ragged

if TYPE_CHECKING:
    from autopeft.tasks.split import Split

__all__ = ["GeneratedText", "GenerativeScorer", "generate_texts", "generative_scorer", "own_ends"]

_COLUMNS = 3  # of `row_likelihoods`
_ANSWERED = np.dtype([("likelihoods", np.float64, (_COLUMNS,)), ("answer", np.object_)])
_MOST = 1 << 20  # tokens that a manifest can say


def generative_scorer(scorer: Scorer) -> GenerativeScorer:
    """The scorer of a kind whose models write.

    Raises:
        TaskError: models of this kind write nothing.
    """
    if not isinstance(scorer, GenerativeScorer):
        raise TaskError(
            f"Models for {scorer.kind} write no texts; take a decoder as a language model (--kind "
            "causal_lm), or a method that learns from labels."
        )
    return scorer


class GenerativeScorer(Scorer):
    """Outputs are (rows, 3): the negative log-likelihood of a row's learnt tokens, their number, and how many
    of them are the most probable. Where the model wrote answers, they are (rows,) of `likelihoods` and
    `answer`. Decisions are what it wrote.

    Attributes:
        ahead: how many positions after its logits a learnt token stands (see `AnswerLoss`).
    """

    metrics = (LIKELIHOOD, TOKEN_ACCURACY, EXACT_MATCH, LAST_NUMBER, ROUGE_1, ROUGE_2, ROUGE_L, CHRF)
    writes = True
    ahead: ClassVar[int] = 1

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return AnswerLoss(self.ahead)

    def check_metric(self, metric: Metric, names: Sequence[str], rows: Split | None = None) -> None:
        """See `Scorer.check_metric`, and `check_installed`."""
        super().check_metric(metric, names, rows)
        check_installed(metric)

    def outputs(
        self, model: torch.nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        """See `row_likelihoods`; zeros where no row has an answer."""
        labels = batch["labels"]
        if not bool((labels[:, self.ahead :] != IGNORED).any()):
            return np.zeros((len(labels), _COLUMNS))
        return row_likelihoods(run(), labels, self.ahead)

    def generate(
        self,
        model: torch.nn.Module,
        split: EncodedSplit,
        rows: Sequence[int] | NDArray[np.int64],
        how: Generation,
        *,
        device: str | torch.device = "cpu",
        told: Callable[[str], None] | None = None,
    ) -> list[str]:
        """The last answer of each row as the model writes it, without white space at its ends.

        Args:
            told: is given what it writes for a single row piece by piece.

        Raises:
            TaskError: the split's rows have no answers.
        """
        return [found.text for found in self.sample(model, split, rows, how, device=device, told=told)]

    def sample(
        self,
        model: torch.nn.Module,
        split: EncodedSplit,
        rows: Sequence[int] | NDArray[np.int64],
        how: Generation,
        *,
        device: str | torch.device = "cpu",
        told: Callable[[str], None] | None = None,
    ) -> list[GeneratedText]:
        """As `generate`, with the tokens of each answer."""
        if not isinstance(split, EncodedPrompts):
            raise TaskError(f"Answers are written to rows of {self.kind}, but got {type(split).__name__}.")
        return generate_texts(
            model,
            split.tokenizer,
            [split.prompt(int(row)) for row in rows],
            how,
            most=split.longest,
            mean=self.average({}),
            device=device,
            told=told,
        )

    def rewards(self, metric: Metric, texts: Sequence[str], labels: NDArray[Any]) -> NDArray[np.float64]:
        """The metric of each text beside the label of its row, (texts,).

        Raises:
            TaskError: the metric does not compare texts.
        """
        if not metric.generated:
            known = ", ".join(own.name for own in self.metrics if own.generated)
            raise TaskError(
                f"The reward of a text is the task's metric of it, but {metric.name} compares no texts: take "
                f"{f'{known}, or ' if known else ''}a metric of generated answers of your own (--metric)."
            )
        found = ragged(texts)
        if metric.by_row is not None and metric.of_sums is None:
            return np.asarray(metric.by_row(found, labels), dtype=np.float64)
        alone = range(len(found))
        return np.asarray(
            [metric.score(found[i : i + 1], labels[i : i + 1]) for i in alone], dtype=np.float64
        )

    def with_texts(self, outputs: NDArray[Any], texts: Sequence[str]) -> NDArray[Any]:
        """What `outputs` keeps of rows, with what the model wrote for each: (rows,) of `likelihoods` and
        `answer`."""
        found = np.empty(len(outputs), dtype=_ANSWERED)
        found["likelihoods"], found["answer"] = outputs, list(texts)
        return found

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """What the model wrote, (rows,); outputs without texts come back unchanged."""
        found: NDArray[Any] = outputs["answer"] if outputs.dtype == _ANSWERED else outputs
        return found

    def compared(
        self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        found = np.asarray(outputs)
        if metric.generated and found.dtype not in (_ANSWERED, np.dtype(object)):
            raise TaskError(
                f"{metric.name} compares generated answers, but none were written: predict with "
                "generation=Generation()."
            )
        return super().compared(metric, found if metric.generated else _likelihoods(found), labels)

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """Mean loss over the learnt tokens of all rows."""
        return token_loss(_likelihoods(np.asarray(outputs))) if len(outputs) else None

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Of generated answers both metrics, the mean length and the number of empty ones."""
        if outputs.dtype != _ANSWERED:
            return ()
        found = self.decisions(outputs)
        letters = [float(np.mean([len(str(text)) for text in texts])) for texts in (found, labels)]
        row: tuple[str | int | float, ...] = (
            "all rows", EXACT_MATCH.score(found, labels), ROUGE_L.score(found, labels), *letters,
            sum(not text for text in found),
        )  # fmt: skip
        headers = ("answers", EXACT_MATCH.name, ROUGE_L.name, "letters", "letters expected", "empty")
        return (Breakdown("answers", "Generated answers", headers, (row,)),)

    def generation(self, use: Mapping[str, Any], **asked: Any) -> Generation:
        """See `Scorer.generation`; answers are as long as the longest of the training rows where nothing else
        is said."""
        known = use.get("max_new_tokens")
        if isinstance(known, int) and not isinstance(known, bool) and 0 < known <= _MOST:
            asked = {**asked, "max_new_tokens": asked.get("max_new_tokens") or known}
        return Generation(**{name: value for name, value in asked.items() if value is not None})

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """The `answer` that was written, if any, and of an answer that was there the `loss` of a token, the
        `perplexity` and the number of `tokens`."""
        found = np.asarray(output)[None]
        told: dict[str, Any] = {"answer": str(found["answer"][0])} if found.dtype == _ANSWERED else {}
        likelihoods = _likelihoods(found)
        if likelihoods[0, 1] or not told:
            loss = token_loss(likelihoods)
            told |= {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": int(likelihoods[0, 1])}
        return told

    def line(self, prediction: Mapping[str, Any]) -> str:
        """The answer on one line, or the loss where none was written."""
        if "answer" in prediction:
            return " ".join(str(prediction["answer"]).split())
        return f"loss {prediction['loss']:.4f}  perplexity {prediction['perplexity']:.4g}"

    def describe_labels(self, names: Sequence[str]) -> str:
        return "the tokens of an answer"


def _likelihoods(outputs: NDArray[Any]) -> NDArray[Any]:
    """The likelihoods (rows, 3) among outputs.

    Raises:
        TaskError: there are none.
    """
    found: NDArray[Any] = outputs["likelihoods"] if outputs.dtype == _ANSWERED else outputs
    if np.ndim(found) != 2 or np.shape(found)[1] != _COLUMNS:
        raise TaskError(
            f"A language model is scored by the likelihoods of its answers, (rows, {_COLUMNS}), but got "
            f"predictions of shape {np.shape(found)}."
        )
    return found


class GeneratedText(NamedTuple):
    """An answer: its tokens, with the one that ends it where it came to its end, and its text."""

    tokens: tuple[int, ...]
    text: str


def generate_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    how: Generation,
    *,
    most: int,
    mean: Callable[[Tensor, int], Tensor] | None = None,
    device: str | torch.device = "cpu",
    told: Callable[[str], None] | None = None,
) -> list[GeneratedText]:
    """The answer to each prompt, whose text has no special tokens and no white space at its ends.

    Args:
        model: in eval mode.
        prompts: tokens, at least one each.
        most: new tokens at most, where nothing else is asked for.
        mean: of logits, where a hybrid stands for several models (see `autopeft.hybrid.predictive`).
        told: is given the answer to a single prompt piece by piece, as it is written.

    Raises:
        UsageError: the model cannot generate, the tokenizer's chat template is refused, or it has no padding
            token.
    """
    if tokenizer.pad_token_id is None:
        raise UsageError("The tokenizer has no padding token: set `tokenizer.pad_token`.")
    end = turn_end(tokenizer, own_ends(model))
    # A model may have more tokens than its tokenizer. Tokenizers in Rust leave those out, and tokenizers in
    # Python raise whatever they stumble over.
    known = 1 + max(tokenizer.get_vocab().values())
    pieces = _Pieces(tokenizer, told, end, known) if told is not None and how.beams == 1 else None
    rows = generate(
        model,
        prompts,
        how,
        most=most,
        ends=end.tokens,
        pad=int(tokenizer.pad_token_id),
        begin=tokenizer.bos_token_id,
        mean=mean,
        device=device,
        streamer=pieces,
    )
    found = []
    for row in rows:
        tokens = [token for token in row if token < known and token not in end.tokens]
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        text = text if end.text is None else text.partition(end.text)[0]
        # A tokenizer that decodes letters by itself may leave halves of surrogate pairs.
        found.append(GeneratedText(tuple(row), text.encode("utf-8", "replace").decode("utf-8").strip()))
    if told is not None and pieces is None:  # no beam is the most probable before the end
        told(found[0].text)
    return found


def own_ends(model: nn.Module) -> tuple[int, ...]:
    """The end tokens that a model's own generation configuration names. What is no token of the model is
    left out: it never comes."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = found if isinstance(found, (list, tuple)) else [found]
    return tuple(token for token in several if is_token(token, getattr(model, "config", None)))


class _Pieces(TextStreamer):  # type: ignore[misc]  # transformers gives streamers no types
    """Hands on a text in whole words, up to what ends it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, told: Callable[[str], None], end: TurnEnd, known: int
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._told, self._tokens, self._end, self._known = told, end.tokens, end.text, known
        self._held, self._over = "", False

    def put(self, value: Tensor) -> None:
        """See `TextStreamer`. What ends an answer need not be a special token."""
        left_out = (int(token) in self._tokens or int(token) >= self._known for token in value.flatten())
        if self.next_tokens_are_prompt or not any(left_out):
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """See `TextStreamer`. What may be the beginning of the end is held back."""
        if self._over:
            return
        text = self._held + text
        if self._end is not None:
            before, found, _ = text.partition(self._end)
            self._over = bool(found)
            keep = 0 if self._over or stream_end else len(self._end) - 1
            cut = len(before) - keep if not self._over else len(before)
            text, self._held = (before[: max(cut, 0)], "" if self._over else before[max(cut, 0) :])
        if text:
            self._told(text)
