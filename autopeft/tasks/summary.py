"""What a task's rows are like, before anything is trained on them, and what one answer for all scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from autopeft.display import number, score
from autopeft.tasks.copies import Input, normal_form
from autopeft.tasks.kinds import get_metric
from autopeft.tasks.split import SPLIT_NAMES, SplitName
from autopeft.tasks.table import listed
from autopeft.tasks.task import Task

__all__ = ["Constant", "DataSummary", "summarise"]

_SAMPLE = 1_000  # rows of a split that are tokenised for the share of long ones
_MANY_CUT = _MANY_COPIES = 0.1
_EVEN = 1e-9
_HEADINGS = {"text": "text", "text_pair": "second text", "label": "label"}


@dataclass(frozen=True)
class Constant:
    """What the same answer for every row scores: the majority baseline, or the mean for numbers.

    Attributes:
        name: the answer in words.
        scores: by split, on *select* and *test*, with the task's metric.
        parts: what each group of rows of *test* contributes to the score there (see
            `Scorer.pseudo_values`).
    """

    name: str
    scores: Mapping[str, float]
    parts: tuple[float, ...] = field(default=(), repr=False)

    def unbeaten(self, score: float | None, split: str, what: str) -> str | None:
        """A sentence where a score is no better; `None` where it is, or where there is none."""
        own = self.scores.get(split)
        if score is None or own is None or score > own + _EVEN:
            return None
        shown = f"{what} is no better on {split} than {self.name} ({own:.4f})"
        return f"{shown}: what it learnt does not show there."

    def row(self) -> tuple[str, str, str, str, str]:
        """Beside hybrids in a table: name, deployed parameters, share, select, test."""
        select, test = (score(self.scores.get(split)) for split in ("select", "test"))
        return self.name, number(0), "–", select, test

    def to_dict(self) -> dict[str, Any]:
        """As a baseline stands in a result."""
        return {"name": self.name, **{f"{split}_mean": score for split, score in self.scores.items()}}


@dataclass(frozen=True)
class DataSummary:
    """What a task's rows are like.

    Attributes:
        facts: name and text: the rows of each split, the columns, what was left out, repeated or cut.
        remarks: what limits what scores can say, a sentence each.
        constant: `None` where the kind of task or the metric knows none.
        use: what a saved hybrid has to know of them to be asked (see `Encoder.use`).
    """

    facts: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    constant: Constant | None = field(default=None)
    use: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The facts, a line each."""
        return [f"{name}: {text}" for name, text in self.facts]

    def to_dict(self) -> dict[str, Any]:
        """The summary as a manifest holds it."""
        return {
            "facts": [{"name": name, "text": text} for name, text in self.facts],
            "remarks": list(self.remarks),
            "constant": None if self.constant is None else self.constant.to_dict(),
            **({"use": dict(self.use)} if self.use else {}),
        }


