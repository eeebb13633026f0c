"""`recommend`: what the portfolio says of a backbone, a budget and a task, without training."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.arguments import command_line, takes
from autopeft.assets import ModelSource, keep_model, load_config, resolve_model, unquantized
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.errors import UsageError
from autopeft.foreign import local_path
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import Pooling
from autopeft.runs.files import write_atomic
from autopeft.runs.folder import as_typed
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.limits import with_head
from autopeft.search.planning.probes import FAILURES, find_pooling, probe_failed
from autopeft.search.portfolio.arguments import RecommendArguments, RecommendCall
from autopeft.search.portfolio.choices import Choice, Ranking, rank
from autopeft.search.portfolio.evidence import Evidence, shipped_evidence
from autopeft.spec import BackboneSpec
from autopeft.tasks import Task, cluster_of
from autopeft.tasks.kinds import get_kind
from autopeft.training import TrainingPlan
from autopeft.training.task_loading import task_from_arguments

__all__ = ["Recommendation", "own_clusters", "recommend"]

ROWS = 2_000
"""Rows of train where nobody says how many: those that a quick search takes."""

KIND = "classification"
"""The kind of task that all evidence is of."""

_LABELS = ("0", "1")

_OF_ROWS = ("text", "text_pair", "label", "label_words", "template", "drop_empty")
"""Options that say how the rows of a task are read."""

_RECORDED = (
    "Most recorded gains are of heads that read the mean of all tokens: with what the model gives its head "
    "they may differ."
)

_log = logging.getLogger("autopeft")


@dataclass(frozen=True)
class Recommendation:
    """What the portfolio says.

    Attributes:
        recipe: the first choice.
        choices: all that there is evidence for, best first, with plain LoRA among them.
        reference: plain LoRA, which gains are over.
        reason: why LoRA is recommended: that the evidence allows to expect no more of another recipe, or that
            there is none; `None` where another recipe is recommended.
        abstained: whether LoRA stands for want of evidence.
        why: where it comes from and how far it goes, a sentence each.
        command: what searches on from there.
        budget, model, task, rows: what it is for.
        file: where the recipe was written.
    """

    recipe: Recipe
    choices: tuple[Choice, ...] = field(repr=False)
    reference: Choice = field(repr=False)
    reason: str | None
    abstained: bool
    why: tuple[str, ...]
    command: str
    budget: str
    model: str
    task: str | None
    rows: int
    file: Path | None = None

    @property
    def first(self) -> Choice:
        """The choice whose recipe is recommended."""
        return self.choices[0]

    @property
    def alternatives(self) -> tuple[Recipe, ...]:
        """The recipes of the other choices, best first."""
        return tuple(choice.fitted.recipe for choice in self.choices[1:])

    def to_dict(self) -> dict[str, Any]:
        """The recommendation as data."""
        return {
            "recipe": self.recipe.to_dict(),
            "reason": self.reason,
            "abstained": self.abstained,
            "why": list(self.why),
            "command": self.command,
            "budget": self.budget,
            "model": self.model,
            "task": self.task,
            "rows": self.rows,
            "file": None if self.file is None else str(self.file),
            "choices": [_described(c, c.key == self.reference.key) for c in self.choices],
        }


def _described(choice: Choice, reference: bool) -> dict[str, Any]:
    found, fitted = choice.estimate, choice.fitted
    return {
        "template": fitted.template,
        "size": fitted.size,
        "reference": reference,
        "estimate": None if found is None else vars(found),
        "cost": choice.cost,
        "counts": fitted.counts.to_dict(),
        "recipe": fitted.recipe.to_dict(),
    }


@takes(RecommendCall)
def recommend(call: RecommendCall) -> Recommendation:
    """Say which recipe to begin with under a budget, and how sure that is. Nothing is trained.

    The portfolio's recipes are fitted to backbone and budget and ranked by recorded trainings (see
    `autopeft.search.portfolio.estimates`). Gains are points of the score above plain LoRA: all layers, the
    largest rank, the rate that is expected to be best. Where nothing is better, LoRA itself is recommended.
    Tasks that share texts with `task` are no evidence for it.

    Args:
        {arguments}

    Raises:
        UsageError: an argument is wrong, or no recipe of the portfolio fits the budget.
        AutoPEFTError: backbone or data could not be had.

    Example:
        >>> found = autopeft.recommend(budget="0.5%", task="trec")         # doctest: +SKIP
        >>> found.recipe, found.why, found.command                         # doctest: +SKIP
    """
    asked, tell = call.base(RecommendArguments), call.notify or _log.info
    name = str(keep_model(*asked.model) if isinstance(asked.model, tuple) else asked.model)
    source = resolve_model(name, notify=tell)
    spec, budget = spec_of(unquantized(load_config(source), name)), Budget.parse(asked.budget)
    task, rows, fewer = _task_of(asked, spec, tell)
    spec = _with_its_head(asked, spec, task, source)
    evidence = shipped_evidence()
    own = own_clusters(asked.task, task)
    left_out = tuple(dict.fromkeys((*call.leave_out, *own)))
    other = None if (kind := _kind(asked, task, spec)) == KIND else kind
    known = evidence if other is None else evidence.without(evidence.clusters)
    head = _has_head(asked, task, spec)
    ranking = rank(known, spec, budget, rows, leave_out=left_out, serve=asked.serve, head=head)
    if ranking.reference is None:
        raise UsageError(f"There is nothing to recommend: {ranking.reason}.")
    kept = known.without(left_out)
    pooling, read = _pooling(asked, task, source, spec, name, kept, tell)
    read = [*read, *(_recorded_otherwise(kept, pooling) if ranking.known else [])]
    ranking = ranking.pooled(pooling)
    assert ranking.reference is not None
    first = ranking.choices[0]
    file = _written(call.out, first.fitted.recipe)
    return Recommendation(
        recipe=first.fitted.recipe,
        choices=ranking.choices,
        reference=ranking.reference,
        reason=f"there is no evidence of tasks of the kind {other}" if other else ranking.reason,
        abstained=not ranking.known,
        why=(*_why(known, ranking, name, left_out, own), *_served(asked.serve), *read),
        command=_command(asked, file, rows if fewer else None, call.leave_out),
        budget=str(asked.budget),
        model=name,
        task=None if task is None else task.name,
        rows=rows,
        file=file,
    )


def _task_of(
    asked: RecommendArguments, spec: BackboneSpec, tell: Callable[[str], None]
) -> tuple[Task | None, int, bool]:
    """The task with as many rows of train as are asked for, how many these are, and whether it has more."""
    if asked.task is None:
        named = [name for name in _OF_ROWS if getattr(asked, name)]
        if named:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in named)
            raise UsageError(f"{options} (in Python {', '.join(named)}) say how to read a task; name --task.")
        return None, asked.rows or ROWS, False
    task = task_from_arguments(asked, tell, backbone=spec)
    rows = len(task.splits["train"])
    if asked.rows is None or asked.rows >= rows:
        return task, asked.rows or rows, False
    return task.subset(train=asked.rows, seed=asked.seed), asked.rows, True


def own_clusters(asked: Any, task: Task | None) -> tuple[str, ...]:
    """The cluster of the task's own texts, where it is known: of its name, and of the packaged task that
    stands in for it."""
    names = [asked] if isinstance(asked, str) else []
    names += [] if task is None else [task.source.name]
    found = (cluster_of(name) for name in names)
    return tuple(dict.fromkeys(cluster for cluster in found if cluster is not None))


def _why(
    evidence: Evidence, ranking: Ranking, model: str, left_out: Sequence[str], own: Sequence[str]
) -> list[str]:
    """Where a ranking comes from and how far it goes; `own` are the clusters of the task itself."""
    kept, found = evidence.without(left_out), list[str]()
    if kept.observations:
        rows = sorted({o.setting.rows for o in kept.observations})
        shares = sorted({o.share for o in kept.observations})
        found.append(
            f"Evidence: {sum(kept.trainings.values()):,} trainings of {evidence.steps} steps of "
            f"{evidence.batch_size} rows on {', '.join(evidence.models)}, the head from its probe; "
            f"{', '.join(dict.fromkeys(o.setting.task for o in kept.observations))}; "
            f"{', '.join(f'{n:,}' for n in rows)} rows; budgets of "
            f"{', '.join(f'{100 * s:.2g} %' for s in shares)}."
        )
    absent = set(left_out) & set(evidence.clusters)
    for why, names in (
        ("Left out, as they share texts with the task", absent & set(own)),
        ("Left out, as asked for", absent - set(own)),
    ):
        if names:
            found.append(f"{why}: {', '.join(sorted(names))}.")
    if kept.observations and model not in evidence.models:
        found.append(f"No training was on {model}: how far this holds there was not measured.")
    best = ranking.choices[0].estimate
    if best is not None:
        found.append(f"Intervals are over {best.clusters} clusters of tasks: with so few they are wide.")
    return found


def _pooling(
    asked: RecommendArguments,
    task: Task | None,
    source: ModelSource,
    spec: BackboneSpec,
    model: str,
    evidence: Evidence,
    tell: Callable[[str], None],
) -> tuple[Pooling, list[str]]:
    """What heads read, and why: of a task as a search finds it, else as the recorded tasks have it."""
    if asked.serve is not None:
        return "own", []
    if task is not None:
        plan = TrainingPlan(steps=1, seed=asked.seed, max_length=asked.max_length)
        try:
            found = find_pooling(source, task, plan, spec, notify=tell)
        except FAILURES as error:
            return "own", [f"The head reads what the model gives it: {probe_failed(error)}."]
        if found is None:
            return "own", []
        return found.pooling, [found.sentence()]
    pooling = evidence.pooling(model)
    if pooling == "own":
        return "own", []
    known = evidence.pooling_found(model)
    return pooling, [
        f"The head reads the mean of all tokens: a linear probe found it better in {known.count('mean')} of "
        f"{len(known)} recorded settings.",
    ]


def _recorded_otherwise(evidence: Evidence, pooling: Pooling) -> list[str]:
    """That heads of the recorded trainings read otherwise, where they do."""
    means = [evidence.pooling(model) == "mean" for model in evidence.models]
    return [_RECORDED] if pooling == "own" and any(means) else []


def _written(out: str | Path | None, recipe: Recipe) -> Path | None:
    if out is None:
        return None
    file = local_path(out)
    write_atomic(file, recipe.to_yaml())
    return file


def _has_head(asked: RecommendArguments, task: Task | None, spec: BackboneSpec) -> bool:
    """Whether the task puts a head on the backbone; of no task a decoder's is taken to have none."""
    if task is not None:
        return task.task_kind.head.new_head
    if asked.kind is not None:
        return get_kind(asked.kind).head.new_head
    return not all(stack.causal for stack in spec.stacks)


