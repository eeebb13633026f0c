"""A run in words: the sentence at the top, the facts beside it, and how to repeat it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from autopeft.arguments import Arguments, command_line
from autopeft.errors import UsageError
from autopeft.foreign import file_in, table_of
from autopeft.recipe.yaml_text import read_text
from autopeft.report.html.load import Run
from autopeft.report.html.trials import methods_of, state_of
from autopeft.report.html.values import shown
from autopeft.report.runs import verdict_of
from autopeft.report.text import duration, mean_sd, number, percent, score
from autopeft.runs.documents import Compared
from autopeft.runs.records import TrialRecord
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.resume import SPACE, is_own_metric
from autopeft.search.selection.contender import mean_sd as moments
from autopeft.search.space.space import Space, space_names
from autopeft.search.strategies.registry import DEFAULT, STRATEGIES
from autopeft.tasks.summary import Constant
from autopeft.training.arguments import TrainArguments
from autopeft.training.commands import predict_command

__all__ = [
    "comparisons",
    "facts",
    "headline",
    "remarks",
    "reproduction",
    "samples",
]


def headline(run: Run) -> list[str]:
    """What came out, in one to five sentences."""
    found: list[str] = []
    if run.state == "running":
        found.append("This run is going on: what stands here was found until this page was written.")
    result, best, winner = run.result, run.best, run.winner
    if result is None or winner is None:
        if best is None:
            return [*found, "No trial has been trained to the end yet."]
        size = _size(best.deployed, best.share)
        return [
            *found,
            f"This run is not finished. Best so far: {methods_of(best.recipe)} with {size}, "
            f"{run.trial_metric} {score(best.score)} on select in one run (trial {shown(best.number, 20)}); "
            "test has not been touched.",
        ]
    if result.finding:
        found.append(shown(result.finding, 600))
    what = f"{methods_of(run.recipe)} with {_size(result.counts.deployed, result.counts.share)} scored"
    if winner.test:
        seeds = f"over {len(winner.test)} seeds" if len(winner.test) > 1 else "with one seed"
        spread = mean_sd(winner.test).removesuffix(" (one seed)")
        return [*found, f"{what} {run.metric} {spread} on test, {seeds}.", *_against_baselines(run)]
    if winner.select:
        spread = mean_sd(winner.select)
        return [*found, f"{what} {run.select_metric} {spread} on select; it has no score on test."]
    return [
        *found,
        f"{what} {run.trial_metric} {score(result.search_score)} on select in the search itself. No winner "
        "was confirmed with fresh seeds, so that none has a score on test.",
    ]


def _size(deployed: float | None, share: float | None) -> str:
    return f"{number(deployed)} parameters ({percent(share)} of the backbone)"


def _against_baselines(run: Run) -> list[str]:
    """The best baseline on *test* that is not the winner, and whether the difference is more than noise."""
    result, winner = run.result, run.winner
    returned = shown(result.origin, 120) if result else ""
    measured = [b for b in run.baselines if b.test and b.name != returned]
    if result is None or winner is None or not measured:
        return []
    best = max(measured, key=lambda b: moments(b.test)[0] or 0.0)
    size = _size(best.deployed, best.share) if best.deployed else "no parameters beside the head"
    sentence = f"The best baseline, {best.name} with {size}, scored {mean_sd(best.test)}"
    paired = [c for c in result.comparisons if shown(c.baseline, 120) == best.name]
    if paired and paired[0].text:
        return [f"{sentence}.", _comparison(paired[0])]
    if paired and paired[0].difference is not None:
        return [f"{sentence}; the difference is {_comparison(paired[0])}."]

    # No comparison seed by seed: the difference of the means against the two deviations together.
    (mean, sd), (other, other_sd) = moments(winner.test), moments(best.test)
    difference = (mean or 0.0) - (other or 0.0)
    if sd is None or other_sd is None:
        verdict = f"the difference is {difference:+.4f}, and one seed tells nothing of the noise"
    elif abs(difference) <= sd + other_sd:
        verdict = f"the difference, {difference:+.4f}, is within noise: neither is shown to be better"
    elif difference < 0:
        verdict = f"it does better here by {-difference:.4f}: use it, or search longer"
    else:
        verdict = f"the difference, {difference:+.4f}, is more than the deviations together"
    return [f"{sentence}; {verdict}."]


def samples(run: Run) -> tuple[list[dict[str, str]], str]:
    """What the winner wrote to a few rows, one table of texts each, and how these rows were chosen."""
    found = run.result.samples if run.result else ()
    rows = [
        {
            "row": f"{shown(s.split, 20)} {number(s.row + 1)}",
            "prompt": shown(s.prompt),
            "expected": shown(s.expected),
            "written": shown(s.written) or "(nothing)",
            "verdict": verdict_of(s, run.metric),
        }
        for s in found
    ]
    if not any(s.value is not None for s in found):
        return rows, ""
    return rows, f"These rows are the three that {run.metric} values most and the three that it values least."


def comparisons(run: Run) -> list[tuple[str, str]]:
    """(baseline, what the comparison on *test* says); the search's own sentences name the baseline, so that
    the first is then empty."""
    if run.result is None:
        return []
    found = [c for c in (*run.result.comparisons, run.result.over_constant) if c is not None]
    return [("" if c.text else shown(c.baseline, 120), _comparison(c)) for c in found]


def _comparison(c: Compared) -> str:
    if c.text:
        return shown(c.text, 400)
    difference, low, high = c.difference, c.low, c.high
    if difference is None:
        return "not measured"
    if low is None or high is None:
        return f"{difference:+.4f}, and one seed tells nothing of the noise"
    verdict = "within noise" if low <= 0 <= high else ("the winner is better" if low > 0 else "it is better")
    return f"{difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}): {verdict}"


def remarks(run: Run) -> list[str]:
    """What a reader must know before believing a figure."""
    found: list[str] = []
    result = run.result
    notice = (result.notice if result else None) or run.about.notice
    if notice:
        found.append(shown(notice))
    stands_for = run.about.data.source.stand_in_for
    if stands_for:
        found.append(f"These figures are not comparable with those of {shown(stands_for, 80)}.")
    said = [*run.about.data.summary.remarks, *(() if result is None else result.remarks)]
    found += [shown(remark, 400) for remark in dict.fromkeys(said)]
    if result is None:
        return [*found, *run.problems]
    winner, constant = run.winner, run.constant
    if winner is not None and constant is not None and winner.test and constant.test:
        what = "The hybrid" if run.fixed else "The winner"
        same = Constant(constant.name, {"test": constant.test[0]})
        unbeaten = same.unbeaten(moments(winner.test)[0], "test", what)
        found += [unbeaten] if unbeaten else []
    reasons = (
        (result.interrupted, "The search was interrupted: this is the best until then."),
        (result.out_of_time, "The search ran out of time before the planned number of trials."),
        (result.exhausted, "The space has no further recipe under this budget."),
    )
    found += [text for given, text in reasons if given]
    bias = result.selection_bias
    if bias is not None:
        found.append(
            f"Select minus test of the winner: {bias:+.4f}. Select chose the winner, so that its score there "
            "flatters it; test is the figure to quote."
        )
    return [*found, *run.problems]


def facts(run: Run, unfinished: Iterable[TrialRecord] = ()) -> list[tuple[str, str]]:
    """Name and value of what the run was about; `unfinished` are the trials that had not ended."""
    m = run.about
    most, planned = m.limits.most, m.effort.trials
    budget = shown(m.budget, 80) + ("" if most is None else f" (at most {number(most)} parameters)")
    known = {record.number for record in run.trials}
    open_ones = [record for record in unfinished if record.number not in known]
    states = Counter(state_of(record) for record in (*run.trials, *open_ones))
    trials = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none"
    trials += "" if planned is None else f" (planned: {planned})"
    metric = f"{run.metric}, higher is better"
    if run.trial_metric != run.metric:
        everything = run.select_metric == run.trial_metric
        what = "on select everything is" if everything else "trials and sweeps of baselines are"
        metric += f"; {what} scored by {run.trial_metric}"
    kind = "fixed recipe" if run.fixed else "search"
    found = [
        ("run", f"{kind}, {run.state}"),
        ("task", shown(m.data.name or m.task, 200)),
        *((shown(fact.name, 120), shown(fact.text, 600)) for fact in m.data.summary.facts),
        ("metric", metric),
        ("backbone", f"{shown(m.model, 200)} ({number(m.backbone.parameters)} parameters)"),
        ("budget", budget),
        ("space", shown(m.space, 200)),
        ("strategy", "–" if run.strategy == DEFAULT else run.strategy),
        ("sampler", shown(m.sampler, 40)),
        ("trials", trials),
        ("steps", number(m.training.steps)),
        ("seed", shown(m.seed, 40)),
        ("made", shown(m.created, 60)),
        ("took", duration(run.result.seconds if run.result else None)),
    ]
    skip = ("budget", "space", "strategy", "sampler", "trials") if run.fixed else ()
    return [(k, v) for k, v in found if v != "–" and k not in skip]


def reproduction(run: Run) -> list[tuple[str, str]]:
    """(what it does, the lines to type) that repeat the run and use what it found."""
    folder = run.folder.path
    where = f"runs/{folder.name}" if folder.parent.name == "runs" else str(folder)
    recorded = table_of(run.manifest.get("arguments"))
    arguments: type[Arguments] = TrainArguments if run.fixed else SearchArguments
    options, command = arguments.declared(), arguments.called
    blocks: list[tuple[str, str]] = []

    # To go on with a search. What lay in memory, rows and a metric, has to be handed over again.
    if not run.fixed and run.state in ("interrupted", "unfinished"):
        metric = str(recorded.get("metric"))
        own = is_own_metric(metric)
        if _in_memory(recorded.get("task")):
            more = ", metric=..." if own else ""
            call = f"autopeft.search(resume={where!r}, task=...{more})"
            blocks.append(("Go on with it", f"import autopeft\n\n{call}  # the same rows"))
        else:
            again = ["autopeft", "search", "--resume", where, *(["--metric", metric] if own else [])]
            blocks.append(("Go on with it", shlex.join(again)))

    # To repeat it: the arguments that differ from their defaults, those of this machine's folders left out.
    plain = (str, int, float, bool, list, tuple)
    given = {
        name: value
        for name, value in arguments.unlike_defaults(recorded).items()
        if options[name].repeated and (isinstance(value, plain) or _in_memory(value))
    }
    # A space of the user's own lies in the run's folder, and so does a built-in one that has changed since:
    # its name alone would mean another. One that cannot be read cannot be searched again.
    with suppress(UsageError):
        file = None if run.fixed else file_in(folder, SPACE)
        space = recorded.get("space") or STRATEGIES.find(run.strategy).space
        if file is not None and (space not in space_names() or read_text(file) != Space.named(space).text):
            given["space"] = f"{folder}/{SPACE}"
    if _in_memory(given.get("recipe")):
        given["recipe"] = f"{folder}/recipe.yaml"
    if given:
        if all(options[k].cli and not isinstance(v, Mapping) for k, v in given.items()):
            line = shlex.join(["autopeft", command, *command_line(arguments, given)])
            blocks.append(("Train the recipe again" if run.fixed else "Search again", line))
        lines = ""
        for name, value in given.items():
            if name == "metric" and is_own_metric(value):  # Python takes the function itself
                value = {"memory": value}
            if isinstance(value, Mapping):  # in no file: its description stands where it is handed over
                told = " ".join(shown(value.get("memory"), 80).split())  # a second line would be run
                lines += f"    {name}=...,  # {told}\n"
            else:
                lines += f"    {name}={value!r},\n"
        blocks.append(("The same in Python", f"import autopeft\n\nautopeft.{command}(\n{lines})"))

    quoted = shlex.quote(where)
    if run.result:
        use = predict_command(where, pairs=run.about.data.pairs, kind=run.about.data.kind)
        blocks.append(("Use what it found", f"autopeft export {quoted} -o winner\n{use}"))
    if not run.fixed and run.folder.journal.exists():
        text = (
            f"cp {quoted}/journal.log study.log\n"
            "optuna-dashboard --storage-class JournalFileStorage study.log"
        )
        blocks.append(("Browse the study (pip install optuna-dashboard)", text))
    return blocks


def _in_memory(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"memory"}
