"""Arguments that are declared once: checked on arrival, recorded in a manifest, read back from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from autopeft.arguments.option import Option
from autopeft.arguments.problems import refusal

__all__ = ["NEEDED", "Arguments"]

# Default of an argument without which nothing begins, though something may go on without it.
NEEDED: Any = None
Self = TypeVar("Self", bound="Arguments")
Other = TypeVar("Other", bound="Arguments")


class Arguments(BaseModel):
    """Base of all declared arguments. Every field is `name: Annotated[type, Option(...)] = default`.

    Values are taken as they are (no `"3"` for 3), save that numpy's become Python's and paths become text.

    Raises:
        UsageError: an argument is unknown, of another type or out of range; the message names all problems.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", arbitrary_types_allowed=True)

    called: ClassVar[str] = "this"

    def __init__(self, /, **given: Any) -> None:
        needed = self.needed()
        try:
            super().__init__(**{k: v for k, v in given.items() if v is not NEEDED or k not in needed})
        except ValidationError as error:
            raise refusal(type(self).called, self.declared(), given, error) from None

    @classmethod
    def declared(cls) -> dict[str, Option]:
        """Every argument's option by name, in the order in which they are shown."""
        found: dict[str, Option] = {}
        for name, field in cls.model_fields.items():
            options = [part for part in field.metadata if isinstance(part, Option)]
            if len(options) != 1:
                raise TypeError(
                    f"{cls.__name__}.{name} needs one Option in Annotated, but has {len(options)}."
                )
            found[name] = options[0]
        names = list(found)
        for name, option in found.items():
            if option.after is not None:
                names.remove(name)
                names.insert(names.index(option.after) + 1, name)
        return {name: found[name] for name in names}

    @classmethod
    def needed(cls) -> tuple[str, ...]:
        """Arguments whose default is `NEEDED`, or that have none."""
        return tuple(
            name
            for name in cls.declared()
            if (field := cls.model_fields[name]).is_required()
            or (field.default is NEEDED and type(None) not in get_args(field.annotation))
        )

    def missing(self) -> tuple[str, ...]:
        """Needed arguments that did not come."""
        return tuple(name for name in self.needed() if getattr(self, name) is NEEDED)

    def record(self) -> dict[str, Any]:
        """What a manifest says of them: names, and values that JSON has."""
        found = {}
        for name, option in self.declared().items():
            value = getattr(self, name)
            found[name] = option.record(value) if option.record is not None else value
        return found

    def base(self, kind: type[Other]) -> Other:
        """The part of them that a class above declares."""
        return kind(**{k: getattr(self, k) for k in self.model_fields_set if k in kind.model_fields})

    def changed(self: Self, **changes: Any) -> Self:
        """The same with some values changed, and all checked again."""
        return type(self)(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})

    @classmethod
    def unlike_defaults(cls, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Of a manifest's arguments those that this class knows and that differ from their defaults."""
        # JSON has no tuples.
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()}
        fields = cls.model_fields
        return {
            k: v for k, v in values.items() if k in fields and v is not None and v != fields[k].get_default()
        }
