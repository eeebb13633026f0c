"""The formats that a hybrid is exported in, beside its own recipe and weights.

Each is made ready first, which refuses what it cannot hold while nothing is written yet, and then written
into a folder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.assets import ASSETS, ImageProcessor, load_tokenizer
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.export.answer_end import AnswerEnd, Program, answer_end
from autopeft.export.arguments import EvaluateArguments, ExportArguments
from autopeft.export.diff_format import DIFF, diff_of, loading_code, write_diff
from autopeft.export.gguf_format import ADAPTER, check_gguf, write_gguf
from autopeft.export.lora_factors import NotServable
from autopeft.export.lora_format import lora_adapter
from autopeft.export.lora_weights import LoRAWeights, Rows, lora_weights
from autopeft.export.merged_format import merge, write_merged
from autopeft.export.package import RECIPE, Ready
from autopeft.export.peft_format import (
    NotExpressible,
    PeftAdapter,
    peft_adapter,
    task_type_of,
    write_adapter,
)
from autopeft.export.trained import Trained, task_of, trained
from autopeft.export.vllm_rules import VLLMFinding, smallest_rank, vllm_findings
from autopeft.hybrid import explicit_recipe
from autopeft.recipe.pooling import pooling_of
from autopeft.runs.files import write_atomic
from autopeft.runs.markdown import fenced, plain

if TYPE_CHECKING:
    from autopeft.assets import ModelSource
    from autopeft.export.package import Saved
    from autopeft.hybrid import Hybrid

__all__ = ["FORMATS", "Export", "Ready", "make_ready"]

_FIT, _MEASURE = 256, 512  # rows of train that a LoRA is fitted on, of select that its cost is measured on
_LOADED_BY: Mapping[str, tuple[Program, ...]] = {
    "peft": ("transformers",),
    "merged": ("transformers", "vLLM"),
    "diff": ("transformers",),
    "lora": ("transformers", "vLLM"),
    "gguf-lora": ("llama.cpp",),
}


@dataclass(frozen=True)
class Export:
    """What is exported: a run and what was given, its saved hybrid, live, and where the backbone is."""

    run: Trained
    given: ExportArguments
    saved: Saved
    hybrid: Hybrid
    source: ModelSource

    @property
    def task_type(self) -> str | None:
        """peft's word for the kind of task."""
        return None if self.saved.card.kind is None else self.saved.card.task_kind.head.peft_task_type

    @cached_property
    def processor(self) -> Any:
        """What makes of rows what the backbone takes (see `Encoder.load_processor`)."""
        card = self.saved.card
        return (
            load_tokenizer(self.source)
            if card.kind is None
            else card.task_kind.encoder.load_processor(self.source)
        )

    @cached_property
    def end(self) -> AnswerEnd | None:
        """What ends its answers; `None` where it writes none, or has no tokenizer beside its weights."""
        if self.saved.card.kind is None or not self.saved.card.task_kind.scorer.writes:
            return None
        try:
            processor = self.processor
        except UsageError:  # nothing is known of ends; weights alone are exported all the same
            return None
        return answer_end(self.hybrid.model, processor)

    @property
    def is_decoder(self) -> bool:
        """Whether its model is a decoder, such as vLLM serves: encoders with the head of a masked language
        model and encoder-decoders have output embeddings as well."""
        return (self.task_type or task_type_of(self.hybrid.model)) == "CAUSAL_LM"

    @property
    def base(self) -> str:
        """The backbone as commands name it: by its name on the hub where its weights are those."""
        asset = ASSETS.get(str(self.source.alias))
        if asset is not None and asset.gguf is not None:
            return f"path/to/{asset.key}"
        if asset is not None and asset.hub is not None:
            return asset.hub
        return self.source.path if self.source.origin == "hub" else "path/to/the/backbone"

    @property
    def base_notes(self) -> tuple[str, ...]:
        """What is to be said of a backbone whose weights are not those of the hub's model."""
        asset = ASSETS.get(str(self.source.alias))
        if asset is None or asset.gguf is None:
            return ()
        return (
            f"Its backbone is AutoPEFT's {asset.key}, whose weights were decoded from a quantised file and "
            f"are not those of {asset.hub}: load it from autopeft.assets.resolve_model({asset.key!r}).path, "
            "or export it with --as merged, which needs no backbone.",
        )


