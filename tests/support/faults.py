"""A real search in a process of its own, and what can befall it: signals, full disks, folders that vanish."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from support.saved_model import save_backbone, write_reviews

__all__ = ["ENDS", "GOES_ON", "MOMENTS", "Fault", "Searching", "Standing", "patience"]

_SPACE = """
autopeft: 2
name: small
layers:
  - at: all
    attach:
      - lora: {rank: {choice: [1, 2, 4, 8]}}
      - optional: ia3
training:
  learning_rate: {float: [1.0e-3, 1.0e-2], log: true}
"""
_WAIT = 240.0
_STANDS_STILL = 8.0  # seconds until a driver that was stopped is let go on

MOMENTS = ("before", "between", "after")
# What befalls whom, and the exit codes of the search that it ends.
ENDS = {
    ("kill", "driver"): {-signal.SIGKILL},
    ("kill", "raylet"): {1},
    ("kill", "gcs"): {1},
    ("stop", "raylet"): {1},
    ("stop", "gcs"): {1},
    ("terminate", "driver"): {143},
    ("terminate", "group"): {143},
    ("swarm", "group"): {130},
    ("fill", "disk"): {1},
    ("lock", "disk"): {1},
    ("remove", "run"): {1, 2},  # 2: it had not read its folder yet
}
GOES_ON = (("kill", "worker"), ("stop", "worker"), ("stop", "driver"), ("remove", "ray"))
_NAMES = {"raylet": "raylet", "gcs": "gcs_server"}


def patience(seconds: float) -> float:
    """So many seconds of a machine that does nothing else; more where others want it too."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass(frozen=True)
class Fault:
    """What befalls a search.

    Attributes:
        what: `kill`, `stop` (SIGSTOP), `terminate` (SIGTERM), `swarm` (fifty Ctrl-C within a second), `fill`,
            `lock` (read-only), `remove`, or `none`.
        whom: `driver`, its process `group`, `worker`, `raylet`, `gcs`, the `disk` of the run folder, the
            `run` folder, the folder of the private `ray`.
        moment: `before` the first trial of the process, `between` trials, `after` them.
    """

    what: str
    whom: str
    moment: str

    def __str__(self) -> str:
        return f"{self.what}-{self.whom}-{self.moment}"


@dataclass
class Standing:
    """What has been finished: hash and score of every finished trial by number, how often each recipe was
    trained to its end, and the scores of the runs after the search by job."""

    finished: dict[int, tuple[str, float | None]] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    rungs: dict[int, dict[str, float]] = field(default_factory=dict)
    finals: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, trials: list[FrozenTrial], finals: list[dict[str, Any]]) -> Standing:
        found = cls()
        for t in trials:
            a = t.user_attrs
            if "duplicate_of" in a:
                continue
            if "rungs" in a:
                found.rungs[t.number] = a["rungs"]
            if a.get("outcome", {}).get("failure") in ("lost", "stopped") or not t.state.is_finished():
                continue
            found.finished[t.number] = (a["hash"], t.value if t.state == TrialState.COMPLETE else None)
            found.trained[a["hash"]] = found.trained.get(a["hash"], 0) + 1
        for line in finals:
            if line["state"] == "complete":
                found.finals[line["job"]] = line["scores"]
        return found

    def assert_kept(self, after: Standing) -> None:
        """Everything that was finished is finished later on, with the same scores."""
        assert after.finished.items() >= self.finished.items()
        assert after.finals.items() >= self.finals.items()
        for number, rungs in self.rungs.items():
            assert after.rungs[number].items() >= rungs.items()


