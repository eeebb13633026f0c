"""The journal file of a study: opened, and mended where a killed process left it half written."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from autopeft.runs.files import cut_torn_line
from autopeft.search.optimization.journal_lines import check_journal

__all__ = ["NAME", "open_journal"]

NAME = "autopeft"


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


def _mend(journal: Path) -> None:
    """Make a journal that a killed process left readable: drop a torn last line and a stale lock."""
    Path(f"{journal}.lock").unlink(missing_ok=True)
    cut_torn_line(journal)
