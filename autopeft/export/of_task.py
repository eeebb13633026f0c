"""A saved hybrid of several tasks as saved ones of one task each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autopeft.assets.heads import head_bank, with_head
from autopeft.errors import UsageError, near
from autopeft.export.arguments import ChatArguments, ExportArguments, PredictArguments
from autopeft.export.manifest import MANIFEST
from autopeft.export.package import Saved, find_saved, load_hybrid
from autopeft.export.trained import Trained, saved_of
from autopeft.export.vllm_rules import smallest_rank
from autopeft.hybrid import of_task
from autopeft.hybrid.modules import deployed_modules, head_of
from autopeft.hybrid.store import save
from autopeft.runs.files import write_json
from autopeft.tasks.kinds.mixture import Member

__all__ = ["folder_name", "meant", "members_of", "one_task", "served_together"]


def members_of(saved: Saved) -> tuple[Member, ...]:
    """The tasks that a saved hybrid learnt together, none of one task."""
    return tuple(getattr(saved.card.task_kind.schema, "members", ())) if saved.card.kind else ()


@contextmanager
def meant(run: Trained, given: ChatArguments | ExportArguments | PredictArguments) -> Iterator[Trained]:
    """Within, the task that arguments name as a saved hybrid of its own, or the whole where they name none.

    Raises:
        UsageError: see `one_task`.
    """
    if given.task is None:
        yield run
        return
    load = {"model": given.model, "notify": given.notify, "device": given.device}
    with one_task(saved_of(run), given.task, **load) as alone:
        yield alone


@contextmanager
def one_task(saved: Saved, name: str, **load: Any) -> Iterator[Saved]:
    """Within, one task of a saved hybrid as a saved hybrid of its own, with its head alone.

    Args:
        load: see `load_hybrid`.

    Raises:
        UsageError: it has no such task, or something in it cannot be written out for one task.
    """
    members = members_of(saved)
    names = [member.name for member in members]
    if name not in names:
        known = ", ".join(names) or "none, as it was trained on one"
        raise UsageError(f"There is no task {name!r} in {saved.folder}.{near(name, names)} Tasks: {known}.")
    number = names.index(name)
    member = members[number]
    hybrid, _ = load_hybrid(saved, **load)
    graph, modules = hybrid.graph, deployed_modules(hybrid.modules)
    if hybrid.tasks:
        graph, modules = of_task(hybrid, name)
    result = {key: value for key, value in saved.card.result.items() if key == "precision"}
    with TemporaryDirectory(prefix="autopeft-task-") as scratch:
        folder = Path(scratch) / folder_name(name)
        own = name if number and head_bank(hybrid.model) is not None else None
        with with_head(hybrid.model, own) as model:
            save(folder, model, graph, modules, head_of(model))
        summary = dict(saved.card.data.get("summary") or {})
        uses = (summary.get("use") or {}).get("tasks")
        if uses:
            summary["use"] = uses[number]
        data = {
            **saved.card.data,
            "summary": summary,
            "name": member.name,
            "kind": member.kind,
            "labels": list(member.labels),
            "metric": member.metric,
            "class_weights": member.class_weights,
        }
        card = replace(saved.card, data=data, result=result)
        write_json(folder / MANIFEST, card.to_dict())
        yield find_saved(folder)


def folder_name(task: str) -> str:
    """A task's name as that of a folder: a manifest may come from a stranger."""
    plain = re.sub(r"[^\w.+-]", "_", task)
    return plain if plain.strip(".") else "task"


def served_together(backbone: str, loras: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> str | None:
    """The command by which vLLM serves LoRAs of several tasks beside their language model; `None` where it
    takes none of them.

    Args:
        backbone: the language model's name on the hub, or its folder.
        loras: by task the folder of its LoRA, and what its export said of it (see `Exported.facts`).
    """
    taken = {
        folder_name(name): (folder, facts["rank"])
        for name, (folder, facts) in loras.items()
        if all(finding["state"] == "kept" for finding in facts["vllm"])
    }
    if not taken:
        return None
    rank = smallest_rank(max(rank for _, rank in taken.values()))
    named = [f"{name}={folder}" for name, (folder, _) in taken.items()]
    words = ["vllm", "serve", backbone, "--enable-lora", "--max-lora-rank", str(rank)]
    return shlex.join([*words, "--lora-modules", *named])
