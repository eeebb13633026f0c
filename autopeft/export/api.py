"""Public functions on trained hybrids: `autopeft.evaluate`, `autopeft.predict`, `autopeft.export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.arguments import takes
from autopeft.errors import UsageError
from autopeft.export.arguments import EvaluateArguments, ExportArguments, PredictArguments
from autopeft.export.package import load_saved, write_package
from autopeft.export.trained import Trained, saved_of, task_of, trained
from autopeft.tasks import Split, Task
from autopeft.tasks.encode import encode
from autopeft.training import evaluate as score_split
from autopeft.training import predict as predict_outputs

__all__ = ["Evaluation", "Exported", "evaluate", "export", "predict"]


@dataclass(frozen=True)
class Evaluation:
    """One score of a trained hybrid, higher is better."""

    run: str
    task: Task
    split: str
    rows: int
    score: float

    def to_dict(self) -> dict[str, Any]:
        """The score as data."""
        return {
            "run": self.run,
            "task": self.task.name,
            "split": self.split,
            "rows": self.rows,
            "metric": self.task.metric,
            "score": self.score,
            "notice": self.task.source.notice,
        }


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        files: relative to the folder.
        peft: whether peft's format is among them.
        reason: why it is not, though it was not refused.
    """

    folder: Path
    files: tuple[str, ...]
    peft: bool
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """The export as data."""
        return {
            "folder": str(self.folder),
            "files": list(self.files),
            "peft": self.peft,
            "reason": self.reason,
        }


@takes(EvaluateArguments)
def evaluate(run: Trained, given: EvaluateArguments) -> Evaluation:
    """Score a trained hybrid on a split of a task.

    A model that holds a hybrid is scored on encoded rows by `autopeft.training.evaluate`, which this calls.

    Args:
        run: a run's name or folder, `latest`, an exported folder, what `autopeft.search` or `autopeft.train`
            returned, or a live `Hybrid`, whose task has to be given.
        {arguments}

    Raises:
        UsageError: there is no such hybrid, or an argument is wrong.
        TaskError: the task's labels are not those of the hybrid's head.

    Example:
        >>> autopeft.evaluate("latest", split="select").score             # doctest: +SKIP
    """
    known = trained(run, tokenizer=given.tokenizer, max_length=given.max_length)
    task = task_of(known, given)
    hybrid, tokenizer = known.load(given.model, given.notify)
    rows = encode(task, tokenizer, known.max_length).splits[given.split]
    value = score_split(hybrid.model, rows, task.metric, batch_size=given.batch_size)
    return Evaluation(str(known.where), task, given.split, len(rows), value)


@takes(PredictArguments)
def predict(run: Trained, texts: str | Sequence[str], given: PredictArguments) -> list[dict[str, Any]]:
    """Ask a trained hybrid about texts: for each one a label and its probabilities, or what its kind of task
    has.

    Args:
        run: a run's name or folder, `latest`, an exported folder, what `autopeft.search` or `autopeft.train`
            returned, or a live `Hybrid`.
        texts: one text or several.
        {arguments}

    Raises:
        UsageError: there is no such hybrid, or there are not as many second texts as texts.

    Example:
        >>> autopeft.predict("latest", "a warm, funny film")[0]["label"]   # doctest: +SKIP
    """
    asked = [texts] if isinstance(texts, str) else list(texts)
    pairs = list(given.text_pair or ())
    if pairs and len(pairs) != len(asked):
        raise UsageError(f"There are {len(asked)} texts but {len(pairs)} second texts; give one for each.")
    known = trained(run, tokenizer=given.tokenizer, max_length=given.max_length)
    hybrid, tokenizer = known.load(given.model, given.notify)
    rows = Split(asked, pairs or None, [None] * len(asked))
    encoded = known.kind.encode(rows, tokenizer, known.max_length, labelled=False, cached=False)
    outputs = predict_outputs(hybrid.model, encoded, batch_size=given.batch_size)
    return [{"text": t, **known.kind.present(o, known.labels)} for t, o in zip(asked, outputs, strict=True)]


@takes(ExportArguments)
def export(run: Trained, out: str | Path, given: ExportArguments) -> Exported:
    """Export a run: recipe, weights with head, manifest, model card, and peft's format where it can be said.

    Args:
        run: a run's name or folder, `latest`, an exported folder, or what `autopeft.search` or
            `autopeft.train` returned.
        out: new or empty folder to write.
        {arguments}

    Raises:
        UsageError: there is no such run, the folder is not empty, or the backbone is another.
        NotExpressible: `peft=True`, and the recipe cannot be said in peft's format.

    Example:
        >>> autopeft.export("latest", "winner").files                      # doctest: +SKIP
    """
    saved = saved_of(run)
    target = write_package(saved, out, notify=given.notify)
    reason: str | None = None
    if given.peft is not False:
        from autopeft.export.peft_format import NotExpressible, to_peft

        hybrid, _ = load_saved(saved, model=given.model, notify=given.notify)
        card = saved.card
        try:
            to_peft(hybrid, target / "peft", base_model=card.model, task_type=card.task_kind.peft_task_type)
        except NotExpressible as error:
            if given.peft:
                raise
            reason = str(error)
    wrote = tuple(sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()))
    return Exported(target, wrote, reason is None and given.peft is not False, reason)
