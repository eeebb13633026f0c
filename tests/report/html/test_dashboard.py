"""The study of a search opens in optuna-dashboard."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from autopeft.counting import Counts
from autopeft.recipe import Recipe
from autopeft.search.core.jobs import JobResult
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.candidate import Candidate
from autopeft.search.space.parameters import Parameter

RANKS = (1, 2, 4, 8, 16, 32)
PARAMETERS = [
    Parameter("lora.rank", "categorical", RANKS, sizes=RANKS),
    Parameter("ia3.on", "categorical", (True, False)),
    Parameter("ia3.scale", "categorical", ("a", "b")),
]


def repaired(values: dict[str, Any]) -> Candidate:
    """At most rank 4, as a budget would have it."""
    point = {**values, "lora.rank": min(values["lora.rank"], 4)}
    items: list[Any] = [{"lora": {"rank": point["lora.rank"], "alpha": 1 + (point["ia3.scale"] == "a")}}]
    recipe = Recipe.from_dict({"layers": [{"attach": [*items, *["ia3"] * point["ia3.on"]]}]})
    return Candidate(recipe, Counts(10, 10, 0, 1000), recipe.hash(), point)


def in_use(point: Mapping[str, Any], recipe: Recipe) -> set[str]:
    return {name for name in point if name != "ia3.scale" or point["ia3.on"]}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """What a real search leaves behind: three scored trials, one that waits on a rung, and a failed one."""
    path = tmp_path / "journal.log"
    options: dict[str, Any] = {"sampler": "random", "seed": 0, "trials": 5, "rungs": Rungs.of(180)}
    first = [{"lora.rank": 16, "ia3.on": False, "ia3.scale": "a"}]
    study = SearchStudy(path, PARAMETERS, repaired, first=first, in_use=in_use, **options)
    for score in (0.5, 0.6, 0.7, None, "rung"):
        proposal = study.propose()
        assert proposal is not None
        job = f"trial-{proposal.number}"
        if score is None:
            study.record(proposal.number, JobResult(job, error="broke down", failure="failed"))
        elif score == "rung":
            study.pause(proposal.number, 60, JobResult(job, scores={"select": 0.4}, paused=True))
        else:
            study.record(proposal.number, JobResult(job, scores={"select": float(score)}))
    return path


@pytest.fixture
def dashboard(journal: Path, tmp_path: Path) -> Iterator[str]:
    """The command that the report names, on a copy of the journal."""
    pytest.importorskip("optuna_dashboard")
    command = Path(sys.executable).with_name("optuna-dashboard")
    copy = tmp_path / "study.log"
    shutil.copyfile(journal, copy)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--storage-class", "JournalFileStorage", "--port", str(port), "--server", "wsgiref"]
    with subprocess.Popen(
        [str(command), *arguments, str(copy)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def fetch(url: str, *, patience: float = 60.0) -> bytes:
    until = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


@pytest.mark.slow
def test_the_dashboard_shows_the_study(dashboard: str, journal: Path) -> None:
    before = journal.read_bytes()
    page = fetch(f"{dashboard}/dashboard/").decode()
    assert "<html" in page.lower()
    (summary,) = json.loads(fetch(f"{dashboard}/api/studies"))["study_summaries"]
    assert summary["study_name"] == "autopeft"
    study: dict[str, Any] = json.loads(fetch(f"{dashboard}/api/studies/{summary['study_id']}"))
    trials = study["trials"]
    # A recipe that was drawn twice is a trial with the known score.
    fresh = [t for t in trials if not any(a["key"] == "duplicate_of" for a in t["user_attrs"])]
    assert [t["state"] for t in fresh] == ["Complete", "Complete", "Complete", "Fail", "Running"]
    assert [t["values"][0] for t in fresh[:3]] == [0.5, 0.6, 0.7]
    assert [v["value"] for v in fresh[4]["intermediate_values"]] == [0.4]
    for trial in trials:
        tables = ("recipe", "proposed", "repaired")
        about = {a["key"]: json.loads(a["value"]) for a in trial["user_attrs"] if a["key"] in tables}
        (block,) = about["recipe"]["layers"]
        told = {p["name"]: p["param_external_value"] for p in trial["params"]}
        on = "ia3" in block["attach"]
        assert told["lora.rank"] == str(block["attach"][0]["lora"]["rank"])
        assert told["ia3.on"] == str(on)
        assert ("ia3.scale" in told) is on
        was = about["proposed"]["lora.rank"]
        assert about["repaired"] == ({"lora.rank": f"{was} → 4"} if was > 4 else {})
    assert trials[0]["params"]
    found = json.loads(fetch(f"{dashboard}/api/studies/{summary['study_id']}/param_importances"))
    assert {p["name"] for p in found["param_importances"][0]} == {"lora.rank", "ia3.on", "ia3.scale"}
    assert journal.read_bytes() == before
