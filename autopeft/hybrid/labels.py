"""The labels that a model's configuration names, as a saved hybrid brings them back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import DataError, UsageError
from autopeft.foreign import file_in, read_table_in
from autopeft.hybrid.store import MANIFEST

__all__ = ["Labels", "nameless"]

_MADE_UP = re.compile(r"LABEL_\d+")
_SHOWN, _DIGITS = 5, 9


def nameless(labels: Mapping[int, str] | tuple[str, ...]) -> bool:
    """Whether labels have the names alone that transformers gives to those without any (`LABEL_0`)."""
    names = labels.values() if isinstance(labels, Mapping) else labels
    return all(_MADE_UP.fullmatch(name) for name in names)


@dataclass(frozen=True)
class Labels:
    """The label fields of a configuration.

    Attributes:
        names: by index.
        problem_type: as transformers has it; `None` where it is not set.
    """

    names: Mapping[int, str]
    problem_type: str | None

    @classmethod
    def of(cls, config: Any) -> Labels:
        """The label fields of a configuration."""
        names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
        return cls(names, getattr(config, "problem_type", None))

    @classmethod
    def saved(cls, folder: Path) -> Labels | None:
        """The label fields that the model of a saved hybrid had; `None` where it had none.

        Raises:
            DataError: the manifest is damaged.
        """
        try:
            if file_in(folder, MANIFEST) is None:
                return None
            config = read_table_in(folder, MANIFEST).get("config")
        except UsageError as error:
            raise DataError(str(error)) from error
        saved = config if isinstance(config, dict) else {}
        names, problem = saved.get("id2label"), saved.get("problem_type")
        sound = isinstance(names, dict) and all(
            k.isdecimal() and len(k) <= _DIGITS and isinstance(v, str) for k, v in names.items()
        )
        if not sound or not isinstance(problem, str | None):
            raise DataError(
                f"{folder / MANIFEST} is not what a saved hybrid has: {names!r:.80} are no names of labels."
            )
        return cls({int(index): name for index, name in names.items()}, problem) if names else None

    def check(self, config: Any, folder: Path) -> None:
        """Compare with a model that the hybrid is to be loaded on.

        Raises:
            DataError: it has another number of labels.
        """
        count, there = len(self.names), config.num_labels
        if there is not None and count != there:
            shown = ", ".join(list(self.names.values())[:_SHOWN]) + (", …" if count > _SHOWN else "")
            raise DataError(
                f"{folder} has a head of {count} labels ({shown}), and the model one of {there}; load the "
                f"backbone with num_labels={count}."
            )

    def put(self, config: Any) -> None:
        """Write them into a configuration; names that were made up do not replace others."""
        if not nameless(self.names):
            config.id2label = dict(self.names)
            config.label2id = {name: index for index, name in self.names.items()}
        config.problem_type = self.problem_type
