"""A hybrid as a diff: which entries of the backbone's tensors it changes, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from autopeft.assets.heads import drawn, plain_options
from autopeft.errors import AutoPEFTError
from autopeft.export.lora_factors import NotServable
from autopeft.export.peft_format import base_prefix
from autopeft.hybrid import head_of
from autopeft.hybrid.merging import fold_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from autopeft.hybrid import Hybrid

__all__ = ["DIFF", "Diff", "diff_of", "loading_code", "write_diff"]

DIFF = "diff.safetensors"
_SHORT = 2**31  # positions below take four bytes


@dataclass(frozen=True)
class Diff:
    """Changes of a model's parameters, by the names that transformers has for them.

    Attributes:
        entries: positions (k,) in the flattened tensor, rising, and what is added there (k,), in fp32.
        whole: parameters of the task head, which are there whole.
    """

    entries: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor]

    @property
    def changed(self) -> int:
        """How many entries of the backbone change."""
        return sum(len(index) for index, _ in self.entries.values())

    def tensors(self) -> dict[str, Tensor]:
        """What is in the file: `index.NAME` and `values.NAME`, and `whole.NAME`."""
        found: dict[str, Tensor] = {}
        for name, (index, values) in self.entries.items():
            found[f"index.{name}"], found[f"values.{name}"] = index, values
        return {**found, **{f"whole.{name}": value for name, value in self.whole.items()}}

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def to_dict(self) -> dict[str, Any]:
        """Its figures as data."""
        return {"changed": self.changed, "tensors": len(self.entries), "bytes": self.size}


def diff_of(hybrid: Hybrid) -> Diff:
    """What a hybrid changes on its model, whose backbone stays as it is.

    Raises:
        NotServable: not all that it does is a change of the backbone's own tensors, or so much changes that
            the whole model is smaller.
        CompositionError: something acts where no tensor could take it.
    """
    changes, base = fold_weights(hybrid.graph, hybrid.modules, hybrid.injection), hybrid.injection.base
    if changes.rest:
        first = next(iter(changes.rest.values()))
        raise NotServable(
            f"{first.what} is no change of the backbone's own tensors, so that no diff can hold it; export "
            "the hybrid itself (--as autopeft), or a LoRA near it (--as lora)."
        )
    prefix, entries = base_prefix(hybrid.model), {}
    for name, new in changes.tensors.items():
        delta = (new.float() - base.get_parameter(name).detach().float()).flatten().cpu()
        index = delta.nonzero()[:, 0]
        if len(index):
            stored = index.to(torch.int32 if len(delta) < _SHORT else torch.int64)
            entries[f"{prefix}{name}"] = (stored, delta[index])
    kept = {**head_of(hybrid.model), **drawn(hybrid.model)}
    diff = Diff(entries, {name: p.detach().cpu().contiguous() for name, p in kept.items()})
    whole = sum(p.numel() for p in base.parameters())
    if diff.size >= 4 * whole:
        raise NotServable(
            f"The hybrid changes {diff.changed:,} of the backbone's {whole:,} entries, and a diff of these "
            "is larger than the model; export it with --as merged, or --as lora."
        )
    return diff


def write_diff(diff: Diff, folder: Path, readme: str) -> None:
    """Write `diff.safetensors` and a README that tells how to apply it.

    Raises:
        AutoPEFTError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(diff.tensors(), folder / DIFF, metadata={"format": "pt"})
        (folder / "README.md").write_text(readme, encoding="utf-8")
    except OSError as error:
        raise AutoPEFTError(f"Cannot write {str(folder)!r}: {error.strerror or error}.") from error


def loading_code(model: PreTrainedModel, kind: str, base: str, file: str) -> str:
    """Python that applies a diff in plain transformers.

    Args:
        kind: the class that loads the backbone, `AutoModelFor…` or the model's own.
        base: where the backbone is.
        file: where the diff is.
    """
    options = plain_options(model, labels=bool(head_of(model)))
    return (
        "import torch\n"
        "from safetensors.torch import load_file\n"
        f"from transformers import {kind}\n\n"
        # In the dtype of the checkpoint, bf16 for example, small changes would be rounded away.
        f"model = {kind}.from_pretrained({base!r}{options}, dtype=torch.float32)\n"
        f"diff, parameters = load_file({file!r}), dict(model.named_parameters())\n"
        "with torch.no_grad():\n"
        "    for key, value in diff.items():\n"
        '        what, _, name = key.partition(".")\n'
        '        if what == "whole":\n'
        "            parameters[name].copy_(value)\n"
        '        elif what == "values":\n'
        "            flat = parameters[name].view(-1)\n"
        '            flat.index_add_(0, diff[f"index.{name}"], value.to(flat.dtype))'
    )
