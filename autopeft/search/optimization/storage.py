"""The journal file of a study: opened, and mended where a killed process left it half written."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

__all__ = ["NAME", "open_journal"]

NAME = "autopeft"


def open_journal(journal: Path) -> JournalStorage:
    """The storage in `journal`, which is made if it does not exist, after cutting a torn last line.

    The caller holds the run folder's lock, so nobody else is writing.
    """
    _mend(journal)
    optuna.logging.set_verbosity(max(optuna.logging.get_verbosity(), optuna.logging.ERROR))
    return JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))


def _mend(journal: Path) -> None:
    """Make a journal that a killed process left readable: drop a torn last line and a stale lock."""
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        tail = min(size, 1 << 20)
        file.seek(size - tail)
        data = file.read(tail)
        if data and not data.endswith(b"\n"):
            file.truncate(size - tail + data.rfind(b"\n") + 1)