def _kind(asked: RecommendArguments, task: Task | None, spec: BackboneSpec) -> str:
    """The kind of task that is asked about: of no task the one that was named, else what the backbone is
    usually trained for."""
    if task is not None:
        return task.kind
    if asked.kind is not None:
        return get_kind(asked.kind).name
    if spec.modality == "vision":
        return "image_classification"
    return KIND if _has_head(asked, task, spec) else "causal_lm"


def _with_its_head(
    asked: RecommendArguments, spec: BackboneSpec, task: Task | None, source: ModelSource
) -> BackboneSpec:
    """The spec with the head that the task, or one that sorts rows, puts on the backbone."""
    if not _has_head(asked, task, spec):
        return spec
    if task is not None:
        return with_head(spec, task.task_kind, task.labels, source)
    try:
        return with_head(spec, get_kind(_kind(asked, task, spec)), _LABELS, source)
    except UsageError:  # of some encoder-decoders transformers has no such class
        return spec


def _served(way: str | None) -> list[str]:
    return [] if way is None else [f"Only recipes that can be served as {way} are ranked."]


def _command(asked: RecommendArguments, file: Path | None, rows: int | None, leave_out: Sequence[str]) -> str:
    """What searches on: the command, or the call in Python where rows or model are in memory. `rows` are
    fewer than the task has. Where clusters were left out, it tries no portfolio."""
    given: dict[str, Any] = {
        k: v for k, v in asked.unlike_defaults(asked.record()).items() if k in SearchArguments.model_fields
    }
    given |= {} if file is None else {"warm_start": (as_typed(file),)}
    given |= {"portfolio": False} if leave_out else {}
    given |= {} if rows is None else {"train_rows": rows}
    if any(isinstance(value, Mapping) for value in given.values()):
        memory = {"task": "rows", "model": "(model, tokenizer)"}
        words = [
            f"{k}={memory[k] if isinstance(v, Mapping) else repr(list(v) if isinstance(v, tuple) else v)}"
            for k, v in given.items()
        ]
        return f"autopeft.search({', '.join(words)})"
    ordered = {"budget": given.pop("budget"), "task": given.pop("task", "TASK"), **given}
    return shlex.join(["autopeft", "search", *command_line(SearchArguments, ordered)])
