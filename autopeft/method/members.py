"""The members that a method and its module may have, and the check that what is there is spelt and shaped so.

Optional members are found by their presence: a misspelt one would never be called. `MEMBERS` declares each of
them once; `members_table` renders it for the documents.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from torch import nn

from autopeft.errors import MethodError, UsageError
from autopeft.method.contract import PeftFormat, PeftKind, Traits

__all__ = ["MEMBERS", "Member", "check_members", "check_method", "check_module", "members_table"]

Owner = Literal["module", "method"]
_CLOSE = 0.8  # difflib's ratio, from which a name counts as a misspelling (`after_backwards`: 0.97)


@dataclass(frozen=True)
class Member:
    """One member that the package looks for.

    Attributes:
        name: how it is spelt.
        owner: where it lives: on the `module` that `build` returns, or on the `method` class.
        called: when, or what for.
        takes: its arguments without `self`; `None` for a value (an attribute or a property).
        gives: what it returns, or its type, in words.
        way: of members of a protocol that a way in asks for, which way; empty for optional ones.
        beside: members that must be there where this one is.
    """

    name: str
    owner: Owner
    called: str
    takes: tuple[str, ...] | None = ()
    gives: str = ""
    way: str = ""
    beside: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """`settled(step, total) -> bool`; `members: int` for a value."""
        if self.takes is None:
            return f"{self.name}: {self.gives}"
        return f"{self.name}({', '.join(self.takes)}){f' -> {self.gives}' if self.gives else ''}"


_STEP = ("step", "total")
_SITE_CALL = ("site", "x", "y", "call")
_SEEN = ("batches", "objective")
_GROUPS = ("groups", *_STEP)

MEMBERS: tuple[Member, ...] = (
    Member(
        "side",
        "module",
        "at attach, and when it was settled: which end of the site it alters, if any",
        ("site",),
        "input|output|None",
        "hook",
    ),
    Member("delta", "module", "in each forward: what is added there", _SITE_CALL, "Tensor", "hook"),
    Member(
        "around",
        "module",
        "in each forward: what a region yields, made with `call.region`",
        ("site", "x", "call"),
        "Tensor",
        "region",
    ),
    Member("weight_targets", "module", "at attach: the tensors it alters", (), "WeightTargets", "weight"),
    Member(
        "weight",
        "module",
        "whenever an altered tensor is needed: the new one",
        ("target", "original", "current"),
        "Tensor",
        "weight",
    ),
    Member(
        "key_value",
        "module",
        "in each forward of an attention: what is put in front",
        ("site", "x", "call"),
        "keys, values",
        "kv",
    ),
    Member(
        "query_key",
        "module",
        "in each forward of an attention: features of queries and keys, whose product comes to the scores",
        ("site", "x", "call"),
        "queries, keys",
        "scores",
    ),
    Member("slots", "module", "at attach: the rows that it fills", ("site",), "Slots", "prompt"),
    Member(
        "prompt", "module", "in each forward: the reserved rows", ("site", "x", "call"), "Tensor", "prompt"
    ),
    Member(
        "logits",
        "module",
        "in each forward, behind the last map: what is added to the logits",
        ("hidden", "logits", "call"),
        "Tensor",
        "logits",
    ),
    Member(
        "initialise",
        "module",
        "at attach, for each weight target, with the backbone's tensor",
        ("target", "weight"),
    ),
    Member("initialise_prompt", "module", "at attach, with the text embedding", ("embedding",)),
    Member(
        "start_from",
        "module",
        "at attach, behind these, with what the entry's `from:` names (`StartsFrom`)",
        ("stored",),
    ),
    Member(
        "measurement",
        "module",
        "before `measure`: what else it depends on (`Prepares`)",
        (),
        "dict",
        beside=("measure", "settle"),
    ),
    Member(
        "measure",
        "module",
        "once before training, with calibration batches (`Prepares`)",
        ("base", *_SEEN),
        "dict of tensors",
        beside=("measurement", "settle"),
    ),
    Member(
        "calibration",
        "module",
        "before `measure`: which batches it wants, on what (`Calibration`)",
        None,
        "Calibration",
        beside=("measure",),
    ),
    Member(
        "settle",
        "module",
        "with what was measured, now or in an earlier trial (`Prepares`)",
        ("measured",),
        beside=("measurement", "measure"),
    ),
    Member("before_step", "module", "by the loop, before the forward of each step", _STEP),
    Member(
        "loss_terms",
        "module",
        "in each step, behind the forward; what it gives is added to the loss (`LossStep`)",
        ("step",),
        "Tensor or None",
    ),
    Member("after_backward", "module", "by the loop, when the gradients are there", _STEP),
    Member("before_update", "module", "by the loop, when they are clipped, before the optimizer", _STEP),
    Member("after_step", "module", "by the loop, behind the optimizer; gradients are still there", _STEP),
    Member(
        "settled",
        "module",
        "by early stopping, after `step` of `total` steps: whether this state may be what training leaves. "
        "No state counts as the best while something is still to be taken away or to be found",
        _STEP,
        "bool",
    ),
    Member("finish", "module", "once at the end of training"),
    Member(
        "remarks",
        "module",
        "behind a training of one recipe: what is to be said of what it left, in sentences",
        (),
        "list[str]",
    ),
    Member("phases", "module", "before training, by a module that trains in stages", (), "list[Phase]"),
    Member(
        "parameter_groups",
        "module",
        "when the optimizer is built: `params`, a `name` that comes behind the entry's, and what takes the "
        "place of the recipe's `lr`, `weight_decay`, `schedule` and `warmup`; `lr_factor` multiplies the "
        "recipe's `lr`; with `meant_for`, a number of steps, `lr` is higher in a phase of fewer "
        "(`shortened`); with `clip: group` it is clipped by itself",
        (),
        "list[dict]",
    ),
    Member(
        "parts",
        "module",
        "when the optimizer is built: what a recipe's groups may set apart by `entry.part`, without overlap",
        (),
        "dict of lists of Parameters",
    ),
    Member(
        "decays",
        "module",
        "when the optimizer is built: the value that a parameter decays towards where it is not zero; None "
        "where it does not decay",
        (),
        "dict[Parameter, float, Tensor or None]",
    ),
    Member(
        "up_parameters",
        "module",
        "by policies that treat the zero-initialised factor apart (LoRA+)",
        (),
        "list[Parameter]",
    ),
    Member("deploy", "module", "at saving and counting, on a copy: drops what only training needed"),
    Member(
        "resize",
        "module",
        "at loading, by methods whose deployed size training settles (`Resizes`)",
        ("shapes",),
        beside=("deploy",),
    ),
    Member(
        "explicit",
        "module",
        "by `explicit_recipe`: what data have settled in it, as plain entries (`Settles`)",
        ("sites",),
        "Explicit",
    ),
    Member(
        "written_out",
        "module",
        "by `of_task`: what it does for one task, as a plain entry (`WritesOut`)",
        ("task", "sites"),
        "WrittenOut",
    ),
    Member(
        "conclude", "module", "once after training, with the rows that were trained on (`Concludes`)", _SEEN
    ),
    Member(
        "conclusion_rows",
        "module",
        "by training: how many of the rows `conclude` gets (`Concludes`)",
        None,
        "int",
        beside=("conclude",),
    ),
    Member(
        "longest_text", "module", "by training and writing: tokens of a text (`LimitsTexts`)", None, "int"
    ),
    Member("members", "module", "by predictions: how many models it stands for (`Ensembles`)", None, "int"),
    Member(
        "choose",
        "module",
        "by predictions: act as this one of them (`Ensembles`)",
        ("member",),
        beside=("members",),
    ),
    Member("samples", "module", "by predictions: how many draws they average (`Posterior`)", None, "int"),
    Member(
        "recording",
        "module",
        "by predictions, around the forward (`Posterior`)",
        (),
        "context manager",
        beside=("samples", "covariance"),
    ),
    Member(
        "covariance",
        "module",
        "by predictions, after the forward (`Posterior`)",
        ("logits",),
        "Tensor",
        beside=("samples", "recording"),
    ),
    Member(
        "merged",
        "module",
        "by merging, of a mergeable module on activations (`Merges`)",
        ("site", "weight", "bias"),
        "weight, bias",
    ),
    Member("as_lora", "module", "by exports, once deployed: its LoRA", ("site",), "A, B, s"),
    Member(
        "as_dora",
        "module",
        "by the export to peft, once deployed: the LoRA of its direction, and its magnitudes (out,)",
        ("site",),
        "A, B, s, m",
    ),
    Member(
        "as_ia3",
        "module",
        "by the export to peft: the factors of what goes into the site, or comes out of it (`side`)",
        ("site",),
        "Tensor",
    ),
    Member("reads", "module", "by a gate in front: what it reads (default: x)", _SITE_CALL, "Tensor"),
    Member("size_field", "method", "the config field whose zero means absent", None, "str"),
    Member("frozen_by", "method", "by `from:`: config fields that settle what is not saved", None, "names"),
    Member(
        "default_sites", "method", "default sites, where they depend on the config", None, "tuple of names"
    ),
    Member(
        "change_rank",
        "method",
        "the largest rank of what it adds to a map's weight, where that is all it does",
        None,
        "int or None",
    ),
    Member(
        "peft",
        "method",
        "by exports and by searches for what can be served: the format of Hugging Face peft that says it; a "
        "configured method may have another",
        None,
        "PeftFormat",
    ),
    Member(
        "narrow",
        "method",
        "by supernets (`narrowed`): the config fields by which a trained module may be cut, with the tensors "
        "of the module that each cuts and the dimensions of these that have its size",
        None,
        "{field: {tensor: dimensions}}",
    ),
    Member(
        "linear_in",
        "method",
        "by gates: tensors of its modules, each at one site, that what the module adds there is linear in as "
        "long as all else stays, with the value at which they add nothing; a configured method may have none",
        None,
        "{tensor: value}",
    ),
    Member(
        "among",
        "method",
        "the sites that it takes of those that its names and layers leave, where it takes fewer",
        ("sites", "spec"),
        "Sites",
    ),
    Member(
        "fed_width",
        "method",
        "by a gate in front, of a method whose module `reads`: how wide that is (default: the site's input)",
        ("site",),
        "int",
    ),
    Member(
        "part_size",
        "method",
        "by a composition that trains copies of a part, of a method whose module has all its first values "
        "from `build`: how many parameters the part has at a site; None where it has none of the site's own",
        ("site", "part"),
        "int or None",
    ),
    Member(
        "part_names",
        "method",
        "the parts that its modules have (`parts`), for recipes to be checked before anything is built; a "
        "configured method may narrow those of its class",
        None,
        "tuple of names",
    ),
    Member("traits", "method", "what it declares of itself", None, "Traits", "any"),
    Member("Config", "method", "its config's model", None, "MethodConfig", "any"),
    Member(
        "parameter_count",
        "method",
        "its parameters in closed form",
        ("sites", "spec"),
        "ParameterCount",
        "entry",
    ),
    Member("build", "method", "at attach: its module", ("sites", "spec"), "Module", "entry"),
    Member(
        "interim",
        "method",
        "by forecasts of memory: what a search or a calibration of its own has meanwhile",
        ("sites", "spec"),
        "Interim",
    ),
    Member(
        "adjust",
        "method",
        "of a policy, when the optimizer is built: the groups as it has them",
        ("groups", "modules"),
        "list[dict]",
    ),
    Member("before_step", "method", "of a policy, behind the modules' own", _GROUPS),
    Member("loss_terms", "method", "of a policy, behind the modules' own", ("step",), "Tensor or None"),
    Member("after_backward", "method", "of a policy, behind the modules' own", _GROUPS),
    Member("before_update", "method", "of a policy, behind the modules' own", _GROUPS),
    Member("after_step", "method", "of a policy, behind the modules' own", _GROUPS),
    Member(
        "acts_on",
        "method",
        "of a policy that adjusts nothing: whether it has something to act on",
        ("groups",),
        "bool",
    ),
)
_OF_POLICIES = ("adjust", "before_step", "loss_terms", "after_backward", "before_update", "after_step")


def members_table(owner: Owner) -> str:
    """The members of a module or of a method class that may be there, as a Markdown table."""
    rows = [(f"`{m.signature}`", m.called) for m in MEMBERS if m.owner == owner and not m.way]
    return "\n".join(f"| {left} | {right} |" for left, right in (("member", "called"), ("---", "---"), *rows))


def check_method(cls: type[Any], name: str) -> None:
    """Check the members of a method class.

    Raises:
        MethodError: a part of the contract is missing, a member is misspelt or takes other arguments, or
            `size_field`, `frozen_by` or `narrow` names no field of the config, or `peft` or `narrow` is no
            declaration of its kind.
    """
    traits: Traits | None = getattr(cls, "traits", None)
    ways = {"any", "policy" if traits is not None and traits.level == "training" else "entry"}
    known = [m for m in MEMBERS if m.owner == "method" and (not m.way or m.way in ways)]
    what = f"Method {name!r} ({cls.__qualname__})"
    missing = [m.name for m in known if m.way and not hasattr(cls, m.name)]
    if "policy" in ways and not any(hasattr(cls, name) for name in _OF_POLICIES):
        missing.append("adjust")
    if missing:
        raise MethodError(f"{what} lacks {', '.join(missing)}.{_suspects(cls, missing, object)}")
    check_members(cls, object, known, what)
    fields = cls.Config.model_fields
    for member in ("size_field", "frozen_by"):
        named = inspect.getattr_static(cls, member, ())
        for field in (named,) if isinstance(named, str) else named if isinstance(named, tuple) else ():
            if field not in fields:
                raise MethodError(
                    f"{what} has {member}={named!r}, which its config lacks: {', '.join(fields)}."
                )
    peft = getattr(cls, "peft", None)
    if not (peft is None or isinstance(peft, PeftFormat)):
        raise MethodError(
            f"{what} has peft={peft!r}; write PeftFormat(…), or leave it out. Where the config decides, a "
            "configured method sets another in its __init__."
        )
    narrow: Any = getattr(cls, "narrow", {})
    tables = list(narrow.values()) if isinstance(narrow, Mapping) else [None]
    dimensions = [d for table in tables for d in (table.values() if isinstance(table, Mapping) else [None])]
    if not all(
        isinstance(d, tuple) and d and all(isinstance(n, int) and n >= 0 for n in d) for d in dimensions
    ):
        raise MethodError(
            f"{what} has narrow={narrow!r}, which says for each field which tensors it cuts along which "
            'dimensions: {"rank": {"A": (0,), "B": (1,)}}.'
        )
    if not set(narrow) <= set(fields):
        raise MethodError(f"{what} has narrow={narrow!r}, but its config has {', '.join(fields)}.")


_READ_FOR: Mapping[PeftKind, str] = {
    "lora": "as_lora",
    "dora": "as_dora",
    "ia3": "as_ia3",
    "prompt": "prompt",
    "prefix": "key_value",
}


def check_module(module: nn.Module, ways: Iterable[str], owner: str, peft: PeftFormat | None = None) -> None:
    """Check the members of a module that a method or a composition built.

    The class of a module can depend on the config, so that it is known only when it was built. Names that
    begin with an underscore, and those that `nn.Module` has, are the module's own affair.

    Args:
        module: what was built.
        ways: how it acts; the protocols of these ways must be there.
        owner: what built it, as messages call it.
        peft: the format of peft that is to say it; what that is written from must be there.

    Raises:
        MethodError: a member is misspelt, takes other arguments, or is there without what belongs to it.
    """
    cls: type[Any] = type(module)
    what = f"{owner} built {cls.__qualname__}, which"
    known = [m for m in MEMBERS if m.owner == "module" and (not m.way or m.way in ways)]
    check_members(cls, nn.Module, known, what)
    # No property is run to see what is there.
    there = {*dir(cls), *vars(module), *module._parameters, *module._buffers, *module._modules}
    names = {m.name for m in known if m.name in there}
    lacking = {m.name: f"acts by the way {m.way!r}" for m in known if m.way and m.name not in names}
    for member in known:
        if member.name in names and member.takes is not None:
            lacking |= {b: f"has `{member.name}`" for b in member.beside if b not in names}
    if peft is not None and _READ_FOR[peft.kind] not in there:
        lacking[_READ_FOR[peft.kind]] = f"is said in peft's format {peft.kind!r}"
    for name, why in lacking.items():
        raise MethodError(f"{what} {why} but has no `{name}`.{_suspects(cls, [name], nn.Module)}")


def check_members(
    cls: type[Any],
    base: type[Any],
    known: Iterable[Member],
    what: str,
    error: type[UsageError] = MethodError,
) -> None:
    """Check how the public members of a class that `base` lacks are spelt and shaped.

    Args:
        cls: the class.
        base: what it has from this class is left alone.
        known: the members that may be there.
        what: the subject of the message's sentence.
        error: what is raised.

    Raises:
        UsageError: a member is misspelt, or takes other arguments than declared.
    """
    by_name = {m.name: m for m in known}
    for name in _own_members(cls, base):
        if name not in by_name:
            close = get_close_matches(name, by_name, n=1, cutoff=_CLOSE)
            # Where both are there, the other name is one of its own.
            if close and not hasattr(cls, close[0]):
                raise error(
                    f"{what} has {name!r}, which nothing ever calls. Did you mean {close[0]!r}, "
                    f"`{by_name[close[0]].signature}`? If it is a helper, begin its name with '_'."
                )
            continue

        # It is a method or a value, as declared, and takes the arguments.
        member, value = by_name[name], inspect.getattr_static(cls, name)
        plain = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if member.takes is None:
            if inspect.isroutine(plain):
                raise error(
                    f"{what} has `{name}` as a method, but it is read as a value ({member.gives}); make it "
                    "an attribute or a property."
                )
            continue
        if not callable(plain):
            kind = "a property" if isinstance(plain, property) else repr(plain)
            raise error(f"{what} has {kind} at {name!r}, which is called as `{member.signature}`.")
        # Bound already, or no descriptor: nothing is put in front.
        alone = isinstance(value, staticmethod) or inspect.ismethod(plain) or not hasattr(plain, "__get__")
        given = list(member.takes) if alone else ["self", *member.takes]
        try:
            signature = inspect.signature(plain)
        except ValueError:  # built in: it does not tell
            continue
        try:
            signature.bind(*given)
        except TypeError as wrong:
            raise error(
                f"{what} has `{name}{signature}`, which is called as `{member.signature}`: {wrong}."
            ) from wrong


def _own_members(cls: type[Any], base: type[Any]) -> list[str]:
    """The public names that a class does not have from `base`."""
    return [name for name in dir(cls) if not name.startswith("_") and not hasattr(base, name)]


def _suspects(cls: type[Any], missing: Iterable[str], base: type[Any]) -> str:
    """A sentence that names members which may be misspellings of what is missing, or nothing."""
    own = _own_members(cls, base)
    found = {name: get_close_matches(name, own, n=1, cutoff=_CLOSE) for name in missing}
    pairs = [f"{close[0]!r} for {name!r}" for name, close in found.items() if close]
    return f" Is {' and '.join(pairs)} a misspelling?" if pairs else ""
