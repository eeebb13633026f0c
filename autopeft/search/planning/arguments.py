"""The options of `autopeft.search`, each declared once.

The command's options, the function's signature and docstring, the manifest's `arguments`, what `resume` may
change, and the command line in a report all follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from autopeft.arguments import NEEDED, Arguments, Option
from autopeft.search.planning import option_checks as checks
from autopeft.search.planning.option_checks import names_in
from autopeft.training import options as shared
from autopeft.training.options import check_effort, efforts

if TYPE_CHECKING:
    from autopeft.search.core.events import Reporter
    from autopeft.search.space.space import Space

    SpaceData = str | Path | Space
    ReporterData = Reporter | None
else:  # they import torch
    SpaceData, ReporterData = Any, Any | None

__all__ = ["FIRST", "BudgetOption", "PlanCall", "SearchArguments", "SearchCall"]

SEARCH, LIMITS, WORKERS = "Search", "Limits", "Workers"
FIRST = (
    *("task", "text", "label", "budget", "model", "goal", "serve", "effort", "trials", "time", "space"),
    *("warm_start", "workers", "out", "resume"),
)
"""The options that most searches need, which `--help` shows before all others."""

BudgetOption = Annotated[
    str | int,
    Option(
        help="Limit on deployed parameters: 0.5%, 300k, 1.2M, 0.1%..1%.",
        flags=("--budget", "-b"),
        cli_type=str,
        check=checks.check_budget,
    ),
]

ServeOption = Annotated[
    str | None,
    Option(
        help="Only recipes that can be served in peft's format (peft), merged exactly into the backbone "
        "(merged), or as an exact LoRA by vLLM's rules (vllm).",
        doc="only recipes that can be served in this way: {choices}; `peft` is Hugging Face peft's format, "
        "`merged` the backbone's own weights, `vllm` an exact LoRA by vLLM's rules",
        panel=LIMITS,
        choices=partial(names_in, "autopeft.graph", "SERVED"),
    ),
]
"""How recipes have to be servable."""


class SearchArguments(Arguments):
    """The arguments of a search that its manifest records."""

    called: ClassVar[str] = "search"

    task: shared.TaskOption = NEEDED
    budget: BudgetOption = NEEDED
    model: shared.Model = "minilm"
    space: Annotated[
        SpaceData | None,
        Option(
            help="A space (`autopeft spaces`) or a YAML file. Default: the strategy's own.",
            doc="a space's name, a YAML file or a `Space`; default: the strategy's own, `default` for "
            "`trials`",
            panel=SEARCH,
            flags=("--space", "-s"),
            typed="str | Path | Space",
            cli_type=str,
            check=checks.check_space,
            record=checks.space_name,
        ),
    ] = None
    effort: Annotated[
        str | None,
        Option(
            help="{choices}: trials, steps, rows, fresh seeds. Default: quick on a CPU.",
            doc="{choices}: trials, steps, rows, fresh seeds; default: quick on a CPU, normal on a GPU",
            panel=SEARCH,
            choices=efforts,
            check=check_effort,
        ),
    ] = None
    trials: Annotated[int | None, Option(help="Recipes to train.", panel=SEARCH, least=1)] = None
    time: Annotated[
        str | float | None,
        Option(
            help="Time for everything: 90s, 30m, 2h.",
            doc="time budget of the whole run: seconds, or '90s', '30m', '2h'",
            panel=SEARCH,
            cli_type=str,
            check=checks.check_time,
            spell=checks.time_text,
            changeable=True,
        ),
    ] = None
    strategy: Annotated[
        str,
        Option(
            help="What turns the space into candidates: {choices}.",
            panel=SEARCH,
            choices=partial(names_in, "autopeft.search.strategies.registry", "STRATEGIES"),
            check=checks.check_strategy,
        ),
    ] = "trials"
    sampler: Annotated[
        str | None,
        Option(
            help="What proposes recipes: {choices}. Default: the strategy's, usually tpe; linear with two "
            "objectives.",
            doc="what proposes recipes: {choices}; default: the strategy's, usually tpe, linear with two "
            "objectives",
            panel=SEARCH,
            choices=partial(names_in, "autopeft.search.optimization.samplers", "SAMPLERS"),
            check=checks.check_sampler,
        ),
    ] = None
    fidelity: Annotated[
        str | None,
        Option(
            help="Let only the better third of the trials go on from rung to rung, by steps, or by steps and "
            "rows (data); none trains all to the end. The first rung is at 40 steps or more. Default: "
            "the strategy's, usually steps.",
            doc="what a trial has less of before it is worth more: steps, data (steps and training rows), or "
            "none; default: the strategy's, usually steps. There are rungs at a third, a ninth … of the "
            "steps, down to 40",
            panel=SEARCH,
            choices=partial(names_in, "autopeft.search.optimization.successive_halving", "FIDELITIES"),
        ),
    ] = None
    goal: Annotated[
        str,
        Option(
            help="{choices}: the best recipe, or the smallest or the cheapest to train of those within the "
            "margin of the best baseline.",
            doc="{choices}: which recipe wins. The smallest has the fewest deployed parameters, the cheapest "
            "the shortest training step, of the recipes that are within `margin` of the best baseline; the "
            "search then looks for small or cheap ones as well as for good ones",
            panel=SEARCH,
            choices=partial(names_in, "autopeft.search.core.goals", "GOALS"),
        ),
    ] = "best"
    objective: Annotated[
        str | None,
        Option(
            help="What the trials are spent on: score, or score,params or score,cost for small or cheap "
            "recipes as well as good ones. Default: what the goal or the strategy needs.",
            doc="what the trials are spent on: {choices} (small or cheap recipes as well as good ones); "
            "default: what the goal or the strategy needs, and beside another goal than best nothing else",
            panel=SEARCH,
            choices=partial(names_in, "autopeft.search.core.goals", "OBJECTIVES"),
        ),
    ] = None
    rank_by: Annotated[
        str | None,
        Option(
            help="What decides which recipe is better on select: {choices}. Default: calibrated-loss (the "
            "loss at the temperature that suits it best) where the metric is accuracy, which moves a whole "
            "row at a time.",
            panel=SEARCH,
            choices=partial(names_in, "autopeft.search.planning.option_checks", "RANKS"),
        ),
    ] = None
    warm_start: Annotated[
        Sequence[str | Path],
        Option(
            help="Begin with what another run found, with a recipe, or with the hybrid of the bank that "
            "promises most as a start; may be repeated.",
            doc="runs and recipes to begin with: paths, names under `runs`, `latest`; `bank` is the hybrid "
            "of the bank that promises most as a start",
            panel=SEARCH,
            flags=("--from",),
            metavar="RUN|RECIPE|bank",
            takes="a list of texts",
        ),
    ] = ()
    portfolio: Annotated[
        bool,
        Option(
            help="Try recipes of the portfolio first: those that recorded trainings do not show to be worse "
            "than LoRA, and that the space can express.",
            panel=SEARCH,
            flags=("--portfolio/--no-portfolio",),
        ),
    ] = True
    baselines: Annotated[
        str | None,
        Option(
            help="all, none, or some of {listed}; quick takes lora,head (of language models "
            "lora,untuned,few-shot), others all.",
            doc="all, none, or some of {listed}; default: in `quick` LoRA and the head, for language models "
            "LoRA, the untuned backbone and few-shot, else all. What is trained is trained once per task and "
            "budget, and kept",
            panel=SEARCH,
            choices=partial(names_in, "autopeft.search.selection.baselines", "BASELINE_KINDS"),
            check=checks.check_baselines,
        ),
    ] = None
    fresh_baselines: Annotated[
        bool,
        Option(help="Train the baselines again, whatever an earlier search has kept of them.", cli=False),
    ] = False
    margin: Annotated[
        float,
        Option(
            help="Points of the score by which a recipe may be worse than a baseline and still be as good.",
            panel=SEARCH,
            check=checks.check_margin,
        ),
    ] = 1.0
    max_memory: Annotated[
        str | int | None,
        Option(
            help="Only recipes whose training takes at most this much memory at its peak, on a GPU of the "
            "GPU's memory: 6GB, 500MB.",
            doc="limit on the peak memory of one training: bytes, or '6GB'; predicted before anything is "
            "trained, by measuring the backbone on this machine once",
            panel=LIMITS,
            metavar="SIZE",
            cli_type=str,
            check=partial(checks.check_size, "max_memory"),
        ),
    ] = None
    max_step_time: Annotated[
        str | float | None,
        Option(
            help="Only recipes whose training step takes at most this long on this machine: 200ms, 1.5s.",
            doc="limit on the time of one training step: seconds, or '200ms'; predicted like `max_memory`",
            panel=LIMITS,
            metavar="TIME",
            cli_type=str,
            check=partial(checks.check_span, "max_step_time"),
            spell=checks.time_text,
        ),
    ] = None
    max_latency: Annotated[
        str | float | None,
        Option(
            help="Only recipes with which a batch at inference, not merged, takes at most this long on this "
            "machine: 20ms.",
            doc="limit on the time of one batch at inference with the hybrid attached: seconds, or '20ms'; "
            "predicted like `max_memory`",
            panel=LIMITS,
            metavar="TIME",
            cli_type=str,
            check=partial(checks.check_span, "max_latency"),
            spell=checks.time_text,
        ),
    ] = None
    max_file: Annotated[
        str | int | None,
        Option(
            help="Only recipes whose saved weights, head included, take at most this much: 1MB, 300kB.",
            doc="limit on the size of the saved weights, head included: bytes, or '1MB'",
            panel=LIMITS,
            metavar="SIZE",
            cli_type=str,
            check=partial(checks.check_size, "max_file"),
        ),
    ] = None
    serve: ServeOption = None
    steps: shared.Steps = None
    seed: shared.Seed = 0
    max_length: shared.MaxTokens = 128
    batch_size: Annotated[
        int | None,
        Option(
            help="Examples for each step; default: the effort's: 32, or in a quick search on a CPU 16 for a "
            "backbone of 60 million parameters or more, 8 for such a language model.",
            panel=shared.TRAINING,
            least=1,
        ),
    ] = None
    micro_batch: shared.MicroBatch = None
    precision: Annotated[
        str,
        Option(
            help="Precision of the backbone's weights in trials: fp32, bf16, or auto: bf16 where a short "
            "measurement finds it faster and its gradients within 2 %. Runs that are scored on test have "
            "--final-precision.",
            panel=shared.TRAINING,
            choices=partial(names_in, "autopeft.assets.precision", "PRECISIONS", checks.AUTO),
        ),
    ] = "auto"
    final_precision: Annotated[
        str,
        Option(
            help="Precision of the backbone's weights where finalists and baselines are trained with fresh "
            "seeds and scored on test: fp32, bf16, or auto: fp32, and that of the trials for a backbone of "
            "60 million parameters or more.",
            panel=shared.TRAINING,
            choices=partial(names_in, "autopeft.assets.precision", "PRECISIONS", checks.AUTO),
        ),
    ] = "auto"
    quantize: shared.Quantize = None
    memory_saving: shared.MemorySaving = False
    shortcuts: shared.Shortcuts = True
    learn_all: shared.LearnAll = False
    head_start: shared.HeadStart = "probe"
    pooling: Annotated[
        str,
        Option(
            help="What the heads of the winner and of all baselines read: own, the token that the model "
            "chooses (the first or the last one); mean, the mean of all tokens; auto, the one with which a "
            "linear probe predicts held-out training rows better. Models with mean have no form in plain "
            "transformers, so that auto is own with --serve; nothing is probed with --quantize, with several "
            "processes, or on more than a billion parameters.",
            panel=shared.TRAINING,
            choices=partial(names_in, "autopeft.recipe.pooling", "POOLINGS", checks.AUTO),
        ),
    ] = "auto"
    text: shared.Text = None
    text_pair: shared.TextPair = None
    label: shared.Label = None
    kind: shared.Kind = None
    label_words: shared.LabelWords = None
    template: shared.Template = None
    metric: shared.Metric = None
    class_weights: shared.ClassWeights = None
    drop_empty: shared.DropEmpty = False
    stand_in: shared.StandIn = True
    workers: Annotated[
        int | None,
        Option(
            help="Trials at a time; 0 runs them one by one in this process, without Ray: for notebooks, for "
            "a debugger, or where Ray does not start. 0 and 1 try the same recipes. More try others, since "
            "the sampler proposes from the trials that have ended by then.",
            panel=WORKERS,
            least=0,
            changeable=True,
        ),
    ] = None
    cpus_per_trial: Annotated[
        int, Option(help="CPUs of one trial.", panel=WORKERS, least=1, changeable=True)
    ] = 1
    device: Annotated[
        str,
        Option(
            help="What trials compute on, as torch names it: cpu, cuda, xpu or mps. auto is the accelerator "
            "where there is one, else the CPU.",
            panel=WORKERS,
            changeable=True,
        ),
    ] = "auto"
    gpus_per_trial: Annotated[
        float | None,
        Option(
            help="GPUs of one trial; 0.25 lets four share one, and 2 divide the backbone between two.",
            panel=WORKERS,
            least=0.0,
            check=checks.check_gpus,
            changeable=True,
        ),
    ] = None
    processes_per_trial: Annotated[
        int | None,
        Option(
            help="Processes of one trial, among which the backbone's layers and the rows of a step are "
            "divided; default: one for each whole GPU of the trial.",
            panel=WORKERS,
            least=1,
            changeable=True,
        ),
    ] = None
    address: Annotated[
        str | None,
        Option(
            help="Join this Ray cluster; default: a private one on this machine.",
            panel=WORKERS,
            changeable=True,
            remembered=False,
        ),
    ] = None
    grace: Annotated[
        float,
        Option(
            help="Seconds that running trials may go on after Ctrl-C or SIGTERM, for schedulers that give "
            "notice. A second signal ends them at once.",
            panel=WORKERS,
            metavar="SECONDS",
            least=0.0,
            changeable=True,
            decides=False,
        ),
    ] = 0.0
    listen: Annotated[
        str | None,
        Option(
            help="IP address of this machine at which the private Ray can be reached, so that others join it "
            "by `ray start`; default: by this machine alone.",
            panel=WORKERS,
            metavar="IP",
            check=checks.check_listen,
            changeable=True,
            decides=False,
            remembered=False,
        ),
    ] = None
    log: Annotated[
        str | None,
        Option(
            help="Log trials and final runs with trackers: some of {listed}, or none.",
            doc="trackers that log every trial and every run after the search: some of {listed}, or none. "
            "If one fails, `notify` is told, and the search goes on without it",
            panel=WORKERS,
            choices=partial(names_in, "autopeft.search.tracking.reporter", "TRACKERS"),
            check=checks.check_trackers,
            changeable=True,
            decides=False,
            remembered=False,
        ),
    ] = None
    train_rows: Annotated[int | None, shared.rows("train")] = None
    select_rows: Annotated[int | None, shared.rows("select")] = None
    test_rows: Annotated[int | None, shared.rows("test")] = None
    confirm: Annotated[
        int | None,
        Option(
            help="Finalists that are trained with fresh seeds; default: the effort's.", cli=False, least=1
        ),
    ] = None
    confirm_seeds: Annotated[
        int | None, Option(help="Fresh seeds of each; default: the effort's.", cli=False, least=1)
    ] = None
    out: shared.Out = None
    runs: shared.Runs = "runs"


class SearchCall(SearchArguments):
    """The arguments of a call of `autopeft.search`, with those that no manifest records."""

    resume: Annotated[
        str | Path | None,
        Option(
            help="Go on with a run that was cut off (a folder, a name, or `latest`), as it was begun.",
            metavar="RUN",
            cli_type=str,
            after="budget",
        ),
    ] = None
    reporter: Annotated[
        ReporterData,
        Option(help="Is told of every event (see `Reporter`).", typed="Reporter | None", cli=False),
    ] = None
    notify: shared.Notify = None


class PlanCall(SearchArguments):
    """The arguments of a call of `autopeft.search.api.plan`."""

    called: ClassVar[str] = "plan"

    samples: Annotated[int, Option(help="Recipes to draw.", cli=False, least=0)] = 5
    notify: shared.Notify = None
