"""What is refused before a training begins."""

from __future__ import annotations

from autopeft.errors import CompositionError, UsageError
from autopeft.graph import on_sharded
from autopeft.hybrid import Hybrid
from autopeft.hybrid.policies import Policies
from autopeft.method import LimitsTexts
from autopeft.spec import BackboneSpec
from autopeft.tasks import EncodedTask
from autopeft.tasks.kinds import TaskKind
from autopeft.tasks.kinds.generation import room_of
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.contracts import Trainable
from autopeft.training.distributed import team_of
from autopeft.training.plan import TrainingPlan

__all__ = ["check", "check_positions", "check_recipe"]


def check(
    hybrid: Trainable, data: EncodedTask, plan: TrainingPlan, until: int | None, resume: Checkpoint | None
) -> None:
    """Refuse all that `train` refuses before it begins: a pause, or a checkpoint to go on from, that it does
    not allow, a recipe that cannot work, and rows, of any split, that what is attached has no room for."""
    start = 0 if resume is None else resume.step
    if until is not None and not start < until <= plan.steps:
        raise UsageError(f"A training of {plan.steps} steps at step {start} cannot pause at {until=}.")
    if resume is not None and not start < plan.steps:
        raise UsageError(f"This checkpoint is at step {start} of {plan.steps}: nothing is left to train.")
    if resume is not None and not isinstance(hybrid, Hybrid):
        raise UsageError(f"Only an attached recipe goes on from a checkpoint, not {type(hybrid).__name__}.")
    if plan.patience is not None and (until is not None or resume is not None):
        raise UsageError("A training with `patience` does not pause: what it waits for is not kept.")

    check_recipe(hybrid, data.task.task_kind)
    if not isinstance(hybrid, Hybrid):
        return
    spec, modules = hybrid.spec, hybrid.modules.values()
    name, longest = check_positions(spec, data)
    room = room_of(hybrid.model)
    prompts = spec.max_positions is not None and any(hasattr(module, "prompt") for module in modules)
    limited = prompts or any(isinstance(module, LimitsTexts) for module in modules)
    if room is not None and limited and longest > room:
        raise UsageError(
            f"A row of {name} has {longest:,} tokens, and {hybrid.recipe.name} has room for {room:,}, "
            f"the rows of its prompts left out; shorten the texts to {room:,} (max length), or its "
            "prompts, or let its methods take longer texts."
        )


def check_recipe(hybrid: Trainable, kind: TaskKind) -> None:
    """Refuse what has nothing to act on, or cannot work with models of the kind or in several processes."""
    count = team_of(hybrid.model).size
    if count > 1:  # and each has a part of the backbone
        whole = f"{hybrid.recipe.name} trains the whole backbone"
        why = on_sharded(hybrid.graph) if isinstance(hybrid, Hybrid) else whole
        if why is not None:
            raise UsageError(
                f"This training has {count} processes, each with a part of the backbone and of the rows, and "
                f"{why}; train it in one process (--processes-per-trial 1), or leave it out."
            )
    Policies(hybrid.recipe.training).refuse_idle(hybrid.parameter_groups(), hybrid.trained_modules)
    if not isinstance(hybrid, Hybrid):
        return
    entries, spec = hybrid.graph.entries, hybrid.spec
    wanting = [n for n, entry in entries.items() if "row_logits" in entry.method.traits.needs]
    if wanting and not kind.head.row_distribution:
        name = entries[wanting[0]].method.name
        raise CompositionError(
            f"{wanting[0]} needs one distribution over classes for each row, which models for {kind.plain} "
            f"do not have. `autopeft methods {name}` says which option does without."
        )
    pooling = [n for n, entry in entries.items() if entry.method.traits.pools]
    if pooling and not kind.head.one_state:
        raise CompositionError(
            f"{pooling[0]} gives every position the same state, and models for {kind.plain} read several of "
            "a row, or one that has a meaning of its own; leave it out."
        )
    heads = [n for n, entry in entries.items() if entry.method.traits.replaces_head]
    if heads and spec.logits is not None and spec.logits.tokens:
        raise CompositionError(
            f"{heads[0]} puts a head of its own in the place of the model's, which for {kind.plain} is one "
            f"of {spec.logits.width:,} words: as many would begin at random. Leave out the label words "
            "(--label-words) for a head of the task's own, or use prompt_tuning or idpg."
        )
    # Where it predicts one thing of each row, it sees the text, and predicts no part of it.
    if kind.head.new_head or kind.head.row_distribution:
        return
    seeing = [n for n, e in entries.items() if e.traits.sees_text]
    ahead = [n for n in seeing if any(spec.stack(site.stack).causal for site in entries[n].sites)]
    if ahead:
        raise CompositionError(
            f"{ahead[0]} makes its prompt of the whole text, in which models for {kind.plain} predict each "
            "token from those before it, so that they would see what they are to predict; use a prompt that "
            "does not depend on the text (prompt_tuning, p_tuning), or an encoder-decoder."
        )


def check_positions(spec: BackboneSpec, data: EncodedTask) -> tuple[str, int]:
    """Refuse rows, of any split, that have more tokens than the backbone has positions.

    Returns:
        The split with the longest row, and its tokens, of those that the first stack reads.

    Raises:
        UsageError: there is one.
    """
    found = [("train", 0)]
    for split_name, split in data.splits.items():
        lengths = split.lengths if len(spec.stacks) == 1 else split.prompt_lengths
        found.append((split_name, int(lengths.max()) if len(lengths) else 0))
    name, longest = max(found, key=lambda one: one[1])
    if spec.max_positions is not None and longest > spec.max_positions:
        raise UsageError(
            f"A row of {name} has {longest:,} tokens, and the backbone has positions for "
            f"{spec.max_positions:,}: cut the rows with --max-length {spec.max_positions} (max_length)."
        )
    return name, longest
