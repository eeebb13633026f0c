"""What a kind of task is: four parts, each of which can be read alone, and a name.

`Schema` says which columns rows are in and how they are read, `Encoder` makes batches of them, `Head` says
what is added to a backbone, and `Scorer` what is minimised and how well predictions score. Nothing else in
the package asks which kind a task is of: it asks the part. Kinds share parts: a kind needs parts of its own
only where it differs.

To write one, give the parts that differ from the defaults, and register it; a module of another package is
found through the entry-point group `autopeft.task_kinds`. The state of a part is the kind's options alone.

Example (a file `my_kinds.py`, and in its package's `pyproject.toml`):
    >>> from autopeft.tasks.kinds import TaskKind, register_kind
    >>> register_kind(                                                                # doctest: +SKIP
    ...     TaskKind("ordinal", "classes with an order", schema=StarSchema(), scorer=ThresholdScorer())
    ... )

    [project.entry-points."autopeft.task_kinds"]
    ordinal = "my_kinds"

A kind can be told more: `NAME?option=value&option=value`, in the place of its name. Wherever a kind is named
(a task, encoded rows, a run, a saved hybrid, a worker's job) its options are named with it, so that nothing
else has to carry them. `register_options` says what a kind can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, unquote

from autopeft.errors import TaskError, near
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.schema import Schema
from autopeft.tasks.kinds.scorer import Scorer

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec

__all__ = ["TaskKind", "name_with_options", "options_in", "plain_name"]

_LONGEST = 60_000
_SAFE = " ,.:;!'()"  # as they are, so that a name can be read
Settle: TypeAlias = "Callable[[Sequence[str], bool, BackboneSpec | None], TaskKind]"


@dataclass(frozen=True)
class TaskKind:
    """A kind of task; see the top of this file.

    Attributes:
        name: under which it is registered, with its options where it was told some; manifests and exports
            hold it. The parts are copies of those that were handed over, which know it as `kind`.
        summary: what it is, one line.
        schema, encoder, head, scorer: its parts.
        settle: of a kind with options: makes the kind for a task, of the names of its classes, whether its
            rows are pairs of texts, and the backbone.
    """

    name: str
    summary: str
    schema: Schema
    scorer: Scorer
    encoder: Encoder = field(default_factory=Encoder)
    head: Head = field(default_factory=Head)
    settle: Settle | None = None

    def __post_init__(self) -> None:
        for part in ("schema", "encoder", "head", "scorer"):
            own = copy(getattr(self, part))
            own.kind = self.name
            object.__setattr__(self, part, own)

    def settled(self, names: Sequence[str], *, pairs: bool, backbone: BackboneSpec | None) -> TaskKind:
        """The kind for a task with these classes, with what its options left open (see `register_options`).

        Args:
            pairs: whether the task's rows are pairs of texts.
            backbone: that will be trained, where it is known.

        Raises:
            TaskError: an option does not fit the task.
        """
        return self if self.settle is None else self.settle(names, pairs, backbone)

    @property
    def plain(self) -> str:
        """The name without options, which a message says."""
        return plain_name(self.name)

    @property
    def owner(self) -> type[Any]:
        """The class by which the kind differs from those of this package; its scorer's where it does not."""
        types = [type(part) for part in (self.schema, self.encoder, self.head, self.scorer)]
        return next((t for t in types if not t.__module__.startswith("autopeft.")), types[-1])

    @property
    def built_in(self) -> bool:
        """Whether all parts come with this package; the code of others may change unseen."""
        return self.owner.__module__.startswith("autopeft.")


def plain_name(name: str) -> str:
    """The name under which a kind is registered."""
    return name.partition("?")[0]


def name_with_options(name: str, options: Mapping[str, Any]) -> str:
    """A kind's name with options, as `options_in` reads it; without options the name itself."""
    parts = [f"{key}={quote(str(value), safe=_SAFE)}" for key, value in options.items() if value is not None]
    return f"{name}?{'&'.join(parts)}" if parts else name


def options_in(name: str, known: Sequence[str]) -> dict[str, str]:
    """The options in a kind's name.

    Args:
        known: names of those that the kind has.

    Raises:
        TaskError: the name is too long, or an option has no value, is unknown or stands there twice.
    """
    if len(name) > _LONGEST:
        raise TaskError(
            f"A kind of task has up to {_LONGEST:,} letters, but {name!r:.60}… has {len(name):,}."
        )
    kind, _, rest = name.partition("?")
    found: dict[str, str] = {}
    for part in rest.split("&"):
        key, equals, value = part.partition("=")
        if key not in known:
            can = f"can be told {', '.join(known)}" if known else "can be told nothing"
            raise TaskError(f"The kind {kind!r} {can}, but got {key!r:.60}.{near(key[:60], known)}")
        if not equals or key in found:
            raise TaskError(f"The option {key!r} of {kind!r} has no value, or stands there twice.")
        found[key] = unquote(value)
    return found