def _peft(export: Export) -> Ready:
    adapter = peft_adapter(export.hybrid, export.task_type)
    section = "`peft/` holds an adapter for Hugging Face peft. Its `README.md` says how it is loaded."
    lines, found = _vllm(export, adapter)
    return Ready(lambda to: write_adapter(export.hybrid, adapter, to), section, lines, found)


def _merged(export: Export) -> Ready:
    model, processor, card = merge(export.hybrid), export.processor, export.saved.card
    kind = type(model).__name__ if card.kind is None else card.task_kind.head.auto_class.__name__
    images = isinstance(processor, ImageProcessor)
    reader, name = ("AutoImageProcessor", "processor") if images else ("AutoTokenizer", "tokenizer")
    code = (
        f"from transformers import {', '.join(sorted((reader, kind)))}\n\n"
        f'model = {kind}.from_pretrained("merged")\n{name} = {reader}.from_pretrained("merged")'
    )
    section = (
        "`merged/` holds the whole model with the hybrid in its weights, in fp32. It needs neither AutoPEFT "
        f"nor peft:\n\n{fenced(code, 'python')}"
    )
    if export.is_decoder:
        section += f"\n\nvLLM serves it as well:\n\n{fenced('vllm serve merged', 'bash')}"
    end = export.end
    ends = end.whole.tokens if end is not None and end.unsaid else ()
    return Ready(lambda to: write_merged(model, processor, to, ends=ends), section)


def _diff(export: Export) -> Ready:
    diff, model, card = diff_of(export.hybrid), export.hybrid.model, export.saved.card
    kind = type(model).__name__ if card.kind is None else card.task_kind.head.auto_class.__name__
    line = (
        f"It changes {diff.changed:,} entries of {len(diff.entries)} of the backbone's tensors: "
        f"{diff.size / 1e6:.2f} MB."
    )
    text = "A diff of the backbone's own tensors, for plain transformers: positions, and what is added there."
    code = fenced(loading_code(model, kind, export.base, DIFF), "python")
    readme = f"# A diff\n\n{text} {line}\n\n{code}\n"
    section = f"`diff/{DIFF}` holds positions in the backbone's own tensors and what is added there. " + (
        f"{line} Its `README.md` says how it is applied."
    )
    return Ready(lambda to: write_diff(diff, to, readme), section, (line,), diff.to_dict())


def _lora(export: Export) -> Ready:
    weights = lora_weights(export.hybrid, export.given.rank, lambda: _rows(export))
    adapter = lora_adapter(export.hybrid, weights, export.task_type)
    checked, found = _vllm(export, adapter)
    lines = (*_nearness(weights), *checked)
    serve = ""
    if all(one["state"] == "kept" for one in found["vllm"]):
        words = f"vllm serve {export.base} --enable-lora --lora-modules hybrid=lora"
        words += f" --max-lora-rank {smallest_rank(weights.rank)}"
        serve = f" vLLM serves it beside the backbone:\n\n{fenced(words, 'bash')}\n\n"
    section = (
        "`lora/` holds a LoRA in peft's format. Its `README.md` says how it is loaded."
        f"{serve or ' '}{' '.join(map(plain, lines))}"
    )
    return Ready(
        lambda to: write_adapter(export.hybrid, adapter, to), section, lines, {**weights.to_dict(), **found}
    )


def _gguf_lora(export: Export) -> Ready:
    model = export.hybrid.model
    check_gguf(model)
    weights = lora_weights(export.hybrid, export.given.rank, lambda: _rows(export), biases=False)
    lines, name = _nearness(weights), export.hybrid.recipe.name
    words = f"llama-cli -m backbone.gguf --lora gguf-lora/{ADAPTER}"
    section = (
        f"`gguf-lora/{ADAPTER}` is a LoRA for llama.cpp, on the backbone as its `convert_hf_to_gguf.py` "
        f"writes it:\n\n{fenced(words, 'bash')}\n\n{' '.join(map(plain, lines))}"
    )
    return Ready(lambda to: write_gguf(model, weights, to, name=name), section, lines, weights.to_dict())


