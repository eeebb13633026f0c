"""`inputs:` of a recipe, and an entry's `from:`: what other trainings have left, by name.

An input is a saved hybrid or a run, whose winner it is. `folder` lies below the folder that one works in,
`run` names a run, `bank` a hybrid in the bank (`autopeft.bank`; short: `bank:NAME`). `sha256` is the hash of
what is in it (see `autopeft.hybrid.inputs`): a run writes it down, and a recipe that has it refuses another
content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from autopeft.errors import near
from autopeft.method import get_method
from autopeft.recipe.models import EntryItem, Part
from autopeft.recipe.problems import Path, Problems

__all__ = ["MOST_INPUTS", "InputItem", "address_of", "check_starts", "read_inputs"]

MOST_INPUTS = 64
_KEYS = ("folder", "run", "bank", "sha256")
_BANK = "bank:"
_HASH = re.compile(r"[0-9a-f]{64}")
_LONGEST = 1000


class InputItem(Part):
    """One input: a folder, the run of that name, or a hybrid in the bank.

    Attributes:
        folder: relative, and without `..`.
        run: a name under the folder of runs.
        bank: a name in the bank.
        sha256: of its content, 64 hex digits; `None` where the recipe takes whatever is there.
    """

    folder: str | None = None
    run: str | None = None
    bank: str | None = None
    sha256: str | None = None

    def to_data(self) -> Any:
        """The input as it is written in a file."""
        if self.run is not None or self.sha256 is not None:
            return self.model_dump(exclude_none=True)
        return self.folder if self.bank is None else f"{_BANK}{self.bank}"

    def __str__(self) -> str:
        if self.bank is not None:
            return f"{self.bank!r} of the bank"
        return f"the run {self.run!r}" if self.folder is None else repr(self.folder)


def address_of(start: str) -> tuple[str, str | None]:
    """The input and the entry of it that a `from:` names; `None` where it names no entry."""
    name, dot, entry = start.partition(".")
    return name, entry if dot else None


def read_inputs(tree: Any, problems: Problems) -> dict[str, InputItem]:
    """The `inputs:` of a recipe's tree; what is wrong goes to `problems`."""
    path: Path = ("inputs",)
    if tree is None:
        return {}
    if isinstance(tree, list) and tree and all(isinstance(v, str) and v.startswith(_BANK) for v in tree):
        tree = {value.removeprefix(_BANK): value for value in tree}  # by the names that they have there
    if not isinstance(tree, dict):
        problems.add(
            path,
            "'inputs' is a mapping; write {name: folder} or {name: {run: …, sha256: …}}, or list what is in "
            "the bank: [bank:NAME].",
        )
        return {}
    if len(tree) > MOST_INPUTS:
        problems.add(path, f"a recipe has at most {MOST_INPUTS} inputs, but this has {len(tree)}.")
        return {}
    found = {name: _input(name, body, (*path, name), problems) for name, body in tree.items()}
    return {name: item for name, item in found.items() if item is not None}


def _input(name: str, body: Any, path: Path, problems: Problems) -> InputItem | None:
    before = len(problems.found)
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 64:
        problems.add(path, f"{name!r:.80} is no name; write letters, digits and '_', no digit in front.")
    fields = body
    if isinstance(body, str):
        banked = body.startswith(_BANK)
        fields = {"bank": body.removeprefix(_BANK)} if banked else {"folder": body}
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        problems.add(
            path, "an input is a folder, bank:NAME, or a mapping of folder, run or bank and sha256, all text."
        )
        return None
    for key in fields:
        if key not in _KEYS:
            known = ", ".join(_KEYS)
            problems.add((*path, key), f"unknown key {key!r:.80}.{near(key, _KEYS)} an input takes: {known}.")
    if sum(key in fields for key in ("folder", "run", "bank")) != 1:
        problems.add(
            path,
            "an input is a folder, a run or what is in the bank; write one of 'folder: …', 'run: …' and "
            "'bank: …'.",
        )
    for key in ("folder", "run", "bank"):
        if key not in fields:
            continue
        text, wrong = fields[key], ""
        parts = PurePosixPath(text).parts
        if not text.strip() or not text.isprintable() or len(text) > _LONGEST:
            wrong = f"{key!r} is one line of text, at most {_LONGEST} characters, but got {text!r:.80}."
        elif text.startswith(("/", "~")) or ".." in parts or "\\" in text:
            wrong = (
                f"{text!r:.80} leads elsewhere; an input lies below the folder that you work in. Name it "
                "relative to that, or copy it there."
            )
        elif key != "folder" and len(parts) != 1:
            listed = "autopeft runs" if key == "run" else "autopeft bank list"
            wrong = f"{text!r:.80} is no name, as `{listed}` has them; write 'folder: …' for a path."
        if wrong:
            problems.add((*path, key) if isinstance(body, dict) else path, wrong)
    sha256 = fields.get("sha256")
    if sha256 is not None and not _HASH.fullmatch(sha256):
        problems.add(
            (*path, "sha256"),
            f"a hash is 64 digits from 0 to f, but got {sha256!r:.80}; `autopeft show` on the recipe without "
            "it says the one of what is there.",
        )
    return InputItem(**fields) if len(problems.found) == before else None


def check_starts(
    entries: Iterable[tuple[str, EntryItem]], inputs: Mapping[str, InputItem], problems: Problems
) -> None:
    """Report a `from:` that names no input, an input that nothing starts from, an entry that needs one and
    has none, and a frozen entry that has nothing to be frozen at or goes on settling by itself."""
    named = set[str]()
    for name, item in entries:
        for start in item.start:
            source, _ = address_of(start)
            named.add(source)
            if source not in inputs:
                there = f"There are: {', '.join(inputs)}." if inputs else "List it under 'inputs:'."
                problems.add(("inputs",), f"{name!r} starts from {source!r}.{near(source, inputs)} {there}")
        traits = get_method(item.method).traits
        if item.merge is not None and not item.start:
            problems.add(
                ("inputs",),
                f"{name!r} merges nothing; name what under 'inputs:' and write {{{item.method}: {{…}}, from: "
                "[NAME, NAME], merge: mean}.",
            )
        if item.frozen and not item.start:
            problems.add(
                ("inputs",),
                f"{name!r} is frozen, and nothing says at which values; name a trained hybrid under "
                f"'inputs:' and write {{{item.method}: {{…}}, from: NAME, frozen: true}}.",
            )
        settled = traits.data_dependent or traits.phased or traits.searched
        if item.frozen and (settled or "calibration" in traits.needs):
            problems.add(
                ("inputs",),
                f"{name!r} cannot be frozen: training decides what {item.method} is, beside its values. "
                "Freeze a method that is its values alone, such as lora.",
            )
        if not item.start and "artefacts" in traits.needs:
            problems.add(
                ("inputs",),
                f"{name!r} needs what another training has left; name it under 'inputs:' and write "
                f"{{{item.method}: {{…}}, from: NAME}}.",
            )
    for name in inputs:
        if name not in named:
            problems.add(
                ("inputs", name), f"no entry starts from {name!r}; write 'from: {name}' or leave it out."
            )
