"""For each kind of task a whole search by the command line: does its winner beat the trivial answer?

    python experiments/search_by_kind/run.py --t5 ~/t5-tiny --vit ~/vit-tiny   # ten minutes each
    python experiments/search_by_kind/run.py --kinds classification regression
    python experiments/search_by_kind/run.py --tables                          # what is recorded

Each search has nine minutes. What it found is then reported, exported and asked for predictions, all by
`autopeft` in processes of their own. The trivial answer is the same answer for every row (the majority, the
mean, the whole text), or, where a model writes or chooses, the untuned model. A kind that is recorded is not
searched again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import note
from lib.storage import append_row, read_rows
from settings import SETTINGS, TIME, Setting

from autopeft import load_task

__all__ = ["measure", "tables"]

HERE = Path(__file__).parent
RESULTS, RUNS = HERE / "results" / "searches.jsonl", HERE / "runs"


def called(*words: str) -> float:
    """Run `autopeft` with these words; its seconds."""
    before = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "autopeft", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"autopeft {' '.join(words)} ended with {done.returncode}:\n{done.stdout}")
    return round(time.perf_counter() - before, 1)


def measure(
    kind: str, setting: Setting, model: str, folder: Path, more: Sequence[str] = ()
) -> dict[str, Any]:
    """Search, report, export and predict; the outcome as a row.

    Args:
        more: further words of `autopeft search`, behind those of the setting.
    """
    task = setting.task if isinstance(setting.task, str) else str(setting.task(folder))
    run = folder / "run"
    words = ("--task", task, "--kind", kind, "--model", model, *setting.search, "--time", TIME, *more)
    if not (run / "result.json").exists():
        begun = (run / "manifest.json").exists()
        called("search", *(("--resume", str(run)) if begun else (*words, "--out", str(run))))
    found = json.loads((run / "result.json").read_text(encoding="utf-8"))
    seconds = {"search": round(found["seconds"], 1)}
    seconds["report"] = called("report", str(run), "--out", str(folder / "report.html"))
    shutil.rmtree(folder / "winner", ignore_errors=True)  # of a run that was stopped behind it
    seconds["export"] = called("export", str(run), "--out", str(folder / "winner"))
    asked, answers = setting.ask(load_task(task, kind=kind), folder), folder / "answers.jsonl"
    seconds["predict"] = called("predict", str(folder / "winner"), *asked, "--out", str(answers))
    return {
        "kind": kind, "task": _named(setting), "model": Path(model).name, "search": list(setting.search),
        "metric": found["metric"], "winner": found["recipe"]["name"], "deployed": found["counts"]["deployed"],
        "test": found["test"], "trivial": trivial(setting, found), "lora": _lora(found),
        "trials": found["trials"]["complete"], "recipe": found["recipe"], "seconds": seconds,
        "answers": [json.loads(line) for line in _without(folder, answers.read_text(encoding="utf-8"))],
        "cores": os.cpu_count(), "load": round(os.getloadavg()[2], 1),
    }  # fmt: skip


def _without(folder: Path, text: str) -> list[str]:
    """The lines, with files named as they are within the folder."""
    return text.replace(f"{folder}{os.sep}", "").splitlines()


def trivial(setting: Setting, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the winner has to beat: its name, and the difference on *test* with its interval."""
    if setting.trivial == "constant":
        compared = found["over_constant"]
    else:
        own = (c for c in found["comparisons"] if c["baseline"].startswith(setting.trivial))
        compared = next(own, None)
    if compared is None:
        raise SystemExit(f"{found['run']} was not compared with {setting.trivial}.")
    return {key: compared[key] for key in ("baseline", "difference", "low", "high")}


def _named(setting: Setting) -> str:
    """A packaged task's name, or what was made of the questions of `trec`."""
    return setting.task if isinstance(setting.task, str) else "made of trec"


def _lora(found: Mapping[str, Any]) -> list[float]:
    """Scores of tuned LoRA on *test*."""
    return next((b["test"] for b in found["baselines"] if b["name"].startswith("LoRA")), [])


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: each winner, and by how much it is above the trivial answer."""
    headers = ("kind", "task", "metric", "winner", "parameters", "test", "LoRA", "above the trivial answer")
    headers += ("trials", "minutes")
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    for row in rows:
        t, minutes = row["trivial"], row["seconds"]["search"] / 60
        low, high = (f"{100 * t[end]:+.1f}" if t[end] is not None else "?" for end in ("low", "high"))
        above = f"{100 * t['difference']:+.1f} ({low} to {high}), {t['baseline']}"
        cells = [
            f"`{row['kind']}`", row["task"], row["metric"], row["winner"], f"{row['deployed']:,}",
            _mean(row["test"]), _mean(row["lora"]), above, str(row["trials"]), f"{minutes:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(scores: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(scores):.1f}" if scores else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=sorted(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--t5", help="folder of the T5 that ../backbones/run.py has made")
    parser.add_argument("--vit", help="folder of the ViT that ../backbones/vit.py has made")
    parser.add_argument("--tables", action="store_true", help="print what there is, run nothing")
    given = parser.parse_args()
    folders = {"t5": given.t5, "vit": given.vit}
    known, failed = {row["kind"] for row in read_rows(RESULTS)}, list[str]()
    for kind in given.kinds if not given.tables else ():
        setting = SETTINGS[kind]
        model = folders.get(setting.model, setting.model)
        if kind in known or model is None:
            note(f"{kind}: {'recorded' if kind in known else f'left out, without --{setting.model}'}")
            continue
        try:
            row = measure(kind, setting, model, RUNS / kind)
        except SystemExit as reason:
            note(f"{kind}: {reason}")
            failed.append(kind)
            continue
        append_row(RESULTS, row)
        note(f"{kind}: {100 * row['trivial']['difference']:+.1f} in {row['seconds']['search']:.0f} s")
    print(tables(read_rows(RESULTS)))
    if failed:
        raise SystemExit(f"Without a row: {', '.join(failed)}; see above.")


if __name__ == "__main__":
    main()
