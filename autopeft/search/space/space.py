"""Search spaces: recipes with choices in place of values.

A space file is a recipe file in which

- `{choice: [a, b]}` takes one of the options, `{int: [low, high]}` and `{float: [low, high]}` a number
  in between (both ends included; `log: true` draws it on a logarithmic scale, and with `steps: 300` the
  lower end is meant for trainings of 300 steps: shorter ones begin higher), and `{optional: item}` is
  there or not;
- `vars:` declares a choice once, and `$name` uses it in several places;
- a choice under `attach:` is shared by the layers of its block; a block with `each_layer:` in its place
  draws every choice for each layer, as does `vars: {name: {each_layer: {choice: […]}}}` under one name;
- `at: {of: all, from: $first_layer, switch: $on}` takes, of the layers `of` (default all), those from a
  first layer on (a number or `last`), and of these those that a switch drawn for each layer leaves on;
- `{scaled: $rate, with: $rank, at: 12, power: 0.75, most: 3.0e-2}` is a number times (12/rank)^0.75 where
  the rank is below 12, at most 0.03: smaller sizes take larger rates. Under `vars:` it has a name;
- `hidden/16` is the backbone's width divided (rounded down, at least 1), `last` the index of the last
  layer;
- `inputs:` names saved hybrids, as in a recipe. An item starts `from:` one or a choice of them (`null` for
  none), and its `frozen:` may be a choice too; where options differ in more, an item for each stands in a
  `choice:`. What starts from an input has the size and the layers of that in every option;
- an option `null` in a list of items, and a size of 0 (rank, bottleneck, length, keep), mean that the
  item is absent. So is one that the backbone cannot take: sites that it lacks are left out here, while
  in a recipe they are errors.

A space compiles to one flat, static list of parameters. Inactive parameters are drawn all the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from autopeft.composition import composition_names, get_composition
from autopeft.errors import RecipeError, near
from autopeft.foreign import local_path
from autopeft.method import method_names
from autopeft.recipe import InputItem
from autopeft.recipe.pooling import Pooling
from autopeft.recipe.problems import Problems
from autopeft.recipe.tasks import acts_by_task
from autopeft.recipe.yaml_text import dump_yaml, read_text, read_yaml
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.compiler import check_templates, compile_space
from autopeft.search.space.parameters import Parameter
from autopeft.search.space.templates import Templates
from autopeft.spec import BackboneSpec

__all__ = ["BoundSpace", "Parameter", "Space", "space_names"]

_PACKAGE = "autopeft.search_spaces"


def space_names() -> tuple[str, ...]:
    """Names of the built-in spaces, sorted."""
    names = (file.name for file in files(_PACKAGE).iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


@dataclass(eq=False, repr=False)
class Space:
    """A search space as it stands in its file. `bind` it to a backbone for its parameters.

    Attributes:
        text: the file's.
        steps: of the trainings that it is for (see `for_steps`).
        pooling: of the heads of all recipes that name none themselves.
    """

    templates: Templates
    text: str
    steps: int | None = None
    pooling: Pooling = "own"
    _bound: BoundSpace | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return self.templates.name

    @property
    def reference(self) -> str | None:
        return self.templates.reference

    @property
    def inputs(self) -> Mapping[str, InputItem]:
        """What its items start from, by name."""
        return self.templates.inputs

    @classmethod
    def from_yaml(cls, text: str, source: str = "space") -> Space:
        """Read a YAML 1.2 document; `source` names it in messages.

        Raises:
            RecipeError: the text is no space; the message has one line `source:line: …` for each problem.
        """
        problems = Problems(None, source)
        problems.tree = read_yaml(text, source)
        templates = compile_space(problems.tree, problems)
        problems.check()
        check_templates(templates, problems)
        problems.check()
        return cls(templates, text)

    @classmethod
    def from_file(cls, path: str | Path) -> Space:
        """Read a YAML file.

        Raises:
            RecipeError: the file cannot be read or is no space.
        """
        return cls.from_yaml(read_text(Path(path)), str(path))

    @classmethod
    def named(cls, name: str) -> Space:
        """The built-in space of that name (see `space_names`).

        Raises:
            RecipeError: there is none; the message names near matches.
        """
        names = space_names()
        if name not in names:
            raise RecipeError(
                f"There is no search space {name!r}.{near(name, names)} Built in: {', '.join(names)}."
            )
        if name not in _BUILT_IN:
            text = files(_PACKAGE).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
            _BUILT_IN[name] = cls.from_yaml(text, f"{name}.yaml")
        return replace(_BUILT_IN[name])  # what one is bound to is not the other's

    @classmethod
    def load(cls, ref: str | Path) -> Space:
        """The built-in space of that name, or the one in a file.

        Raises:
            RecipeError: there is neither; the message names near matches.
        """
        text, names = str(ref), space_names()
        if text in names:
            return cls.named(text)
        path = local_path(text, RecipeError)
        if path.is_file():
            return cls.from_file(path)
        if not (path.suffix or len(path.parts) > 1):
            return cls.named(text)
        raise RecipeError(f"There is no search space file {text!r}. Built in: {', '.join(names)}.")

    def for_steps(self, steps: int) -> Space:
        """The space for trainings of `steps` steps: where a range names its own `steps`, shorter trainings
        begin at larger rates."""
        return replace(self, steps=steps)

    def pinned(self, hashes: Mapping[str, str]) -> Space:
        """The space with the hashes of its inputs' contents, by the inputs' names."""
        inputs = {
            name: item.model_copy(update={"sha256": hashes[name]})
            for name, item in self.templates.inputs.items()
        }
        return replace(self, templates=replace(self.templates, inputs=inputs))

    def _by_task(self) -> set[str]:
        """Names of what acts by the task of a row, as far as the text has them."""
        return {n for n in (*composition_names(), *method_names()) if acts_by_task(n) and n in self.text}

    @property
    def acts_by_task(self) -> bool:
        """Whether something in it acts by the task of a row."""
        return bool(self._by_task())

    def for_tasks(self, tasks: Sequence[str]) -> Space:
        """The space with the names of the tasks that are searched on, wherever something in it acts by the
        task of a row and does not name them (see `autopeft.recipe.tasks.for_tasks`)."""
        if not tasks or not self.acts_by_task:
            return self
        written = json.dumps(read_yaml(self.text, self.name))
        tree = json.loads(written)
        # Elsewhere a name may mean something else: `at` has a key `switch`, and rates have groups by method.
        blocks = [(block, ("attach", "each_layer")) for block in tree.get("layers") or ()]
        declared = tree.get("vars") or {}
        for part, keys in ((tree, ("model",)), (declared, tuple(declared)), *blocks):
            for key in part.keys() & keys:
                part[key] = _with_tasks(part[key], self._by_task(), list(tasks))
        if json.dumps(tree) == written:
            return self
        found = Space.from_yaml(dump_yaml(tree), self.name)
        templates = replace(found.templates, inputs=self.templates.inputs)
        return replace(found, templates=templates, steps=self.steps, pooling=self.pooling)

    def bind(self, spec: BackboneSpec) -> BoundSpace:
        """The space on a backbone.

        Raises:
            RecipeError: see `BoundSpace`.
        """
        if self._bound is None or self._bound.spec is not spec:
            self._bound = BoundSpace(self.templates, spec, self.steps, self.pooling)
        return self._bound


def _with_tasks(tree: Any, names: Collection[str], tasks: list[str]) -> Any:
    """Items of a space in which those of these names have `tasks`."""
    if isinstance(tree, list):
        return [
            _with_tasks({v: None} if isinstance(v, str) and v in names else v, names, tasks) for v in tree
        ]
    if not isinstance(tree, dict):
        return tree
    found = {key: _with_tasks(value, names, tasks) for key, value in tree.items()}
    for name in found.keys() & names:
        body = found[name] or {}
        body = {"children": body} if isinstance(body, list) else dict(body)
        if body.setdefault("tasks", tasks) is tasks and len(body.get("children", ())) == 1:
            body |= {"copies": len(tasks)} if get_composition(name).traits.for_each_task else {}
        found[name] = body
    return found


_BUILT_IN: dict[str, Space] = {}
"""The built-in spaces that were read."""
