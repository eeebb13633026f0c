"""Ray's own logs, kept where a run ends unexpectedly: a private session's folder is removed with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from autopeft.errors import AutoPEFTError

__all__ = ["keep_logs", "kept_on_error"]

_MOST_EACH, _MOST = 2_000_000, 20_000_000
_SUFFIXES = (".log", ".out", ".err", ".txt")


def keep_logs(session: Path, target: Path) -> int:
    """Copy what is text in a session's `logs/` to `target`: the last 2 MB of each file, 20 MB of all.

    Files that were written last come first. `target` is made if something is kept; its parent must exist.

    Returns:
        The number of files that were kept.

    Raises:
        OSError: `target` cannot be written.
    """
    found = [p for p in (session / "logs").rglob("*") if p.suffix in _SUFFIXES and p.is_file()]
    room, kept = _MOST, 0
    for path in sorted(found, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - min(_MOST_EACH, room)))
            data = file.read(min(_MOST_EACH, room))
        if data and b"\0" not in data:
            target.mkdir(exist_ok=True)
            (target / "-".join(path.relative_to(session / "logs").parts)).write_bytes(data)
            room, kept = room - len(data), kept + 1
    return kept


@contextlib.contextmanager
def kept_on_error(session: Path | None, target: Path | None) -> Iterator[None]:
    """Keep a private session's logs if an error leaves the block; an `AutoPEFTError` then names the folder.

    Args:
        session: the folder that Ray was given, with a link `session_latest` to that of its session; `None` if
            it has another's.
        target: the folder to keep them in; `None` for nowhere.
    """
    try:
        yield
    except Exception as error:
        if session is not None and target is not None:
            # The error that ends the run is the one to tell, also where the disk is full or the run is gone.
            with contextlib.suppress(OSError):
                if keep_logs(session / "session_latest", target) and isinstance(error, AutoPEFTError):
                    error.args = (f"{error} Ray's own logs are kept in {str(target)!r}.",)
        raise
