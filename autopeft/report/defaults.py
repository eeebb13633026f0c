"""Where the defaults of methods and compositions come from: `methods/defaults.yaml`."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from autopeft.recipe.yaml_text import read_yaml
from autopeft.report.sheet import Sheet

__all__ = ["Default", "Published", "Training", "published_defaults", "read_defaults", "sources_sheet"]

OWN, OWN_OPTION = "own", "own option"
_PAPER = r"(arXiv:\d{4}\.\d{4,5}|ACL:\d{4}\.[a-z0-9-]+\.\d+)"
_FILES = r"[\w.-]+/[\w.-]+( [\w+-]*[./_][\w./+-]+)+"
_PAGE = r"page [\w-]+(\.[\w-]+)+/\S+"
_CITED = re.compile(rf"{_PAPER}( §[\d.]+)?( \(notes\))?|{_FILES}|{_PAGE}")

_FORMS = (
    "'arXiv:ID' or 'ACL:ID' with an optional § and '(notes)', 'owner/repository file …' or 'page host/path'; "
    "separate several by '; '"
)

Text = str | bool | int | float
"""A cell: words, or a bare value."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Default(_Strict):
    """One option's default and its source.

    Attributes:
        default: what the config has; of `sites`, the sites of a recipe that names none.
        means: where the default is null, what it comes to beside the other defaults.
        published: what the source has, where this project has something else.
        source: papers (`arXiv:ID §place`, or `ACL:ID` where there is no preprint; with `(notes)` where not
            their own text was read but notes on it or a translation), files (`owner/repository file …`) and
            web pages (`page host/path`), separated by semicolons; or `own`: no published default was found;
            or `own option`: the option exists in this project alone.
        sought: of `own`, where a published default was looked for, in the form of `source`.
        why: why the default is not what was published, or why it was chosen.
    """

    default: Any
    means: Text | None = None
    published: Text | list[str] | None = None
    source: str
    sought: str | None = None
    why: str | None = None

    @model_validator(mode="after")
    def _says_where_from(self) -> Default:
        ours = self.source in (OWN, OWN_OPTION)
        if not ours and not _cites(self.source):
            raise ValueError(f"source {self.source!r} must be 'own', 'own option' or {_FORMS}")
        if ours and self.published is not None:
            raise ValueError(f"what was published has a source other than {self.source!r}")
        if (ours or self.published is not None) and not self.why:
            raise ValueError("a default that is not the published one needs a 'why'")
        if self.sought is not None and self.source != OWN:
            raise ValueError("'sought' is for a source 'own'; leave it out")
        if self.source == OWN and (self.sought is None or not _cites(self.sought)):
            raise ValueError(
                f"a source 'own' needs 'sought', where a published default was looked for, in the form "
                f"{_FORMS}; got {self.sought!r}. An option that only this project has is an 'own option'"
            )
        if self.published is not None and self.published == self.default:
            raise ValueError("'published' is the default itself; leave it out")
        if self.default is None and self.means is None:
            raise ValueError("a default of null needs 'means', what it comes to")
        return self


def _cites(text: str) -> bool:
    """Whether each of the sources in `text` has one of the forms."""
    return all(_CITED.fullmatch(cited) for cited in text.split("; "))


class Training(_Strict):
    """What the authors train with, and where that was read, in the form of `Default.source`."""

    init: str | None = None
    optimizer: str | None = None
    learning_rate: Text | None = None
    schedule: str | None = None
    weight_decay: Text | None = None
    clipping: Text | None = None
    dropout: Text | None = None
    batch: Text | None = None
    source: str

    @model_validator(mode="after")
    def _says_where_from(self) -> Training:
        if not _cites(self.source):
            raise ValueError(f"source {self.source!r} must be {_FORMS}")
        return self


class Published(_Strict):
    """The defaults of one method or composition, by option, and the authors' training."""

    paper: str = Field(pattern=f"^{_PAPER}(; {_PAPER})*$")
    options: dict[str, Default]
    training: Training


_Table = TypeAdapter(dict[str, Published])


def read_defaults(text: str) -> dict[str, Published]:
    """The entries of a file of defaults, by method or composition.

    Raises:
        RecipeError: it is no YAML.
        ValidationError: a key is unknown or missing, or a row does not say where its default comes from.
    """
    return _Table.validate_python(read_yaml(text, "defaults.yaml"))


@cache
def published_defaults() -> dict[str, Published]:
    """The entries of this package's methods and compositions; those of other packages are not in it."""
    return read_defaults(files("autopeft.methods").joinpath("defaults.yaml").read_text(encoding="utf-8"))


def sources_sheet(name: str) -> Sheet | None:
    """Where each default of a method or composition comes from; `None` where the table has nothing of it."""
    entry = published_defaults().get(name)
    if entry is None:
        return None
    rows = [
        (
            option,
            _cell(row.default if row.means is None else row.means),
            "" if row.published is None else _cell(row.published),
            row.source if row.sought is None else f"{row.source}; sought in {row.sought}",
            row.why or "",
        )
        for option, row in entry.options.items()
    ]
    own = entry.training.model_dump(exclude_none=True)
    facts = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in own.items() if key != "source")
    headers = ("key", "default", "published", "source", "why")
    return Sheet(
        headers,
        tuple(rows),
        title="Where the defaults come from",
        notes=(f"The authors train with: {facts} ({own['source']}).",),
        fold=frozenset(headers[1:]),
        drop=("source",),
    )


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    return str(value)
