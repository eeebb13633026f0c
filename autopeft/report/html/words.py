"""A run in words: the sentence at the top, the facts beside it, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from autopeft.report.html.load import Run, Scored
from autopeft.report.html.trials import methods_of
from autopeft.report.html.values import mapping, real, shown, whole
from autopeft.report.text import duration, mean_sd, number, percent, score
from autopeft.search.planning.prepare import Arguments
from autopeft.search.selection.contender import mean_sd as moments
from autopeft.search.strategies.registry import DEFAULT

__all__ = ["comparisons", "facts", "headline", "remarks", "reproduction"]

# Arguments that `autopeft.search` takes and the command line does not.
_PYTHON_ONLY = ("train_rows", "select_rows", "test_rows", "confirm", "confirm_seeds")
_FLAGS = {
    ("stand_in", False): "--no-stand-in",
    ("shortcuts", False): "--no-shortcuts",
    ("fresh_baselines", True): "--fresh-baselines",
}
_REPEATED = {"warm_start": "--from"}
_ELSEWHERE = ("out", "runs")


def headline(run: Run) -> list[str]:
    """What came out, in one to three sentences."""
    metric = run.metric
    if run.result:
        counts = mapping(run.result.get("counts"))
        size = _size(real(counts.get("deployed")), real(counts.get("share")))
        return [_scored(run, f"{methods_of(run.recipe)} with {size}"), *_against(run)]
    best = run.best
    if best is None:
        return ["No trial has been trained to the end yet."]
    counts = mapping(best.get("counts"))
    size = _size(real(counts.get("deployed")), real(counts.get("share")))
    return [
        f"This run is not finished. Best so far: {methods_of(best.get('recipe'))} with {size}, {metric} "
        f"{score(real(best.get('score')))} on select in one run (trial {shown(best.get('number'), 20)}); "
        "test has not been touched."
    ]


def _size(deployed: float | None, share: float | None) -> str:
    return f"{number(deployed)} parameters ({percent(share)} of the backbone)"


def _scored(run: Run, what: str) -> str:
    winner = run.winner
    assert winner is not None
    if winner.test:
        seeds = f"over {len(winner.test)} seeds" if len(winner.test) > 1 else "with one seed"
        spread = mean_sd(winner.test).removesuffix(" (one seed)")
        return f"{what} scored {run.metric} {spread} on test, {seeds}."
    found = real(run.result.get("search_score"))
    return (
        f"{what} scored {run.metric} {score(found)} on select in the search itself. It was not retrained "
        "with fresh seeds, and test has not been touched."
    )


def comparisons(run: Run) -> list[tuple[str, str]]:
    """(baseline, what the comparison on *test* says); the search's own sentences name the baseline, so that
    the first is then empty."""
    found = run.result.get("comparisons")
    rows = [c for c in (found if isinstance(found, list) else []) if isinstance(c, Mapping)]
    return [("" if c.get("text") else shown(c.get("baseline"), 120), _comparison(c)) for c in rows]


def _comparison(c: Mapping[str, Any]) -> str:
    if c.get("text"):
        return shown(c.get("text"), 400)
    difference, low, high = (real(c.get(k)) for k in ("difference", "low", "high"))
    if difference is None:
        return "not measured"
    if low is None or high is None:
        return f"{difference:+.4f}, and one seed tells nothing of the noise"
    verdict = "within noise" if low <= 0 <= high else ("the winner is better" if low > 0 else "it is better")
    return f"{difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}): {verdict}"


def _against(run: Run) -> list[str]:
    """The best baseline on *test*, and whether the difference is more than noise."""
    winner = run.winner
    measured = [b for b in run.baselines if b.test]
    if winner is None or not winner.test or not measured:
        return []
    best = max(measured, key=lambda b: moments(b.test)[0] or 0.0)
    found = run.result.get("comparisons")
    paired = [
        c
        for c in (found if isinstance(found, list) else [])
        if isinstance(c, Mapping) and shown(c.get("baseline"), 120) == best.name
    ]
    size = _size(best.deployed, best.share) if best.deployed else "no parameters beside the head"
    sentence = f"The best baseline, {best.name} with {size}, scored {mean_sd(best.test)}"
    if paired and paired[0].get("text"):
        return [f"{sentence}.", _comparison(paired[0])]
    if paired and real(paired[0].get("difference")) is not None:
        return [f"{sentence}; the difference is {_comparison(paired[0])}."]
    return [f"{sentence}; {_unpaired(winner, best)}."]


def _unpaired(winner: Scored, best: Scored) -> str:
    """The difference of the means against the two deviations together."""
    (mean, sd), (other, other_sd) = moments(winner.test), moments(best.test)
    difference = (mean or 0.0) - (other or 0.0)
    if sd is None or other_sd is None:
        return f"the difference is {difference:+.4f}, and one seed tells nothing of the noise"
    if abs(difference) <= sd + other_sd:
        return f"the difference, {difference:+.4f}, is within noise: neither is shown to be better"
    if difference < 0:
        return f"it does better here by {-difference:.4f}: use it, or search longer"
    return f"the difference, {difference:+.4f}, is more than the deviations together"


def remarks(run: Run) -> list[str]:
    """What a reader must know before believing a figure."""
    found = []
    notice = run.result.get("notice") or run.manifest.get("notice")
    if notice:
        found.append(shown(notice))
    asked = mapping(mapping(run.manifest.get("data")).get("source")).get("stand_in_for")
    if asked:
        found.append(f"These figures are not comparable with those of {shown(asked, 80)}.")
    reasons = (
        ("interrupted", "The search was interrupted: this is the best until then."),
        ("out_of_time", "The search ran out of time before the planned number of trials."),
        ("exhausted", "The space has no further recipe under this budget."),
    )
    found += [text for key, text in reasons if run.result.get(key) is True]
    given = run.result.get("selection_bias")
    bias = real(mapping(given).get("value") if isinstance(given, Mapping) else given)
    if bias is not None:
        found.append(
            f"Select minus test of the winner: {bias:+.4f}. Select chose the winner, so that its score there "
            "flatters it; test is the figure to quote."
        )
    return [*found, *run.problems]


def facts(run: Run, unfinished: Iterable[Mapping[str, Any]] = ()) -> list[tuple[str, str]]:
    """Name and value of what the run was about; `unfinished` are the trials that had not ended."""
    m, r = run.manifest, run.result
    data = mapping(m.get("data"))
    limits = mapping(m.get("limits"))
    most = real(limits.get("most"))
    budget = shown(m.get("budget"), 80) + ("" if most is None else f" (at most {number(most)} parameters)")
    rows = ", ".join(f"{shown(k, 20)} {number(real(v))}" for k, v in mapping(data.get("rows")).items())
    states: dict[str, int] = {}
    known = {record.get("number") for record in run.trials}
    for record in (*run.trials, *(r for r in unfinished if r.get("number") not in known)):
        state = shown(record.get("state"), 40)
        states[state] = states.get(state, 0) + 1
    trials = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none"
    planned = whole(_of(m, "effort", "trials"))
    trials += "" if planned is None else f" (planned: {planned})"
    kind = "fixed recipe" if run.fixed else "search"
    found = [
        ("run", f"{kind}, {run.state}"),
        ("task", shown(data.get("name") or m.get("task"), 200)),
        ("rows", rows or "–"),
        ("metric", f"{run.metric}, higher is better"),
        (
            "backbone",
            f"{shown(m.get('model'), 200)} ({number(real(_of(m, 'backbone', 'parameters')))} parameters)",
        ),
        ("budget", budget),
        ("space", shown(m.get("space"), 200)),
        ("strategy", "–" if run.strategy == DEFAULT else run.strategy),
        ("sampler", shown(m.get("sampler"), 40)),
        ("trials", trials),
        ("steps", number(real(_of(m, "training", "steps")))),
        ("seed", shown(m.get("seed"), 40)),
        ("made", shown(m.get("created"), 60)),
        ("took", duration(real(r.get("seconds")))),
    ]
    skip = ("budget", "space", "strategy", "sampler", "trials") if run.fixed else ()
    return [(k, v) for k, v in found if v != "–" and k not in skip]


def _of(table: Mapping[str, Any], *keys: str) -> Any:
    value: Any = table
    for key in keys:
        value = mapping(value).get(key)
    return value


def reproduction(run: Run) -> list[tuple[str, str]]:
    """(what it does, the lines to type) that repeat the run and use what it found."""
    given = [
        (k, f"{run.folder.path}/space.yaml" if (k, v) == ("space", "custom") else v)
        for k, v in _given(run.manifest)
    ]
    where = _where(run)
    blocks: list[tuple[str, str]] = []
    if run.fixed:
        blocks.append(("Train the recipe again", _command("autopeft train", given)))
    else:
        if given and not any(k in _PYTHON_ONLY for k, _ in given):
            blocks.append(("Search again", _command("autopeft search", given)))
        if run.state != "finished":
            blocks.insert(0, ("Go on with it", f"autopeft search --resume {where}"))
        if given:
            lines = "".join(f"    {k}={v!r},\n" for k, v in given)
            blocks.append(("The same in Python", f"import autopeft\n\nautopeft.search(\n{lines})"))
    if run.result:
        use = f'autopeft export {where} -o winner\nautopeft predict {where} --text "…"'
        blocks.append(("Use what it found", use))
    if not run.fixed and run.folder.journal.exists():
        text = (
            f"cp {where}/journal.log study.log\noptuna-dashboard --storage-class JournalFileStorage study.log"
        )
        blocks.append(("Browse the study (pip install optuna-dashboard)", text))
    return blocks


def _where(run: Run) -> str:
    """The run folder as a shell reads it, short where it lies in the usual place."""
    path = run.folder.path
    return shlex.quote(f"runs/{path.name}" if path.parent.name == "runs" else str(path))


def _given(manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arguments that differ from their defaults, those of this machine's folders left out."""
    defaults = {f.name: f.default for f in fields(Arguments)}
    plain = (str, int, float, bool, list, tuple)
    arguments = mapping(manifest.get("arguments"))
    # A fixed recipe's run keeps the columns of its data together.
    arguments = {**arguments, **mapping(arguments.get("columns"))}
    found = []
    for key, value in arguments.items():
        known = key in defaults or key == "recipe"
        if not known or key in _ELSEWHERE or value is None or not isinstance(value, plain):
            continue
        # JSON has no tuples.
        given = tuple(value) if isinstance(value, list) else value
        if key not in defaults or given != defaults[key]:
            found.append((key, given))
    return found


def _command(start: str, given: Iterable[tuple[str, Any]]) -> str:
    parts = [start]
    for key, value in given:
        if isinstance(value, bool):
            parts += [_FLAGS[key, value]] if (key, value) in _FLAGS else []
        elif key in _REPEATED:
            items = value if isinstance(value, (list, tuple)) else [value]
            parts += [f"{_REPEATED[key]} {shlex.quote(str(item))}" for item in items]
        elif isinstance(value, (list, tuple)):
            parts.append(f"--{key.replace('_', '-')} {shlex.quote(','.join(map(str, value)))}")
        else:
            parts.append(f"--{key.replace('_', '-')} {shlex.quote(str(value))}")
    return " ".join(parts)