def summarise(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DataSummary:
    """Look at the rows of a task as a backbone's tokenizer will see them.

    Shares of long texts are those of 1,000 rows of each split at most.
    """
    kind, schema = task.task_kind, task.task_kind.schema
    constant = _constant(task)
    facts: list[tuple[str, str]] = []
    shares: dict[SplitName, float] = {}
    for name in SPLIT_NAMES:
        split = task.splits[name]
        rows = "1 row" if len(split) == 1 else f"{len(split):,} rows"
        described = schema.describe_rows(split.labels, task.labels)
        facts.append((name, f"{rows}: {described}" if described else rows))
        sample = split.take(range(0, len(split), -(-len(split) // _SAMPLE)))
        share = kind.encoder.truncated(sample, tokenizer, max_length)
        if share is not None:
            shares[name] = share

    # The columns that are used and those that are not, and the rows that were left out.
    reading = task.reading
    if reading.columns:
        headings = _HEADINGS | {"text": schema.row_name}
        used = ", ".join(f"{headings.get(what, what)} {name!r}" for what, name in reading.columns.items())
        facts.append(
            ("columns", used + (f"; not used: {listed(reading.ignored)}" if reading.ignored else ""))
        )
    if reading.dropped:
        parts = ", ".join(f"{count:,} of {name}" for name, count in reading.dropped.items())
        facts.append(("dropped", f"rows without a text or a label: {parts}"))
    facts += kind.encoder.facts(task.labels)

    # Rows that are copies of one before them in the same split; a text may have several right answers, where
    # models write them.
    inputs = {
        name: [tuple(map(normal_form, texts)) for texts in schema.inputs_of(task.splits[name])]
        for name in SPLIT_NAMES
    }
    counts: dict[str, int] = {}
    contrary = 0
    for name, own in inputs.items():
        if again := len(own) - len(set(own)):
            counts[name] = again
        answers: dict[Input, set[str]] = {}
        for key, answer in zip(own, schema.answers_of(task.splits[name]), strict=True):
            answers.setdefault(key, set()).add(answer)
        contrary += sum(len(found) > 1 for found in answers.values())
    if counts:
        parts = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
        said = "several answers" if kind.scorer.writes else "labels that contradict each other"
        more = f"; {contrary:,} {schema.row_name}s have {said}" if contrary else ""
        facts.append(
            ("repeated", f"rows whose {schema.row_name} stands before them, which are kept: {parts}{more}")
        )
    if shares:
        parts = ", ".join(f"{100 * share:.1f} % of {name}" for name, share in shares.items())
        facts.append(("truncated", f"{parts} to {max_length} tokens"))
    if constant is not None:
        scores = ", ".join(f"{score:.4f} on {split}" for split, score in constant.scores.items())
        facts.append((constant.name, f"{task.metric} {scores}"))

    # Rows to score on that stand in a split which decides what is scored, and those that are copies of one
    # another: together they say no more than one of them.
    remarks = schema.remarks(task.splits, task.labels, task.metric, weighted=task.class_weights is not None)
    earlier: dict[SplitName, set[Input]] = {}
    for name, own in inputs.items():
        different = set(own)
        for other, known in earlier.items():
            if again := sum(one in known for one in own):
                remarks.append(
                    f"{again:,} of {len(own):,} rows of {name} stand in {other} as well, which flatters "
                    "scores: leave them out of one of the two. White space, case and full stops make no "
                    "difference here."
                )
        if earlier and len(own) - len(different) > _MANY_COPIES * len(own):
            remarks.append(
                f"Of {len(own):,} rows of {name} {len(different):,} are different: they say as much as so "
                "many rows, and intervals are as wide."
            )
        earlier[name] = different
    if shares.get("train", 0.0) > _MANY_CUT:
        most = tokenizer.model_max_length
        way = f" --max-length can be up to {most:,} here." if max_length < most < 1e9 else ""
        long = f"{100 * shares['train']:.0f} % of the texts of train are longer than {max_length} tokens"
        remarks.append(f"{long} and are cut.{way}")
    use = kind.encoder.use(task.splits["train"], tokenizer, max_length)
    return DataSummary(tuple(facts), tuple(remarks), constant, use)


def _constant(task: Task) -> Constant | None:
    kind, metric = task.task_kind, get_metric(task.metric)
    found = kind.scorer.constant(task.splits["train"].labels, task.labels)
    if found is None or metric.raw:  # a raw metric takes outputs, and this is a decision
        return None
    name, answer = found
    scores, parts = {}, ()
    for split in ("select", "test"):
        labels = kind.encoder.label_array(task.splits[split].labels)  # type: ignore[index]
        answers = np.full_like(labels, answer)
        scores[split] = kind.scorer.score(metric, answers, labels)
        if split == "test":
            parts = tuple(kind.scorer.pseudo_values(metric, answers, labels, task.text_ids("test")).tolist())
    return Constant(name, scores, parts)
