"""The method contract and its open registry.

A **method** is a small class: a strict config, its `Traits`, a closed-form `parameter_count` and `build`,
which is called once per recipe entry and returns one `nn.Module` that owns what the entry trains at all its
sites. How that module acts is told by the ways of its traits and, for each of them, the protocol of that name
below (`HookModule`, `RegionModule`, `WeightModule`, `KeyValueModule`, `ScoresModule`, `PromptModule`,
`LogitsModule`).
Everything else is optional and found by its presence; `autopeft.method.members` declares all of it, and a
misspelt or misshapen member is refused. A configured method may narrow its class's `traits` by some of its
own: a variant that acts in fewer ways, has fewer sites, or cannot be merged.
"""

from __future__ import annotations

from autopeft.method.contract import (
    BARE,
    FEATURE,
    Call,
    Context,
    Interim,
    Linear,
    Method,
    MethodConfig,
    Narrow,
    Need,
    ParameterCount,
    PeftFormat,
    PeftKind,
    Places,
    Traits,
    Way,
)
from autopeft.method.lifecycle import (
    Calibration,
    Concludes,
    Ensembles,
    Explicit,
    LimitsTexts,
    Merges,
    Objective,
    Placement,
    Posterior,
    Prepares,
    Resizes,
    Settles,
    WritesOut,
    WrittenOut,
)
from autopeft.method.members import MEMBERS, Member, check_members, check_module, members_table
from autopeft.method.modules import (
    HookModule,
    KeyValueModule,
    LogitsModule,
    PromptModule,
    RegionModule,
    ScoresModule,
    WeightModule,
    WeightTarget,
)
from autopeft.method.narrowing import narrowed
from autopeft.method.optimization import (
    DecayTarget,
    decay,
    decay_targets,
    no_such_part,
    part_names,
    parts_of,
    shortened,
)
from autopeft.method.phase import OuterStep, Phase, PhasePart, Sample, Session
from autopeft.method.registry import get_method, method_names, register
from autopeft.method.reserved import Reserved, Slot, reserved_rows
from autopeft.method.step import LossStep
from autopeft.method.stored import StartsFrom, Stored
from autopeft.method.tasks import required_tasks, task_numbers

__all__ = [
    "BARE",
    "FEATURE",
    "MEMBERS",
    "Calibration",
    "Call",
    "Concludes",
    "Context",
    "DecayTarget",
    "Ensembles",
    "Explicit",
    "HookModule",
    "Interim",
    "KeyValueModule",
    "LimitsTexts",
    "Linear",
    "LogitsModule",
    "LossStep",
    "Member",
    "Merges",
    "Method",
    "MethodConfig",
    "Narrow",
    "Need",
    "Objective",
    "OuterStep",
    "ParameterCount",
    "PeftFormat",
    "PeftKind",
    "Phase",
    "PhasePart",
    "Placement",
    "Places",
    "Posterior",
    "Prepares",
    "PromptModule",
    "RegionModule",
    "Reserved",
    "Resizes",
    "Sample",
    "ScoresModule",
    "Session",
    "Settles",
    "Slot",
    "StartsFrom",
    "Stored",
    "Traits",
    "Way",
    "WeightModule",
    "WeightTarget",
    "WritesOut",
    "WrittenOut",
    "check_members",
    "check_module",
    "decay",
    "decay_targets",
    "get_method",
    "members_table",
    "method_names",
    "narrowed",
    "no_such_part",
    "part_names",
    "parts_of",
    "register",
    "required_tasks",
    "reserved_rows",
    "shortened",
    "task_numbers",
]

__doc__ = f"""{__doc__}
A module may have:

{members_table("module")}

A method class may have:

{members_table("method")}
"""
