"""What another user of the machine tries with a search that runs: to read, to replace, to talk to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["NOBODY", "attempts"]

NOBODY = 65534


def attempts(asked: Mapping[str, Any], *, user: int, token: str = "") -> dict[str, str | None]:
    """What came of each attempt: `None` where it worked, else why not.

    Args:
        asked: `paths` and `pids` to try, the addresses of `gcs` and of an agent's `http`; where it is
            `harmless`, nothing is changed.
        user: the user id to become; the process is started as who one is.
        token: Ray's, of a user who has it.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": "/nonexistent", "RAY_AUTH_MODE": "token"}
    environment["RAY_AUTH_TOKEN"] = token or "0" * 64
    found = subprocess.run(
        [sys.executable, __file__, str(user), json.dumps(asked)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    told: dict[str, str | None] = json.loads(found.stdout.splitlines()[-1])
    return told


def _main(user: int, asked: Mapping[str, Any]) -> None:
    # Imported before, as the other user may not even read where they are installed.
    import socket
    import urllib.error
    import urllib.request

    from ray._raylet import GcsClient

    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    told: dict[str, str | None] = {}

    def attempt(what: str, action: Any) -> None:
        try:
            action()
        except Exception as error:
            told[what] = f"{type(error).__name__}: {error}"[:200]
        else:
            told[what] = None

    def connect(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))

    def http() -> None:
        try:
            with urllib.request.urlopen(f"http://{asked['http']}/get_or_create_runtime_env", data=b"") as f:
                f.read()
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise

    for name in asked["paths"]:
        path = Path(name)
        if path.is_symlink() if os.access(path.parent, os.X_OK) else False:
            continue
        attempt(f"stat in {path}", lambda path=path: os.stat(path / ".."))
        attempt(f"list {path}", lambda path=path: os.listdir(path if path.is_dir() else path.parent))
        if not asked.get("harmless"):
            attempt(f"replace {path}", lambda path=path: os.rename(path, f"{path}-theirs"))
            attempt(f"plant in {path}", lambda path=path: (path / "planted").touch())
            attempt(f"write {path}", lambda path=path: os.close(os.open(path, os.O_WRONLY)))
        if path.is_socket() if os.access(path.parent, os.X_OK) else path.name in ("raylet", "plasma_store"):
            attempt(f"connect {path}", lambda path=path: connect(path))
        else:
            attempt(f"read {path}", lambda path=path: os.close(os.open(path, os.O_RDONLY)))
    for pid in asked["pids"]:
        attempt(f"environment of {pid}", lambda pid=pid: Path(f"/proc/{pid}/environ").read_bytes())
        attempt(f"files of {pid}", lambda pid=pid: os.listdir(f"/proc/{pid}/fd"))
        attempt(f"memory of {pid}", lambda pid=pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY)))
        attempt(f"signal {pid}", lambda pid=pid: os.kill(pid, 0))
    attempt("gcs", lambda: GcsClient(address=asked["gcs"]).internal_kv_get(b"session_name", b"session"))
    attempt("http", http)
    print(json.dumps(told))


if __name__ == "__main__":
    _main(int(sys.argv[1]), json.loads(sys.argv[2]))
