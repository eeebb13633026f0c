"""The tasks of a set, written into the recipes that act by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autopeft.composition import get_composition, is_composition
from autopeft.errors import RecipeError
from autopeft.method import get_method
from autopeft.recipe.core import Recipe
from autopeft.recipe.models import CompositionItem, EntryItem, Item

__all__ = ["acts_by_task", "for_tasks", "lacks_tasks", "tasks_of", "with_further_task"]


def acts_by_task(name: str) -> bool:
    """Whether a method or composition has the option `tasks`."""
    options: Any = get_composition(name).Options if is_composition(name) else get_method(name).Config
    return "tasks" in options.model_fields


def tasks_of(recipe: Recipe) -> tuple[str, ...]:
    """The tasks that a recipe acts by; none where it acts alike on all, or names none."""
    return next((tuple(told) for told in _told(recipe) if told), ())


def lacks_tasks(recipe: Recipe) -> bool:
    """Whether something in a recipe acts by the task of a row and does not name the tasks."""
    return None in _told(recipe)


def _told(recipe: Recipe) -> list[list[str] | None]:
    """What each item says that acts by the task of a row."""
    items: list[Item] = [*(item for block in recipe.layers for item in block.attach), *recipe.model]
    found: list[list[str] | None] = []
    while items:
        item = items.pop()
        if _by_task(item):
            found.append((item.config if isinstance(item, EntryItem) else item.options).get("tasks"))
        items += item.children if isinstance(item, CompositionItem) else ()
    return found


def for_tasks(recipe: Recipe, tasks: Sequence[str]) -> Recipe:
    """The recipe with the names of the tasks that it is trained on, wherever something in it acts by the task
    of a row and does not name them. What has a child for each task has copies of the one that was written.

    Args:
        tasks: of the set, in its order; none where it is trained on one task.

    Raises:
        RecipeError: it names other tasks, or the same in another order.
    """
    return _mapped(recipe, lambda item: _filled(item, tasks))


def with_further_task(recipe: Recipe) -> Recipe:
    """The recipe with one task more, wherever something in it acts by the task of a row and names the tasks.
    What has a child for each task has a copy of its last child for the new one."""
    tasks = [*tasks_of(recipe), "a further task"]
    return _mapped(recipe, lambda item: _extended(item, tasks))


def _mapped(recipe: Recipe, changed: Callable[[Item], Item]) -> Recipe:
    """The recipe with each item of its blocks and of the model changed."""
    blocks = [
        block.model_copy(update={"attach": tuple(changed(item) for item in block.attach)})
        for block in recipe.layers
    ]
    model = tuple(changed(item) for item in recipe.model)
    found = recipe.model_copy(update={"layers": tuple(blocks), "model": model})
    return recipe if found == recipe else found


def _by_task(item: Item) -> bool:
    """Whether an item acts by the task of a row as it is configured."""
    if isinstance(item, CompositionItem):
        return acts_by_task(item.kind)
    if not acts_by_task(item.method):
        return False
    needs: frozenset[str] = get_method(item.method)(item.method_config()).traits.needs
    return "several_tasks" in needs


def _filled(item: Item, tasks: Sequence[str]) -> Item:
    if isinstance(item, EntryItem):
        told = item.config.get("tasks")
        if not _by_task(item) or not _missing(item.method, told, tasks):
            return item
        return item.model_copy(update={"config": {**item.config, "tasks": list(tasks)}})
    children = tuple(_filled(child, tasks) for child in item.children)
    options = item.options
    if _by_task(item) and _missing(item.kind, options["tasks"], tasks):
        options = {**options, "tasks": list(tasks)}
        if get_composition(item.kind).traits.for_each_task and len(children) == 1:
            children *= len(tasks)
    return item.model_copy(update={"children": children, "options": options})


def _extended(item: Item, tasks: list[str]) -> Item:
    if isinstance(item, EntryItem):
        return item.model_copy(update={"config": {**item.config, "tasks": tasks}}) if _by_task(item) else item
    children = tuple(_extended(child, tasks) for child in item.children)
    options = item.options
    if _by_task(item):
        options = {**options, "tasks": tasks}
        if get_composition(item.kind).traits.for_each_task:
            children += (children[-1].model_copy(update={"alias": None}),)
    return item.model_copy(update={"children": children, "options": options})


def _missing(name: str, told: Sequence[str] | None, tasks: Sequence[str]) -> bool:
    """Whether something names no tasks and there are some.

    Raises:
        RecipeError: it names others.
    """
    if told is None:
        return len(tasks) > 0
    if list(told) != list(tasks):
        trained = ", ".join(tasks) or "one task alone"
        raise RecipeError(
            f"{name} is for the tasks {', '.join(told)} in this order, but this training is of {trained}: "
            "name the tasks so, or leave `tasks` out of the recipe."
        )
    return False
