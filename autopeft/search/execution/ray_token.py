"""The token by which Ray tells its own processes from others: a secret of its owner's."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from autopeft.errors import AutoPEFTError

__all__ = ["TOKEN", "secure_token", "token_hint"]

TOKEN = "~/.ray/auth_token"
_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def secure_token() -> None:
    """Make sure that there is a token and that its owner alone can read it, at every moment.

    Ray would write one that everyone can read. A token that the environment names is left as it is.

    Raises:
        AutoPEFTError: it cannot be written.
    """
    if any(os.environ.get(name) for name in _VARIABLES):
        return
    token = Path(TOKEN).expanduser()
    try:
        if not token.exists():
            _create(token)
        found = token.stat()
        if found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) & 0o077:
            token.chmod(0o600)
    except OSError as error:
        raise AutoPEFTError(
            f"Ray needs a secret in {str(token)!r}, which cannot be written: {error.strerror}. Set "
            "RAY_AUTH_TOKEN to one of your own, or search with --workers 0, without Ray."
        ) from error


def _create(token: Path) -> None:
    """Write a new token under a name of its own, then give it its name, unless another process was first."""
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = token.with_name(f"{token.name}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(new, token)
        except FileExistsError:
            pass  # another search has made one meanwhile
        except OSError:
            new.rename(token)  # a file system without hard links
    finally:
        new.unlink(missing_ok=True)


def token_hint() -> str:
    """What may be wrong where a cluster cannot be joined: Ray does not always say so itself."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    has = bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(named or TOKEN).expanduser().is_file()
    return (
        "A cluster that uses tokens wants the same one on every machine, and this one has "
        f"{'one, which may be another' if has else 'none'}: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
        f"copy {TOKEN}."
    )
