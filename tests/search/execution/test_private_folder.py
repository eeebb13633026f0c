from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from autopeft.search.execution import private_folder as module
from autopeft.search.execution.private_folder import RAY, private_folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder whose path counts as short."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *a, **k: False)
    return tmp_path


def left_behind(root: Path, name: str = "apf-dead") -> Path:
    """The folder of a killed process."""
    folder = root / name
    (folder / RAY / "session").mkdir(parents=True)
    (folder / "in-use").touch()
    return folder


KILLED = """
import os, signal, sys, tempfile
from autopeft.search.execution.private_folder import private_folder
os.access = lambda *a, **k: False
with private_folder() as folder:
    (folder / "session").mkdir()
    print(folder, flush=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.readline()
"""


def test_folders_of_killed_processes_are_removed_and_those_in_use_are_not(root: Path) -> None:
    command = [sys.executable, "-c", KILLED]
    killed = subprocess.run([*command, "die"], capture_output=True, text=True)
    living = subprocess.Popen([*command, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert living.stdout is not None
    try:
        theirs, mine = Path(living.stdout.readline().strip()), Path(killed.stdout.strip())
        other = root / "apf-of-something-else"
        other.mkdir()
        assert mine.parent == theirs.parent == root
        with private_folder() as folder:
            assert folder.is_dir()
            assert not mine.exists()
            assert (theirs / "session").is_dir()
            assert other.is_dir()
        assert not folder.exists()
    finally:
        living.communicate("\n")
    assert not theirs.exists()


def test_a_long_temporary_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with private_folder() as folder:
        assert folder.parent == Path("/tmp")


def test_its_owner_alone_gets_in(root: Path) -> None:
    before = os.umask(0)
    try:
        with private_folder() as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert stat.S_IMODE((folder / "in-use").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_it_has_its_name_only_when_it_is_in_use(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another search could find it and remove it, between the two."""
    plain, seen = module.fcntl.flock, list[list[str]]()

    def watched(descriptor: int, operation: int) -> None:
        seen.append([path.name for path in root.glob("apf-*")])
        plain(descriptor, operation)

    monkeypatch.setattr(module.fcntl, "flock", watched)
    with private_folder() as folder:
        assert seen == [[]]
        assert list(root.iterdir()) == [folder]


def test_other_peoples_folders_are_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = left_behind(root)
    if os.geteuid() == 0:
        os.chown(theirs, 65534, 65534)
    else:
        monkeypatch.setattr(module.os, "geteuid", lambda: os.getuid() + 1)
    with private_folder():
        pass
    assert (theirs / RAY / "session").is_dir()


def test_links_lead_nowhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever may write to the temporary folder can put links there under such names."""
    precious = left_behind(tmp_path_factory.mktemp("precious"))
    (root / "apf-link").symlink_to(precious)
    linked = left_behind(root, "apf-linked")
    (precious / "file").write_text("precious")
    (linked / "in-use").unlink()
    (linked / "in-use").symlink_to(precious / "file")
    pipe = left_behind(root, "apf-pipe")
    (pipe / "in-use").unlink()
    os.mkfifo(pipe / "in-use")
    with private_folder():
        pass
    assert (precious / "file").read_text() == "precious"
    assert (precious / RAY / "session").is_dir()
    assert linked.is_dir()
