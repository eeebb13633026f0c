"""The journal file of a study: opened, and mended where a killed process left it half written."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from autopeft.foreign import open_plain
from autopeft.runs.files import cut_torn_line
from autopeft.search.optimization.journal_lines import LARGEST, check_journal

__all__ = ["FIRST", "NAME", "journal_begun", "open_journal"]

NAME = "autopeft"
FIRST = "first"
"""What a search begins with, an attribute of the study: the last that is written before the first trial."""


def open_journal(journal: Path) -> JournalStorage:
    """The storage in `journal`, which is made if it does not exist, after cutting a torn last line.

    The caller holds the run folder's lock, so nobody else is writing.

    Raises:
        DataError: a line is damaged; the message names it.
    """
    _mend(journal)
    if journal.exists():
        check_journal(journal)
    optuna.logging.set_verbosity(max(optuna.logging.get_verbosity(), optuna.logging.ERROR))
    return JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))


def journal_begun(journal: Path) -> bool:
    """Whether a journal knows what its search begins with. One whose process ended before that does not.

    Raises:
        UsageError: it is no plain file.
    """
    if not journal.exists():
        return False
    told = f'"user_attr":{{"{FIRST}":'.encode()  # as Optuna writes it; a parameter may have the name too
    with open_plain(journal, LARGEST) as file:
        return any(told in line for line in file)


def _mend(journal: Path) -> None:
    """Make a journal that a killed process left readable: drop a torn last line and a stale lock."""
    Path(f"{journal}.lock").unlink(missing_ok=True)
    cut_torn_line(journal)
