"""What shows that an input was executed, or that it made its reader leave its folder.

Every call runs in its own folder. Code that is hidden in inputs writes the file `EXECUTED` there, or imports
`fuzz_canary`, which does so. The folder `../outside` holds what no input may make its reader open.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CODE", "MODULE", "PICKLE", "SIGN", "plant", "traces", "watched"]

SIGN = "EXECUTED"
MODULE = "fuzz_canary"
PICKLE = b"cposix\nsystem\n(S'touch EXECUTED'\ntR."
CODE: tuple[str, ...] = (
    *(MODULE, f"{MODULE}:run", f"{MODULE}.run", f"{MODULE}.Thing", f"autopeft.methods.{MODULE}"),
    "os:system('touch EXECUTED')",
    "__import__('pathlib').Path('EXECUTED').touch()",
    "${__import__('os').system('touch EXECUTED')}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "$(touch EXECUTED)",
    "`touch EXECUTED`",
    "; touch EXECUTED",
    "!!python/object/apply:os.system ['touch EXECUTED']",
    "exec(open('EXECUTED','w'))",
)
_SOURCE = f"""\
from pathlib import Path
Path("{SIGN}").touch()
def run(*args, **kwargs):
    return None
class Thing:
    pass
"""
_PROCESSES = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "os.spawn",
)
_LOCAL = ("127.0.0.1", "::1", "localhost")

_seen: list[str] | None = None
_outside = ""


def plant(root: Path) -> None:
    """Write the module that must not be imported and the files that must not be opened."""
    (root / "importable").mkdir()
    (root / "importable" / f"{MODULE}.py").write_text(_SOURCE)
    outside = root / "outside"
    outside.mkdir()
    (outside / "secret.csv").write_text("text,label\n" + "".join(f"secret {i},{i % 2}\n" for i in range(40)))
    (outside / "secret.jsonl").write_text(
        "".join(f'{{"text": "secret {i}", "label": {i % 2}}}\n' for i in range(40))
    )
    (outside / "recipe.yaml").write_text("name: secret\nlayers: [{attach: [lora]}]\n")


def traces(folder: Path) -> list[str]:
    """What was executed, by what it left."""
    found = [
        f"code of the input was executed: {path.name} was written"
        for path in (folder / SIGN,)
        if path.exists()
    ]
    if MODULE in sys.modules:
        del sys.modules[MODULE]
        found.append(f"the module {MODULE} that an input names was imported")
    return found


@contextmanager
def watched(root: Path) -> Iterator[list[str]]:
    """Notes what processes are started, which hosts are asked and which files outside are opened."""
    global _seen, _outside
    _seen, _outside = [], str(root / "outside")
    try:
        yield _seen
    finally:
        _seen = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        _note_opened(arguments[0], arguments[2])
    elif event in _PROCESSES and str(arguments[0]) != "uname":
        _seen.append(f"a process was started: {event}{arguments[:2]!r:.200}")
    elif event == "socket.getaddrinfo" and str(arguments[0]) not in _LOCAL:
        _seen.append(f"a host was looked up: {arguments[0]!r:.100}")
    elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in _LOCAL:
        _seen.append(f"a host was connected to: {arguments[1]!r:.100}")


def _note_opened(path: Any, flags: Any) -> None:
    if isinstance(path, (str, bytes, os.PathLike)) and _seen is not None:
        name = os.fsdecode(path)
        if os.path.islink(name) and isinstance(flags, int) and flags & os.O_NOFOLLOW:
            return  # the system refuses to
        if "outside" in name or os.path.islink(name):
            real = os.path.realpath(name)
            if real.startswith(_outside):
                _seen.append(f"a file outside the input's folder was opened: {name!r}")


sys.addaudithook(_note)
