"""A real search in a process of its own, and ways to kill parts of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from support.saved_model import save_backbone, write_reviews

__all__ = ["Searching", "Standing"]

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


@dataclass
class Standing:
    """What a journal says: hash and score of every finished trial by number, and how often each recipe was
    trained to its end."""

    finished: dict[int, tuple[str, float | None]] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    rungs: dict[int, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, trials: list[FrozenTrial]) -> Standing:
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
        return found


class Searching:
    """One run folder, and the process that works on it at present."""

    def __init__(
        self,
        place: Path,
        *,
        trials: int = 6,
        steps: int = 120,
        workers: int = 1,
        more: Sequence[str] = (),
    ) -> None:
        self.place, self.trials, self.run = place, trials, place / "run"
        save_backbone(place / "bert")
        write_reviews(place / "reviews.csv")
        (place / "space.yaml").write_text(_SPACE)
        self._begin = [
            *("--task", "reviews.csv", "--text", "body", "--label", "verdict", "--model", "bert"),
            *("--space", "space.yaml", "--budget", "20%", "--max-length", "24", "--batch-size", "8"),
            *("--trials", str(trials), "--steps", str(steps), "--workers", str(workers), "--out", "run"),
            *("--sampler", "random", "--baselines", "head", *more),
        ]
        self.process: subprocess.Popen[str] | None = None
        self._mark = ""

    def start(self) -> None:
        """Begin, or go on where an earlier process ended."""
        words = ["--resume", "run"] if (self.run / "manifest.json").exists() else self._begin
        self._mark = uuid.uuid4().hex
        environment = {
            **os.environ,
            "AUTOPEFT_CACHE": str(self.place / "cache"),
            "AUTOPEFT_TEST_MARK": self._mark,
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "autopeft", "search", *words],
            cwd=self.place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process is None or self.process.poll() is not None

    @property
    def finished(self) -> bool:
        """Whether the search has come to its result."""
        return (self.run / "result.json").exists()

    def events(self) -> int:
        """Lines of the journal so far."""
        journal = self.run / "journal.log"
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    def wait_for_events(self, more: int) -> bool:
        """Wait until the journal has so many lines more; `False` if the process ended before."""
        wanted = self.events() + more
        return self._until(lambda: self.events() >= wanted)

    def _until(self, reached: Callable[[], bool]) -> bool:
        assert self.process is not None
        end = time.monotonic() + _WAIT
        while time.monotonic() < end:
            if reached():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        raise AssertionError(f"Nothing happened for {_WAIT} s:\n{self.end()}")

    def kill(self, what: str, rng: random.Random) -> bool:
        """`kill -9` of the `driver`, of a `worker` or of the `raylet`; `False` where there is none."""
        assert self.process is not None
        if what == "driver":
            self.process.kill()
            self.process.wait()
            return True
        name = {"worker": "ray::", "raylet": "raylet/raylet"}[what]
        found = [pid for pid, command in self._processes().items() if name in command.split(" ")[0]]
        if what == "worker":
            found = [p for p in found if "_Worker" in self._processes().get(p, "")]
        if not found:
            return False
        os.kill(rng.choice(sorted(found)), signal.SIGKILL)
        return True

    def _processes(self) -> dict[int, str]:
        """Processes that carry this search's mark: their command lines by process id."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(folder.name)] = command.strip()
            except OSError:
                continue  # it ended meanwhile
        return found

    def end(self) -> str:
        """Wait for the process and return what it printed; it is killed after some minutes."""
        assert self.process is not None
        try:
            out, _ = self.process.communicate(timeout=_WAIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, _ = self.process.communicate()
            out += "\n(killed: it did not end by itself)"
        return out

    def settle(self) -> None:
        """Wait until nothing of the search is left, and end what does not end by itself."""
        end = time.monotonic() + 20.0
        while self._processes() and time.monotonic() < end:
            time.sleep(0.1)
        for pid in self._processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def standing(self) -> Standing:
        """What the journal says, read from a copy without a torn last line."""
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
        return Standing.of(study.get_trials(deepcopy=False))

    def result(self) -> dict[str, Any]:
        """The run's result."""
        found: dict[str, Any] = json.loads((self.run / "result.json").read_text())
        return found
