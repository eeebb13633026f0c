"""`--from bank`: the adapters of the bank that promise most for the task, frozen, as items of the space.

The bank's hybrids are ranked for the task (`autopeft.starts.ranking`). The first one that fits the budget
joins the space: each of its entries may be left out, or stay frozen beside whatever else the space offers.

That is what `experiments/banks` supports, and no more: an adapter of another task that was frozen beside a
fresh LoRA was not below that LoRA alone in any cluster of tasks with 50 rows, a LoRA that was trained on from
another task's was so in each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autopeft import bank
from autopeft.assets import ModelSource
from autopeft.composition import is_composition
from autopeft.counting import count
from autopeft.errors import TaskError
from autopeft.graph import build_graph, unservable_entries
from autopeft.hybrid.inputs import open_input
from autopeft.method import get_method
from autopeft.recipe import InputItem, Recipe
from autopeft.recipe.pooling import Pooling
from autopeft.recipe.yaml_text import dump_yaml, read_yaml
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.space.space import Space
from autopeft.spec import BackboneSpec
from autopeft.starts.ranking import Start, ranked, starting_from
from autopeft.tasks import Task, cluster_of, get_kind

__all__ = ["BankStart", "find_start", "with_start"]

_SHOWN = 5


@dataclass(frozen=True)
class BankStart:
    """The hybrid of the bank that a search may start from.

    Attributes:
        name: in the bank.
        task: that it was trained on, where that is known.
        score: log evidence of the task's labels for each row; `bare`: that of the bare backbone.
        recipe: its entries, each frozen and with a name of its own, and the learning rate that they had.
    """

    name: str
    task: str | None
    score: float
    bare: float
    recipe: Recipe

    def to_dict(self) -> dict[str, Any]:
        """What the manifest records of it."""
        return {**vars(self), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> BankStart:
        """The start that a manifest records."""
        return cls(**{**told, "recipe": Recipe.from_dict(told["recipe"])})

    @property
    def fresh(self) -> Recipe:
        """The recipe without the start."""
        tree = {key: value for key, value in self.recipe.to_dict().items() if key != "inputs"}
        for item in _started(tree):
            del item["from"], item["frozen"]
        return Recipe.from_dict(tree)

    @property
    def told(self) -> str:
        """What the search says of it."""
        trained_on = "" if self.task is None else f", trained on {self.task}"
        return (
            f"The bank's best start here is {self.name}{trained_on}: the evidence of the labels is "
            f"{self.score:.3f} for each row, and {self.bare:.3f} of the bare backbone."
        )


def find_start(
    a: SearchArguments,
    task: Task,
    source: ModelSource,
    spec: BackboneSpec,
    most: int,
    pooling: Pooling,
    device: str,
    notify: Callable[[str], None] | None,
) -> BankStart | None:
    """The best start in the bank that is made of adapters, has seen none of the task's texts, has at most
    `most` deployed parameters and can be served as asked; `None` where there is none.

    Raises:
        UsageError: the bank is empty, or starts of such a task cannot be ranked.
    """
    ranking = ranked(
        task, source, spec, str(a.model), seed=a.seed, max_length=a.max_length, device=device, pooling=pooling
    )
    told = [*ranking.skipped]
    for start in ranking.starts:
        if other := [name for name in start.methods if not _is_adapter(name)]:
            told.append(f"{start.name} has {other[0]}, and starts are made of adapters alone.")
            continue
        recipe = _named(start)
        deployed = count(recipe, spec).deployed
        if _saw(bank.entry(start.name), task):
            told.append(f"{start.name} was trained on texts of {task.name}, perhaps on rows of its test.")
        elif deployed > most:
            told.append(f"{start.name} has {deployed:,} parameters, and the budget {most:,}.")
        elif a.serve is not None and unservable_entries(build_graph(recipe, spec), a.serve):
            told.append(f"{start.name} cannot be served by {a.serve}.")
        else:
            return BankStart(start.name, start.task, start.score, ranking.bare, recipe)
    if notify is not None:
        more = f" {len(told) - _SHOWN} more are left out." if len(told) > _SHOWN else ""
        notify(f"The bank has no start for this search: {' '.join(told[:_SHOWN])}{more}")
    return None


def _is_adapter(method: str) -> bool:
    """Whether a method transforms activations in place, and is no change of weights."""
    if is_composition(method):
        return False
    traits = get_method(method).traits
    return "hook" in traits.ways <= {"hook", "weight"} and not traits.mergeable


def _saw(kept: bank.BankEntry, task: Task) -> bool:
    """Whether a hybrid was trained on rows of this task's file, or on a task that shares its texts; of a set
    any of its tasks counts."""
    if kept.data is not None and kept.data == task.source.sha256:
        return True
    own, theirs = _names(task.source.name, task.kind), _names(kept.task or "", kept.kind or "")
    clusters = {cluster_of(name) for name in own} & {cluster_of(name) for name in theirs}
    return bool(own & theirs or clusters - {None})


def _names(name: str, kind: str) -> set[str]:
    """The names of a task, or of the tasks of a set."""
    try:
        members = getattr(get_kind(kind).schema, "members", ()) if kind else ()
    except TaskError:  # of a package that is not here
        members = ()
    return {name, *(member.name for member in members)} - {""}


def _named(start: Start) -> Recipe:
    """The recipe that has a hybrid of the bank frozen, its entries under names that no space has, with the
    largest learning rate that they had."""
    kept = bank.entry(start.name)
    before = open_input(start.name, InputItem(bank=start.name, sha256=kept.sha256)).recipe
    rates = [before.training.settings(ref.name, ref.method).learning_rate for ref in before.entries()]
    tree = starting_from(kept).to_dict()
    for item in _started(tree):
        item |= {"as": item["from"].replace(".", "_"), "frozen": True}
    return Recipe.from_dict({**tree, "name": start.name, "training": {"learning_rate": max(rates)}})


def _started(tree: Any) -> list[dict[str, Any]]:
    """The items of a recipe's data that start from an input."""
    if isinstance(tree, list):
        return [item for inner in tree for item in _started(inner)]
    if not isinstance(tree, dict):
        return []
    return [tree] if "from" in tree else [item for inner in tree.values() for item in _started(inner)]


def with_start(space: Space, start: BankStart) -> Space:
    """The space with the items of a start, each of which may be left out."""
    tree, told = read_yaml(space.text, space.name), start.recipe.to_dict()
    inputs = {**space.inputs, **start.recipe.inputs}
    tree["inputs"] = {name: item.to_data() for name, item in inputs.items()}
    for block in told["layers"]:
        attach = [{"choice": [None, item]} for item in block["attach"]]
        tree["layers"] = [*tree.get("layers", []), {**block, "attach": attach}]
    plain = json.loads(json.dumps(tree))  # without the lines that the reader marks
    return Space.from_yaml(dump_yaml(plain), f"{space.name} with {start.name}")
