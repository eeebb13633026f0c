"""The model card of an export: `README.md`, with front matter that the hub understands.

Names, labels and notices come from data and recipes of others. They are written so that Markdown, HTML and
YAML find nothing in them. What a manifest of a stranger says in another form than ours is left out.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from autopeft.assets.table import ASSETS
from autopeft.foreign import table_of
from autopeft.recipe import Recipe
from autopeft.recipe.told import input_lines
from autopeft.runs.documents import Result, read_result
from autopeft.runs.files import write_atomic
from autopeft.runs.markdown import fenced, plain
from autopeft.tasks.kinds import METRICS
from autopeft.training.commands import predict_command, train_command

if TYPE_CHECKING:
    from autopeft.export.manifest import Card

__all__ = ["README", "is_own_card", "model_card", "write_card"]

README, OTHER_NAME = "README.md", "MODEL_CARD.md"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*|[A-Za-z0-9][\w-]*")
_SIGNED = re.compile(r"\n<!-- card of autopeft export, sha256 of what stands above: ([0-9a-f]{64}) -->\n\Z")
_COUNTS = {
    "deployed": "what inference needs and training set, without the head",
    "trained": "what the optimizer held, without the head",
    "head": "the task's head",
    "backbone": "the frozen model",
}
# The hub's names of metrics, where they differ from ours.
_METRICS = {
    "macro_f1": ("f1",),
    "matthews": ("matthews_correlation",),
    "pearson": ("pearsonr",),
    "spearman": ("spearmanr",),
    "pearson_spearman": ("pearsonr", "spearmanr"),
}


def model_card(card: Card, recipe: Recipe, more: Sequence[str] = ()) -> str:
    """The card in Markdown.

    Args:
        card: what the hybrid was made from.
        recipe: its recipe.
        more: further sections in Markdown, put after the one on how it is used.
    """
    result = read_result(card.result)
    asset = ASSETS.get(str(card.backbone.get("alias")))
    source, rows = table_of(card.data.get("source")), table_of(card.data.get("rows"))
    # A folder has another path on each machine: something else stands in commands for a backbone without a
    # name.
    named = card.backbone.get("origin") != "folder" and _HUB_NAME.fullmatch(card.model)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(card.model).name)[:40] or "backbone"
    folder = None if named else f"path/to/{stem}"
    again = train_command(
        "recipe.yaml", task=card.data.get("name"), model=folder or card.model, kind=card.kind
    )
    parts = [
        f"# {plain(recipe.name or 'A hybrid')} for {plain(card.data.get('name') or card.architecture)}",
        f"A parameter-efficient hybrid on the frozen backbone {plain(card.model)}, made with AutoPEFT.",
        _use(card, folder),
        *more,
        "## Recipe\n\n`recipe.yaml` says which methods sit where. It trains on other tasks as well:\n\n"
        + fenced(recipe.to_yaml(), "yaml")
        + "\n\n"
        + "".join(f"- {plain(line)}\n" for line in input_lines(recipe))
        + ("\n" if recipe.inputs else "")
        + fenced(again, "bash"),
    ]

    counts = {
        key: n
        for key, n in table_of(card.result.get("counts")).items()
        if key in (*_COUNTS, "share") and isinstance(n, (int, float)) and not isinstance(n, bool)
    }
    counts = {key: n for key, n in counts.items() if math.isfinite(n)}
    sizes = [f"| {key} | {int(counts[key]):,} | {what} |" for key, what in _COUNTS.items() if key in counts]
    if sizes:
        table = ["## Size\n", "| parameters | number | what they are |", "|---|---|---|", *sizes]
        if "share" in counts:
            table.append(f"\nDeployed over backbone: {counts['share']:.3%}.")
        parts.append("\n".join(table))

    if result.test_mean is not None:
        parts.append(_scores(card, result))

    lines = [f"- Source: {plain(source.get('name'))} ({plain(source.get('origin'))})."]
    if source.get("sha256"):
        lines.append(f"- sha256 of all rows: {plain(source['sha256'])}.")
    if rows:
        lines.append("- Rows: " + ", ".join(f"{plain(k)} {plain(v)}" for k, v in rows.items()) + ".")
    if source.get("notice"):
        lines.append(f"- {plain(source['notice'])}")
    parts.append("## Data\n\n" + "\n".join(lines))

    parts.append(_training(card, result))
    unknown = "not known here; ask where it came from"
    parts.append(
        "## Licences\n\nNobody has put these weights under a licence yet. They were made from:\n\n"
        f"- the backbone {plain(card.model)}: {plain((asset and asset.licence) or unknown)}\n"
        f"- the data {plain(card.data.get('name') or 'of the training')}: "
        f"{plain(source.get('licence') or unknown)}"
    )
    body = front_matter(card, recipe) + "\n\n".join(parts) + "\n"
    signature = hashlib.sha256(body.encode()).hexdigest()
    return f"{body}\n<!-- card of autopeft export, sha256 of what stands above: {signature} -->\n"


def is_own_card(text: str) -> bool:
    """Whether a text is a card as it was written, with no word changed."""
    signed = _SIGNED.search(text)
    if signed is None:
        return False
    return signed[1] == hashlib.sha256(text[: signed.start()].encode()).hexdigest()


def write_card(folder: Path, text: str, notify: Callable[[str], None] | None = None) -> str:
    """Write a card, and return the name of its file. A `README.md` that somebody wrote or changed is kept:
    the card is then `MODEL_CARD.md`, and `notify` is told so.

    Raises:
        AutoPEFTError: it cannot be written.
    """
    there = folder / README
    theirs = there.is_file() and not is_own_card(there.read_text(encoding="utf-8", errors="replace"))
    name = OTHER_NAME if theirs else README
    write_atomic(folder / name, text)
    if theirs and notify is not None:
        notify(f"{there} was written by somebody and is kept; the model card is {folder / name}.")
    return name


def front_matter(card: Card, recipe: Recipe) -> str:
    """The YAML at the top: what the hub shows and filters by. Only names that the hub has are given to it."""
    methods = dict.fromkeys(
        [*(e.method for e in recipe.entries()), *(p.method for p in recipe.training.policies)]
    )
    table: dict[str, Any] = {
        "library_name": "autopeft",
        "tags": ["autopeft", "peft", "parameter-efficient-fine-tuning", *map(str, methods)],
    }
    asset, source = ASSETS.get(str(card.backbone.get("alias"))), table_of(card.data.get("source"))
    base = card.model if card.backbone.get("origin") == "hub" and _HUB_NAME.fullmatch(card.model) else None
    if asset is not None:
        base = asset.hub
    if base is not None:
        table["base_model"] = base
    if source.get("origin") == "hub" and _HUB_NAME.fullmatch(str(source.get("name"))):
        table["datasets"] = [str(source["name"])]
    if card.kind is not None:
        if card.metric in METRICS:
            table["metrics"] = list(_METRICS.get(card.metric, (card.metric,)))
        if card.task_kind.head.hub_pipeline is not None:
            table["pipeline_tag"] = card.task_kind.head.hub_pipeline
    written = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(table, written)
    return f"---\n{written.getvalue()}---\n\n"


def _use(card: Card, folder: str | None) -> str:
    """How the hybrid is used; `folder` stands for that of the backbone where it has no name."""
    words = "This folder holds the recipe, the weights with the task's head, and a manifest."
    if card.kind is None:  # saved from Python, with a model of no task that is known here
        code = 'import autopeft\n\nhybrid = autopeft.load(model, ".")'
        return f"## Use\n\n{words} On a {plain(card.architecture)}:\n\n{fenced(code, 'python')}"
    words += " In it:"
    pairs = card.pairs is True
    command = fenced(predict_command(".", pairs=pairs, model=folder, kind=card.kind), "bash")
    arguments = '["…"], text_pair=["…"]' if pairs else '"…"'
    file = card.task_kind.schema.asked_file
    arguments = arguments if file is None else f'Path("{file}")'
    arguments += f", model={folder!r}" if folder else ""
    first = "import autopeft" if file is None else "from pathlib import Path\n\nimport autopeft"
    code = f'{first}\n\nprint(autopeft.predict(".", {arguments}))'
    labels = plain(card.task_kind.scorer.describe_labels(card.labels))
    ends = f"It predicts {labels}. {card.task_kind.encoder.describe_reading(card.max_length)}"
    ends += f" `{folder}` stands for the folder that holds the backbone." if folder else ""
    return f"## Use\n\n{words}\n\n{command}\n\n{fenced(code, 'python')}\n\n{ends}"


def _scores(card: Card, result: Result) -> str:
    """Scores with their seeds, comparisons with their intervals, and what they were measured on."""
    rows = table_of(card.data.get("rows")).get("test")
    where = f"{rows:,} rows of the split test" if isinstance(rows, int) else "the split test"
    spread = "" if result.test_sd is None else f" ± {result.test_sd:.4f}"
    what = "" if result.test_sd is None else " (mean ± standard deviation of fresh seeds)"
    lines = [
        "## Scores",
        *([plain(result.finding)] if result.finding else []),
        f"{plain(card.metric)} on {where} of {plain(card.data.get('name'))}: "
        f"{result.test_mean:.4f}{spread}{what}.",
    ]
    if result.test:
        lines.append(f"Each run: {', '.join(f'{score:.4f}' for score in result.test)}.")
    seeds = card.result.get("seeds")
    if isinstance(seeds, list) and seeds:
        lines.append(f"Seeds: {', '.join(map(plain, seeds))}.")
    compared = [f"- {plain(c.text)}" for c in result.comparisons if c.text]
    if compared:
        said = "Compared with baselines of the same budget, which were trained the same way:"
        lines.append(f"{said}\n\n" + "\n".join(compared))
    took = [f"- {plain(one.text)}" for one in result.resources if one.text]
    if took:
        lines.append("Limits of the search, predicted and measured:\n\n" + "\n".join(took))
    return "\n\n".join(lines)


def _training(card: Card, result: Result) -> str:
    """How the recipe was found, what was trained again with fresh seeds, and how it was trained."""
    made, training, versions = card.made, card.training, table_of(card.made.get("versions"))
    parts = ["## Training"]
    if made.get("kind") == "train":
        parts.append("The recipe was fixed before training.")
    elif made.get("budget"):
        trials, origin = plain(table_of(made.get("effort")).get("trials")), card.result.get("origin")
        # A candidate of a baseline is no trial, and has a name of its own.
        trial = card.result.get("number") is not None or not origin
        found = "A search found the recipe" if trial else f"A search chose {plain(origin)}"
        told = (
            f"{found}, in the space {plain(made.get('space'))} and under a budget of "
            f"{plain(made['budget'])}. It planned {trials} trials, proposed by {plain(made.get('sampler'))}."
        )
        again, finalists = "trained again with fresh seeds", result.finalists or 0
        wanted = plain(made.get("goal") or "best")
        if result.confirmed and finalists > 1:
            told += f" {finalists:,} of the {wanted} recipes were {again} and ranked on the split select."
        elif result.confirmed and finalists == 1:
            told += f" One of the {wanted} recipes was {again} and scored on the split select."
        elif result.confirmed:  # the run does not say how many, or LoRA won as all others failed
            told += f" The recipe was {again}."
        parts.append(told)
    facts = {
        "steps": training.get("steps"),
        "batch size": training.get("batch_size"),
        "longest text in tokens": training.get("max_length"),
        "seed": made.get("seed"),
        "date": made.get("created"),
    }
    if card.kind is not None and card.task_kind.head.modality != "text":
        del facts["longest text in tokens"]  # images are not cut
    lines = [f"- {key}: {plain(value)}" for key, value in facts.items() if value is not None]
    named = [f"{k} {plain(versions[k])}" for k in ("autopeft", "torch", "transformers") if versions.get(k)]
    lines += [f"- versions: {', '.join(named)}"] if named else []
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])
