"""What does a LoRA cost that only comes near a hybrid? `export --as lora` of adapters, prefixes and gates.

    python experiments/fitted_lora/run.py            # 75 minutes of one core; goes on where it stopped
    python experiments/fitted_lora/run.py --dry-run  # what is left
    python experiments/fitted_lora/run.py --tables

Each recipe is trained on a real model by `autopeft.train`, then exported with three ranks, on the language
model with the rank left open alone. The export itself fits the LoRA on 256 rows of *train* and measures loss
and score of the hybrid and of the LoRA on rows of *select*; they are noted here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import note, one_thread
from lib.storage import append_row, read_rows

__all__ = ["RECIPES", "Setting", "missing", "settings", "tables"]

HERE = Path(__file__).parent
RESULTS, RUNS = HERE / "results" / "fits.jsonl", HERE / "runs"
RANKS = (8, 64, None)
_ADAPTER = {"parallel_adapter": {"sites": ["ffn"], "bottleneck": 16}}
_PREFIX = {"p_tuning_v2": {"length": 10}}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "serial adapter": [{"serial_adapter": {"bottleneck": 16}}],
    "parallel adapter": [_ADAPTER],
    "prefix": [_PREFIX],
    "parallel adapter + prefix": [_ADAPTER, _PREFIX],
    "gated LoRA + parallel adapter": [{"gate": [{"lora": {"rank": 8}}, _ADAPTER]}],
    "(IA)³": [{"ia3": {}}],
}
DECODER = ("serial adapter", "prefix", "gated LoRA + parallel adapter")
"""Those that are trained on the language model too, where each takes ten minutes."""
RATES = {"prefix": 1e-2, "(IA)³": 1e-2}
_HEAD = {"head": {"learning_rate": 1e-2}}


@dataclass(frozen=True)
class Setting:
    """One training, of which LoRAs are made."""

    model: str
    task: str
    recipe: str
    steps: int
    rows: int
    metric: str
    seed: int = 0

    def recipe_dict(self) -> dict[str, Any]:
        """The recipe, as `autopeft.Recipe.from_dict` takes it."""
        training: dict[str, Any] = {"learning_rate": RATES.get(self.recipe, 2e-3)}
        if self.model == "minilm":  # a language model has no head of its own
            training["groups"] = _HEAD
        layers = [{"at": "all", "attach": RECIPES[self.recipe]}]
        return {"autopeft": 2, "name": "fitted", "layers": layers, "training": training}


def settings() -> list[Setting]:
    """Every training, a model at a time."""
    small = [Setting("minilm", "trec", recipe, 100, 32, "accuracy") for recipe in RECIPES]
    return small + [Setting("smollm2-135m", "cmudict", recipe, 40, 8, "likelihood") for recipe in DECODER]


def missing(rows: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """Those that are not recorded."""
    known = [row["setting"] for row in rows]
    return [setting for setting in settings() if asdict(setting) not in known]


def measured(setting: Setting) -> dict[str, Any]:
    """Train, export with each rank, and note what the exports measured."""
    import autopeft

    name = "-".join((setting.model, setting.task, *setting.recipe.split())).replace("+", "with")
    run = RUNS / name
    if not (run / "result.json").exists():
        shutil.rmtree(run, ignore_errors=True)  # of one that was stopped on the way
        autopeft.train(
            recipe=autopeft.Recipe.from_dict(setting.recipe_dict()), task=setting.task, model=setting.model,
            steps=setting.steps, batch_size=setting.rows, metric=setting.metric, seed=setting.seed,
            effort="quick", out=run,
        )  # fmt: skip
    fits = []
    # On a language model an export takes minutes; the one whose rank is left open tries the smallest too.
    for rank in RANKS if setting.model == "minilm" else RANKS[-1:]:
        out = RUNS / f"{name}-lora"
        shutil.rmtree(out, ignore_errors=True)
        facts = autopeft.export(run, out, format="lora", rank=rank).facts
        fits.append({"asked": rank, **{key: facts[key] for key in ("rank", "maps", "exact", "cost")}})
    return {"setting": asdict(setting), "fits": fits}


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: loss and score of each hybrid, and of its LoRAs."""
    headers = ["model, task", "hybrid", "loss", "score", *(f"LoRA of {_rank(rank)}" for rank in RANKS)]
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    for row in rows:
        s, before = row["setting"], next((f["cost"]["before"] for f in row["fits"] if f["cost"]), None)
        cells = [f"{s['model']}, `{s['task']}`", s["recipe"]]
        cells += ["", ""] if before is None else [f"{before['loss']:.3f}", f"{100 * before['score']:.1f}"]
        lines.append(f"| {' | '.join([*cells, *(_fit(row['fits'], rank) for rank in RANKS)])} |")
    return "\n".join(lines)


def _rank(rank: int | None) -> str:
    return "the rank that it takes" if rank is None else f"rank {rank}"


def _fit(fits: Sequence[Mapping[str, Any]], rank: int | None) -> str:
    """Loss and score of the LoRA of a rank, and its rank where that was left open; the loss alone where that
    one tried it."""
    fit = next((fit for fit in fits if fit["asked"] == rank), None)
    if fit is None:
        tried = fits[-1]["cost"]["losses"].get(str(rank))
        return "" if tried is None else f"{tried:.3f}"
    if fit["cost"] is None:
        return f"exact, rank {fit['rank']}"
    after = fit["cost"]["after"]
    said = f"{after['loss']:.3f}, {100 * after['score']:.1f}"
    return said if fit["asked"] is not None else f"{said} (rank {fit['rank']})"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="say what is left and stop")
    parser.add_argument("--tables", action="store_true", help="print what is recorded and stop")
    args = parser.parse_args(argv)
    rows = read_rows(RESULTS)
    if args.tables:
        print(tables(rows))
        return
    left = missing(rows)
    note(f"{len(left)} trainings are left, some {6 * len(left)} minutes of one core")
    if args.dry_run:
        return
    one_thread()
    for setting in left:
        row = measured(setting)
        append_row(RESULTS, row)
        note(tables([row]))
    print(tables(read_rows(RESULTS)))


if __name__ == "__main__":
    main()
