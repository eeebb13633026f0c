"""Several tasks as one: a kind of task whose four parts ask those of its members.

A set of tasks (see `autopeft.tasks.task_set`) is a task of this kind, so that whatever searches, trains,
scores or reports one task does the same for several. Rows are in the order of the members, a batch says of
each row in `task_id` which member it is of, and the score is the mean of the members' own scores.

The members stand in the kind's name, `mixture?tasks=[[name, kind, labels, metric, class weights], …]`, and
with them how batches are drawn (`Mixture`), so that a worker and a saved hybrid know them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as tree
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from autopeft.assets import ModelSource
from autopeft.assets.heads import head_bank, reset_head, with_head, with_heads
from autopeft.errors import TaskError, UsageError
from autopeft.tasks.copies import Input
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.metric import Metric, ScoredRows, shrunk
from autopeft.tasks.kinds.registry import METRICS, get_kind, get_metric, register_options
from autopeft.tasks.kinds.schema import Schema
from autopeft.tasks.kinds.scorer import Breakdown, Loss, Scorer
from autopeft.tasks.kinds.task_kind import TaskKind, name_with_options
from autopeft.tasks.split import Split
from autopeft.tasks.table import ColumnNames, Columns, Table
from autopeft.tasks.tokens import WINDOW_BATCHES, EncodedSplit, Indices, ragged

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec
    from autopeft.tasks.split import SplitName

__all__ = ["MEAN_OF_TASKS", "EncodedMixture", "Member", "MixedSplit", "Mixture", "mixture_name"]

Batches = Literal["homogeneous", "mixed"]
_NAME = "mixture"


@dataclass(frozen=True)
class Mixture:
    """How the rows of several tasks are drawn in training.

    Attributes:
        temperature: T ≥ 1. A task with n rows has a share of the batches in proportion to n^(1/T): 1 draws
            each row once in an epoch, a large T draws all tasks equally often (Raffel et al. 2020, §3.5.2).
        batches: `homogeneous` ones are of one task each; `mixed` ones hold rows of several.
        weights: of the tasks' shares, one for each; none where all are 1.
    """

    temperature: float = 1.0
    batches: Batches = "homogeneous"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.temperature < math.inf:
            raise TaskError(f"The temperature of a mixture is a number from 1, but got {self.temperature}.")
        if self.batches not in ("homogeneous", "mixed"):
            raise TaskError(f"Batches are homogeneous or mixed, but got {self.batches!r}.")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise TaskError(f"Weights of tasks are positive numbers, but got {self.weights}.")

    def rows_of(self, sizes: Sequence[int]) -> list[int]:
        """How many rows of each task are drawn in an epoch, for tasks with so many rows."""
        shares = np.asarray(sizes, dtype=np.float64) ** (1 / self.temperature)
        if self.weights:
            shares *= self.weights
        return [
            max(1, round(v)) if n else 0
            for v, n in zip(sum(sizes) * shares / shares.sum(), sizes, strict=True)
        ]


@dataclass(frozen=True)
class Member:
    """A task of a set, without its rows; see `autopeft.tasks.task.Task`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    metric: str
    class_weights: tuple[float, ...] | None = None

    @property
    def task_kind(self) -> TaskKind:
        """The kind itself."""
        return get_kind(self.kind)

    @property
    def scored_by(self) -> Metric:
        """The metric itself."""
        return get_metric(self.metric)


def mixture_name(members: Sequence[Member], mixture: Mixture) -> str:
    """The name of the kind of a set of these tasks."""
    told = [[m.name, m.kind, list(m.labels), m.metric, m.class_weights] for m in members]
    return name_with_options(
        _NAME,
        {
            "tasks": json.dumps(told, separators=(",", ":")),
            "temperature": mixture.temperature,
            "batches": mixture.batches,
            **({"weights": json.dumps(mixture.weights)} if mixture.weights else {}),
        },
    )


