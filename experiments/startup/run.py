"""What a search costs outside its training: starting, attaching, Ray, and the memory of a second worker.

    python experiments/startup/run.py
    python experiments/startup/run.py --parts memory,ray   # the others stay as they were recorded
    python experiments/startup/run.py --tables

- `commands`: `import autopeft`, `autopeft --help`, and what they are to be compared with.
- `first`: from the start of a process to the first step of its first trial, and the same for the second trial
  on the same worker; beside it a whole trial of one step by the obvious implementation, in a process of its
  own (see `search_cost`), which pays all of it every time. Caches on disk are warm on both sides.
- `attach`: attaching and detaching three recipes.
- `ray`: trivial trials (head only, one step of four rows) through the search's engine and by direct calls:
  what all processes together spend more, for each trial, and for each second that a trial lasts.
- `memory`: proportional set sizes (PSS: a page that n processes share counts 1/n in each) without shared
  libraries, summed over two workers, of which none, one and both have loaded backbone and data and read every
  tensor once. A bare worker has everything imported, the model's class too.

Each part runs in processes of its own, so that none sees what another has loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

# Workers import this module too: what it imports by itself must be light.
from lib.measuring import cache_at, interleave, note, one_thread, read_json, show, summarise, write_json
from memory import memory
from parts import part_attach, part_files, part_first
from ray_overhead import part_ray

EXPERIMENTS = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PARTS = ("commands", "first", "attach", "ray", "memory")
IN_PROCESS = {"files": part_files, "first": part_first, "attach": part_attach, "ray": part_ray}


def run_part(name: str, folder: Path) -> dict[str, Any]:
    """Run a part in a process of its own and read what it leaves."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", name, str(folder)]
    # Workers of Ray find `lib` by the environment alone.
    path = os.pathsep.join(filter(None, (str(EXPERIMENTS), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "BENCHMARK_STARTED": repr(time.time())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"Part {name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def run_command(*command: str) -> tuple[float, float]:
    """Wall and CPU seconds of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stderr is not None
    with process.stderr as stream:
        errors = stream.read().decode()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors[-3000:]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def commands(repeats: int) -> dict[str, Any]:
    """Wall and CPU seconds of short commands, in turns."""
    python = sys.executable
    variants = {
        "python -c pass": partial(run_command, python, "-c", "pass"),
        "import autopeft": partial(run_command, python, "-c", "import autopeft"),
        "autopeft --help": partial(run_command, python, "-m", "autopeft", "--help"),
        "import torch, transformers": partial(run_command, python, "-c", "import torch, transformers"),
        "import the worker": partial(run_command, python, "-c", "import autopeft.search.execution.worker"),
    }
    for variant in variants.values():
        variant()  # compiles modules that were never imported
    return {
        name: {
            "wall": summarise([wall for wall, _ in several]).to_dict(),
            "cpu": summarise([cpu for _, cpu in several]).to_dict(),
        }
        for name, several in interleave(variants, repeats).items()
    }


def obvious_trial(folder: Path) -> dict[str, dict[str, float]]:
    """A whole trial of one step, as `search_cost` runs it."""
    obvious, files = EXPERIMENTS / "lib" / "obvious.py", (folder / "trial.json", folder / "result.json")
    wall, cpu = run_command(sys.executable, str(obvious), *map(str, files))
    return {"a trial of one step": {"wall": wall, "cpu": cpu}}


def first_steps(folder: Path, repeats: int) -> dict[str, Any]:
    """Both sides in turns; the first run of each fills the caches and is not counted."""
    variants: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": partial(run_part, "first", folder),
        "obvious": partial(obvious_trial, folder),
    }
    cold = {name: variant() for name, variant in variants.items()}
    runs = interleave(variants, repeats, lambda name, repeat, _: note(f"first step, repeat {repeat}: {name}"))
    return {
        side: {
            mark: {
                "wall": summarise([run[mark]["wall"] for run in several]).to_dict(),
                "cpu": summarise([run[mark]["cpu"] for run in several]).to_dict(),
                "cold": cold[side][mark],
            }
            for mark in several[0]
        }
        for side, several in runs.items()
    }


def _text(summary: dict[str, float], digits: int = 2) -> str:
    return f"{summary['median']:.{digits}f} ({summary['low']:.{digits}f}–{summary['high']:.{digits}f})"


def show_all(found: dict[str, Any]) -> None:
    """Print the tables of the parts that were run."""
    if "commands" in found:
        rows = [(name, _text(c["wall"]), _text(c["cpu"])) for name, c in found["commands"].items()]
        show("Commands", ("", "wall s (min–max)", "CPU s (min–max)"), rows)
    if "first" in found:
        marked = [
            (f"{side}: {mark}", _text(c["wall"]), _text(c["cpu"]), f"{c['cold']['cpu']:.2f}")
            for side, marks in found["first"].items()
            for mark, c in marks.items()
        ]
        columns = ("", "wall s (min–max)", "CPU s (min–max)", "CPU s, caches empty")
        show("From the start of the process (the second trial: from its own start)", columns, marked)
    if "attach" in found:
        rows = [
            (name, _text(c["attach_ms"], 1), _text(c["detach_ms"], 1)) for name, c in found["attach"].items()
        ]
        show("Attaching", ("recipe", "attach, CPU ms (min–max)", "detach, CPU ms (min–max)"), rows)
    if "ray" in found:
        _show_ray(found["ray"])
    if "memory" in found:
        _show_memory(found["memory"])


def _show_ray(ray: dict[str, Any]) -> None:
    lines = {
        "a trivial trial, called directly": ray["direct"],
        "a trivial trial, through Ray": ray["through_ray"],
        "Ray adds to each trial": ray["more_for_each_trial"],
        "to the end of the first trial (Ray, imports, loading)": ray["to_the_end_of_the_first_trial"],
    }
    rows = [(name, f"{c['wall']:.3f}", f"{c['cpu']:.3f}") for name, c in lines.items()]
    rows.append(("from the end of the last trial to Ray's stop", f"{ray['stop']['wall']:.3f}", ""))
    lasting = ray["lasting"]
    rows.append(("for each second that a trial lasts", "", f"{lasting['cpu_each_second']:.4f}"))
    rows += [
        (f"  of it {name}", "", f"{cpu / lasting['seconds']:.4f}")
        for name, cpu in lasting["cpu_by_process"].items()
        if cpu > 0
    ]
    show(f"Ray, means over {ray['trials']} trials", ("", "wall s", "CPU s of all processes"), rows)


def _show_memory(memory: dict[str, Any]) -> None:
    names = {
        "bare_and_bare": "two bare workers",
        "loaded_and_bare": "one loaded, one bare",
        "loaded_and_loaded": "two loaded",
        "after_a_trial_each": "two after a trial each",
        "first_took": "model and data took in the first",
        "second_added": "the second added",
    }
    rows = [
        (text, *(f"{m[key]:.1f}" if key in m else "" for m in memory.values())) for key, text in names.items()
    ]
    rows.append(("share of the second", *(f"{m['share']:.0%}" for m in memory.values())))
    show("Memory, PSS in MiB", ("", *memory), rows)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the parts that were asked for."""
    parts, found = options.parts, {}
    keys = ("model", "task", "max_length", "select", "attach_repeats", "trials", "idle_seconds")
    (folder / "options.json").write_text(json.dumps({key: getattr(options, key) for key in keys}))
    if "commands" in parts:
        found["commands"] = commands(options.repeats)
    if set(parts) - {"commands"}:
        # The cache of the user is for model and data alone; the rest starts empty.
        note(f"rows: {run_part('files', folder)['rows']}")
    with cache_at(folder / "cache"):
        if "first" in parts:
            found["first"] = first_steps(folder, options.repeats)
        for name in ("attach", "ray"):
            if name in parts:
                found[name] = run_part(name, folder)
                note(f"{name}: done")
        if "memory" in parts:
            found["memory"] = {
                "ours": memory(folder, obvious=False),
                "plain from_pretrained": memory(folder, obvious=True),
            }
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--parts", default=",".join(PARTS), help="which to run, with commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--attach-repeats", type=int, default=20)
    parser.add_argument("--trials", type=int, default=30, help="trivial trials through Ray")
    parser.add_argument("--idle-seconds", type=int, default=20, help="how long the lasting job lasts")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--task", default="movie-sentences")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--select", type=int, default=64, help="rows that a trial scores")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    parser.add_argument("--tables", action="store_true", help="print the tables of --out, measure nothing")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if unknown := [p for p in options.parts if p not in PARTS]:
        parser.error(f"parts are {', '.join(PARTS)}, but got {', '.join(unknown)}")
    return options


def main() -> None:
    options = parse()
    if options.tables:
        show_all(read_json(options.out))
        return
    one_thread()
    if options.part is not None:
        name, folder = options.part[0], Path(options.part[1])
        (folder / f"{name}.json").write_text(json.dumps(IN_PROCESS[name](folder)))
        return
    with tempfile.TemporaryDirectory(prefix="startup-") as scratch:
        found = measure(options, Path(scratch))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "part"}
    before = read_json(options.out) if options.out.is_file() else {}
    write_json(options.out, {**before, "settings": settings, **found})
    show_all(found)


if __name__ == "__main__":
    main()
