"""Evidence as the package ships it: what `read_evidence` reads."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.search.portfolio.evidence import FORMAT, Setting
from autopeft.search.portfolio.templates import FittedRecipe

__all__ = ["packed"]

Members = Mapping[str, Mapping[float, Sequence[FittedRecipe]]]


def packed(
    rows: Sequence[Mapping[str, Any]],
    members: Members,
    readings: Sequence[Mapping[str, Any]] = (),
    *,
    steps: int,
    batch_size: int,
) -> str:
    """Recorded trainings as a file: a line for each setting, and for each backbone its recipes.

    Args:
        rows: trainings, as `experiments/portfolio` records them. Those of recipes that the templates no
            longer lead to, and those of other numbers of steps, are left out.
        members: by backbone and budget (a share of its parameters) the recipes that the templates lead to.
        readings: what probes of heads found, as recorded there: a setting's fields, and the losses `own` and
            `mean`.
    """
    kept = [row for row in rows if row["steps"] == steps and row["model"] in members]
    models, lines = dict[str, Any](), list[str]()
    read = {Setting(*(row[name] for name in Setting._fields)): row for row in readings}
    for model, budgets in members.items():
        unique = {m.hash: m for found in budgets.values() for m in found}
        places = {key: i for i, key in enumerate(unique)}
        settings: dict[Setting, dict[int, Mapping[str, Any]]] = defaultdict(dict)
        for row in kept:
            if row["model"] == model and row["hash"] in places:
                setting = Setting(model, row["task"], row["rows"], row["seed"])
                settings[setting][places[row["hash"]]] = row
        costs = _costs(list(settings.values()), list(unique.values()))
        models[model] = {
            "budgets": [[share, [places[m.hash] for m in found]] for share, found in budgets.items()],
            "recipes": [
                [m.template, m.rate, m.size, cost] for m, cost in zip(unique.values(), costs, strict=True)
            ],
        }
        for setting in sorted(settings):
            found = settings[setting]
            scores = [round(found[i]["score"], 4) if i in found else None for i in range(len(places))]
            line = {**setting._asdict(), "scores": scores}
            if setting in read:
                line["readings"] = [float(f"{read[setting][name]:.4g}") for name in ("own", "mean")]
            lines.append(_text(line))
    head = {"format": FORMAT, "steps": steps, "batch_size": batch_size, "models": models}
    return _text(head)[:-1] + ',"settings":[\n' + ",\n".join(lines) + "\n]}\n"


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _costs(
    settings: Sequence[Mapping[int, Mapping[str, Any]]], members: Sequence[FittedRecipe]
) -> list[float | None]:
    """The time of a step of each recipe over that of the first one, at whichever of its rates that was
    trained: medians over the settings of both."""
    plain = (members[0].template, members[0].size)
    alike = [i for i, m in enumerate(members) if (m.template, m.size) == plain]
    ratios: list[list[float]] = [[] for _ in members]
    for found in settings:
        base = next((found[i]["step_time"] for i in alike if found.get(i, {}).get("step_time")), None)
        for i, row in found.items():
            if base and row.get("step_time"):
                ratios[i].append(row["step_time"] / base)
    return [round(statistics.median(r), 3) if r else None for r in ratios]