class Searching:
    """One run folder, and the process that works on it at present.

    The run folder lies on a small disk of its own where this user may mount one (`mounted`).
    """

    def __init__(
        self,
        place: Path,
        *,
        trials: int = 6,
        steps: int = 120,
        workers: int = 1,
        more: Sequence[str] = (),
    ) -> None:
        self.place, self.trials, self.disk = place, trials, place / "disk"
        self.run = self.disk / "run"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=101m", "tmpfs", str(self.disk)]
        self.mounted = os.geteuid() == 0 and not subprocess.run(mount, check=False).returncode
        # Short, for the paths of Ray's sockets.
        self.temporary = Path(tempfile.mkdtemp(prefix="ft-", dir="/tmp"))
        save_backbone(place / "bert")
        write_reviews(place / "reviews.csv")
        (place / "space.yaml").write_text(_SPACE)
        self._begin = [
            *("--task", "reviews.csv", "--text", "body", "--label", "verdict", "--model", "bert"),
            *("--space", "space.yaml", "--budget", "20%", "--max-length", "24", "--batch-size", "8"),
            *("--trials", str(trials), "--steps", str(steps), "--workers", str(workers)),
            *("--sampler", "random", "--baselines", "head", "--out", "disk/run", *more),
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = place / "output.txt"
        self._mark, self._away, self._started, self._locked = "", Path(), 0, False

    # Its life
    # ------------------------------------------------------------------------------------------------------

    def start(self, *again: str) -> None:
        """Begin, or go on where an earlier process ended, with options that a run folder does not decide.

        Where that came to nothing, Ray's logs of why may be all that it left: they are removed, as the
        message says that otherwise refuses the folder.
        """
        if self.run.exists() and not (self.run / "manifest.json").exists():
            left = {path.relative_to(self.run).parts[:2] for path in self.run.rglob("*") if path.is_file()}
            assert left <= {("logs", "ray"), (".lock",)}, left
            shutil.rmtree(self.run)
        words = ["--resume", "disk/run", *again] if (self.run / "manifest.json").exists() else self._begin
        self._mark, self._started = uuid.uuid4().hex, len(self.jobs())
        environment = {
            **os.environ,
            "AUTOPEFT_CACHE": str(self.place / "cache"),
            "AUTOPEFT_TEST_MARK": self._mark,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.temporary),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "autopeft", "search", *words],
                cwd=self.place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    @property
    def out(self) -> str:
        """What the process has printed."""
        return self.log.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process is None or self.process.poll() is not None

    @property
    def finished(self) -> bool:
        """Whether the search has come to its end."""
        return (self.run / "result.json").exists() and not self.result()["interrupted"]

    def end(self, seconds: float = _WAIT) -> str:
        """Wait for the process and return what it printed; it is killed after that time."""
        try:
            self.driver.wait(patience(seconds))
        except subprocess.TimeoutExpired:
            self.driver.kill()
            self.driver.wait()
            return f"{self.out}\n(killed: it did not end by itself)"
        return self.out

    def close(self) -> None:
        """End all that is left, and give everything back."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for process in self.left():
                process.kill()
        for _ in range(self.mounted + self._locked):
            subprocess.run(["umount", "-l", str(self.disk)], check=False)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def left(self) -> list[psutil.Process]:
        """Processes of this search and of its Rays that are there still: by their mark, or an open file."""
        found = []
        for process in psutil.process_iter():
            try:
                theirs = process.pid != os.getpid() and (
                    process.environ().get("AUTOPEFT_TEST_MARK") == self._mark
                    or any(file.path.startswith(f"{self.temporary}/") for file in process.open_files())
                )
            except psutil.Error:
                continue
            if theirs and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    # What befalls it
    # ------------------------------------------------------------------------------------------------------

    def strike(self, fault: Fault, rng: random.Random) -> list[int]:
        """Wait for the moment of a fault and let it happen; processes that were hit.

        Raises:
            AssertionError: the process ended before.
        """
        jobs = rng.randint(2, 4)
        self._until(lambda: self._is_moment(fault, jobs))
        time.sleep(rng.random())
        if fault.whom == "disk":
            self._spoil_disk(fault.what)
        elif fault.what == "remove":
            (self._away,) = [self.run] if fault.whom == "run" else self.temporary.glob("apf-*")
            self._away.rename(self._away.with_name("away"))
        elif fault.what == "swarm":
            for _ in range(50):
                os.killpg(self.driver.pid, signal.SIGINT)
                time.sleep(0.02)
        elif fault.whom == "group":
            os.killpg(self.driver.pid, signal.SIGTERM)
        else:
            numbers = {
                "kill": signal.SIGKILL,
                "stop": signal.SIGSTOP,
                "terminate": signal.SIGTERM,
                "none": 0,
            }
            victim = rng.choice(sorted(self._pids(fault.whom)) or [0])
            if not victim:
                return self.strike(fault, rng)
            os.kill(victim, numbers[fault.what])
            if fault.whom == "driver" and fault.what == "stop":
                time.sleep(_STANDS_STILL)
                os.kill(victim, signal.SIGCONT)
            return [victim]
        return []

    def _is_moment(self, fault: Fault, more: int) -> bool:
        if fault.whom in ("worker", *_NAMES) and not self._pids(fault.whom):
            return False
        # Python says itself that it was interrupted while it starts.
        if fault.what == "swarm" and not (self._pids("gcs") or self.jobs()):
            return False
        # A Ray that is still being started does not start without its folder, which ends the search.
        if fault.whom == "ray" and not (list(self.temporary.glob("apf-*")) and self._pids("worker")):
            return False
        if fault.what in ("fill", "lock", "remove") and not (self.run / "manifest.json").exists():
            return False
        if fault.moment == "after":
            return any(job["kind"] in ("confirm", "test") for job in self.jobs())
        return fault.moment == "before" or len(self.jobs()) >= self._started + more

    def _spoil_disk(self, what: str) -> None:
        if what == "lock":
            # A disk on which files are open for writing, such as the lock, does not become read-only itself.
            subprocess.run(["mount", "--bind", str(self.disk), str(self.disk)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(self.disk)], check=True)
            self._locked = True
            return
        with (self.disk / ".filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * (1 << 16))
            except OSError:
                return

    def mend(self) -> None:
        """Take back what was done to the folders."""
        if self._locked:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)
            self._locked = False
        (self.disk / ".filler").unlink(missing_ok=True)
        if self._away == self.run and not self.run.exists():
            self.run.with_name("away").rename(self.run)
        self._away = Path()

    def _pids(self, whom: str) -> list[int]:
        if whom == "driver":
            return [self.driver.pid]
        try:
            below = psutil.Process(self.driver.pid).children(recursive=True)
            if whom == "worker":
                return [p.pid for p in below if "_Worker" in " ".join(p.cmdline()[:1])]
            return [p.pid for p in below if p.name() == _NAMES[whom]]
        except psutil.Error:
            return []

    # What it has done
    # ------------------------------------------------------------------------------------------------------

    def _until(self, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + patience(_WAIT)
        while not reached():
            assert self.driver.poll() is None, f"It ended before:\n{self.out}"
            assert time.monotonic() < end, f"Nothing happened:\n{self.out}"
            time.sleep(0.02)

    def goes_on(self, seconds: float) -> bool:
        """Whether something more is done within that time, or the search comes to its end."""
        before, end = self._done(), time.monotonic() + patience(seconds)
        while time.monotonic() < end:
            if self._done() != before or self.finished:
                return True
            if self.ended:
                return False
            time.sleep(0.05)
        return False

    def _done(self) -> tuple[int, ...]:
        files = (self.run / name for name in ("journal.log", "logs/jobs.jsonl", "finals.jsonl"))
        return tuple(file.stat().st_size if file.exists() else 0 for file in files)

    def jobs(self) -> list[dict[str, Any]]:
        """Jobs that were handed out, in their order."""
        return _lines(self.run / "logs" / "jobs.jsonl")

    def standing(self) -> Standing:
        """What the run folder says, read from copies without a torn last line."""
        journal = self.run / "journal.log"
        if not journal.exists():
            return Standing()
        data = journal.read_bytes()
        copy = self.place / "journal-copy.log"
        copy.write_bytes(data[: data.rfind(b"\n") + 1])
        storage = JournalStorage(JournalFileBackend(str(copy)))
        if not storage.get_all_studies():
            return Standing()
        study = optuna.load_study(study_name="autopeft", storage=storage)
        return Standing.of(study.get_trials(deepcopy=False), _lines(self.run / "finals.jsonl"))

    def trials_written(self) -> list[dict[str, Any]]:
        """The records of trials, the last one of each."""
        by_number = {line["number"]: line for line in _lines(self.run / "trials.jsonl")}
        return list(by_number.values())

    def result(self) -> dict[str, Any]:
        """The run's result."""
        found: dict[str, Any] = json.loads((self.run / "result.json").read_text())
        return found


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none where it is not there."""
    if not file.exists():
        return []
    text = file.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