# Rows
# ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixedSplit(Split):
    """The rows of several tasks, those of the first task first; `labels` are pairs of the task's number and
    the row's own label.

    Attributes:
        parts: the rows by task, of which some may have none.
    """

    parts: tuple[Split, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Split]) -> MixedSplit:
        """The rows of these tasks."""
        pairs = None
        if any(part.pairs is not None for part in parts):
            pairs = [pair for part in parts for pair in part.pairs or [""] * len(part)]
        fields: dict[str, list[Any]] = {}
        for task, part in enumerate(parts):
            for name, column in part.fields.items():
                before, after = (sum(map(len, some)) for some in (parts[:task], parts[task + 1 :]))
                fields[f"{task} {name}"] = [*[None] * before, *column, *[None] * after]
        return cls(
            texts=[text for part in parts for text in part.texts],
            pairs=pairs,
            labels=[(task, label) for task, part in enumerate(parts) for label in part.labels],
            fields=fields,
            parts=tuple(parts),
        )

    def take(self, indices: Any) -> MixedSplit:
        """The rows at `indices`; those of one task in that order, the tasks in theirs."""
        chosen = np.asarray(list(indices), dtype=np.int64)
        own = _by_part(chosen, [len(part) for part in self.parts])
        return MixedSplit.of([part.take(rows.tolist()) for part, rows in zip(self.parts, own, strict=True)])

    def joined(self, other: Split) -> MixedSplit:
        assert isinstance(other, MixedSplit)
        return MixedSplit.of([a.joined(b) for a, b in zip(self.parts, other.parts, strict=True)])


def _by_part(indices: Indices, sizes: Sequence[int]) -> list[Indices]:
    """Of numbers that count through parts of these sizes those of each part, counted within it."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return [indices[(indices >= low) & (indices < high)] - low for low, high in pairwise(starts)]


def _stacked(values: Sequence[Any]) -> NDArray[Any]:
    """Values of rows of one task as its kind has them: an array of numbers where each has the same shape."""
    arrays = [np.asarray(value) for value in values]
    if any(a.dtype == object or a.shape != arrays[0].shape for a in arrays):
        return ragged(list(values))
    if any(not isinstance(v, (np.ndarray, np.generic, bool, int, float)) for v in values):
        return ragged(list(values))
    return np.stack(arrays)


class MixtureSchema(Schema):
    """Rows are those of the members, which read them; no table is of this kind."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """Raises `UsageError`: a table is of one task."""
        raise UsageError(
            f"A table holds the rows of one task, and {_NAME} is of several: load each task by itself and "
            "join them with autopeft.tasks.task_set."
        )

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """Raises `UsageError`: it is not known which task the rows are of."""
        names = ", ".join(member.name for member in self.members)
        raise UsageError(
            f"The hybrid is for several tasks ({names}), and rows do not say which they are of: "
            "name one with "
            "--task (task=…)."
        )

    def _each(self, rows: Split) -> Iterator[tuple[Member, Split]]:
        assert isinstance(rows, MixedSplit)
        return zip(self.members, rows.parts, strict=True)

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """The strata of each member, those of different members apart."""
        own: dict[int, Iterator[int]] = {}
        for task, member in enumerate(self.members):
            own[task] = iter(member.task_kind.schema.strata([label for t, label in labels if t == task]))
        numbers: dict[tuple[int, int], int] = {}
        return [numbers.setdefault((task, next(own[task])), len(numbers)) for task, _ in labels]

    def inputs_of(self, rows: Split) -> list[Input]:
        """Those of the members, with the member's name: equal texts of two tasks are no copies."""
        return [
            (member.name, *texts)
            for member, part in self._each(rows)
            for texts in member.task_kind.schema.inputs_of(part)
        ]

    def alike(self, rows: Split) -> list[Input]:
        return [
            (member.name, *texts)
            for member, part in self._each(rows)
            for texts in member.task_kind.schema.alike(part)
        ]

    def answers_of(self, rows: Split) -> list[str]:
        return [
            answer for member, part in self._each(rows) for answer in member.task_kind.schema.answers_of(part)
        ]

    def check(self, name: str, train: Split, names: Sequence[str]) -> None:
        """Raises `DataError` where a member cannot be trained on its rows, or has none."""
        for member, part in self._each(train):
            if not len(part):
                raise TaskError(f"{name}: no row of {member.name} is left to train on; take more rows.")
            member.task_kind.schema.check(member.name, part, member.labels)

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """How many rows each task has."""
        counts = np.bincount([task for task, _ in labels], minlength=len(self.members))
        return ", ".join(f"{m.name} {count:,}" for m, count in zip(self.members, counts, strict=True))

    def remarks(
        self, splits: Mapping[SplitName, Split], names: Sequence[str], metric: str, *, weighted: bool = False
    ) -> list[str]:
        """Those of each member, with its name."""
        found = []
        for task, member in enumerate(self.members):
            own = {name: split.parts[task] for name, split in splits.items() if isinstance(split, MixedSplit)}
            schema, weighted = member.task_kind.schema, member.class_weights is not None
            found += [
                f"{member.name}: {remark}"
                for remark in schema.remarks(own, member.labels, member.metric, weighted=weighted)
            ]
        return found

    def as_trained(self, rows: Split, use: Mapping[str, Any]) -> Split:
        uses = use.get("tasks") or [{}] * len(self.members)
        return MixedSplit.of(
            [
                m.task_kind.schema.as_trained(part, own)
                for (m, part), own in zip(self._each(rows), uses, strict=True)
            ]
        )


