"""From the tree of a file to the parts of a recipe, gathering every problem on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from autopeft.composition import (
    composition_names,
    default_options,
    get_composition,
    is_composition,
)
from autopeft.errors import AutoPEFTError, RecipeError, near
from autopeft.method import get_method, method_names
from autopeft.recipe.format_1 import upgraded
from autopeft.recipe.inputs import MOST_INPUTS, check_starts, read_inputs
from autopeft.recipe.layers import normalise_at
from autopeft.recipe.models import (
    CompositionItem,
    EntryItem,
    Item,
    LayerBlock,
    Merge,
    validate_config,
)
from autopeft.recipe.names import check_groups, check_names, named_entries
from autopeft.recipe.optimizer import DEFAULT_OPTIMIZER, OPTIMIZERS, Optimizer
from autopeft.recipe.problems import Path, Problems
from autopeft.recipe.size import MOST_COPIES, check_size
from autopeft.recipe.training import PolicyItem, TrainingSection
from autopeft.spec import SITE_NAMES

__all__ = [
    "BESIDE",
    "SCHEMA_VERSION",
    "STACKS",
    "check_keys",
    "kind_of",
    "migrate",
    "no_stack",
    "read_fields",
    "read_item",
    "read_training",
]

SCHEMA_VERSION = 2
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: upgraded}
"""`MIGRATIONS[n]` turns a tree of schema n into one of schema n + 1."""

_TOP_KEYS = ("autopeft", "name", "reference", "inputs", "layers", "model", "training")
BESIDE = ("as", "from", "merge", "frozen")  # what may stand beside the name of an item
_BLOCK_KEYS = ("at", "stack", "attach")
STACKS = ("all", "encoder", "decoder")
_READ_APART = ("policies", "optimizer")
_LEVEL_PLACE = {
    "layers": "under 'layers:', in a block's 'attach:'",
    "model": "under 'model:'",
    "training": "under 'training:', in 'policies:'",
}


def migrate(tree: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """The tree brought to `SCHEMA_VERSION`; a version that cannot be read is a problem at once.

    Raises:
        RecipeError: the version is not a number of a known schema.
    """
    version = tree.get("autopeft", SCHEMA_VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        problems.add(("autopeft",), f"{version!r} is no schema version; write 'autopeft: {SCHEMA_VERSION}'.")
    elif version > SCHEMA_VERSION:
        problems.add(
            ("autopeft",),
            f"this file is of schema {version}, but this AutoPEFT reads schemas up to {SCHEMA_VERSION}; "
            "upgrade AutoPEFT to read it.",
        )
    problems.check()
    for step in range(version, SCHEMA_VERSION):
        tree = MIGRATIONS[step](tree)
    return tree


def read_fields(tree: Any, problems: Problems) -> dict[str, Any]:
    """The fields of a `Recipe`. What is wrong goes to `problems`; with any found, the fields are partial.

    Raises:
        RecipeError: the tree is no mapping, or of a schema that cannot be read.
    """
    if not isinstance(tree, dict):
        problems.add(
            (), f"a recipe is a mapping with the keys {', '.join(_TOP_KEYS)}, but this is {kind_of(tree)}."
        )
        problems.check()
    check_size(tree, problems)
    tree = migrate(tree, problems)
    problems.tree = tree
    check_keys(tree, (), _TOP_KEYS, "a recipe", problems)
    fields: dict[str, Any] = {"autopeft": SCHEMA_VERSION}
    name = read_line(tree, "name", problems)
    if name is not None:
        fields["name"] = name
    fields["reference"] = read_line(tree, "reference", problems)
    fields["inputs"] = read_inputs(tree.get("inputs"), problems)

    blocks: list[LayerBlock] = []
    places: list[Path] = []  # of each block's items
    for i, block in enumerate(_list(tree, "layers", (), problems)):
        path: Path = ("layers", i)
        if not isinstance(block, dict):
            keys = ", ".join(_BLOCK_KEYS)
            problems.add(path, f"a block is a mapping with the keys {keys}, but this is {kind_of(block)}.")
            continue
        before = len(problems.found)
        check_keys(block, path, _BLOCK_KEYS, "a block", problems)
        at: Any = "all"
        try:
            at = normalise_at(block.get("at", "all"))
        except RecipeError as error:
            problems.add((*path, "at"), str(error))
        stack = block.get("stack", "all")
        if stack not in STACKS:
            problems.add((*path, "stack"), no_stack(stack))
        attach = _items(block, "attach", path, "layers", problems)
        if not attach and len(problems.found) == before:
            problems.add(
                path,
                "a block attaches at least one method; list them under 'attach:' or leave the block out.",
            )
        if len(problems.found) == before:
            blocks.append(LayerBlock(at=at, stack=stack, attach=attach))
            places.append((*path, "attach"))
    fields["layers"] = tuple(blocks)

    fields["model"] = _items(tree, "model", (), "model", problems)
    check_names(places, fields, problems)
    fields["training"] = read_training(tree, problems)
    if not problems.found:
        named = named_entries(fields["layers"], fields["model"])
        check_groups(fields["training"].groups, named, problems)
        check_starts(named, fields["inputs"], problems)
    return fields


def check_keys(
    tree: Mapping[str, Any], path: Path, known: Iterable[str], what: str, problems: Problems
) -> None:
    """Report keys of `tree` that are not `known`."""
    known = tuple(known)
    for key in tree:
        if key not in known:
            problems.add(
                (*path, key), f"unknown key {key!r}.{near(str(key), known)} {what} takes: {', '.join(known)}."
            )


def kind_of(value: Any) -> str:
    """The kind of a value, as a message names it."""
    if value is None:
        return "empty"
    kinds = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return next(
        (word for kind, word in kinds.items() if isinstance(value, kind)), f"a {type(value).__name__}"
    )


def read_line(tree: Mapping[str, Any], key: str, problems: Problems) -> str | None:
    """A name or a reference of a recipe or a space, `None` where it is not there or wrong."""
    value = tree.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > 200 or not value.isprintable():
        problems.add((key,), f"{key!r} is one line of text, at most 200 characters, but got {value!r:.80}.")
        return None
    return value


def _list(tree: Mapping[str, Any], key: str, path: Path, problems: Problems) -> list[Any]:
    value = tree.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        problems.add(
            (*path, key), f"{key!r} is a list, but got {kind_of(value)}; put '- ' before each element."
        )
        return []
    return list(value)


def no_stack(value: Any) -> str:
    """The message about a value that is not one of `STACKS`."""
    return f"{value!r:.80} is no stack.{near(str(value), STACKS)} Write all, encoder or decoder."


def _items(tree: Mapping[str, Any], key: str, path: Path, level: str, problems: Problems) -> tuple[Item, ...]:
    found = [
        read_item(v, (*path, key, i), level, problems) for i, v in enumerate(_list(tree, key, path, problems))
    ]
    return tuple(item for item in found if item is not None)


def _split(tree: Any, path: Path, what: str, problems: Problems) -> tuple[str, Any, str | None] | None:
    """The name, body and alias of an item `name`, `{name: body}` or `{name: body, as: alias}`; its `from:` is
    read by `read_item`."""
    if isinstance(tree, str):
        return tree, None, None
    if not isinstance(tree, dict):
        problems.add(path, f"{what} is a name or {{name: {{options}}}}, but this is {kind_of(tree)}.")
        return None
    names = [k for k in tree if k not in BESIDE]
    if len(names) != 1:
        some = f"{len(names)} keys ({', '.join(map(repr, names))})" if names else "no name"
        problems.add(
            path,
            f"{what} has one name, but this has {some}; give each a list element of its own.",
        )
        return None
    if not isinstance(names[0], str):  # as Python's trees may have them: YAML's keys are text
        problems.add(
            path,
            f"{what} has a name that is text, but this has {names[0]!r:.80}; "
            "`autopeft methods` lists the names.",
        )
        return None
    alias = tree.get("as")
    if alias is not None and (not isinstance(alias, str) or not alias.isidentifier() or len(alias) > 64):
        problems.add(
            (*path, "as"), f"{alias!r} is no name; write letters, digits and '_', not starting with a digit."
        )
        alias = None
    return names[0], tree[names[0]], alias


def read_item(tree: Any, path: Path, level: str, problems: Problems) -> Item | None:
    """One item of an `attach:`, `model:` or `children:` list; `None` where something is wrong with it."""
    parts = _split(tree, path, "an item", problems)
    if parts is None:
        return None
    name, body, alias = parts
    # What its values start from.
    said = tree.get("from") if isinstance(tree, dict) else None
    start: tuple[Any, ...] = ()
    if said is not None:
        start = tuple(said) if isinstance(said, (list, tuple)) else (said,)
        fine = all(isinstance(v, str) and all(part.isidentifier() for part in v.split(".", 1)) for v in start)
        if not fine or not start or len(start) > MOST_INPUTS or len(set(start)) < len(start):
            problems.add(
                (*path, "from"),
                f"'from' is the name of an input, input.entry, or a list of different ones, but got "
                f"{said!r:.80}.",
            )
            start = ()
    frozen = tree.get("frozen", False) if isinstance(tree, dict) else False
    if not isinstance(frozen, bool):
        problems.add((*path, "frozen"), f"'frozen' is true or false, but got {frozen!r:.80}.")
        frozen = False
    said = tree.get("merge") if isinstance(tree, dict) else None
    merge = None if said is None else _merge(said, len(start), (*path, "merge"), problems)
    if is_composition(name):
        for key in ("from", "merge", "frozen"):
            if tree.get(key):
                problems.add(
                    (*path, key),
                    f"a {name} takes no {key!r}, as inputs hold entries; give it to its children.",
                )
        return _composition(name, body, alias, (*path, name), level, problems)
    config = _config(name, body, (*path, name), level, problems)
    if config is None:
        return None
    return EntryItem(method=name, config=config, alias=alias, start=start, merge=merge, frozen=frozen)


def _merge(said: Any, sources: int, path: Path, problems: Problems) -> Merge | None:
    """The `merge:` of an entry that starts from so many sources."""
    tree = {"how": said} if isinstance(said, str) else said
    if not isinstance(tree, dict):
        problems.add(path, f"'merge' is the name of a rule or a mapping, but got {kind_of(said)}.")
        return None
    try:
        merge = Merge.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        _add_validation(error, path, "'merge'", Merge, problems)
    except TypeError:
        problems.add(path, "an option of 'merge' is not plain text, a number, or a list of numbers.")
    else:
        if merge.weights is None or len(merge.weights) == sources:
            return merge
        problems.add(
            path, f"'weights' is a number for each of the {sources} that 'from' names, but got {said!r:.80}."
        )
    return None


def _composition(
    kind: str, body: Any, alias: str | None, path: Path, level: str, problems: Problems
) -> CompositionItem | None:
    before = len(problems.found)
    tree: dict[str, Any] = body if isinstance(body, dict) else {"children": body}
    place = path if isinstance(body, dict) else path[:-1]
    key = "children" if isinstance(body, dict) else kind
    options = _options(kind, tree, path, problems)
    children = _items({key: tree.get("children")}, key, place, level, problems)
    if not children and len(problems.found) == before:
        problems.add(
            path, f"{kind!r} holds at least one child; write {{{kind}: [{{lora: {{rank: 8}}}}, …]}}."
        )
    if get_composition(kind).traits.copies:
        copies = tree.get("copies", 1)  # of the only child: the experts of a route
        if isinstance(copies, bool) or not isinstance(copies, int) or not 1 <= copies <= MOST_COPIES:
            problems.add(
                (*path, "copies"),
                f"'copies' is a whole number from 1 to {MOST_COPIES}, but got {copies!r:.80}.",
            )
        elif copies > 1 and (len(children) > 1 or any(item.alias for item in children)):
            problems.add((*path, "copies"), f"'copies' is for a {kind} with one child, which has no 'as:'.")
        else:
            children *= copies
    if len(problems.found) > before:
        return None
    return CompositionItem.model_validate(
        {"kind": kind, "children": children, "alias": alias, "options": options}
    )


def _options(kind: str, tree: Mapping[str, Any], path: Path, problems: Problems) -> dict[str, Any]:
    """The complete options of a composition."""
    composition = get_composition(kind)
    model = composition.Options
    beside = ("children", "copies") if composition.traits.copies else ("children",)
    check_keys(tree, path, (*beside, *model.model_fields), kind, problems)
    own = {k: v for k, v in tree.items() if k in model.model_fields}
    try:
        options: dict[str, Any] = model.model_validate_json(json.dumps(own), strict=True).model_dump()
        return options
    except ValidationError as error:
        _add_validation(error, path, kind, model, problems)
    except (TypeError, ValueError):
        problems.add(path, f"an option of {kind!r} is not plain text, a number, or true or false.")
    return default_options(kind)


def _config(name: str, body: Any, path: Path, level: str, problems: Problems) -> dict[str, Any] | None:
    """The config of a method as a file says it, checked."""
    if name not in method_names():
        known = (*method_names(), *(composition_names() if level != "training" else ()))
        hint = near(name, known) or f" There are: {', '.join(method_names())}."
        problems.add(path, f"there is no method {name!r}.{hint} `autopeft methods` explains them.")
        return None
    method = get_method(name)
    if level not in method.traits.levels:
        right = " or ".join(_LEVEL_PLACE[place] for place in method.traits.levels)
        problems.add(path, f"{name!r} does not belong here; list it {right}.")
        return None
    body = {} if body is None else body
    if not isinstance(body, dict):
        problems.add(
            path, f"the options of {name!r} are a mapping, but got {kind_of(body)}; write {{{name}: {{…}}}}."
        )
        return None
    try:
        config = validate_config(name, body)
    except ValidationError as error:
        _add_validation(error, path, name, method.Config, problems)
        return None
    except AutoPEFTError as error:
        problems.add(path, str(error))
        return None
    except (TypeError, ValueError) as error:
        problems.add(path, f"the options of {name!r} are not plain data: {error}.")
        return None
    allowed, fine = method.traits.sites, True
    for i, site in enumerate(config.sites or ()):
        if site not in allowed:
            known, what = SITE_NAMES, f"there is no site {site!r}."
            if site in SITE_NAMES:
                known, what = allowed, f"{method.name!r} cannot sit at {site!r}."
            takes = ", ".join(allowed) or "no sites"
            problems.add((*path, "sites", i), f"{what}{near(site, known)} {method.name!r} takes: {takes}.")
            fine = False
    return config.model_dump(mode="json", exclude_unset=True) if fine else None


def _add_validation(
    error: ValidationError, path: Path, what: str, model: type[BaseModel], problems: Problems
) -> None:
    """Report pydantic's findings in the words and places of the file."""
    for detail in error.errors():
        where: Path = (*path, *detail["loc"])
        if detail["type"] == "extra_forbidden":
            key, loc = str(detail["loc"][-1]), detail["loc"]
            known = tuple(f.alias or name for name, f in model.model_fields.items())
            if loc and loc[0] == "groups" and len(loc) > 2:
                known = ("learning_rate", "weight_decay")
            problems.add(where, f"unknown key {key!r}.{near(key, known)} {what} takes: {', '.join(known)}.")
            continue
        got = detail.get("input")
        message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input ")
        message = message.replace("a valid boolean", "true or false")
        shown = f", but got {got!r:.80}"
        if isinstance(got, (dict, list)):  # what is wrong inside of one stands in the message
            keys = [repr(str(key))[:40] for key in got][:3] if isinstance(got, dict) else []
            held = f" with the key{'s' if len(keys) > 1 else ''} {', '.join(keys)}" if keys else ""
            shown = f", but got {kind_of(got)}{held}" if detail["type"].endswith("_type") else ""
        problems.add(where, f"{message.rstrip('.')}{shown}.")


