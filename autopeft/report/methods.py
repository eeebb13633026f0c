"""The methods as a table, and one method or composition explained."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel

from autopeft.composition import composition_names, get_composition
from autopeft.method import PeftFormat, Traits, get_method, method_names
from autopeft.report.defaults import published_defaults
from autopeft.report.sheet import Sheet

__all__ = ["config_sheet", "describe", "explain", "flowing", "methods_sheet"]

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


def taxonomy(method: type[Any]) -> str:
    """Where the method lies in the taxonomy (`selective/structured`), or the package that it comes from."""
    parts = method.__module__.split(".")
    return "/".join(parts[2:-1]) if parts[:2] == ["autopeft", "methods"] else parts[0]


def summary(method: type[Any]) -> str:
    """The first sentence of the module's docstring, which says the method's name in words."""
    doc = inspect.getdoc(inspect.getmodule(method)) or inspect.getdoc(method) or ""
    return doc.split("\n\n")[0].replace("\n", " ").rstrip(".")


def _ways(traits: Traits) -> str:
    return ", ".join(sorted(traits.ways)) or "training"


def methods_sheet() -> Sheet:
    """All registered methods: name, what it is, the way in, default sites, and what it needs."""
    rows = []
    for name in method_names():
        method = get_method(name)
        traits = method.traits
        rows.append(
            (
                name,
                summary(method),
                taxonomy(method),
                _ways(traits),
                ", ".join(traits.default_sites) or "–",
                "yes" if traits.mergeable else "no",
                ", ".join(sorted(traits.needs)) or "–",
            )
        )
    return Sheet(
        ("method", "what it is", "kind", "way in", "default sites", "merges", "needs"),
        tuple(rows),
        notes=(
            f"Compositions, which let several act together: {', '.join(composition_names())}.",
            "`autopeft methods NAME` explains one.",
        ),
        fold=frozenset({"what it is", "kind", "way in", "default sites", "needs"}),
        drop=("kind", "merges", "needs"),
    )


def config_sheet(name: str) -> Sheet:
    """The config of a method or the options of a composition: each key's type, default, range and meaning.

    Raises:
        MethodError: there is no such method.
    """
    if name in composition_names():
        return fields_sheet(get_composition(name).Options, "Options")
    return fields_sheet(get_method(name).Config, "Config")


def fields_sheet(model: type[BaseModel], title: str) -> Sheet:
    """Every field of a model with its type, default, range and meaning."""
    rows = []
    for key, info in model.model_fields.items():
        default = "required" if info.is_required() else _value(info.get_default(call_default_factory=True))
        bounds = [
            f"{sign} {_value(getattr(m, attribute))}"
            for m in info.metadata
            for attribute, sign in _BOUNDS.items()
            if getattr(m, attribute, None) is not None
        ]
        rows.append((key, _type(info.annotation), default, ", ".join(bounds), info.description or ""))
    headers = ("key", "type", "default", "range", "meaning")
    return Sheet(headers, tuple(rows), title=title, fold=frozenset(headers[1:]), drop=("type",))


def flowing(doc: str) -> str:
    """A docstring with each paragraph on one line, so that the reader's own width breaks it; lists and code
    keep their lines."""
    paragraphs = doc.split("\n\n")
    plain = [
        not any(line.startswith((" ", "-", "*", "|", ">")) for line in p.splitlines()) for p in paragraphs
    ]
    return "\n\n".join(" ".join(p.split()) if flat else p for p, flat in zip(paragraphs, plain, strict=True))


_PLACES = {"layers": "layers:", "model": "model:", "training": "policies:"}


def explain(name: str) -> str:
    """A method in words: formula and paper from its docstring, where it may sit, what it needs and offers; or
    a composition.

    Raises:
        MethodError: there is no such method.
    """
    if name in composition_names():
        return _explain_composition(name)
    method = get_method(name)
    traits = method.traits
    facts = [
        ("kind", taxonomy(method)),
        ("way in", _ways(traits)),
        ("sites", ", ".join(traits.sites) or "–"),
        ("default sites", ", ".join(traits.default_sites) or "–"),
        ("listed under", " or ".join(_PLACES[level] for level in traits.levels)),
        ("needs", ", ".join(sorted(traits.needs)) or "nothing"),
        ("mergeable", "yes" if traits.mergeable else "no"),
        ("lengthens the sequence", "yes" if traits.changes_length else "no"),
        ("identity before training", "yes" if traits.identity else "no"),
        (
            "deployed size",
            "settled at the end of training" if traits.data_dependent else "as counted",
        ),
        ("in Hugging Face peft", _in_peft(method) or "–"),
        ("can be cut by", ", ".join(getattr(method, "narrow", ())) or "nothing"),
    ]
    width = max(len(key) for key, _ in facts)
    lines = [f"{name} — {summary(method)}", "", flowing(inspect.getdoc(method) or ""), ""]
    lines += [f"{key.ljust(width)}  {value}" for key, value in facts]
    return "\n".join(lines)


def _explain_composition(name: str) -> str:
    composition = get_composition(name)
    options = composition.Options.model_fields
    written = f"{name}: [lora, ia3]"
    if options:
        written += f", or {name}: {{children: [lora, ia3], {next(iter(options))}: …}}"
    if composition.traits.additive and not composition.traits.single:
        written += "; what is listed side by side adds up, too"
    doc = flowing(inspect.getdoc(composition) or "")
    return f"{name} — a composition: {composition.summary}\n\n{doc}\n\nwritten  {written}"


def describe(name: str) -> dict[str, Any]:
    """The same as data, with the config as a JSON schema and the sources of its defaults.

    Raises:
        MethodError: there is no such method.
    """
    if name in composition_names():
        composition = get_composition(name)
        return {
            "name": name,
            "kind": "composition",
            "summary": composition.summary,
            "doc": inspect.getdoc(composition) or "",
            "options": composition.Options.model_json_schema(),
            "defaults": _defaults(name),
        }
    method = get_method(name)
    traits = method.traits
    return {
        "name": name,
        "summary": summary(method),
        "kind": taxonomy(method),
        "ways": sorted(traits.ways),
        "level": traits.level,
        "levels": list(traits.levels),
        "sites": list(traits.sites),
        "default_sites": list(traits.default_sites),
        "needs": sorted(traits.needs),
        "mergeable": traits.mergeable,
        "changes_length": traits.changes_length,
        "stochastic": traits.stochastic,
        "identity": traits.identity,
        "data_dependent": traits.data_dependent,
        "peft": _in_peft(method),
        "narrow": list(getattr(method, "narrow", ())),
        "doc": inspect.getdoc(method) or "",
        "config": method.Config.model_json_schema(),
        "defaults": _defaults(name),
    }


def _in_peft(method: type[Any]) -> str | None:
    """The format of Hugging Face peft that says a method."""
    peft: PeftFormat | None = getattr(method, "peft", None)
    return None if peft is None else peft.kind


def _defaults(name: str) -> dict[str, Any] | None:
    """Where the defaults come from, or nothing of what another package brings."""
    entry = published_defaults().get(name)
    return None if entry is None else entry.model_dump(mode="json", exclude_unset=True)


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    for prefix in ("typing.", "Literal", "autopeft.method."):
        text = text.replace(prefix, "")
    return text.replace("NoneType", "None")


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
