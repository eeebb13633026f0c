"""A run in words: the sentence at the top, the facts beside it, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from autopeft.arguments import Arguments, command_line
from autopeft.errors import UsageError
from autopeft.foreign import file_in
from autopeft.recipe.yaml_text import read_text
from autopeft.report.html.load import Run, Scored
from autopeft.report.html.trials import methods_of, state_of
from autopeft.report.html.values import mapping, shown
from autopeft.report.runs import verdict_of
from autopeft.report.tasks import unbeaten_text
from autopeft.report.text import duration, mean_sd, number, percent, score
from autopeft.runs.documents import Compared
from autopeft.runs.records import TrialRecord
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.resume import SPACE, is_own_metric
from autopeft.search.selection.contender import mean_sd as moments
from autopeft.search.space.space import Space, space_names
from autopeft.search.strategies.registry import DEFAULT
from autopeft.tasks.summary import Constant
from autopeft.training.arguments import TrainArguments
from autopeft.training.commands import predict_command

_BUILT_IN = SearchArguments.model_fields["space"].default

__all__ = [
    "answers",
    "comparisons",
    "facts",
    "headline",
    "remarks",
    "reproduction",
    "resources",
    "samples",
    "samples_note",
]


def headline(run: Run) -> list[str]:
    """What came out, in one to five sentences."""
    running = "This run is going on: what stands here was found until this page was written."
    return [running, *_found(run)] if run.state == "running" else _found(run)


def _found(run: Run) -> list[str]:
    if run.result:
        size = _size(run.result.counts.deployed, run.result.counts.share)
        led = [shown(run.result.finding, 600)] if run.result.finding else []
        return [*led, _scored(run, f"{methods_of(run.recipe)} with {size}"), *_against(run)]
    best = run.best
    if best is None:
        return ["No trial has been trained to the end yet."]
    size = _size(best.deployed, best.share)
    return [
        f"This run is not finished. Best so far: {methods_of(best.recipe)} with {size}, {run.trial_metric} "
        f"{score(best.score)} on select in one run (trial {shown(best.number, 20)}); "
        "test has not been touched."
    ]


def _size(deployed: float | None, share: float | None) -> str:
    return f"{number(deployed)} parameters ({percent(share)} of the backbone)"


def _scored(run: Run, what: str) -> str:
    winner, result = run.winner, run.result
    assert winner is not None
    assert result is not None
    if winner.test:
        seeds = f"over {len(winner.test)} seeds" if len(winner.test) > 1 else "with one seed"
        spread = mean_sd(winner.test).removesuffix(" (one seed)")
        return f"{what} scored {run.metric} {spread} on test, {seeds}."
    if winner.select:
        return (
            f"{what} scored {run.select_metric} {mean_sd(winner.select)} on select; it has no score on test."
        )
    return (
        f"{what} scored {run.trial_metric} {score(result.search_score)} on select in the search itself. No "
        "winner was confirmed with fresh seeds, so that none has a score on test."
    )


def _of_trials(run: Run) -> str:
    if run.trial_metric == run.metric:
        return ""
    everything = run.select_metric == run.trial_metric
    what = "on select everything is" if everything else "trials and sweeps of baselines are"
    return f"; {what} scored by {run.trial_metric}"


def answers(run: Run) -> list[str]:
    """The answer to each goal, as far as the search has one."""
    return [shown(text, 600) for text in run.result.answers.texts] if run.result else []


def samples(run: Run) -> list[dict[str, str]]:
    """What the winner wrote to a few rows, one table of texts each."""
    found = run.result.samples if run.result else ()
    return [
        {
            "row": f"{shown(s.split, 20)} {number(s.row + 1)}",
            "prompt": shown(s.prompt),
            "expected": shown(s.expected),
            "written": shown(s.written) or "(nothing)",
            "verdict": verdict_of(s, run.metric),
        }
        for s in found
    ]


def samples_note(run: Run) -> str:
    """How the samples were chosen."""
    found = run.result.samples if run.result else ()
    if any(sample.value is not None for sample in found):
        return f"These rows are the three that {run.metric} values most and the three that it values least."
    return ""


def resources(run: Run) -> list[str]:
    """What winner and baselines take of the machine, where the search had limits on it."""
    found = run.result.resources if run.result else ()
    return [shown(one.text) for one in found if one.text]


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


def _against(run: Run) -> list[str]:
    """The best baseline on *test* that is not the winner, and whether the difference is more than noise."""
    winner = run.winner
    returned = shown(run.result.origin, 120) if run.result else ""
    measured = [b for b in run.baselines if b.test and b.name != returned]
    if winner is None or not winner.test or not measured:
        return []
    best = max(measured, key=lambda b: moments(b.test)[0] or 0.0)
    found = run.result.comparisons if run.result else ()
    paired = [c for c in found if shown(c.baseline, 120) == best.name]
    size = _size(best.deployed, best.share) if best.deployed else "no parameters beside the head"
    sentence = f"The best baseline, {best.name} with {size}, scored {mean_sd(best.test)}"
    if paired and paired[0].text:
        return [f"{sentence}.", _comparison(paired[0])]
    if paired and paired[0].difference is not None:
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
    found: list[str] = []
    result = run.result
    notice = (result.notice if result else None) or run.about.notice
    if notice:
        found.append(shown(notice))
    asked = run.about.data.source.stand_in_for
    if asked:
        found.append(f"These figures are not comparable with those of {shown(asked, 80)}.")
    said = [*run.about.data.summary.remarks, *(() if result is None else result.remarks)]
    found += [shown(remark, 400) for remark in dict.fromkeys(said)]
    if result is None:
        return [*found, *run.problems]
    found += _unbeaten(run)
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


def _unbeaten(run: Run) -> list[str]:
    """Where the winner scores no more on *test* than the same answer for every row."""
    winner, constant = run.winner, run.constant
    if winner is None or constant is None or not winner.test or not constant.test:
        return []
    said = Constant(constant.name, {"test": constant.test[0]})
    sentence = unbeaten_text(said, "The hybrid" if run.fixed else "The winner", moments(winner.test)[0])
    return [sentence] if sentence else []


def facts(run: Run, unfinished: Iterable[TrialRecord] = ()) -> list[tuple[str, str]]:
    """Name and value of what the run was about; `unfinished` are the trials that had not ended."""
    m = run.about
    most, planned = m.limits.most, m.effort.trials
    budget = shown(m.budget, 80) + ("" if most is None else f" (at most {number(most)} parameters)")
    trials = _states(run.trials, unfinished)
    trials += "" if planned is None else f" (planned: {planned})"
    kind = "fixed recipe" if run.fixed else "search"
    found = [
        ("run", f"{kind}, {run.state}"),
        ("task", shown(m.data.name or m.task, 200)),
        *((shown(fact.name, 120), shown(fact.text, 600)) for fact in m.data.summary.facts),
        ("metric", f"{run.metric}, higher is better" + _of_trials(run)),
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


def _states(trials: Sequence[TrialRecord], unfinished: Iterable[TrialRecord]) -> str:
    """How many trials there are of each state."""
    known = {record.number for record in trials}
    states: dict[str, int] = {}
    for record in (*trials, *(r for r in unfinished if r.number not in known)):
        states[state_of(record)] = states.get(state_of(record), 0) + 1
    return ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none"


def reproduction(run: Run) -> list[tuple[str, str]]:
    """(what it does, the lines to type) that repeat the run and use what it found."""
    where = shlex.quote(_path(run))
    blocks: list[tuple[str, str]] = []
    if run.fixed:
        blocks += _again("Train the recipe again", run, TrainArguments)
    else:
        if run.state in ("interrupted", "unfinished"):
            blocks.append(("Go on with it", _resumed(run)))
        blocks += _again("Search again", run, SearchArguments)
    if run.result:
        asked = predict_command(_path(run), pairs=run.about.data.pairs, kind=run.about.data.kind)
        blocks.append(("Use what it found", f"autopeft export {where} -o winner\n{asked}"))
    if not run.fixed and run.folder.journal.exists():
        text = (
            f"cp {where}/journal.log study.log\noptuna-dashboard --storage-class JournalFileStorage study.log"
        )
        blocks.append(("Browse the study (pip install optuna-dashboard)", text))
    return blocks


def _again(what: str, run: Run, arguments: type[Arguments]) -> Iterator[tuple[str, str]]:
    """The command that repeats a run, where it has an option for all that was given, and the call in
    Python."""
    given = _given(run, arguments)
    if not given:
        return
    options, name = arguments.declared(), arguments.called
    if all(options[k].cli and not isinstance(v, Mapping) for k, v in given.items()):
        yield what, shlex.join(["autopeft", name, *command_line(arguments, given)])
    metric = given.get("metric")
    if is_own_metric(metric):  # Python takes the function itself
        given["metric"] = {"memory": metric}
    lines = "".join(f"    {k}={_literal(v)}\n" for k, v in given.items())
    yield "The same in Python", f"import autopeft\n\nautopeft.{name}(\n{lines})"


def _literal(value: Any) -> str:
    # What lay in memory is in no file: its description stands where it has to be handed over.
    if not isinstance(value, Mapping):
        return f"{value!r},"
    told = " ".join(shown(value.get("memory"), 80).split())  # of one line: what follows it would be run
    return f"...,  # {told}"


def _path(run: Run) -> str:
    """The run folder, short where it lies in the usual place."""
    path = run.folder.path
    return f"runs/{path.name}" if path.parent.name == "runs" else str(path)


def _resumed(run: Run) -> str:
    given = mapping(run.manifest.get("arguments"))
    metric = str(given.get("metric"))
    own = is_own_metric(metric)
    if _in_memory(given.get("task")):
        more = ", metric=..." if own else ""
        return f"import autopeft\n\nautopeft.search(resume={_path(run)!r}, task=...{more})  # the same rows"
    return shlex.join(["autopeft", "search", "--resume", _path(run), *(["--metric", metric] if own else [])])


def _given(run: Run, arguments: type[Arguments]) -> dict[str, Any]:
    """Arguments that differ from their defaults, those of this machine's folders left out."""
    options = arguments.declared()
    recorded = mapping(run.manifest.get("arguments"))
    plain = (str, int, float, bool, list, tuple)
    found = {
        name: value
        for name, value in arguments.unlike_defaults(recorded).items()
        if options[name].repeated and (isinstance(value, plain) or _in_memory(value))
    }
    # These lie in the run's own folder.
    if _has_own_space(run, recorded.get("space", _BUILT_IN)):
        found["space"] = f"{run.folder.path}/{SPACE}"
    if _in_memory(found.get("recipe")):
        found["recipe"] = f"{run.folder.path}/recipe.yaml"
    return found


def _has_own_space(run: Run, name: Any) -> bool:
    """Whether a run's folder has a space of its own: any but the one that is built in under its name, which
    may be one of before, or a file or an object of the user's that is called so."""
    with suppress(UsageError):  # one that cannot be read cannot be searched again
        file = None if run.fixed else file_in(run.folder.path, SPACE)
        if file is not None:
            return name not in space_names() or read_text(file) != Space.named(name).text
    return False


def _in_memory(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"memory"}