def read_training(tree: Mapping[str, Any], problems: Problems) -> TrainingSection:
    """The `training:` section of a recipe's tree."""
    body = tree.get("training")
    if body is None:
        return TrainingSection()
    path: Path = ("training",)
    if not isinstance(body, dict):
        problems.add(path, f"'training' is a mapping, but got {kind_of(body)}.")
        return TrainingSection()
    policies = [
        _policy(p, (*path, "policies", i), problems)
        for i, p in enumerate(_list(body, "policies", path, problems))
    ]
    read = {"policies": tuple(p for p in policies if p is not None)}

    optimizer: Optimizer = DEFAULT_OPTIMIZER
    chosen, place = body.get("optimizer"), (*path, "optimizer")
    if chosen is not None and not isinstance(chosen, dict):
        problems.add(place, f"'optimizer' is a mapping, but got {kind_of(chosen)}; write {{name: adamw, …}}.")
    elif chosen is not None:
        name = chosen.get("name", DEFAULT_OPTIMIZER.name)
        model = OPTIMIZERS.get(name) if isinstance(name, str) else None
        if model is None:
            hint, known = near(str(name), OPTIMIZERS), ", ".join(OPTIMIZERS)
            problems.add((*place, "name"), f"there is no optimizer {name!r}.{hint} Take {known}.")
        else:
            try:
                optimizer = model.model_validate(chosen)
            except ValidationError as error:
                _add_validation(error, place, f"the optimizer {name!r}", model, problems)

    section = TrainingSection()
    try:
        plain = TrainingSection.model_validate({k: v for k, v in body.items() if k not in _READ_APART})
        section = plain.model_copy(update={**read, "optimizer": optimizer})
    except ValidationError as error:
        _add_validation(error, path, "'training'", TrainingSection, problems)
    return section


def _policy(tree: Any, path: Path, problems: Problems) -> PolicyItem | None:
    parts = _split(tree, path, "a policy", problems)
    if parts is None:
        return None
    name, body, alias = parts
    if alias is not None:
        problems.add((*path, "as"), "a policy takes no name; leave 'as:' out.")
    for key in ("from", "merge", "frozen"):
        if isinstance(tree, dict) and key in tree:
            problems.add((*path, key), f"a policy has no values; give an entry the '{key}:'.")
    config = _config(name, body, (*path, name), "training", problems)
    return None if config is None else PolicyItem(method=name, config=config)