def _nearness(weights: LoRAWeights) -> tuple[str, ...]:
    """How near a LoRA is to the hybrid, in sentences."""
    if weights.cost is None:
        return (f"It gives the hybrid's own logits, up to rounding; its rank is {weights.rank}.",)
    what = list(dict.fromkeys(weights.fitted.values()))
    more = f" and {len(what) - 1} more" if len(what) > 1 else ""
    why = f"{what[0]}{more} is no change of a weight" if what else "changes of weights are cut"
    return (f"It comes near the hybrid ({why}); its rank is {weights.rank}.", weights.cost.text)


def _vllm(export: Export, adapter: PeftAdapter) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What vLLM's rules say, in sentences and as data."""
    found = vllm_findings(adapter.config, str(export.hybrid.model.config.model_type))
    return _verdict(found), {"vllm": [one.to_dict() for one in found]}


def _verdict(found: list[VLLMFinding]) -> tuple[str, ...]:
    against = [one.text for one in found if one.state != "kept"]
    if against:
        return tuple(f"For vLLM: {text}" for text in against)
    needs = [one.text for one in found if one.rule == "rank"]
    return (f"vLLM takes it. {' '.join(needs)}",)


def _recipe(export: Export) -> Ready:
    found = explicit_recipe(export.hybrid)
    text = found.recipe.to_yaml()
    lines = tuple(f"Left out, as no recipe can say it: {one}." for one in found.left)
    command, said = "autopeft search … --from recipe", " ".join(map(plain, lines))
    section = (
        "`recipe/recipe.yaml` says what data have settled, ranks and places, by plain methods. It has none "
        f"of the values. A search can begin with it:\n\n{fenced(command, 'bash')}\n\n{said}"
    ).rstrip()

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / RECIPE, text.encode())

    return Ready(write, section, lines, {"left_out": list(found.left)})


def _rows(export: Export) -> Rows:
    """Rows of the hybrid's own task.

    Raises:
        NotServable: they cannot be read.
    """
    try:
        known = trained(export.run)
        task = task_of(known, EvaluateArguments(notify=export.given.notify))
    except AutoPEFTError as error:
        raise NotServable(
            "A LoRA can only come near this hybrid, and what that costs is measured on rows of its task: "
            f"{error}"
        ) from error
    some = task.subset(train=_FIT, select=_MEASURE)
    processor, kind = export.processor, task.task_kind
    fit, measure = (
        kind.encoder.encode(some.splits[name], processor, known.longest(processor))
        for name in ("train", "select")
    )
    return Rows(fit, measure, task.metric, export.given.notify or (lambda text: None))


def make_ready(name: str, export: Export) -> Ready:
    """A format by its name, with what whoever loads it has to know of this hybrid; see `FORMATS`."""
    programs = _LOADED_BY.get(name, ())
    pools = pooling_of(export.hybrid.recipe).methods if programs else ()
    if pools:  # the head reads what plain transformers do not give it
        refusal = NotExpressible if name == "peft" else NotServable
        raise refusal(
            f"{pools[0]} settles what the head reads, which --as {name} cannot say; search with --pooling "
            f"own, or train the recipe without {pools[0]}, for a model to be loaded so."
        )
    ready, end = FORMATS[name](export), export.end
    notes = export.base_notes if programs and name != "merged" else ()
    if end is not None and programs:
        notes += tuple(end.notes(programs, named=name == "merged"))
    section = "\n\n".join((ready.section, *map(plain, notes)))
    return replace(ready, section=section, lines=(*ready.lines, *notes))


FORMATS: Mapping[str, Callable[[Export], Ready]] = {
    "peft": _peft,
    "merged": _merged,
    "diff": _diff,
    "lora": _lora,
    "gguf-lora": _gguf_lora,
    "recipe": _recipe,
}
"""By name what makes a format ready; each is written into a folder of that name.

Raises:
    NotExpressible, NotServable, CompositionError: the hybrid cannot be said in it.
    UsageError: nothing in the hybrid was settled by data, so that there is no other recipe of it.
"""
