"""What a second worker adds to the memory of a first: proportional set sizes of processes (Linux)."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.measuring import one_thread
from lib.worker import load_backbone_and_data, make_job, read_setup, run_here

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["MemoryWorker", "memory", "pss"]


def pss(smaps: str) -> int:
    """Proportional set size in bytes, from the text of `/proc/<pid>/smaps`, shared libraries left out.

    Libraries weigh less in every process whenever any process on the machine starts to use them.
    """
    total, library = 0, False
    for line in smaps.splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # `55d0-55d1 r--p 00000000 08:01 42   /usr/lib/libc.so.6` begins a mapping
            fields = rest.split(maxsplit=4)
            library = len(fields) == 5 and ".so" in Path(fields[4]).name
        elif name == "Pss:" and not library:
            total += int(rest.split()[0]) << 10
    return total


def _pss_of(pid: int) -> int:
    return pss(Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8"))


def memory_worker(connection: Connection, folder: Path, obvious: bool) -> None:
    """Imports, then loads, then runs a trial; says `done` after each, and goes on when told to."""
    one_thread()
    from datasets import load_dataset
    from lib.obvious import Trial, load_classifier, quiet, tokenised
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from autopeft.assets import load_config

    quiet()
    setup, trial = read_setup(folder), Trial.read(folder / "trial.json")
    # What loading imports by itself, the model's own module above all, belongs to a bare worker.
    AutoModelForSequenceClassification._model_mapping[type(load_config(setup.source))]

    def load() -> Any:
        if not obvious:
            model, data = load_backbone_and_data(setup)
            touch(model, (value for split in data.splits.values() for value in vars(split).values()))
            return model, data
        files = {"train": trial.train, "select": trial.select}
        rows = load_dataset("json", data_files=files, cache_dir=trial.cache)
        tokens = tokenised(rows, AutoTokenizer.from_pretrained(trial.model), None, trial.max_length)
        model = load_classifier(trial.model, trial.labels)
        touch(model, (split.data.column("input_ids") for split in tokens.values()))
        return model, tokens

    kept: list[Any] = []
    connection.send("done")
    while connection.recv() == "on":
        if not kept:
            kept.append(load())
        else:
            run_here(setup, make_job("lora", 2))
        gc.collect()
        connection.send("done")


def touch(model: Any, columns: Iterable[Any]) -> None:
    """Read every tensor and every token once: what is mapped from a file takes memory only then.

    `columns` are numpy arrays or Arrow columns of lists; anything else among them is passed over.
    """
    for tensor in model.state_dict().values():
        tensor.sum()
    for column in columns:
        if hasattr(column, "combine_chunks"):
            column.combine_chunks().flatten().to_numpy().sum()
        elif hasattr(column, "dtype"):
            column.sum()


class MemoryWorker:
    """A process that goes on one stage when told to."""

    def __init__(self, folder: Path, obvious: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=memory_worker, args=(theirs, folder, obvious), daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0
        theirs.close()

    def wait(self) -> None:
        """Wait until it has done what it was told to.

        Raises:
            SystemExit: it has ended instead; its error stands on standard error.
        """
        try:
            self._connection.recv()
        except EOFError:
            raise SystemExit("A worker whose memory was measured has failed.") from None

    def go_on(self) -> None:
        self._connection.send("on")
        self.wait()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # one that has failed hears nothing
            self._connection.send("off")
        self._process.join()


def memory(folder: Path, obvious: bool) -> dict[str, float]:
    """Sums of PSS in MiB over two workers: bare, one loaded, both loaded, and after a trial of each."""
    first, second = MemoryWorker(folder, obvious), MemoryWorker(folder, obvious)
    both = lambda: (_pss_of(first.pid) + _pss_of(second.pid)) / (1 << 20)  # noqa: E731
    try:
        for worker in (first, second):
            worker.wait()
        found = {"bare_and_bare": both()}
        first.go_on()
        found["loaded_and_bare"] = both()
        second.go_on()
        found["loaded_and_loaded"] = both()
        if not obvious:
            first.go_on()
            second.go_on()
            found["after_a_trial_each"] = both()
    finally:
        for worker in (first, second):
            worker.close()
    took = found["loaded_and_bare"] - found["bare_and_bare"]
    added = found["loaded_and_loaded"] - found["loaded_and_bare"]
    return {**found, "first_took": took, "second_added": added, "share": added / took}