# Batches
# ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EncodedMixture(EncodedSplit):
    """The tokens of several tasks, those of the first task first; `labels` are objects, the task's number
    and the row's own label.

    Attributes:
        parts: the rows by task; `None` for a task without rows.
        mixture: how batches are drawn in training.
    """

    parts: tuple[EncodedSplit | None, ...]
    mixture: Mixture

    @classmethod
    def of(cls, parts: Sequence[EncodedSplit | None], kind: str, mixture: Mixture) -> EncodedMixture:
        """The rows of these tasks.

        Raises:
            UsageError: there are none.
        """
        there = [part for part in parts if part is not None]
        if not there:
            raise UsageError("None of the tasks has a row.")
        truths = [None if part is None else part.truth for part in parts]
        labels = None
        if all(part is None or truth is not None for part, truth in zip(parts, truths, strict=True)):
            labels = ragged([(i, v) for i, truth in enumerate(truths) if truth is not None for v in truth])
        with_types = all(part.types is not None for part in there)
        sequences = np.concatenate([np.diff(part.offsets) for part in there])
        return cls(
            ids=np.concatenate([part.ids for part in there]),
            offsets=np.concatenate([[0], np.cumsum(sequences)]),
            types=np.concatenate([part.types for part in there]) if with_types else None,  # type: ignore[misc]
            labels=labels,
            kind=kind,
            pad_id=there[0].pad_id,
            pad_type=there[0].pad_type,
            max_length=max(part.max_length for part in there),
            parts=tuple(parts),
            mixture=mixture,
        )

    def _there(self) -> list[tuple[int, EncodedSplit, int, int]]:
        """The tasks with rows: number, rows, and the numbers of the first row and of the first item of a
        batch: a kind may lay a row out as several sequences, and batches are of rows or of sequences."""
        found, row, item = [], 0, 0
        for task, part in enumerate(self.parts):
            if part is not None:
                found.append((task, part, row, item))
                row, item = row + len(part), item + len(part.lengths)
        return found

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts if part is not None)

    @property
    def lengths(self) -> Indices:
        return np.concatenate([part.lengths for _, part, _, _ in self._there()])

    @property
    def prompt_lengths(self) -> Indices:
        return np.concatenate([part.prompt_lengths for _, part, _, _ in self._there()])

    @property
    def label_counts(self) -> Indices:
        return np.concatenate([part.label_counts for _, part, _, _ in self._there()])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the members' fingerprints."""
        return self._digest(lambda part: part.fingerprint)

    @property
    def labels_fingerprint(self) -> str:
        return self._digest(lambda part: part.labels_fingerprint)

    def _digest(self, of: Callable[[EncodedSplit], str]) -> str:
        told = "\n".join(f"{task} {of(part)}" for task, part, _, _ in self._there())
        return hashlib.sha256(told.encode()).hexdigest()

    def copies(self) -> Indices:
        return np.concatenate([part.copies() + row for _, part, row, _ in self._there()])

    def of_rows(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """See `EncodedSplit.of_rows`: objects, the task's number and what its kind makes of a row."""
        found = []
        for task, part, _, first in self._there():
            own = outputs[first : first + len(part.lengths)]
            found += [(task, value) for value in part.of_rows(_stacked([value for _, value in own]))]
        return ragged(found)

    def order(self) -> Indices:
        return np.concatenate([part.order() + first for _, part, _, first in self._there()])

    def batch_indices(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        among: Indices | None = None,
    ) -> list[Indices]:
        """See `EncodedSplit.batch_indices`. Without `shuffle` the tasks follow each other; with it, each
        task has the rows of an epoch that `Mixture` gives it, and the batches of all tasks are permuted."""
        if not shuffle:
            return [
                batch + first
                for _, part, _, first in self._there()
                for batch in part.batch_indices(batch_size, drop_last=drop_last)
            ]
        there = self._there()
        own: list[Indices | None] = [None] * len(there)
        sizes = [len(part) for _, part, _, _ in there]
        if among is not None:
            own = list(_by_part(np.sort(among), [len(part.lengths) for _, part, _, _ in there]))
            sizes = [len(rows) for rows in own if rows is not None]
        rng = np.random.default_rng(seed)
        # Each pass over a task's rows has a permutation of its own.
        found: list[Indices] = []
        drawn: list[Indices] = []
        for (_, part, _, first), rows, size, wanted in zip(
            there, own, sizes, self.mixture.rows_of(sizes), strict=True
        ):
            while wanted > 0 and size:
                batches = part.batch_indices(
                    batch_size, shuffle=True, seed=int(rng.integers(2**31)), drop_last=drop_last, among=rows
                )
                if not batches:  # fewer rows than a batch has
                    break
                for batch in batches:
                    if wanted <= 0:
                        break
                    taken = batch if len(batch) <= wanted or drop_last else batch[:wanted]
                    wanted -= len(taken)
                    (found if self.mixture.batches == "homogeneous" else drawn).append(taken + first)
        if self.mixture.batches == "mixed":
            lengths, mixed = self.lengths, rng.permutation(np.concatenate(drawn))
            window = WINDOW_BATCHES * batch_size
            for start in range(0, len(mixed), window):
                part_of = mixed[start : start + window]
                part_of = part_of[np.argsort(lengths[part_of], kind="stable")]
                found += [part_of[i : i + batch_size] for i in range(0, len(part_of), batch_size)]
            found = [batch for batch in found if len(batch) == batch_size or not drop_last]
        return [found[i] for i in rng.permutation(len(found))]

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """See `EncodedSplit.collate`; `task_id` (B,) is the number of each row's task.

        Rows of one task are as its kind collates them. Those of several are padded to the longest, and have
        what the batches of all of them have; labels of different types are float64, and those of different
        shapes are left out.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        batches, places = [], []
        for task, part, _, first in self._there():
            there = np.flatnonzero((chosen >= first) & (chosen < first + len(part.lengths)))
            if len(there):
                batch = part.collate(chosen[there] - first, device=device)
                batch["task_id"] = torch.full_like(batch["task_id"], task)
                batches.append(batch)
                places.append(there)
        if len(batches) == 1:
            return batches[0]
        pads = {"input_ids": self.pad_id, "token_type_ids": self.pad_type}
        back = torch.from_numpy(np.argsort(np.concatenate(places), kind="stable")).to(device)
        found = {}
        for key in batches[0]:
            tensors = [batch[key] for batch in batches if key in batch]
            if len(tensors) < len(batches):
                continue
            if key == "labels":
                if len({tensor.shape[1:] for tensor in tensors}) > 1:
                    continue
                if len({tensor.dtype for tensor in tensors}) > 1:
                    tensors = [tensor.to(torch.float64) for tensor in tensors]
            elif tensors[0].ndim == 2:
                width = max(tensor.shape[1] for tensor in tensors)
                tensors = [
                    nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=pads.get(key, 0))
                    for tensor in tensors
                ]
            found[key] = torch.cat(tensors)[back]
        return found

    def take(self, rows: Indices) -> EncodedMixture:
        """The given rows; those of one task in that order, the tasks in theirs."""
        there = self._there()
        parts: list[EncodedSplit | None] = [None] * len(self.parts)
        for (task, part, _, _), own in zip(
            there, _by_part(np.asarray(rows), [len(part) for _, part, _, _ in there]), strict=True
        ):
            parts[task] = part.take(own) if len(own) else None
        return EncodedMixture.of(parts, self.kind, self.mixture)


class MixtureEncoder(Encoder):
    """Rows are encoded by the members' own encoders, with what the first of them loads of a backbone."""

    tokenwise_trunk = False

    def __init__(self, members: Sequence[Member], mixture: Mixture) -> None:
        super().__init__()
        self.members, self.mixture = members, mixture

    def load_processor(self, source: ModelSource | str) -> Any:
        return self.members[0].task_kind.encoder.load_processor(source)

    def processor(self, given: Any, config: PretrainedConfig) -> Any:
        return self.members[0].task_kind.encoder.processor(given, config)

    def facts(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """The tasks, and how their batches are drawn."""
        drawn = f"{self.mixture.batches} batches, temperature {self.mixture.temperature:g}"
        if self.mixture.weights:
            drawn += f", weights {', '.join(f'{weight:g}' for weight in self.mixture.weights)}"
        return [("tasks", ", ".join(f"{m.name} ({m.metric})" for m in self.members)), ("mixture", drawn)]

    def _each(self, rows: Split) -> list[tuple[Member, Split]]:
        assert isinstance(rows, MixedSplit)
        return [(m, part) for m, part in zip(self.members, rows.parts, strict=True) if len(part)]

    def positions(self, rows: Split, source: ModelSource, max_length: int) -> float:
        found = [
            (len(part), member.task_kind.encoder.positions(part, source, max_length))
            for member, part in self._each(rows)
        ]
        return sum(n * v for n, v in found) / max(1, sum(n for n, _ in found))

    def truncated(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float | None:
        found = [
            (len(part), member.task_kind.encoder.truncated(part, tokenizer, max_length))
            for member, part in self._each(rows)
        ]
        known = [(n, share) for n, share in found if share is not None]
        return sum(n * share for n, share in known) / sum(n for n, _ in known) if known else None

    def use(self, rows: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """What each member says, in their order."""
        assert isinstance(rows, MixedSplit)
        pairs = zip(self.members, rows.parts, strict=True)
        return {"tasks": [m.task_kind.encoder.use(part, tokenizer, max_length) for m, part in pairs]}

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """Objects: the task's number, and the label as its kind has it."""
        found: list[Any] = [None] * len(labels)
        for task, member in enumerate(self.members):
            own = [i for i, (of, _) in enumerate(labels) if of == task]
            values = member.task_kind.encoder.label_array([labels[i][1] for i in own])
            for i, value in zip(own, values, strict=True):
                found[i] = (task, value)
        return ragged(found)

    def encode(
        self,
        rows: Split,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labelled: bool = True,
        cached: bool = True,
    ) -> EncodedSplit:
        assert isinstance(rows, MixedSplit)
        parts = [
            member.task_kind.encoder.encode(part, tokenizer, max_length, labelled=labelled, cached=cached)
            if len(part)
            else None
            for member, part in zip(self.members, rows.parts, strict=True)
        ]
        return EncodedMixture.of(parts, self.kind, self.mixture)

    def encode_splits(
        self, splits: Mapping[SplitName, Split], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[SplitName, EncodedSplit]:
        parts: dict[SplitName, list[EncodedSplit | None]] = {name: [] for name in splits}
        for task, member in enumerate(self.members):
            own = {
                name: split.parts[task]
                for name, split in splits.items()
                if isinstance(split, MixedSplit) and len(split.parts[task])
            }
            encoded = member.task_kind.encoder.encode_splits(own, tokenizer, max_length)
            for name, found in parts.items():
                found.append(encoded.get(name))
        return {name: EncodedMixture.of(found, self.kind, self.mixture) for name, found in parts.items()}


# Heads
# ------------------------------------------------------------------------------------------------------


class MixtureHead(Head):
    """A head for each member on one backbone, in a `HeadBank`. Members whose head comes with the backbone
    share it.

    Logits of a batch of one task are as its kind has them, of several padded with zeros to the most outputs.
    """

    row_distribution = False
    pooled = False  # the position that is read may be another one in each head
    peft_task_type = None
    hub_pipeline = None

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        heads = [member.task_kind.head for member in members]
        if heads:
            self.auto_class = heads[0].auto_class
            self.new_head = heads[0].new_head  # type: ignore[misc]
            self.modality = heads[0].modality  # type: ignore[misc]

    @property
    def one_state(self) -> bool:
        return all(member.task_kind.head.one_state for member in self.members)

    def refused(self, spec: BackboneSpec, model: str) -> str | None:
        return next((why for m in self.members if (why := m.task_kind.head.refused(spec, model))), None)

    def check_weights(self, source: ModelSource) -> None:
        for member in self.members:
            member.task_kind.head.check_weights(source)

    def num_labels(self, names: Sequence[str]) -> int:
        """None that one head would have."""
        return 0

    def names_in(self, config: Any) -> tuple[str, ...] | None:
        return None

    def load_model(
        self,
        source: ModelSource | str,
        names: Sequence[str],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> PreTrainedModel:
        loaded = [
            member.task_kind.head.load_model(source, member.labels, seed=seed, dtype=dtype)
            for member in (self.members if self.new_head else self.members[:1])
        ]
        model = self._joined(loaded)
        if self.new_head:
            reset_head(model, seed)
        return model

    def on_meta(self, config: PretrainedConfig, names: Sequence[str]) -> PreTrainedModel:
        members = self.members if self.new_head else self.members[:1]
        return self._joined([m.task_kind.head.on_meta(config, m.labels) for m in members])

    def _joined(self, models: Sequence[PreTrainedModel]) -> PreTrainedModel:
        return with_heads(models[0], {m.name: o for m, o in zip(self.members[1:], models[1:], strict=False)})

    def each(
        self, model: PreTrainedModel, data: Any
    ) -> Iterator[tuple[AbstractContextManager[PreTrainedModel], Any]]:
        for task, member in enumerate(self.members):
            rows: dict[SplitName, Split] = {}
            tokens: dict[SplitName, EncodedSplit] = {}
            for name, split in data.task.splits.items():
                encoded = data.splits[name]
                assert isinstance(split, MixedSplit)
                assert isinstance(encoded, EncodedMixture)
                own = encoded.parts[task]
                if own is not None:
                    rows[name], tokens[name] = split.parts[task], own
            if "train" in tokens:
                weights = None if member.class_weights is None else list(member.class_weights)
                alone = replace(
                    data.task,
                    name=member.name,
                    kind=member.kind,
                    labels=member.labels,
                    splits=rows,
                    metric=member.metric,
                    class_weights=weights,
                )
                yield self._of(model, task), replace(data, task=alone, splits=tokens)

    def _of(
        self, model: nn.Module, task: int, backbone: nn.Module | None = None
    ) -> AbstractContextManager[Any]:
        """The model as that of one member."""
        if head_bank(model) is None:  # the members share the head
            return nullcontext(model)
        own = cast(PreTrainedModel, model)
        return with_head(own, self.members[task].name if task else None, backbone)

    def inputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the member that the rows are of; nothing for rows of several, whose heads read a row."""
        present = batch["task_id"].unique().cpu().tolist()
        if len(present) > 1:
            return {}
        with self._of(model, present[0]) as own:
            found: dict[str, Tensor] = self.members[present[0]].task_kind.head.inputs(own, batch)
        return found

    def run(self, model: nn.Module, inputs: Mapping[str, Any], batch: Mapping[str, Tensor]) -> Tensor:
        ids = batch["task_id"]
        present = ids.unique().cpu().tolist()
        heads = [self.members[task].task_kind.head for task in present]
        if len(present) == 1 or head_bank(model) is None:
            with self._of(model, present[0]) as own:
                logits: Tensor = heads[0].run(own, inputs, batch)
            return logits

        # The first head's model runs the backbone on all rows. The others are given their rows of what the
        # backbone returned then.
        returned: list[Any] = []
        backbone = model.get_submodule(str(model.base_model_prefix))
        hook = backbone.register_forward_hook(lambda module, args, output: returned.append(output))
        try:
            with self._of(model, present[0]) as own:
                whole = heads[0].run(own, inputs, batch)
        finally:
            hook.remove()
        places = [(ids == task).nonzero()[:, 0] for task in present]
        found = [whole[places[0]]]
        for task, head, rows in zip(present[1:], heads[1:], places[1:], strict=True):
            take = partial(_rows_of, rows=rows, count=len(ids))
            with self._of(model, task, _Returns(tree.tree_map(take, returned[0]))) as own:
                found.append(
                    head.run(own, tree.tree_map(take, dict(inputs)), tree.tree_map(take, dict(batch)))
                )
        width = max(logits.shape[-1] for logits in found)
        padded = [nn.functional.pad(logits, (0, width - logits.shape[-1])) for logits in found]
        return torch.cat(padded)[torch.cat(places).argsort()]


class _Returns(nn.Module):
    """Stands for a backbone whose output is known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def _rows_of(value: Any, rows: Tensor, count: int) -> Any:
    """Of what has a value for each of `count` rows those of `rows`."""
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == count else value


# Losses and scores
# ------------------------------------------------------------------------------------------------------


class MixtureLoss(Loss):
    """The sum of the members' losses; each divides by what its own rows count for it."""

    def __init__(self, losses: Sequence[Loss], widths: Sequence[int]) -> None:
        self.losses, self.widths = losses, widths

    def _each(self, batch: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor | None, dict[str, Tensor]]]:
        """The tasks that a batch has rows of: their numbers, the places of their rows (`None`: all), and
        what it holds of them."""
        ids = batch["task_id"]
        present = ids.unique().cpu().tolist()
        if len(present) == 1:
            yield present[0], None, dict(batch)
            return
        for task in present:
            rows = (ids == task).nonzero()[:, 0]
            own = {key: value[rows] for key, value in batch.items()}
            yield task, rows, own

    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for task, rows, own in self._each(batch):
            found = logits if rows is None else logits[rows][..., : self.widths[task]]
            parts.append(self.losses[task].total(found, own))
        return torch.stack(parts).sum()

    def divergence(self, logits: Tensor, others: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for task, rows, own in self._each(batch):
            found = [x if rows is None else x[rows][..., : self.widths[task]] for x in (logits, others)]
            parts.append(self.losses[task].divergence(found[0], found[1], own))
        return torch.stack(parts).sum()

    def weight(self, batch: Mapping[str, Tensor]) -> float:
        return sum(self.losses[task].weight(own) for task, _, own in self._each(batch))


def _variance(score: float, rows: ScoredRows) -> float:
    """Of a mean of tasks whose scores are in 0…1, each at the mean and on its own rows."""
    counts = [rows.rows]
    if rows.labels is not None and len(rows.labels):
        counts = list(np.unique([task for task, _ in rows.labels], return_counts=True)[1])
    share = shrunk(score, rows.rows)
    return float(sum(share * (1 - share) / max(n, 1) for n in counts) / len(counts) ** 2)


def _mean_of_hits(decisions: NDArray[Any], labels: NDArray[Any]) -> float:
    """The mean over tasks of the share of rows that are right; a scorer that knows the tasks' own metrics
    computes those (see `MixtureScorer.score`)."""
    hits: dict[int, list[bool]] = {}
    for (task, found), (_, truth) in zip(decisions, labels, strict=True):
        hits.setdefault(task, []).append(bool(np.all(found == truth)))
    return float(np.mean([np.mean(values) for values in hits.values()]))


MEAN_OF_TASKS = Metric(
    "mean_of_tasks", -1.0, 1.0, "the mean of the tasks' own scores", _mean_of_hits, variance=_variance
)


class MixtureScorer(Scorer):
    """Outputs, decisions and labels are objects: the number of a row's task, and what its kind has of it."""

    metrics = (MEAN_OF_TASKS,)

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.tempered = all(m.task_kind.scorer.tempered for m in members)  # type: ignore[misc]

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return MixtureLoss(
            [m.task_kind.scorer.loss(m.labels, m.class_weights) for m in self.members],
            [m.task_kind.head.num_labels(m.labels) for m in self.members],
        )

    def outputs(
        self, model: nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Tensor]
    ) -> NDArray[Any]:
        number = self._one_task(batch)
        own = self.members[number].task_kind.scorer.outputs(model, batch, run)
        return ragged([(number, value) for value in own])

    def average(self, batch: Mapping[str, Tensor]) -> Callable[[Tensor, int], Tensor] | None:
        """That of the task of the batch."""
        return self.members[self._one_task(batch)].task_kind.scorer.average(batch)

    def _one_task(self, batch: Mapping[str, Tensor]) -> int:
        numbers = set(batch["task_id"].cpu().tolist())
        if len(numbers) > 1:
            raise UsageError("Rows of several tasks are scored in batches of one task each.")
        return int(numbers.pop())

    def _apart(
        self, *columns: NDArray[Any]
    ) -> Iterator[tuple[int, Member, NDArray[Any], list[NDArray[Any]]]]:
        """The tasks that rows are of: number, task, the rows' places, and their values in each column."""
        tasks = np.asarray([task for task, _ in columns[0]])
        for number, member in enumerate(self.members):
            rows = np.flatnonzero(tasks == number)
            if len(rows):
                yield number, member, rows, [_stacked([c[i][1] for i in rows]) for c in columns]

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        found: list[Any] = [None] * len(outputs)
        for task, member, rows, (own,) in self._apart(outputs):
            for row, value in zip(rows, member.task_kind.scorer.decisions(own), strict=True):
                found[row] = (task, value)
        return ragged(found)

    def by_task(self, outputs: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """See `Scorer.by_task`.

        Raises:
            TaskError, AutoPEFTError: see `Scorer.score`.
        """
        return {
            member.name: member.task_kind.scorer.score(member.scored_by, own, truth)
            for _, member, _, (own, truth) in self._apart(outputs, labels)
        }

    def score(self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        if len(outputs) != len(labels) or not len(outputs):
            raise TaskError(f"Cannot score {len(outputs):,} predictions against {len(labels):,} labels.")
        return float(np.mean(list(self.by_task(outputs, labels).values())))

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """The mean of the tasks' own."""
        return self._mean(lambda scorer, own, truth: scorer.row_loss(own, truth), outputs, labels)

    def calibrated_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """The mean of the tasks' own, each at its own temperature."""
        return self._mean(lambda scorer, own, truth: scorer.calibrated_loss(own, truth), outputs, labels)

    def _mean(
        self,
        of: Callable[[Scorer, NDArray[Any], NDArray[Any]], float | None],
        outputs: NDArray[Any],
        labels: NDArray[Any],
    ) -> float | None:
        found = [of(m.task_kind.scorer, own, truth) for _, m, _, (own, truth) in self._apart(outputs, labels)]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None

    def pseudo_values(
        self,
        metric: Metric,
        outputs: NDArray[Any],
        labels: NDArray[Any],
        text_ids: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See `Scorer.pseudo_values`. Those of each task are scaled so that the mean of all is the mean of
        the tasks' scores, and their variance over the number of groups that of the mean."""
        parts = [
            member.task_kind.scorer.pseudo_values(
                member.scored_by, own, truth, None if text_ids is None else text_ids[rows]
            )
            for _, member, rows, (own, truth) in self._apart(outputs, labels)
        ]
        if any(not len(part) for part in parts):
            return np.empty(0)
        groups, score = sum(len(part) for part in parts), float(np.mean([part.mean() for part in parts]))
        return np.concatenate(
            [score + groups / (len(parts) * len(part)) * (part - part.mean()) for part in parts]
        )

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """The score of each task."""
        scores = self.by_task(outputs, labels)
        rows = [
            (member.name, member.metric, scores[member.name], len(places))
            for _, member, places, _ in self._apart(outputs, labels)
        ]
        return (Breakdown("tasks", "Scores by task", ("task", "metric", "score", "rows"), tuple(rows)),)

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """The task's name, and what its kind says."""
        task, value = output
        member = self.members[task]
        return {"task": member.name, **member.task_kind.scorer.present(np.asarray(value), member.labels)}

    def line(self, prediction: Mapping[str, Any]) -> str:
        of = next(member for member in self.members if member.name == prediction["task"])
        return f"{of.name}: {of.task_kind.scorer.line(prediction)}"

    def describe_labels(self, names: Sequence[str]) -> str:
        return "; ".join(f"{m.name}: {m.task_kind.scorer.describe_labels(m.labels)}" for m in self.members)


# The kind
# ------------------------------------------------------------------------------------------------------


class _MixtureKind(TaskKind):
    """A kind of which other packages may have written members."""

    @property
    def owner(self) -> type[Any]:
        assert isinstance(self.scorer, MixtureScorer)
        foreign = [m.task_kind.owner for m in self.scorer.members if not m.task_kind.built_in]
        return foreign[0] if foreign else type(self.scorer)


def _kind(name: str, members: Sequence[Member], mixture: Mixture) -> TaskKind:
    return _MixtureKind(
        name,
        "several tasks, each with its own head",
        schema=MixtureSchema(members),
        encoder=MixtureEncoder(members, mixture),
        head=MixtureHead(members),
        scorer=MixtureScorer(members),
    )


METRICS.enter(MEAN_OF_TASKS.name, MEAN_OF_TASKS)


@register_options(_NAME, "tasks", "temperature", "batches", "weights")
def _with_members(told: Mapping[str, str]) -> TaskKind:
    try:
        members = [
            Member(
                str(name),
                str(kind),
                tuple(map(str, labels)),
                str(metric),
                None if weights is None else tuple(map(float, weights)),
            )
            for name, kind, labels, metric, weights in json.loads(told.get("tasks", "[]"))
        ]
        mixture = Mixture(
            float(told.get("temperature", 1)),
            told.get("batches", "homogeneous"),  # type: ignore[arg-type]
            tuple(map(float, json.loads(told.get("weights", "[]")))),
        )
    except (ValueError, TypeError) as error:
        raise TaskError(f"The tasks of a mixture cannot be read from its name: {error}.") from error
    if not members:
        raise TaskError("A mixture needs tasks; autopeft.tasks.task_set makes one.")
    return _kind(mixture_name(members, mixture), members, mixture)
