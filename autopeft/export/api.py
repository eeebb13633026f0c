"""Public functions on trained hybrids: `autopeft.evaluate`, `autopeft.predict`, `autopeft.export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.arguments import takes
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.export.answers import Texts, answers, read_questions
from autopeft.export.arguments import RANKED, WRITES, EvaluateArguments, ExportArguments, PredictArguments
from autopeft.export.of_task import folder_name, meant, members_of, served_together
from autopeft.export.out_file import write_answers
from autopeft.export.package import Saved, load_hybrid, write_package
from autopeft.export.recorded import Recorded, recorded
from autopeft.export.trained import Trained, on_backbone, saved_of, task_of, trained
from autopeft.foreign import local_path
from autopeft.runs.files import empty_folder, plain
from autopeft.tasks import Split, Task, get_metric
from autopeft.tasks.kinds import Breakdown
from autopeft.training import predict as predict_outputs
from autopeft.training.samples import shortened

if TYPE_CHECKING:
    from autopeft.export.package import Ready

__all__ = ["Evaluation", "Exported", "evaluate", "export", "predict"]

_MISTAKES = 5  # rows that are shown
OWN = "autopeft"  # the format that is recipe and weights alone
_OTHERWISE = (
    "Without --as (format=None) recipe and weights are exported: `autopeft predict` and `autopeft.load` read "
    "them. --as merged and --as lora say more hybrids than peft."
)


@dataclass(frozen=True)
class Evaluation:
    """One score of a trained hybrid, higher is better, and what it leaves out.

    Attributes:
        breakdown: tables of where the predictions are right and wrong, as the kind of task has them: scores
            of each class and a confusion matrix, or errors.
        recorded: what the run itself recorded for the same data, split and metric, and why it differs.
    """

    run: str
    task: Task
    split: str
    rows: int
    score: float
    breakdown: tuple[Breakdown, ...] = ()
    recorded: Recorded | None = None

    def to_dict(self) -> dict[str, Any]:
        """The score as data."""
        return {
            "run": self.run,
            "task": self.task.name,
            "split": self.split,
            "rows": self.rows,
            "metric": self.task.metric,
            "score": self.score,
            "breakdown": {table.name: plain(table.to_dict()) for table in self.breakdown},
            "recorded": plain(self.recorded),
            "notice": self.task.source.notice,
        }


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        files: relative to the folder.
        format: what was written beside recipe and weights; `None` for nothing.
        reason: why nothing was, where it was left open.
        lines: what is to be said of the format, such as what it costs.
        facts: the same and more, as data.
    """

    folder: Path
    files: tuple[str, ...]
    format: str | None
    reason: str | None = None
    lines: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The export as data."""
        return {
            "folder": str(self.folder),
            "files": list(self.files),
            "format": self.format,
            "reason": self.reason,
            "lines": list(self.lines),
            "facts": dict(self.facts),
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
    split = given.split or ("test" if len(task.splits["train"]) else "all")
    hybrid, tokenizer = known.load(**on_backbone(given))
    kind = task.task_kind
    rows = reduce(Split.joined, task.splits.values()) if split == "all" else task.splits[split]
    encoded = kind.encoder.encode(known.to_score(rows), tokenizer, known.longest(tokenizer))
    metric = get_metric(task.metric)
    how = kind.scorer.generation(known.use) if metric.generated else None
    hybrid.require_attached()
    outputs = predict_outputs(hybrid.model, encoded, batch_size=given.batch_size, generation=how)
    labels = kind.encoder.label_array(rows.labels)
    value = kind.scorer.score(metric, outputs, labels)
    before = recorded(known, task, split, len(rows), value, seed=given.seed, model=hybrid.model)
    found = Evaluation(str(known.where), task, split, len(rows), value, recorded=before)
    tables = kind.scorer.breakdown(outputs, labels, task.labels)
    if kind.scorer.tells:
        tables = (*tables, *_mistakes(kind.scorer.tell(rows, outputs, task.labels)))
    return replace(found, breakdown=tables)


def _mistakes(told: Sequence[tuple[str, str]]) -> tuple[Breakdown, ...]:
    """A table of the first rows whose prediction is not right."""
    wrong = [(f"row {i}", *map(shortened, row)) for i, row in enumerate(told, start=1) if row[0] != row[1]]
    title = f"The first of {len(wrong):,} rows with a mistake"
    headers = ("row", "expected", "predicted")
    return (Breakdown("mistakes", title, headers, tuple(wrong[:_MISTAKES])),) if wrong else ()


@takes(PredictArguments)
def predict(run: Trained, texts: Texts, given: PredictArguments) -> list[dict[str, Any]]:
    """Ask a trained hybrid about texts: for each one a label and its probabilities, or what its kind of task
    has. A language model answers: `answer` is what it writes, and where the row holds an answer, `loss` and
    `perplexity` are of that one.

    Every row is answered in its place. One that cannot be, such as an empty one, has a `problem` instead.

    Args:
        run: a run's name or folder, `latest`, an exported folder, what `autopeft.search` or `autopeft.train`
            returned, or a live `Hybrid`.
        texts: one text or several; the `Path` of a table (CSV, JSONL, Parquet) or of a file with one text a
            line; or a table in memory: a `datasets.Dataset` or a pandas `DataFrame`.
        {arguments}

    Raises:
        UsageError: there is no such hybrid, `out` cannot be written, or second texts are missing or too many.
        DataError: a file cannot be read, has no rows, or has no column of texts.

    Example:
        >>> autopeft.predict("latest", "a warm, funny film")[0]["label"]   # doctest: +SKIP
        >>> autopeft.predict("latest", Path("reviews.csv"), out="answers.csv")   # doctest: +SKIP
    """
    with meant(run, given) as known:
        return _predict(known, texts, given)


def _predict(run: Trained, texts: Texts, given: PredictArguments) -> list[dict[str, Any]]:
    known = trained(run, tokenizer=given.tokenizer, max_length=given.max_length)
    how = known.kind.scorer.generation(known.use, **{name: getattr(given, name) for name in WRITES})
    questions = read_questions(known, texts, given)
    outputs = None
    if questions.rows is not None:
        hybrid, tokenizer = known.load(**on_backbone(given))
        encoded = known.kind.encoder.encode(
            questions.rows, tokenizer, known.longest(tokenizer), labelled=False, cached=False
        )
        hybrid.require_attached()
        outputs = predict_outputs(
            hybrid.model, encoded, batch_size=given.batch_size, generation=how, told=given.told
        )
    found = answers(known, questions, outputs)
    if given.out is not None:
        write_answers(Path(given.out), found)
    return found


@takes(ExportArguments)
def export(run: Trained, out: str | Path, given: ExportArguments) -> Exported:
    """Export a run: recipe, weights with head, manifest, model card, and a format that others load.

    Args:
        run: a run's name or folder, `latest`, an exported folder, one that `hybrid.save()`,
            `model.save_pretrained()` or the Trainer wrote, or what `autopeft.search` or `autopeft.train`
            returned.
        out: new or empty folder to write.
        {arguments}

    Raises:
        UsageError: there is no such run, the folder is not empty, the backbone is another, or `rank` is given
            without a format that has one.
        NotExpressible: the recipe cannot be said in peft's format, and that was asked for.
        NotServable, CompositionError: it cannot be said in another format that was asked for.

    Example:
        >>> autopeft.export("latest", "winner").files                      # doctest: +SKIP
        >>> autopeft.export("latest", "served", format="merged")           # doctest: +SKIP
    """
    if given.rank is not None and given.format not in RANKED:
        raise UsageError(
            "--rank (rank=…) is the largest rank of the LoRA that is written with --as "
            f"{' or '.join(RANKED)} (format=…); name one of these, or leave it out."
        )
    empty_folder(local_path(out), "-o")
    members = members_of(saved_of(run))
    if given.task is not None or not members or given.format in (None, OWN):
        with meant(run, given) as known:
            return _export(known, out, given)
    done: dict[str, Exported] = {}
    refused: dict[str, AutoPEFTError] = {}
    for member in members:
        try:
            with meant(run, given.model_copy(update={"task": member.name})) as alone:
                done[member.name] = _export(alone, local_path(out) / folder_name(member.name), given)
        except AutoPEFTError as error:
            refused[member.name] = error
    if not done:
        raise next(iter(refused.values()))
    return _together(saved_of(run), local_path(out), given, done, refused)


def _together(
    saved: Saved,
    folder: Path,
    given: ExportArguments,
    done: Mapping[str, Exported],
    refused: Mapping[str, AutoPEFTError],
) -> Exported:
    """What was written for each task of a set, what was not and why, and how all are served at once."""
    files = tuple(f"{one.folder.name}/{file}" for one in done.values() for file in one.files)
    lines = [f"{name}: {line}" for name, one in done.items() for line in one.lines]
    lines += [f"{name} is not written: {error}" for name, error in refused.items()]
    if given.format == "lora":
        from autopeft.assets import resolve_model

        backbone = resolve_model(given.model or saved.card.model).path
        loras = {name: (one.folder / "lora", one.facts) for name, one in done.items()}
        served = served_together(backbone, loras)
        lines += [] if served is None else [f"vLLM serves those that it takes at once: {served}"]
    facts = {"format": given.format, "tasks": {name: dict(one.facts) for name, one in done.items()}}
    return Exported(folder, files, given.format, lines=tuple(lines), facts=facts)


def _export(run: Trained, out: str | Path, given: ExportArguments) -> Exported:
    wanted, reason = given.format, None
    saved = saved_of(run)
    ready: Ready | None = None
    if wanted != OWN:
        from autopeft.export.formats import Export, make_ready
        from autopeft.export.peft_format import NotExpressible

        # Nothing folds into packed weights: what is written is of the checkpoint that they were made from.
        hybrid, source = load_hybrid(
            saved, model=given.model, notify=given.notify, quantize="none", device=given.device
        )
        trained_in = saved.card.backbone.get("quantize")
        if trained_in and given.notify is not None:
            given.notify(
                f"Trained on the backbone in {trained_in}, exported on the checkpoint itself: scores may "
                "differ a little, as the weights in between were rounded."
            )
        try:
            ready = make_ready(wanted or "peft", Export(run, given, saved, hybrid, source))
        except NotExpressible as error:
            if wanted is not None:
                raise NotExpressible(f"{error} {_OTHERWISE}") from error
            reason = str(error)
    name = None if ready is None else wanted or "peft"
    target = write_package(saved, out, name=name, ready=ready, notify=given.notify)
    files = tuple(sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()))
    if ready is None:
        return Exported(target, files, None, reason)
    return Exported(target, files, name, reason, ready.lines, {"format": name, **ready.facts})
